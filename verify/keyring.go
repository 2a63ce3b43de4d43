package verify

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxKeyring      = 1 << 20 // bytes of PEM
	maxKeyringText  = MaxCMS
	maxKeyringCerts = 256
	maxAnchors      = 32
	maxThreshold    = maxSigners
	maxKeyringCRLs  = 64
)

// Keyring holds the certificates that a signature has to lead to, and what else
// is known about keys.
type Keyring struct {
	// Version is that of a keyring that can be renewed, 0 for one of PEM.
	Version uint32
	// Created is when the keyring says it was made; zero where it does not.
	Created time.Time
	// Anchors are the certificates at which a chain ends. Their dates are
	// ignored (RFC 5280, section 6.1.1).
	Anchors []*x509.Certificate
	// Roles of each anchor, of "release", "dev" and "keyring"; nil: all of them
	// have the role release only.
	Roles [][]string
	// Intermediates are the keyring's other certificates. They may complete
	// a chain to an anchor and are trusted no more than those that a bundle
	// brings along.
	Intermediates []*x509.Certificate
	// Thresholds of roles: how many keys must have signed; 1 where a role is
	// missing.
	Thresholds map[string]int
	// Revoked are the SHA-256 of keys (see [SPKI]) that count no more.
	Revoked [][32]byte
	// Notes is what ParseKeyring left out: CRLs that are not acceptable.
	Notes []*Refusal

	allowed family // of signatures; 0: all
	crls    []*crl
	text    [32]byte // SHA-256 of the text; zero for PEM
	lineage [][]byte // the signed keyrings by which Renew came here
	prev    *Keyring // the one before the last of them
}

// has reports whether an anchor, by its number, has a role.
func (k *Keyring) has(anchor int, role string) bool {
	if k.Roles == nil {
		return role == RoleRelease
	}
	return anchor < len(k.Roles) && slices.Contains(k.Roles[anchor], role)
}

// Threshold is how many keys must have signed what a role signs.
func (k *Keyring) Threshold(role string) int { return max(1, k.Thresholds[role]) }

