package confine

import (
	"bufio"
	"io"
	"strings"
)

// reason reads what a worker says on standard error and keeps what explains
// its end, at most maxReason bytes of printable ASCII with " / " between lines:
// from a Go panic or fatal error on the first lines, else the last ones. It
// stops reading after maxStderr bytes.
func reason(r io.Reader) string {
	in := bufio.NewReaderSize(io.LimitReader(r, maxStderr), 512)
	var kept []byte
	fatal := false
	for {
		line, err := in.ReadSlice('\n') // a longer line comes in parts
		text := printable(line)
		if !fatal && crash(text) {
			fatal, kept = true, kept[:0]
		}
		if text != "" {
			if len(kept) > 0 {
				kept = append(kept, " / "...)
			}
			kept = append(kept, text...)
		}
		switch {
		case len(kept) <= maxReason:
		case fatal:
			kept = kept[:maxReason]
		default:
			kept = append(kept[:0], kept[len(kept)-maxReason:]...)
		}
		if err != nil && err != bufio.ErrBufferFull {
			return string(kept)
		}
	}
}

// crash recognises the first line of what the Go runtime writes when it gives
// up. SIGSEGV in the runtime itself happens too when memory runs out.
func crash(line string) bool {
	for _, p := range []string{"panic: ", "fatal error: ", "runtime: ", "SIGSEGV: ", "SIGBUS: ", "SIGSYS: "} {
		if strings.HasPrefix(line, p) {
			return true
		}
	}
	return false
}

func printable(line []byte) string {
	b := make([]byte, 0, len(line))
	for _, c := range line {
		switch {
		case c == '\t':
			c = ' '
		case c < ' ' || c > '~':
			if c == '\n' || c == '\r' {
				continue
			}
			c = '?'
		}
		b = append(b, c)
	}
	return strings.TrimSpace(string(b))
}
