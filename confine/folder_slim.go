//go:build slim

package confine

const folders = false
