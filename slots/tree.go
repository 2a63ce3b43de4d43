package slots

import (
	"slices"

	"lifeboat/bundle"
	"lifeboat/verify"
)

// integrities are the kinds of dm-integrity below a tree, by their numbers in a seal.
var integrities = []string{"none", "crc32c", "sha256", "hmac-sha256"}

const treeExt4 = 1 // the file system, in a seal

// TreeSeal returns the seal of a slot that holds the tree of an archive of a bundle, and what else its system may have
// written there since. integrity is what [Facts] has; digest the SHA-256 of the tree as it was installed.
func TreeSeal(b *bundle.Bundle, image int, integrity string, digest [32]byte) (Seal, error) {
	img := &b.Manifest.Images[image]
	n := slices.Index(integrities, integrity)
	if n < 0 || !img.Archive() {
		return Seal{}, verify.Refuse(verify.Policy, "image %s (%s) is no archive for this slot", img.Key(), img.Filename)
	}
	s := Seal{Kind: KindTree, CMS: b.CMS, Image: img.Key(), Salt: []byte{byte(n), treeExt4}, RootHash: digest}
	if b.Plain() {
		s.Manifest = b.Manifest.Raw
	}
	if err := s.check(); err != nil {
		return Seal{}, verify.Refuse(verify.Policy, "the bundle does not fit into a seal: %w", err)
	}
	return s, nil
}
