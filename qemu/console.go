package qemu

import (
	"bytes"
	"fmt"
	"regexp"
	"time"
)

// quiet is how long the console must be silent before an unfinished match counts; see [console.expect].
const quiet = 200 * time.Millisecond

// console is all that a machine has written to its serial port since the first power on, without carriage returns,
// and how far it has been read by expect. Nothing is ever dropped.
type console struct {
	feed
	text []byte
	read int // text before it has been matched
}

func newConsole() *console { return &console{feed: newFeed()} }

// Write takes bytes from the serial port.
func (c *console) Write(p []byte) (int, error) {
	c.change(func() { c.text = append(c.text, bytes.ReplaceAll(p, []byte("\r"), nil)...) })
	return len(p), nil
}

func (c *console) all() string {
	c.Lock()
	defer c.Unlock()
	return string(c.text)
}

// expect returns the first match of re in what has not been read, and its groups, and counts everything up to its end
// as read. A match that ends where the text ends may still grow (`version=(\S+)` of a line that is being written):
// it counts once more text follows, the machine is off, or the console has been quiet for a moment (a prompt).
func (c *console) expect(timeout time.Duration, re *regexp.Regexp) ([]string, error) {
	end := time.NewTimer(timeout)
	defer end.Stop()
	settled := -1 // length of text that has been quiet
	for {
		c.Lock()
		rest, changed, live, size := c.text[c.read:], c.changed, c.live, len(c.text)
		loc := re.FindSubmatchIndex(rest)
		if loc != nil && (loc[1] < len(rest) || !live || settled == size) {
			groups := make([]string, len(loc)/2)
			for i := range groups {
				if loc[2*i] >= 0 {
					groups[i] = string(rest[loc[2*i]:loc[2*i+1]])
				}
			}
			c.read += loc[1]
			c.Unlock()
			return groups, nil
		}
		c.Unlock()
		if !live {
			return nil, fmt.Errorf("console: wait for %q: %w", re, ErrEnded)
		}
		var settle <-chan time.Time
		if loc != nil {
			settle = time.After(quiet)
		}
		select {
		case <-changed:
		case <-settle:
			settled = size
		case <-end.C:
			return nil, fmt.Errorf("console: wait for %q: %w after %v", re, ErrTimeout, timeout)
		}
	}
}
