package badinputs

import (
	"bytes"
	"fmt"
	"strings"

	"lifeboat/verify/verity"
)

// plainManifest is the one that lies in the good plain bundle.
func (k *Kit) plainManifest() string {
	return fmt.Sprintf("[update]\ncompatible=%s\nversion=2.0\n%s", k.Compatible, describe("rootfs", file, k.Image))
}

// plainPayload is a squashfs with its manifest in it.
func (k *Kit) plainPayload(manifest string) []byte {
	return k.squashfs(map[string][]byte{file: k.Image, "manifest.raucm": []byte(manifest)})
}

func (k *Kit) plain(manifest string) []byte {
	p := k.plainPayload(manifest)
	return join(p, k.sign(p, true))
}

// manifests are rows 53 to 75: what is signed and says what must not be taken.
func (k *Kit) manifests() []Input {
	saying := func(row, name string, code Code, manifest string) Input {
		return Input{Row: row, Name: name, PC: code, Device: code, Make: func() []byte { return join(k.good, k.sign([]byte(manifest), false)) }}
	}
	good := k.manifest()
	edit := func(row, name string, code Code, before, after string) Input {
		if strings.Count(good, before) != 1 {
			k.T.Fatalf("%q does not stand once in the manifest", before)
		}
		return saying(row, name, code, strings.Replace(good, before, after, 1))
	}
	more := func(row, name string, code Code, text string) Input { return saying(row, name, code, good+text) }
	// device changes what only a device can know.
	device := func(code Code, i Input) Input { i.Device = code; return i }
	// holding has files in its payload, and the manifest of the good bundle.
	holding := func(row, name string, code Code, files map[string][]byte, text string) Input {
		return Input{Row: row, Name: name, PC: code, Device: code, Make: func() []byte {
			p, head := k.payload(files)
			return join(p, k.sign([]byte(head+text), false))
		}}
	}
	rootfs := describe("rootfs", file, k.Image)
	hash := "verity-hash=" + between(good, "verity-hash=", "\n")
	size := "verity-size=" + between(good, "verity-size=", "\n")
	sum := "sha256=" + between(good, "sha256=", "\n")
	length := fmt.Sprint(len(k.Image))
	tooLarge := Content(3, 21<<20)
	other := bytes.Clone(k.Image)
	other[len(other)/2]++

	return []Input{
		edit("53", "a key twice", 20, "version=2.0\n", "version=2.0\nversion=2.0\n"),
		more("53", "a group twice", 20, "[update]\n"),
		edit("54", "no compatible", 20, "compatible="+k.Compatible+"\n", ""),
		edit("54", "empty compatible", 20, "compatible="+k.Compatible+"\n", "compatible=\n"),
		edit("55", "for another device", 27, "compatible="+k.Compatible+"\n", "compatible="+k.Compatible+"-2\n"),
		edit("56", "unknown format", 31, "format=verity", "format=tar"),
		{Row: "57", Name: "plain where it is not allowed", PC: 31, Device: 31, Make: func() []byte { return k.plain(k.plainManifest()) }},
		edit("58", "root hash of 31 bytes", 20, hash, hash[:len(hash)-2]),
		edit("58", "root hash that is not hex", 20, hash, hash[:len(hash)-2]+"zz"),
		edit("59", "tree of no whole blocks", 20, size, "verity-size=4097"),
		edit("59", "tree of no bytes", 20, size, "verity-size=0"),
		edit("60", "tree longer than the payload", 20, size, "verity-size=40960000"),
		edit("60", "tree as long as the payload", 20, size, fmt.Sprintf("verity-size=%d", len(k.good))),
		edit("61", "tree of 2^64-4096 bytes", 20, size, "verity-size=18446744073709547520"),
		edit("61", "tree of 2^63-4096 bytes", 20, size, "verity-size=9223372036854771712"),
		edit("62", "file name with a slash", 20, "filename="+file, "filename=../"+file),
		edit("62", "file name of dots", 20, "filename="+file, "filename=.."),
		edit("62", "file name with NUL", 20, "filename="+file, "filename=root\x00fs.img"),
		edit("62", "file name of 300 characters", 20, "filename="+file, "filename="+strings.Repeat("a", 300)),
		edit("62", "file name with a line end", 20, "filename="+file, `filename=root\nfs.img`),
		holding("63", "image that is not there", 30, map[string][]byte{"other.img": k.Image}, rootfs),
		holding("64", "file that the manifest does not name", 20, map[string][]byte{file: k.Image, "evil": []byte("x")}, rootfs),
		holding("0", "index that the manifest names", 0, map[string][]byte{file: k.Image, file + ".block-hash-index": []byte("x")}, rootfs+"adaptive=block-hash-index\n"),
		edit("65", "empty sha256", 20, sum, "sha256="),
		edit("65", "no sha256", 20, sum+"\n", ""),
		edit("66", "image said to be a byte longer", 30, "\nsize="+length, fmt.Sprintf("\nsize=%d", len(k.Image)+1)),
		edit("66", "image said to be a byte shorter", 30, "\nsize="+length, fmt.Sprintf("\nsize=%d", len(k.Image)-1)),
		wipes(saying("66", "image of another sha256", 30, k.head+describe("rootfs", file, other))),
		device(31, holding("67", "image larger than the slot", 0, map[string][]byte{file: tooLarge}, describe("rootfs", file, tooLarge))),
		more("68", "hooks", 31, "[hooks]\nfilename=hook\nhooks=install-check\n"),
		more("68", "handler", 31, "[handler]\nfilename=handler\n"),
		more("68", "hooks of the image", 31, "hooks=post-install\n"),
		floor(3, device(28, more("69", "epoch below the floor", 0, "[meta.lifeboat]\nsecurity-epoch=2\n"))),
		floor(3, device(28, saying("69", "no epoch where there is a floor", 0, good))),
		floor(3, more("0", "epoch of the floor", 0, "[meta.lifeboat]\nsecurity-epoch=3\n")),
		device(31, more("70", "epoch that rises by 17", 0, "[meta.lifeboat]\nsecurity-epoch=17\n")),
		device(31, more("70", "epoch of 2^32-1", 0, "[meta.lifeboat]\nsecurity-epoch=4294967295\n")),
		more("0", "epoch that rises by 16", 0, "[meta.lifeboat]\nsecurity-epoch=16\n"),
		more("70", "epoch of 33 bits", 20, "[meta.lifeboat]\nsecurity-epoch=4294967296\n"),
		more("71", "no longer valid", 29, "[meta.lifeboat]\nvalid-until=2001-01-01T00:00:00Z\n"),
		more("0", "still valid", 0, "[meta.lifeboat]\nvalid-until=2222-01-01T00:00:00Z\n"),
		more("72", "two images for one slot", 20, rootfs),
		device(31, holding("73", "an image for the bootloader beside ours", 0, map[string][]byte{file: k.Image, "boot.img": k.Image}, rootfs+describe("bootloader", "boot.img", k.Image))),
		device(27, holding("73", "an image for the bootloader only", 0, map[string][]byte{"boot.img": k.Image}, describe("bootloader", "boot.img", k.Image))),
		device(27, holding("73", "an image for one slot by its number", 0, map[string][]byte{file: k.Image}, describe("rootfs.0", file, k.Image))),
		saying("74", "60 KiB of brackets", 20, strings.Repeat("[", 60<<10)),
		saying("75", "byte order mark", 20, "\uFEFF"+good),
		saying("75", "carriage returns", 20, strings.ReplaceAll(good, "\n", "\r\n")),
		edit("75", "escape sequence", 20, "version=2.0", "version=2.0\x1b[2J"),
		edit("75", "not UTF-8", 20, "version=2.0", "version=2.0\xff"),
	}
}

