// Package loaders tests what boot loaders do with any variables: the real ones, alone, against their models.
package loaders
