package update

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"lifeboat/boot"
	"lifeboat/config"
	"lifeboat/verify"
)

// Trust is what workers judge by. It comes from the initramfs and the state partition and is told to every worker anew.
type Trust struct {
	Keyring       []byte // what is built in: PEM, or a signed keyring
	Stored        []byte // trust file that came since; empty: none
	Pending       []byte // trust file with a newer keyring, on trial; empty: none
	Compatible    string
	Serial        string   // of this device, as bundles for single devices name it
	Purpose       string   // as verify.Rules.Purpose
	Role          string   // as verify.Rules.Role
	Formats       []string // bundle formats that are taken
	RequireSigned bool     // images without a signed root hash are refused
	RequireCRL    bool     // as verify.Rules.RequireCRL
	Floor         int64    // clock floor, seconds since 1970
}

// TrustOf returns what a configuration and what is built into an initramfs say.
func TrustOf(c *config.Config, keyring []byte, built int64) Trust {
	return Trust{
		Keyring: keyring, Compatible: c.Compatible, Purpose: c.CheckPurpose, Role: c.Role, Formats: c.BundleFormats,
		RequireSigned: c.RequireSignedVerity, RequireCRL: c.CheckCRL, Floor: built,
	}
}

// What Renew gives back can be stored.
var _ [boot.MaxTrust - verify.MaxTrust]struct{}

// news is what is known of the device's keyring, and what a source adds to it.
type news struct {
	floor time.Time
	now   *verify.Keyring // in force
	next  *verify.Keyring // with all that came; its version is that of now, or on trial
	blob  []byte          // what has to be stored for next
	had   []byte          // what is stored
}

func (t *Trust) news() (*news, error) {
	built, err := verify.ParseKeyring(t.Keyring)
	if err != nil {
		return nil, err
	}
	n := &news{floor: time.Unix(t.Floor, 0)}
	// What is stored was judged when it came: that a signer's certificate has ended since takes nothing back.
	n.now, n.had, _ = built.Renew(t.Stored, time.Time{})
	n.next = n.now
	if len(t.Pending) > 0 {
		if next, blob, _ := built.Renew(t.Pending, time.Time{}); next.Version > n.now.Version {
			n.next, n.had = next, blob
		}
	}
	n.blob = n.had
	return n, nil
}

// add renews the keyring with what came, and says what of it was not accepted.
func (n *news) add(data []byte) (notes []*verify.Refusal) {
	n.next, n.blob, notes = n.next.Renew(data, n.floor)
	return notes
}

// rules are those of an install: newer lists of the keyring in force count at once, a newer keyring beside it.
func (n *news) rules(t *Trust) verify.Rules {
	r := verify.Rules{Keyring: n.now, Purpose: t.Purpose, Role: t.Role, RequireCRL: t.RequireCRL, Now: n.floor}
	if n.next.Version == n.now.Version {
		r.Keyring = n.next
	} else {
		r.Pending = n.next
	}
	return r
}

// sendNews answers with the trust file to be stored, if there is something new in it.
func (w *worker) sendNews(n *news) error {
	if bytes.Equal(n.blob, n.had) {
		return nil
	}
	for part := range chunks(n.blob) {
		if err := w.send(frameTrust, part); err != nil {
			return err
		}
	}
	return nil
}

// renew is the job of the worker that judges a trust file before PID 1 stores it: it has never seen the source.
func (w *worker) renew() error {
	n, err := w.job.Trust.news()
	if err != nil {
		return err
	}
	n.add(w.job.Candidate)
	if err := w.sendNews(n); err != nil {
		return err
	}
	k := keys{Now: n.now.Version, Next: n.next.Version}
	if t := n.next.Newest(); !t.IsZero() {
		k.Newest = t.Unix()
	}
	if err := w.send(frameKeys, k.encode()); err != nil {
		return err
	}
	return w.send(frameDone, nil)
}

// keys is what the worker of RoleTrust says of a trust file.
type keys struct {
	Now, Next uint32 // versions of the keyring in force and of the one in the file
	Newest    int64  // seconds since 1970: the newest date that is signed in it
}

func (k keys) encode() []byte {
	e := &encoder{}
	e.u32(k.Now)
	e.u32(k.Next)
	e.i64(k.Newest)
	return e.b
}

func decodeKeys(b []byte) (k keys, err error) {
	d := &decoder{b: b}
	k.Now, k.Next, k.Newest = d.u32(), d.u32(), d.i64()
	if k.Next < k.Now {
		d.err = errAnswer
	}
	return k, d.end()
}

// loadTrust reads the trust files that the record names. One that is gone is said: until a stick brings it again what is
// built in counts, never nothing.
func (d *Device) loadTrust() {
	read := func(file boot.Hash) []byte {
		if file == (boot.Hash{}) {
			return nil
		}
		b, err := d.Store.LoadTrust(file)
		if err != nil {
			d.note(err.Error() + ": what is built in counts")
		}
		return b
	}
	d.Trust.Stored, d.Trust.Pending = read(d.state.Trust.File), read(d.state.Trust.Pending)
}

// findTrust is loadTrust when the record is lost: all that is there and right counts.
func (d *Device) findTrust() { d.Trust.Stored = slices.Concat(d.Store.FindTrust()...) }

// keepTrust names what findTrust found in the record again.
func (d *Device) keepTrust(ctx context.Context) {
	if len(d.Trust.Stored) == 0 || d.state.Trust.File != (boot.Hash{}) {
		return
	}
	found := d.Trust.Stored
	d.Trust.Stored = nil
	if d.Trust.Stored, _ = d.judge(ctx, found); d.Trust.Stored != nil && !d.facts.ReadOnly {
		if file, err := d.Store.SaveTrust(d.Trust.Stored, boot.Trust{}); err == nil {
			d.state = boot.Trusted(d.state, file, 0, d.Policy)
		}
	}
}

// judge has a trust file judged by a worker that has nothing else, and returns it as it is to be stored; nil when there
// is nothing new in it.
func (d *Device) judge(ctx context.Context, candidate []byte) ([]byte, keys) {
	a, err := d.run(ctx, RoleTrust, &job{Candidate: candidate}, Source{}, "", nil)
	switch {
	case err != nil:
		d.note(fmt.Sprintf("a keyring could not be judged: %v", err))
	case a.err != nil:
		d.note("a keyring could not be judged: " + a.err.Text)
	case a.keys == nil || len(a.trust) == 0:
	default:
		return a.trust, *a.keys
	}
	return nil, keys{}
}

// renewTrust stores what a source brings for the keyring: newer revocation lists count at once, a newer keyring is on
// trial. A power cut leaves the old or the new, whole.
func (d *Device) renewTrust(ctx context.Context, candidate []byte) {
	if d.facts.ReadOnly || len(candidate) == 0 {
		return
	}
	b, k := d.judge(ctx, candidate)
	if b == nil {
		return
	}
	trial := k.Next > k.Now
	if !d.amend(func(s boot.State) (boot.State, bool) {
		file, err := d.Store.SaveTrust(b, s.Trust)
		if err != nil {
			d.note(err.Error())
			return s, false
		}
		if trial {
			return boot.TrustOnTrial(s, file), true
		}
		return boot.Trusted(s, file, k.Newest, d.Policy), true
	}) {
		return
	}
	if trial {
		d.Trust.Pending = b
		d.note(fmt.Sprintf("keyring version %d is on trial until a system says good", k.Next))
	} else {
		d.Trust.Stored = b
		d.note("newer revocation lists are in force")
	}
}
