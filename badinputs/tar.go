package badinputs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
)

// tars are rows 81 to 86 and 90 to 92: signed images that are archives. The command only unpacks the bundle; a device installs
// no archives, whatever is in them.
func (k *Kit) tars() []Input {
	archive := func(row, name string, headers ...tar.Header) Input {
		return Input{Row: row, Name: name, Device: 31, Make: func() []byte {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, h := range headers {
				k.must(w.WriteHeader(&h))
			}
			w.Flush()                   // an archive that promises more than it has cannot be closed
			b.Write(Content(4, 16<<10)) // a payload of one block would have no tree
			p, head := k.payload(map[string][]byte{"rootfs.tar": b.Bytes()})
			return join(p, k.sign([]byte(head+describe("rootfs", "rootfs.tar", b.Bytes())), false))
		}}
	}
	many := make([]tar.Header, 100_000)
	for i := range many {
		many[i] = tar.Header{Name: fmt.Sprintf("f%05d", i), Mode: 0o644}
	}
	return []Input{
		archive("81", "tar with ../", tar.Header{Name: "../../etc/passwd", Mode: 0o644}),
		archive("82", "tar with an absolute path", tar.Header{Name: "/etc/passwd", Mode: 0o644}),
		archive("83", "tar that writes through a symbolic link",
			tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, tar.Header{Name: "x/passwd", Mode: 0o644}),
		archive("84", "tar with a hard link to /etc/shadow", tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "/etc/shadow"}),
		archive("85", "tar with a device node", tar.Header{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8}),
		archive("86", "tar with a set-id file", tar.Header{Name: "sh", Mode: 0o4755}),
		archive("90", "tar with a file of 1 TB", tar.Header{Name: "x", Size: 1 << 40, Mode: 0o644}),
		archive("91", "tar of 100,000 entries", many...),
		archive("92", "tar with a path of 5000 characters", tar.Header{Name: strings.Repeat("x", 5000), Mode: 0o644}),
	}
}
