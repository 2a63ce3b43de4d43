package keys

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Names in a keys folder.
const (
	indexName     = "index"
	certSuffix    = ".cert.pem"
	keySuffix     = ".key.pem"
	keyringSuffix = ".keyring.pem"
	crlSuffix     = ".crl" // DER
	caSuffix      = "-ca"
	oldDir        = "old"     // certificates that were renewed
	deviceDir     = "devices" // certificates of devices
)

// Folder is a keys folder, locked until Close. Its certificates are its files;
// the index keeps what they can't say: what is revoked, the numbers of the
// CRLs, and certificates whose files went elsewhere.
//
// A change is written to the index last but for a revocation, which is in the
// index before it is in a CRL. So a power cut loses neither a certificate (its
// file is found again) nor a revocation (the next CRL has it).
type Folder struct {
	Dir     string
	entries []Entry
	numbers map[string]int64 // of the last CRL of each CA
	lock    *os.File
}

// Entry is a certificate that was issued.
type Entry struct {
	Serial   string    `json:"serial"` // hex
	Name     string    `json:"name"`   // of its file, before .cert.pem
	Issuer   string    `json:"issuer"` // name of the CA; "self", or "-" for one from elsewhere
	NotAfter time.Time `json:"not_after"`
	Revoked  time.Time `json:"revoked,omitzero"`
	Reason   string    `json:"reason,omitempty"`

	// From its file; nil where that is elsewhere.
	Cert *x509.Certificate `json:"-"`
}

// Old says that the certificate was renewed; it counts until it expires.
func (e *Entry) Old() bool { return strings.HasPrefix(e.Name, oldDir+"/") }

// base is the name under which the certificate was issued.
func (e *Entry) base() string {
	name, old := strings.CutPrefix(e.Name, oldDir+"/")
	if old {
		name = strings.TrimSuffix(name, "-"+e.Serial)
	}
	return name
}

