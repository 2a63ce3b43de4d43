package image

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/tree"
)

// The file system that a device makes has the journal and the share of root's that the configuration says, and keeps the share when
// it is made larger; the same configuration gives the same bytes.
func TestEmptyExt4(t *testing.T) {
	for _, test := range []struct {
		o             config.Ext4
		journal, root string
	}{
		{config.Ext4{Journal: 4 << 20}, "4096k", "0"},
		{config.Ext4{Journal: 64 << 20, Reserved: 5}, "64M", "2559"}, // of 51,200
	} {
		b, err := emptyExt4(t.Context(), test.o)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := emptyExt4(t.Context(), test.o); err != nil || string(again) != string(b) {
			t.Errorf("%+v: not the same bytes again (%v)", test.o, err)
		}
		name := filepath.Join(t.TempDir(), "fs")
		if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, 200<<20)); err != nil {
			t.Fatal(err)
		}
		dev, err := disk.Open(name, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(tree.Format(dev, b, [16]byte{1}, "label"), dev.Close()); err != nil {
			t.Fatal(err)
		}
		for _, tool := range [][]string{{"e2fsck", "-fy", name}, {"resize2fs", name}, {"e2fsck", "-fn", name}} {
			if out, err := exec.Command(tool[0], tool[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%q: %v\n%s", tool, err, out)
			}
		}
		out, err := exec.Command("dumpe2fs", "-h", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		for what, want := range map[string]string{"Total journal size": test.journal, "Reserved block count": test.root, "Block count": "51200"} {
			if got := regexp.MustCompile(`(?m)^` + what + `: +(\S+)$`).FindSubmatch(out); got == nil || string(got[1]) != want {
				t.Errorf("%+v: %s is %q, want %s", test.o, what, got, want)
			}
		}
	}
}
