//go:build slim

package main

import "lifeboat/slots"

const dataDir = ""

func (*slotDoor) data(string, slots.Facts) error { return nil }