// Open reads the keys folder dir, one of an earlier version without an index as
// well. Another process that has it open is waited for.
func Open(dir string) (_ *Folder, err error) {
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the keys folder: %w", err)
	}
	f := &Folder{Dir: dir, lock: lock, numbers: map[string]int64{}}
	defer func() {
		if err != nil {
			lock.Close()
			err = fmt.Errorf("keys folder %s: %w", dir, err)
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := f.readIndex(); err != nil {
		return nil, err
	}
	if err := f.readFiles(); err != nil {
		return nil, err
	}
	if len(f.entries) == 0 {
		return nil, errors.New("has no certificates; lifeboat keys init makes some")
	}
	return f, nil
}

// Close lets others in.
func (f *Folder) Close() error { return f.lock.Close() }

const indexHead = `# What was issued in this folder; written by lifeboat keys.
# cert  serial  issuer  valid until  status (valid, or revoked:TIME:REASON)  name of its file
# crl   name of the CA  number of its last CRL
`

func (f *Folder) save() error {
	var b strings.Builder
	b.WriteString(indexHead)
	for _, e := range f.entries {
		status := "valid"
		if !e.Revoked.IsZero() {
			status = "revoked:" + stamp(e.Revoked) + ":" + e.Reason
		}
		fmt.Fprintf(&b, "cert %-32s %-10s %s %s %s\n", e.Serial, e.Issuer, stamp(e.NotAfter), status, e.Name)
	}
	cas := make([]string, 0, len(f.numbers))
	for ca := range f.numbers {
		cas = append(cas, ca)
	}
	slices.Sort(cas)
	for _, ca := range cas {
		fmt.Fprintf(&b, "crl %s %d\n", ca, f.numbers[ca])
	}
	path := filepath.Join(f.Dir, indexName)
	if err := renameio.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func (f *Folder) readIndex() error {
	b, err := os.ReadFile(filepath.Join(f.Dir, indexName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for n, line := range strings.Split(string(b), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if err := f.readLine(fields); err != nil {
			return fmt.Errorf("%s line %d: %w", indexName, n+1, err)
		}
	}
	return nil
}

func (f *Folder) readLine(fields []string) error {
	switch {
	case fields[0] == "cert" && len(fields) == 6:
		e := Entry{Serial: fields[1], Issuer: fields[2], Name: fields[5]}
		if _, ok := e.serial(); !ok {
			return fmt.Errorf("serial %q is not hex", e.Serial)
		}
		var err error
		if e.NotAfter, err = time.Parse(time.RFC3339, fields[3]); err != nil {
			return err
		}
		if fields[4] != "valid" {
			rest, ok := strings.CutPrefix(fields[4], "revoked:")
			at := strings.LastIndexByte(rest, ':')
			if !ok || at < 0 {
				return fmt.Errorf("status %q is neither valid nor revoked:TIME:REASON", fields[4])
			}
			if e.Revoked, err = time.Parse(time.RFC3339, rest[:at]); err != nil {
				return err
			}
			if e.Reason = rest[at+1:]; reasonCode(e.Reason) < 0 {
				return fmt.Errorf("reason %q is not known", e.Reason)
			}
		}
		f.entries = append(f.entries, e)
	case fields[0] == "crl" && len(fields) == 3:
		n, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("number %q", fields[2])
		}
		f.numbers[fields[1]] = n
	default:
		return errors.New("neither a cert nor a crl line")
	}
	return nil
}

func (e *Entry) serial() (*big.Int, bool) { return new(big.Int).SetString(e.Serial, 16) }

// readFiles brings the index up to what lies in the folder.
func (f *Folder) readFiles() error {
	type found struct {
		name string
		cert *x509.Certificate
	}
	var all []found
	for _, dir := range []string{".", deviceDir, oldDir, filepath.Join(oldDir, deviceDir)} {
		list, err := os.ReadDir(filepath.Join(f.Dir, dir))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, d := range list {
			name, ok := strings.CutSuffix(d.Name(), certSuffix)
			if anchor, isAnchor := strings.CutSuffix(d.Name(), ".pem"); !ok && strings.HasSuffix(d.Name(), keyringSuffix) {
				name, ok = anchor, isAnchor
			}
			if !ok {
				continue
			}
			path := filepath.Join(f.Dir, dir, d.Name())
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			certs, err := ParseCertificates(b)
			if err != nil {
				return fmt.Errorf("%s: %w", filepath.Join(dir, d.Name()), err)
			}
			for _, c := range certs {
				all = append(all, found{filepath.Join(dir, name), c})
			}
		}
	}
	cas := map[string]*x509.Certificate{}
	for _, c := range all {
		if c.cert.IsCA && !strings.Contains(c.name, "/") && !strings.HasSuffix(c.name, ".keyring") {
			cas[c.name] = c.cert
		}
	}
	for _, c := range all {
		issuer := "-"
		if bytes.Equal(c.cert.RawIssuer, c.cert.RawSubject) {
			issuer = "self"
		} else {
			for name, ca := range cas {
				if bytes.Equal(ca.RawSubject, c.cert.RawIssuer) && bytes.Equal(ca.SubjectKeyId, c.cert.AuthorityKeyId) {
					issuer = name
				}
			}
		}
		e := Entry{
			Serial: c.cert.SerialNumber.Text(16), Name: c.name, Issuer: issuer, NotAfter: c.cert.NotAfter, Cert: c.cert,
		}
		i := slices.IndexFunc(f.entries, func(have Entry) bool { return have.Serial == e.Serial })
		if i < 0 {
			f.entries = append(f.entries, e)
			continue
		}
		if f.entries[i].Cert == nil { // else a copy
			f.entries[i].Cert, f.entries[i].Name = e.Cert, e.Name
		}
	}
	return nil
}

// ParseCertificates reads the certificates of a PEM file.
func ParseCertificates(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if certs == nil {
		return nil, errors.New("no certificate in PEM form")
	}
	return certs, nil
}

// Entries returns what was issued, by name, the present one before old ones.
func (f *Folder) Entries() []Entry {
	return slices.SortedStableFunc(slices.Values(f.entries), func(a, b Entry) int {
		return cmp.Or(strings.Compare(a.base(), b.base()), b.NotAfter.Compare(a.NotAfter))
	})
}

// current returns the certificate NAME.cert.pem.
func (f *Folder) current(name string) (*Entry, error) {
	for i := range f.entries {
		if e := &f.entries[i]; e.Name == name && e.Cert != nil {
			return e, nil
		}
	}
	return nil, fmt.Errorf("%s has no %s%s", f.Dir, name, certSuffix)
}

// path is that of a file in the folder.
func (f *Folder) path(name string) string { return filepath.Join(f.Dir, name) }
