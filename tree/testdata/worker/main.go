// Command worker extracts an archive in a folder that is all it has.
package main

import (
	"lifeboat/confine"
	"lifeboat/tree"
)

func main() {
	j := confine.Child()
	_, err := tree.Extract("/", j.Files[0], tree.Options{Devices: string(j.Input) == "devices", Setuid: true, Max: 1 << 30})
	j.Exit(err)
}
