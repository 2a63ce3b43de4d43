//go:build slim

package disk

const flash = false
