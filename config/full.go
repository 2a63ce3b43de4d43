//go:build !slim

package config

// Slim is false in programs that update boot loaders.
const Slim = false
