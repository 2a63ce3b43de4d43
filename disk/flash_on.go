//go:build !slim

package disk

// flash: raw flashes are known. Only some boot loaders keep something there.
const flash = true
