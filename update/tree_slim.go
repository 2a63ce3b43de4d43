//go:build slim

package update

import (
	"context"

	"lifeboat/slots"
)

// Roles that programs without trees do not have (Work).
func (*worker) tree(context.Context) error { return nil }
func (*worker) readTree(*slots.Seal) error { return nil }
