package powercut

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/boot"
	"lifeboat/disk/crash"
	"lifeboat/status"
	"lifeboat/verify"
	"lifeboat/verify/keys"
)

// newKeys are those of a company that changed all of them.
var newKeys = sync.OnceValues(func() (*keys.Set, error) { return keys.New(keys.Options{RSA: 2048}) })

// renewable makes k a device whose built-in keyring can be renewed: version 1 has the release anchor, and develop's with
// the role keyring.
func renewable(k *kit) (next *keys.Set) {
	k.t.Helper()
	next, err := newKeys()
	k.must(err)
	k.pem = k.keyringText(1, k.keys.ReleaseAnchor)
	return next
}

func (k *kit) keyringText(version int, release *x509.Certificate) []byte {
	k.t.Helper()
	draft := keys.Draft{Version: uint32(version), Anchors: []keys.Anchor{
		{Name: "release", Roles: []string{verify.RoleRelease}, Cert: release},
		{Name: "keyring", Roles: []string{verify.RoleKeyring}, Cert: k.keys.DevelopAnchor},
	}}
	text, err := draft.Text()
	k.must(err)
	return text
}

// keyring writes the signed keyring of that version with that release anchor.
func (k *kit) keyring(version int, release *x509.Certificate) string {
	k.t.Helper()
	der, err := verify.Sign(k.keyringText(version, release), false, k.keys.Develop.Key, k.keys.Develop.Cert, nil, k.now)
	k.must(err)
	return k.write(fmt.Sprintf("v%d.keyring", version), der)
}

// crl writes a list of the release CA's that revokes the release signer.
func (k *kit) crl(number int64, revoked ...*x509.Certificate) string {
	k.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: k.now, NextUpdate: k.now.Add(24 * time.Hour)}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: k.now})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, k.keys.ReleaseAnchor, k.keys.ReleaseCA.Key)
	k.must(err)
	return k.write(fmt.Sprintf("number-%d.crl", number), der)
}

func (k *kit) write(name string, b []byte) string {
	k.t.Helper()
	file := filepath.Join(k.dir, name)
	k.must(os.WriteFile(file, b, 0o644))
	return file
}

// knows lets the laws judge seals by what the files say, too: what is signed by any keyring of the chain may be booted.
func (k *kit) knows(d *Device, files ...string) {
	k.t.Helper()
	for _, f := range files {
		b, err := os.ReadFile(f)
		k.must(err)
		d.keyring, _, _ = d.keyring.Renew(b, k.now)
	}
}

// trustScenarios are a keyring that changes together with the system, and a list that revokes a signer.
func trustScenarios(t *testing.T, add func(name string, d *Device, start *crash.Image, want Want, run func(w *Watch))) {
	k := newKit(t, nil)
	next := renewable(k)
	d, disk := one(k)
	v2 := k.keyring(2, next.ReleaseAnchor)
	k.signer = next.Release
	d.Stick = k.stick(v2, k.bundle("2", 0, Healthy))
	k.knows(d, v2)
	add("keyring and update", d, disk, Want{Version: "2"}, nil)

	k = newKit(t, nil)
	d, disk = one(k, k.crl(1, k.keys.Develop.Cert), k.bundle("2", 0, Healthy))
	add("revocation list and update", d, disk, Want{Version: "2"}, nil)
}

// life is a device that lives through several sticks.
type life struct {
	*kit
	d    *Device
	disk *crash.Image
}

// boot boots once with these files on a stick, and the system says good if it is one that does.
func (l *life) boot(files ...string) (*Boot, boot.State) {
	l.t.Helper()
	l.d.Stick = nil
	if len(files) > 0 {
		l.d.Stick = l.stick(files...)
	}
	r := crash.Record(l.disk)
	w := l.d.Over(r, nil)
	b, _, _ := w.Boot(status.None)
	l.must(w.Err())
	l.disk = r.Image()
	s, err := l.d.State(l.disk)
	l.must(err)
	return b, s
}

func (l *life) runs(b *Boot, version string) {
	l.t.Helper()
	m, _ := l.d.sealed(l.disk, b.Slot)
	if got := l.d.Systems[m].Version; got != version {
		l.t.Errorf("version %q runs, want %q:\n%s", got, version, strings.Join(b.Lines, "\n"))
	}
}

// refused looks whether the last boot refused a file with a code.
func (l *life) refused(b *Boot, code int, part string) {
	l.t.Helper()
	for _, r := range b.Report.Refused {
		if r.Code == code && strings.Contains(r.File+": "+r.Text, part) {
			return
		}
	}
	l.t.Errorf("nothing with %q is refused with code %d: %+v", part, code, b.Report.Refused)
}