func wipes(i Input) Input { i.Wipes = true; return i }

func floor(epoch uint32, i Input) Input { i.Floor = epoch; return i }

// between is what stands in s after the first a and before the next b.
func between(s, a, b string) string {
	_, s, _ = strings.Cut(s, a)
	s, _, _ = strings.Cut(s, b)
	return s
}

// payloads are rows 76 to 89 that are whole files: damaged, mixed, or signed and impossible to unpack.
func (k *Kit) payloads() []Input {
	damage := func(row, name string, code Code, change func(b []byte) []byte) Input {
		return Input{Row: row, Name: name, PC: code, Device: code, Make: func() []byte { return change(k.Good()) }}
	}
	flip := func(where func(b []byte) int) func(b []byte) []byte {
		return func(b []byte) []byte {
			b[where(b)] ^= 0x10
			return b
		}
	}
	blocks := treeless(len(k.good))
	data := blocks * verity.BlockSize
	cms := func() []byte { return k.sign([]byte(k.manifest()), false) }
	// edited is signed after its squashfs was changed.
	edited := func(row, name string, code Code, change func(b []byte), args ...string) Input {
		return Input{Row: row, Name: name, PC: code, Device: code, Make: func() []byte {
			b := k.squashfs(map[string][]byte{file: k.Image}, args...)
			change(b)
			p, head := k.tree(b)
			return join(p, k.sign([]byte(head+describe("rootfs", file, k.Image)), false))
		}}
	}
	return []Input{
		damage("76", "a bit of the payload", 30, flip(func(b []byte) int { return data / 2 })),
		damage("76", "a bit of the hash tree", 30, flip(func(b []byte) int { return data + 5 })),
		damage("76", "a bit of the manifest", 21, flip(func(b []byte) int { return bytes.Index(b, []byte("version=2.0")) + 8 })),
		damage("76", "a bit of the signature", 21, flip(func(b []byte) int { return len(b) - 8 - 10 })),
		damage("77", "cut before the signature", 20, func(b []byte) []byte { return b[:len(k.good)] }),
		damage("77", "cut in the payload", 20, func(b []byte) []byte { return append(b[:4096:4096], make([]byte, 4096)...) }),
		{Row: "79", Name: "payload of another bundle", PC: 30, Device: 30, Make: func() []byte {
			p, _ := k.payload(map[string][]byte{file: Content(2, len(k.Image))})
			if len(p) != len(k.good) {
				k.T.Fatalf("payloads of %d and %d bytes", len(p), len(k.good))
			}
			return join(append(p[:data:data], k.good[data:]...), cms())
		}},
		{Row: "79", Name: "hash tree of another bundle", PC: 30, Device: 30, Make: func() []byte {
			p, _ := k.payload(map[string][]byte{file: Content(2, len(k.Image))})
			return join(append(k.good[:data:data], p[data:]...), cms())
		}},
		edited("80", "squashfs longer than it is", 20, func(b []byte) { putSize(b, uint64(len(b))+1) }),
		edited("80", "squashfs of 2^63 bytes", 20, func(b []byte) { putSize(b, 1<<63) }),
		wipes(edited("87", "gzip block of a thousand times its size", 20, func(b []byte) { copy(b[firstBlock:], bomb()) }, "-comp", "gzip")),
		wipes(edited("88", "xz with a dictionary of 4 GiB", 31, largeDictionary, "-comp", "xz")),
		wipes(edited("89", "zstd with a window of 2 GiB", 31, func(b []byte) {
			copy(b[firstBlock:], "\x28\xb5\x2f\xfd\x00\xa8") // magic, no content size, window 2^(10+21)
		}, "-comp", "zstd")),
	}
}
