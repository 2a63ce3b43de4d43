package qemu

import (
	"errors"
	"regexp"
	"testing"
	"time"
)

func TestExpectInOrder(t *testing.T) {
	c := newConsole()
	c.setLive(true)
	go func() {
		for _, part := range []string{"boot\r", "\nversion=1", ".2\r\nver", "sion=3.4", "\r\nlogin: "} {
			c.Write([]byte(part))
			time.Sleep(quiet / 10)
		}
		time.Sleep(2 * quiet)
		c.Write([]byte("last"))
		c.setLive(false)
	}()
	for _, tt := range []struct{ pattern, want string }{
		{`(?m)^boot$`, "boot"},
		{`version=\S+`, "version=1.2"}, // not version=1, which came first
		{`version=\S+`, "version=3.4"},
		{`login: `, "login: "}, // at the end of the text, but it stays quiet
		{`\w+`, "last"},
	} {
		got, err := c.expect(10*time.Second, regexp.MustCompile(tt.pattern))
		if err != nil {
			t.Fatal(err)
		}
		if got[0] != tt.want {
			t.Errorf("%s matched %q, want %q", tt.pattern, got[0], tt.want)
		}
	}
	if _, err := c.expect(10*time.Second, regexp.MustCompile(`boot`)); !errors.Is(err, ErrEnded) {
		t.Errorf("after the end: %v, want ErrEnded", err)
	}
	if want := "boot\nversion=1.2\nversion=3.4\nlogin: last"; c.all() != want {
		t.Errorf("console %q, want %q", c.all(), want)
	}
}

func TestBzPayloadRefuses(t *testing.T) {
	whole := make([]byte, 4096)
	copy(whole[0x202:], "HdrS\x0f\x02")
	whole[0x1f1] = 1                        // 2 setup sectors
	copy(whole[0x24c:], "\x00\x01\x00\x00") // 256 bytes of payload
	if got, err := bzPayload(whole); err != nil || len(got) != 252 {
		t.Errorf("sound image: %d bytes, %v", len(got), err)
	}
	for name, change := range map[string]func([]byte) []byte{
		"short":     func(b []byte) []byte { return b[:0x24f] },
		"magic":     func(b []byte) []byte { b[0x202] = 'x'; return b },
		"old":       func(b []byte) []byte { b[0x206] = 7; return b },
		"empty":     func(b []byte) []byte { b[0x24c], b[0x24d] = 4, 0; return b },
		"too long":  func(b []byte) []byte { b[0x24e] = 1; return b },
		"far":       func(b []byte) []byte { b[0x24b] = 0xff; return b },
		"truncated": func(b []byte) []byte { return b[:1024+200] },
	} {
		if _, err := bzPayload(change(append([]byte{}, whole...))); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