// Algorithms are the kinds of signature that the keyring allows, as in its
// text; nil: all.
func (k *Keyring) Algorithms() []string {
	var list []string
	for n, f := range families {
		if k.allowed&f != 0 {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list
}

// ParseKeyring reads a keyring in one of three forms. PEM, at most 1 MiB and 256
// certificates: the self-issued ones are anchors of the role release, and X509
// CRLs count; text between the blocks and blocks of other kinds are skipped. The
// text of a signed keyring, at most 64 KiB (docs/formats.md). A CMS with that
// text: nobody's signature is checked, where it comes from has to be trusted.
// The code of every error is [KeyMissing]: without a whole keyring nothing is
// accepted.
func ParseKeyring(data []byte) (*Keyring, error) {
	k, err := parseKeyring(data)
	if err == nil {
		return k, nil
	}
	r := Refuse(KeyMissing, "keyring: %w", err)
	r.Hint = HintOf(err)
	return nil, r
}

func parseKeyring(data []byte) (*Keyring, error) {
	switch {
	case len(data) > 1 && data[0] == tagSequence && data[1] >= 0x80:
		_, k, err := readSignedKeyring(data)
		return k, err
	case isText(data):
		return readKeyringText(data)
	case len(data) > maxKeyring:
		return nil, fmt.Errorf("%d bytes: at most %d are read", len(data), maxKeyring)
	}
	k := new(Keyring)
	var crls [][]byte
	for n := 0; ; {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type == "X509 CRL" {
			crls = append(crls, block.Bytes)
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if n++; n > maxKeyringCerts {
			return nil, fmt.Errorf("more than %d certificates", maxKeyringCerts)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", n, err)
		}
		switch {
		case contains(k.Anchors, c) || contains(k.Intermediates, c):
		case selfIssued(c) && keyIDsMatch(c, c):
			k.Anchors = append(k.Anchors, c)
		default:
			k.Intermediates = append(k.Intermediates, c)
		}
	}
	if len(k.Anchors) == 0 {
		return nil, &Refusal{
			Code: KeyMissing, Text: "no self-signed certificate in it",
			Hint: "a keyring is a PEM file with the self-signed certificates of the CAs whose signers are trusted, or a signed keyring",
		}
	}
	return k.WithCRLs(crls...), nil
}

// isText says whether the first line that says something is a group.
func isText(data []byte) bool {
	for len(data) > 0 {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		if line = bytes.TrimLeft(line, " \t"); len(line) > 0 && line[0] != '#' {
			return line[0] == '['
		}
	}
	return false
}

// readSignedKeyring parses a CMS and the keyring in it. Nothing is verified.
func readSignedKeyring(der []byte) (*CMS, *Keyring, error) {
	c, err := ReadCMS(der)
	if err != nil {
		return nil, nil, err
	}
	if c.Detached() {
		return nil, nil, Refuse(Malformed, "the signature has no keyring in it")
	}
	k, err := readKeyringText(c.content)
	return c, k, err
}

// readKeyringText reads the text of a keyring. Codes: [Malformed], and [Policy]
// for a keyring by which no bundle could be accepted any more.
func readKeyringText(data []byte) (*Keyring, error) {
	groups, err := readGroups(data)
	if err != nil {
		return nil, err
	}
	k := &Keyring{Roles: [][]string{}, Thresholds: map[string]int{}, text: sha256.Sum256(data)}
	for _, g := range groups {
		var err error
		kind, sub, _ := strings.Cut(g.name, ".")
		switch {
		case g.name == "keyring":
			err = k.readHead(g)
		case kind == "anchor" && isName(sub):
			err = k.readAnchor(g)
		case kind == "intermediate" && isName(sub):
			var c *x509.Certificate
			if c, err = g.certificate(); err == nil {
				k.Intermediates = append(k.Intermediates, c)
			}
		case kind == "role" && isRole(sub):
			k.Thresholds[sub], err = g.number("threshold", maxThreshold)
		case g.name == "revoked":
			for _, s := range g.list("spki-sha256") {
				b, e := hex.DecodeString(s)
				if e != nil || len(b) != sha256.Size {
					return nil, g.wrong("spki-sha256")
				}
				k.Revoked = append(k.Revoked, [32]byte(b))
			}
		case g.name == "algorithms":
			for _, s := range g.list("allow") {
				if families[s] == 0 {
					return nil, g.wrong("allow")
				}
				k.allowed |= families[s]
			}
			if k.allowed == 0 {
				return nil, g.wrong("allow")
			}
		default:
			return nil, Refuse(Malformed, "line %d: group [%s] is not known", g.line, g.name)
		}
		if err != nil {
			return nil, err
		}
		for key := range g.values {
			return nil, Refuse(Malformed, "[%s]: key %q is not known", g.name, key)
		}
	}
	if k.Version == 0 {
		return nil, Refuse(Malformed, "no version")
	}
	if len(k.Anchors) > maxAnchors || len(k.Intermediates) > maxAnchors {
		return nil, Refuse(Policy, "more than %d anchors or intermediates", maxAnchors)
	}
	for _, role := range []string{RoleRelease, RoleDev, RoleKeyring} {
		if err := k.reachable(role); err != nil && (role == RoleRelease || k.Thresholds[role] > 0) {
			return nil, err
		}
	}
	return k, nil
}

// reachable refuses a role whose threshold cannot be met: it needs as many keys
// of anchors that are not revoked and whose kind is allowed. One anchor alone is
// enough, being the CA above all signers; RAUC knows no other way.
func (k *Keyring) reachable(role string) *Refusal {
	keys := make(map[[32]byte]bool)
	named := 0
	for i, c := range k.Anchors {
		if k.has(i, role) {
			named++
		}
		if k.has(i, role) && !slices.Contains(k.Revoked, SPKI(c)) && checkKey(c.PublicKey) == nil &&
			(k.allowed == 0 || k.allowed&familyOfKey(c.PublicKey) != 0) {
			keys[SPKI(c)] = true
		}
	}
	if len(keys) < k.Threshold(role) && !(len(keys) == 1 && named == 1) {
		return Refuse(Policy, "role %s: %d usable anchors, the threshold is %d", role, len(keys), k.Threshold(role))
	}
	return nil
}

func (k *Keyring) readHead(g *group) error {
	version, err := g.number("version", 1<<32-1)
	if err != nil {
		return err
	}
	k.Version = uint32(version)
	if s, ok := g.take("created"); ok {
		t, err := time.Parse(time.RFC3339, s)
		if err != nil || t.Unix() <= 0 {
			return g.wrong("created")
		}
		k.Created = t.UTC()
	}
	return nil
}

func (k *Keyring) readAnchor(g *group) error {
	c, err := g.certificate()
	if err != nil {
		return err
	}
	if contains(k.Anchors, c) {
		return Refuse(Malformed, "[%s]: its certificate stands twice", g.name)
	}
	partial, set := g.take("partial")
	if set && partial != "true" && partial != "false" {
		return g.wrong("partial")
	}
	if partial != "true" && (!selfIssued(c) || !keyIDsMatch(c, c)) {
		return Refuse(Malformed, "[%s]: its certificate is not self-issued; partial=true trusts it all the same", g.name)
	}
	roles := append(g.list("roles"), g.list("role")...)
	for i, r := range roles {
		if !isRole(r) && r != "tsa" && r != "offer" || slices.Contains(roles[:i], r) {
			return g.wrong("roles")
		}
	}
	if len(roles) == 0 {
		return g.wrong("roles")
	}
	k.Anchors, k.Roles = append(k.Anchors, c), append(k.Roles, roles)
	return nil
}

// The roles of anchors: whose signatures install, whose install on development devices, and whose renew the keyring.
const (
	RoleRelease = "release"
	RoleDev     = "dev"
	RoleKeyring = "keyring"
)

// isRole leaves out tsa and offer, which are reserved: an anchor may have them, and nothing is judged by them yet.
func isRole(s string) bool { return s == RoleRelease || s == RoleDev || s == RoleKeyring }

func isName(s string) bool {
	return s != "" && len(s) <= 32 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// group is one [name] of a key file. What was read is taken out of values.
type group struct {
	name   string
	line   int
	values map[string]string
}

// readGroups reads a key file as strictly as can be: UTF-8 without control
// characters, no group or key twice, comments in lines of their own, no escapes.
func readGroups(data []byte) ([]*group, error) {
	if len(data) > maxKeyringText {
		return nil, Refuse(Policy, "%d bytes of text: at most %d are read", len(data), maxKeyringText)
	}
	if !utf8.Valid(data) {
		return nil, Refuse(Malformed, "not UTF-8 text")
	}
	var groups []*group
	seen := make(map[string]bool)
	line := 0
	for s := range strings.SplitSeq(string(data), "\n") {
		line++
		if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f || r == '\ufeff' || r == '\\' }) {
			return nil, Refuse(Malformed, "line %d: control character or backslash", line)
		}
		s = strings.Trim(s, " \t")
		key, value, isValue := strings.Cut(s, "=")
		switch {
		case s == "" || s[0] == '#':
		case s[0] == '[':
			name, ok := strings.CutSuffix(s[1:], "]")
			if !ok || name == "" || len(name) > 64 || strings.ContainsAny(name, "[]") || seen[name] {
				return nil, Refuse(Malformed, "line %d: not a group, or one that stands twice", line)
			}
			seen[name] = true
			groups = append(groups, &group{name, line, map[string]string{}})
		case !isValue || groups == nil:
			return nil, Refuse(Malformed, "line %d: neither group nor key=value", line)
		default:
			g := groups[len(groups)-1]
			key = strings.TrimRight(key, " \t")
			if _, twice := g.values[key]; twice || !isName(key) {
				return nil, Refuse(Malformed, "line %d: not a key, or one that stands twice", line)
			}
			g.values[key] = strings.TrimLeft(value, " \t")
		}
	}
	return groups, nil
}

func (g *group) take(key string) (string, bool) {
	s, ok := g.values[key]
	delete(g.values, key)
	return s, ok
}

// list splits at semicolons, of which the last is optional.
func (g *group) list(key string) []string {
	s, _ := g.take(key)
	if s = strings.TrimSuffix(s, ";"); s == "" {
		return nil
	}
	return strings.Split(s, ";")
}

// number reads one from 1 to limit.
func (g *group) number(key string, limit uint64) (int, error) {
	s, _ := g.take(key)
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 || n > limit || s[0] == '0' {
		return 0, g.wrong(key)
	}
	return int(n), nil
}

func (g *group) certificate() (*x509.Certificate, error) {
	s, _ := g.take("cert")
	der, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || s == "" {
		return nil, g.wrong("cert")
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, Refuse(Malformed, "[%s]: %w", g.name, err)
	}
	return c, nil
}

func (g *group) wrong(key string) *Refusal {
	return Refuse(Malformed, "[%s]: %s= is missing or wrong", g.name, key)
}

// NewestNotBefore returns the latest beginning of validity of the keyring's
// certificates: whoever holds the keyring lives after it.
func (k *Keyring) NewestNotBefore() time.Time {
	var newest time.Time
	for _, list := range [][]*x509.Certificate{k.Anchors, k.Intermediates} {
		for _, c := range list {
			if c.NotBefore.After(newest) {
				newest = c.NotBefore
			}
		}
	}
	return newest
}

// SPKI returns the SHA-256 of a certificate's SubjectPublicKeyInfo, by which a
// key is known whatever certificate it is in.
func SPKI(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

func contains(list []*x509.Certificate, c *x509.Certificate) bool {
	for _, have := range list {
		if bytes.Equal(have.Raw, c.Raw) {
			return true
		}
	}
	return false
}

func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, c.RawIssuer) }

// keyIDsMatch reports whether the key identifiers let parent be the issuer of
// child; where one of them is missing they do.
func keyIDsMatch(child, parent *x509.Certificate) bool {
	return len(child.AuthorityKeyId) == 0 || len(parent.SubjectKeyId) == 0 ||
		bytes.Equal(child.AuthorityKeyId, parent.SubjectKeyId)
}
