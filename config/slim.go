//go:build slim

package config

// Slim says that this program updates no boot loaders and knows no raw flash, and that what does is left out of it: /init for
// all devices that have no slot of the boot loader, and its variables on no flash.
const Slim = true
