// Package story holds tests only: the device of package scene lives through what a device lives through.
package story
