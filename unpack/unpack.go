// Package unpack is decompression with limits: of blocks, as file systems have
// them, and of streams. What it unpacks was signed; the limits are for what
// somebody signed who did not know this device, and for nothing else to be
// needed where that is not so.
package unpack

import (
	"errors"
)

var (
	// ErrUnsupported is wrapped when the data may be fine, but need what is
	// not here, or more memory than there may be.
	ErrUnsupported = errors.New("not supported")
	// ErrTooLong: it unpacks to more than there is room for.
	ErrTooLong = errors.New("unpacks to more than a block")
)
