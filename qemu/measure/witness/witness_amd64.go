package main

//lint:ignore U1000 the linker names it as the entry
func witness()
