//go:build !slim

package confine

// folders is false in programs whose workers make no files (Spec.Folder).
const folders = true
