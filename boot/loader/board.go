//go:build !arm64 && !raw

package loader

import (
	"errors"

	"lifeboat/boot"
	"lifeboat/config"
)

// board: they are no boot loaders of such machines.
func board(c *config.Config, _ Place, _ []string) (boot.Loader, error) {
	return nil, errors.New("[system] bootloader=" + c.Bootloader + " is one of arm64 only")
}
