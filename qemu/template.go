package qemu

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Template is a machine that was saved while it ran: [Machine].From starts any number of machines from it, each with the
// guest's memory as it was then. It saves a test all that comes before: 0.1 s instead of a boot. Monotonic clock, wall
// clock and random numbers of the guest are those of the moment when it was saved.
type Template struct {
	State string // of the devices
	RAM   string // Machine.RAM of the machine that was saved; nobody may write to it afterwards
}

// Save saves a machine that has a RAM file, and leaves it stopped: Cut it. The guest must not be using a disk or stick.
func (v *VM) Save(state string) (*Template, error) {
	p, err := v.running()
	if err != nil {
		return nil, fmt.Errorf("save: %w", err)
	}
	if v.machine.RAM == "" {
		return nil, fmt.Errorf("save: the machine has no RAM file")
	}
	_, err = p.qmp.call("migrate-set-parameters", map[string]any{"max-bandwidth": 1 << 34, "downtime-limit": 60000})
	if err == nil {
		err = p.leaveRAM()
	}
	if err == nil {
		_, err = p.qmp.call("migrate", map[string]any{"uri": "exec:cat > " + shellQuote(state)})
	}
	for end := time.Now().Add(time.Minute); err == nil; time.Sleep(10 * time.Millisecond) {
		var raw json.RawMessage
		if raw, err = p.qmp.call("query-migrate", nil); err != nil {
			break
		}
		var how struct{ Status string }
		switch err = json.Unmarshal(raw, &how); {
		case how.Status == "completed":
			return &Template{State: state, RAM: v.machine.RAM}, nil
		case how.Status == "failed" || time.Now().After(end):
			err = fmt.Errorf("it ended %q: %s", how.Status, raw)
		}
	}
	return nil, fmt.Errorf("save: %w", err)
}

// leaveRAM keeps the guest's memory out of the stream: it lies in a file.
func (p *process) leaveRAM() error {
	_, err := p.qmp.call("migrate-set-capabilities", map[string]any{
		"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}},
	})
	return err
}

// restore makes a machine that was started with -incoming run on and plugs its sticks in. seen: events before it was
// started.
func (v *VM) restore(p *process, seen int) error {
	err := p.leaveRAM()
	if err == nil {
		_, err = p.qmp.call("migrate-incoming", map[string]any{"uri": "exec:cat " + shellQuote(v.machine.From.State)})
	}
	if err == nil {
		_, err = v.events.expect(time.Minute, seen, "RESUME", func(e Event) bool { return e.Name == "RESUME" })
	}
	if err != nil {
		return fmt.Errorf("start from %s: %w", v.machine.From.State, err)
	}
	for _, s := range v.sticks {
		if err := p.plug(s); err != nil {
			return err
		}
	}
	return nil
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Requests returns how many reads and writes of the disk ("vda") or of a stick have been completed since power on.
func (v *VM) Requests(device string) (reads, writes int, err error) {
	p, err := v.running()
	if err != nil {
		return 0, 0, err
	}
	raw, err := p.qmp.call("query-blockstats", nil)
	if err != nil {
		return 0, 0, err
	}
	var all []struct {
		Qdev  string `json:"qdev"`
		Stats struct {
			Reads  int `json:"rd_operations"`
			Writes int `json:"wr_operations"`
		} `json:"stats"`
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		return 0, 0, fmt.Errorf("query-blockstats: %w", err)
	}
	for _, s := range all {
		if strings.Contains(s.Qdev, device) {
			return s.Stats.Reads, s.Stats.Writes, nil
		}
	}
	return 0, 0, fmt.Errorf("query-blockstats: no device %s", device)
}