// TestTrust is row 120 of the bad inputs, the rotation of keyrings, on a device: on trial with an update, committed by good, old keys refused; the record
// lost; the trust file decayed.
func TestTrust(t *testing.T) {
	k := newKit(t, nil)
	next := renewable(k)
	d, disk := one(k)
	l := &life{k, d, disk}
	v2, v3 := k.keyring(2, next.ReleaseAnchor), k.keyring(3, next.ReleaseAnchor)
	k.knows(d, v2, v3)
	old3 := k.bundle("3", 0, Healthy)
	k.signer = next.Release
	new2, new4, new5 := k.bundle("2", 0, Healthy), k.bundle("4", 0, Silent), k.bundle("5", 0, Healthy)

	b, _ := l.boot(new2)
	l.refused(b, 22, "2.raucb")
	l.runs(b, "1")
	// A device that missed one: version 3 alone is not enough.
	b, s := l.boot(v3)
	l.refused(b, 31, "keyring version 3")
	if s.Trust != (boot.Trust{}) {
		t.Errorf("%+v", s.Trust)
	}
	b, s = l.boot(v2, v3, new2)
	l.runs(b, "2")
	if s.Trust.File == (boot.Hash{}) || s.Trust.Pending != (boot.Hash{}) {
		t.Errorf("after good: %+v", s.Trust)
	}
	if !contains(b.Lines, "keyring version 3 is on trial") {
		t.Errorf("nobody said so:\n%s", strings.Join(b.Lines, "\n"))
	}
	committed := s.Trust
	b, s = l.boot(old3)
	l.refused(b, 22, "3.raucb")
	l.runs(b, "2")
	// What is known already changes nothing, and is no refusal.
	b, s = l.boot(v2, v3)
	if len(b.Report.Refused) > 0 || s.Trust != committed {
		t.Errorf("%+v, %+v", b.Report.Refused, s.Trust)
	}

	// The record is lost: the keyring is found, and its system runs.
	whole := l.disk
	l.disk = whole.Clone()
	for _, off := range []int64{0, d.Part("state").Len - boot.RecordSize} {
		l.disk.WriteAt(make([]byte, boot.RecordSize), d.Part("state").Off+off)
	}
	b, s = l.boot()
	l.runs(b, "2")
	if s.Trust != committed {
		t.Errorf("after the record was lost: %+v", s.Trust)
	}
	b, _ = l.boot(old3)
	l.refused(b, 22, "3.raucb")

	// The trust file decays: what is built in boots what it can, and a stick brings the keyring again.
	l.disk = whole.Clone()
	l.disk.WriteAt(make([]byte, 6<<20), d.Part("state").Off+1<<20)
	d.Stick = nil
	r := crash.Record(l.disk)
	boots, err := d.Boot(r, status.None, Observer{})
	k.must(err)
	if boots.Rescue || !contains(boots.Lines, "what is built in counts") {
		t.Fatalf("rescue %v:\n%s", boots.Rescue, strings.Join(boots.Lines, "\n"))
	}
	l.runs(boots, "1")

	// A trial that runs out takes its keyring back.
	k2 := newKit(t, nil)
	renewable(k2)
	d2, disk2 := one(k2)
	k2.knows(d2, v2)
	d2.Systems = k.systems
	for m, sys := range k2.systems {
		k.systems[m] = sys
	}
	l = &life{k2, d2, disk2}
	b, s = l.boot(v2, new4)
	l.runs(b, "4")
	if s.Trust.Pending == (boot.Hash{}) {
		t.Error("no keyring on trial")
	}
	for range 3 {
		b, s = l.boot()
	}
	l.runs(b, "1")
	if s.Trust != (boot.Trust{}) {
		t.Errorf("after the trial ran out: %+v", s.Trust)
	}
	// Its stick brings it again, and it counts from the next good on.
	b, s = l.boot(v2, new5)
	l.runs(b, "5")
	if s.Trust.File == (boot.Hash{}) {
		t.Errorf("%+v", s.Trust)
	}
}

// TestRevocation is row A1 on a device: a list comes on a stick and in a bundle, an older one changes nothing.
func TestRevocation(t *testing.T) {
	k := newKit(t, nil)
	d, disk := one(k)
	l := &life{k, d, disk}
	list4, list5 := k.crl(4), k.crl(5, k.keys.Release.Cert)
	b2 := k.bundle("2", 0, Healthy)
	b, s := l.boot(list5, b2)
	l.refused(b, 24, "2.raucb")
	l.runs(b, "1") // which the revoked signer signed: boots are not installs
	if s.Trust.File == (boot.Hash{}) || !contains(b.Lines, "newer revocation lists are in force") {
		t.Errorf("%+v\n%s", s.Trust, strings.Join(b.Lines, "\n"))
	}
	known := s.Trust
	b, s = l.boot(list4, b2)
	l.refused(b, 28, "crl rollback")
	l.refused(b, 24, "2.raucb")
	if s.Trust != known {
		t.Errorf("%+v", s.Trust)
	}

	// It rides in a bundle.
	k = newKit(t, nil)
	d, disk = one(k)
	l = &life{k, d, disk}
	der, err := os.ReadFile(list5)
	k.must(err)
	k.signer = k.keys.Release
	carrier := k.bundle("2", 0, Healthy)
	raw, err := os.ReadFile(carrier)
	k.must(err)
	raw = withCRL(t, raw, der)
	k.must(os.WriteFile(carrier, raw, 0o644))
	b3 := k.bundle("3", 0, Healthy)
	b, s = l.boot(carrier)
	if s.Trust.File == (boot.Hash{}) {
		t.Errorf("the bundle's list was not taken:\n%s", strings.Join(b.Lines, "\n"))
	}
	b, _ = l.boot(b3)
	l.refused(b, 24, "3.raucb")
}

