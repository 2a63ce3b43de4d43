//go:build !raw

package disk

// flash: raw flashes are known. Only boot loaders keep something there.
const flash = true
