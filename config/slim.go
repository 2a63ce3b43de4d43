//go:build slim

package config

// Slim says that this program updates no boot loaders, and that what does is left out of it: /init for all devices that have no
// slot of the boot loader.
const Slim = true