// withCRL puts a list into a bundle's CMS.
func withCRL(t *testing.T, raw, list []byte) []byte {
	t.Helper()
	n := int(new(big.Int).SetBytes(raw[len(raw)-8:]).Int64())
	at := len(raw) - 8 - n
	cms, err := verify.AddCRLs(raw[at:len(raw)-8], list)
	if err != nil {
		t.Fatal(err)
	}
	size := make([]byte, 8)
	new(big.Int).SetInt64(int64(len(cms))).FillBytes(size)
	return bytes.Join([][]byte{raw[:at], cms, size}, nil)
}

// TestTrustLimits are 29, 27, 31 and 28 on a device.
func TestTrustLimits(t *testing.T) {
	k := newKit(t, map[string]string{"system min-bundle-version": "1.5"})
	d, disk := one(k)
	l := &life{k, d, disk}
	d.trust.Serial = "4711"
	k.extra = "valid-until=2020-01-01T00:00:00Z\n"
	stale := k.bundle("2", 1, Healthy)
	k.extra = "serials=4712;4713\n"
	others := k.bundle("2.1", 1, Healthy)
	k.extra = ""
	far, below := k.bundle("2.2", 17, Healthy), k.bundle("1.4", 1, Healthy)
	k.extra = "serials=4712;4711\n"
	ours := k.bundle("2.3", 16, Healthy)
	k.extra = ""
	b, _ := l.boot(stale, others, far, below)
	l.runs(b, "1")
	l.refused(b, 29, "2.raucb")
	l.refused(b, 27, "2.1.raucb")
	l.refused(b, 31, "2.2.raucb")
	l.refused(b, 28, "1.4.raucb")
	b, _ = l.boot(far, ours)
	l.runs(b, "2.3")
	b, _ = l.boot(far)
	l.runs(b, "2.3")
}

// TestStateForged is I1: whatever stands where the record and the trust files were, a bundle of somebody else is refused,
// and what runs is a system that was signed.
func TestStateForged(t *testing.T) {
	k := newKit(t, nil)
	next := renewable(k)
	d, disk := one(k)
	l := &life{k, d, disk}
	v2 := k.keyring(2, next.ReleaseAnchor)
	k.knows(d, v2)
	k.signer = next.Release
	b, _ := l.boot(v2, k.bundle("2", 0, Healthy))
	l.runs(b, "2")
	good := l.disk
	k.signer = keys.Pair{Cert: k.keys.Develop.Cert, Key: k.keys.Develop.Key}
	forged := k.bundle("9", 0, Healthy)
	var mine boot.Hash
	for m, sys := range k.systems {
		if sys.Version == "9" {
			mine = m
		}
	}
	state := d.Part("state")
	last := state.Len - boot.RecordSize
	random := make([]byte, 6<<20)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	for where, areas := range map[string][][2]int64{
		"first copy": {{0, boot.RecordSize}}, "last copy": {{last, boot.RecordSize}}, "both copies": {{0, boot.RecordSize}, {last, boot.RecordSize}},
		"trust files": {{1 << 20, 6 << 20}}, "all": {{0, boot.RecordSize}, {last, boot.RecordSize}, {1 << 20, 6 << 20}},
	} {
		for what, fill := range map[string]func(b []byte){
			"zeros": func(b []byte) { clear(b) }, "ones": func(b []byte) { copy(b, bytes.Repeat([]byte{0xff}, len(b))) },
			"random": func(b []byte) { copy(b, random) }, "half": func(b []byte) { clear(b[len(b)/2:]); b[100] ^= 1 },
		} {
			t.Run(where+", "+what, func(t *testing.T) {
				l := &life{k, d, good.Clone()}
				for _, a := range areas {
					b := make([]byte, a[1])
					if _, err := l.disk.ReadAt(b, state.Off+a[0]); err != nil {
						t.Fatal(err)
					}
					fill(b)
					if _, err := l.disk.WriteAt(b, state.Off+a[0]); err != nil {
						t.Fatal(err)
					}
				}
				d.Stick = k.stick(forged)
				r := crash.Record(l.disk)
				b, err := d.Boot(r, status.None, Observer{})
				k.must(err)
				l.disk = r.Image()
				l.refused(b, 22, "9.raucb")
				if m, _ := d.sealed(l.disk, b.Slot); b.Rescue || m == mine || m == (boot.Hash{}) {
					t.Errorf("rescue %v, manifest %v:\n%s", b.Rescue, m, strings.Join(b.Lines, "\n"))
				}
			})
		}
	}
}
