// Command worker extracts an archive in a folder that is all it has, and says what it reads there then.
package main

import (
	"crypto/sha256"
	"time"

	"lifeboat/confine"
	"lifeboat/tree"
)

func main() {
	j := confine.Child()
	_, err := tree.Extract("/", j.Files[0], tree.Options{Devices: string(j.Input) == "devices", Setuid: true, Max: 1 << 30})
	if err == nil {
		sum := sha256.New()
		if err = tree.Write(sum, "/", time.Time{}); err == nil {
			err = j.Send('D', sum.Sum(nil))
		}
	}
	j.Exit(err)
}
