//go:build slim

package crew

import (
	"os"

	"lifeboat/config"
)

// Trees is nil in programs without trees.
type Trees struct {
	Config        *config.Config
	Path          func(slot string) string
	Template, Key string
}

func (*Trees) Open(name, slot string, ro bool) (string, error)                { return "", nil }
func (*Trees) Close(name string) error                                        { return nil }
func (*Trees) Folder(slot string, empty bool) (*os.File, func() error, error) { return nil, nil, nil }
