package main

//lint:ignore U1000 it is the entry that -E names
func witness()
