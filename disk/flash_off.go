//go:build raw

package disk

const flash = false
