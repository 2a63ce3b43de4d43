package status

import (
	"strconv"
	"unicode/utf8"
)

// JSON returns the report as encoding/json would write it with an indent of one space, which /init is too small to
// hold. A test holds the two together.
func (r *Report) JSON() []byte {
	j := &jsonWriter{}
	j.object(func() {
		j.field("state", func() { j.state(&r.State) })
		j.text("state_device", r.StateDev)
		j.field("booted", func() {
			b := &r.Booted
			j.object(func() {
				j.text("slot", b.Slot)
				j.text("bootname", b.Bootname)
				j.text("version", b.Version)
				j.flag("trial", b.Trial)
				j.number("tries_left", int64(b.TriesLeft))
				j.text("authenticity", b.Authenticity)
				j.text("root_hash", b.RootHash)
				j.text("device", b.Device)
				if len(b.With) > 0 {
					list(j, "with", b.With, func(w With) {
						j.text("slot", w.Slot)
						j.text("root_hash", w.RootHash)
						j.text("device", w.Device)
						j.text("mapped", w.Mapped)
						j.some("mount", w.Mount)
					})
				}
			})
		})
		if w := r.Watchdog; w != nil {
			j.field("watchdog", func() {
				j.object(func() {
					j.text("device", w.Device)
					j.text("identity", w.Identity)
					j.number("timeout", int64(w.Timeout))
					if w.Pretimeout != 0 {
						j.number("pretimeout", int64(w.Pretimeout))
					}
					if w.Stops {
						j.flag("stops", true)
					}
				})
			})
		}
		j.some("fallback", r.Fallback)
		list(j, "installed", r.Installed, func(i Installed) {
			j.text("file", i.File)
			j.text("version", i.Version)
			j.text("slot", i.Slot)
			j.text("bootname", i.Bootname)
			j.text("manifest_hash", i.ManifestHash)
			if i.Unchanged != 0 {
				j.number("unchanged", i.Unchanged)
			}
		})
		list(j, "refused", r.Refused, func(f Refused) {
			j.text("file", f.File)
			j.number("code", int64(f.Code))
			j.text("text", f.Text)
		})
		if len(r.Notes) > 0 {
			j.field("notes", func() { j.array(len(r.Notes), func(i int) { j.string(r.Notes[i]) }) })
		}
		list(j, "phases", r.Phases, func(p Phase) {
			j.text("name", p.Name)
			j.field("ms", func() { j.b = strconv.AppendFloat(j.b, p.MS, 'f', -1, 64) })
		})
		list(j, "workers", r.Workers, func(w Worker) {
			j.text("role", w.Role)
			j.number("maxrss_kib", w.MaxRSSKiB)
		})
		j.number("init_maxrss_kib", r.InitRSS)
	})
	return append(j.b, '\n')
}

func (j *jsonWriter) state(s *State) {
	j.object(func() {
		j.count("sequence", s.Sequence)
		j.count("boot", s.Boot)
		j.number("format", int64(s.Format))
		j.field("floors", func() {
			j.object(func() {
				j.text("version", s.Floors.Version)
				j.number("epoch", int64(s.Floors.Epoch))
				j.number("time", s.Floors.Time)
			})
		})
		list(j, "slots", s.Slots, func(e Slot) {
			j.text("slot", e.Slot)
			j.text("bootname", e.Bootname)
			j.text("manifest_hash", e.ManifestHash)
			j.text("version", e.Version)
			j.number("epoch", int64(e.Epoch))
			j.number("tries", int64(e.Tries))
			j.flag("good", e.Good)
			j.flag("excluded", e.Excluded)
			if e.Back != 0 {
				j.number("given_back", int64(e.Back))
			}
			j.text("reason", e.Reason)
			j.some("authenticity", e.Authenticity)
		})
		list(j, "events", s.Events, func(e Event) {
			j.count("boot", e.Boot)
			if e.Time != 0 {
				j.number("time", e.Time)
			}
			j.text("event", e.Event)
			j.some("slot", e.Slot)
			j.some("reason", e.Reason)
			if e.Code != 0 {
				j.number("code", int64(e.Code))
			}
			j.some("manifest", e.Manifest)
		})
		if g := s.Staged; g != nil {
			j.field("staged", func() {
				j.object(func() {
					j.text("version", g.Version)
					j.text("manifest_hash", g.ManifestHash)
					j.number("size", g.Size)
					if g.Waits {
						j.flag("waits", true)
					}
				})
			})
		}
	})
}

// jsonWriter writes one value after the other; more says that a comma is due before the next.
type jsonWriter struct {
	b     []byte
	depth int
	more  bool
}

func (j *jsonWriter) line() {
	if j.more {
		j.b = append(j.b, ',')
	}
	j.more = false
	j.b = append(j.b, '\n')
	for range j.depth {
		j.b = append(j.b, ' ')
	}
}

func (j *jsonWriter) nest(open, end byte, body func()) {
	j.b = append(j.b, open)
	j.depth++
	before := len(j.b)
	body()
	j.depth--
	j.more = false
	if len(j.b) > before {
		j.line()
	}
	j.b = append(j.b, end)
}

func (j *jsonWriter) object(body func()) { j.nest('{', '}', body) }

func (j *jsonWriter) array(n int, item func(i int)) {
	j.nest('[', ']', func() {
		for i := range n {
			j.line()
			item(i)
			j.more = true
		}
	})
}

func (j *jsonWriter) field(name string, value func()) {
	j.line()
	j.string(name)
	j.b = append(j.b, ": "...)
	value()
	j.more = true
}

func (j *jsonWriter) text(name, v string) { j.field(name, func() { j.string(v) }) }

func (j *jsonWriter) some(name, v string) {
	if v != "" {
		j.text(name, v)
	}
}

func (j *jsonWriter) number(name string, v int64) {
	j.field(name, func() { j.b = strconv.AppendInt(j.b, v, 10) })
}

func (j *jsonWriter) count(name string, v uint64) {
	j.field(name, func() { j.b = strconv.AppendUint(j.b, v, 10) })
}

func (j *jsonWriter) flag(name string, v bool) {
	j.field(name, func() { j.b = strconv.AppendBool(j.b, v) })
}

func list[T any](j *jsonWriter, name string, items []T, body func(T)) {
	j.field(name, func() {
		if items == nil {
			j.b = append(j.b, "null"...)
			return
		}
		j.array(len(items), func(i int) { j.object(func() { body(items[i]) }) })
	})
}

// string writes what is valid UTF-8 as it is and everything that JSON or HTML gives a meaning escaped.
func (j *jsonWriter) string(s string) {
	const hex = "0123456789abcdef"
	j.b = append(j.b, '"')
	for i, r := range s {
		switch {
		case r == '"' || r == '\\':
			j.b = append(j.b, '\\', byte(r))
		case r == '\n':
			j.b = append(j.b, `\n`...)
		case r == '\r':
			j.b = append(j.b, `\r`...)
		case r == '\t':
			j.b = append(j.b, `\t`...)
		case r == '\b':
			j.b = append(j.b, `\b`...)
		case r == '\f':
			j.b = append(j.b, `\f`...)
		case r < ' ' || r == '<' || r == '>' || r == '&' || r == 0x2028 || r == 0x2029:
			j.b = append(j.b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
		case r == utf8.RuneError:
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				j.b = append(j.b, `\ufffd`...)
				continue
			}
			fallthrough
		default:
			j.b = utf8.AppendRune(j.b, r)
		}
	}
	j.b = append(j.b, '"')
}
