package update

import (
	"bytes"
	"context"
	"testing"
)

// TestNoKeyring: a worker whose keyring is missing, empty or garbage accepts nothing, whatever it is to look at (row 52 of
// the bad inputs).
func TestNoKeyring(t *testing.T) {
	for name, keyring := range map[string][]byte{
		"missing": nil, "empty": {}, "garbage": bytes.Repeat([]byte{0xff, '-'}, 1000),
		"a key": []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
	} {
		j := &job{Trust: Trust{Keyring: keyring}, Class: "rootfs", Size: 1 << 20, Path: "a.raucb"}
		medium := make([]byte, 1<<20)
		m := Media{Source: bytes.NewReader(medium), SourceSize: int64(len(medium)), SlotReader: bytes.NewReader(medium), SlotSize: int64(len(medium))}
		for _, role := range []string{RoleScan, RoleCheck, RoleInstall, RoleAttest} {
			a := &answer{}
			err := Work(context.Background(), role, j.encode(), m, func(kind byte, body []byte) error { return a.take(kind, body, nil) })
			if err != nil || a.err == nil || a.err.Code != 32 || a.done || len(a.found) > 0 || a.attested != nil {
				t.Errorf("%s, keyring %s: %v, answer %+v", role, name, err, a)
			}
		}
	}
}
