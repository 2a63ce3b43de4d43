package loader_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"lifeboat/boot"
	"lifeboat/boot/loader"
	"lifeboat/status"
)

// TestModel explores every state that a device with a boot loader gets into: what the loader does with its variables, and
// the functions of package boot in the sequence in which update calls them, over the Store of this package, with the power cut
// before and after each write, until no state is new. It asserts at each boot that the slot that is started is the one
// whose kernel runs, and of each state that the device comes back from it by itself.
func TestModel(t *testing.T) {
	total, transitions, closed := 0, 0, 0
	for _, most := range []uint8{9, 1, 0} {
		for _, secure := range []bool{false, true} {
			for _, dead := range []string{"", "A", "B"} {
				w := &world{t: t, policy: policyOf(most, secure), dead: dead}
				name := fmt.Sprintf("most=%d/secure=%t/dead=%s", most, secure, dead)
				t.Run(name, func(t *testing.T) {
					w.t = t
					n, m, all := w.explore()
					total, transitions = total+n, transitions+m
					if all {
						closed++
					}
					t.Logf("%d states, %d transitions, closed: %t", n, m, all)
				})
			}
		}
	}
	t.Logf("figure: loader model: 18 worlds, %d of them closed, %d states, %d transitions", closed, total, transitions)
}

const a, b = "rootfs.0", "rootfs.1"

func policyOf(most uint8, secure bool) boot.Policy {
	return boot.Policy{
		Slots: []string{a, b}, Bootnames: []string{"A", "B"}, Attempts: 2, ConfirmedAttempts: 3, Secure: secure, Loader: true, Most: most,
	}
}

func sealOf(version string) boot.Seal {
	s := boot.Seal{Status: boot.SealValid, Whole: boot.WholeRight, Version: version, Epoch: 1}
	copy(s.Manifest[:], "manifest of "+version)
	return s
}

// place is all that survives a power cut.
type place struct {
	record boot.State
	lost   bool // the record
	vars   *boot.Vars
	medium [2]string // version that is sealed in A and B, "" for none
	faulty bool      // there was a fault
	up     string    // slot whose system runs, "" while there is no power
}

func (p place) clone() place {
	p.record = p.record.Clone()
	if p.vars != nil {
		v := *p.vars
		v.Order = slices.Clone(v.Order)
		p.vars = &v
	}
	return p
}

// key leaves out what nothing decides by.
func (p place) key() string {
	s := p.record.Clone()
	for i := range s.Slots {
		s.Slots[i].Booted = 0
		s.Slots[i].Ends = min(s.Slots[i].Ends, 2)
		if s.Slots[i].Reason != status.None {
			s.Slots[i].Ends, s.Slots[i].LastEnd, s.Slots[i].EndedSo = 0, 0, false
		}
	}
	return fmt.Sprint(s.Slots, s.Install, s.Mark, min(s.Cuts, 2), s.Wish, s.Turn, s.Asked, s.Told, s.Last, s.Rescue.Slot, s.Unproven, s.Floors, p.lost, p.vars, p.medium, p.up, p.faulty)
}

var errCut = errors.New("the power is cut")

// world is one kind of loader, and a slot whose kernel never comes to /init.
type world struct {
	t      *testing.T
	policy boot.Policy
	dead   string
	at     place
	writes int // left before the power is cut; negative: it is not
	told   int // writes of the loader's variables by us
	log    []string
}

func (w *world) write() error {
	if w.writes == 0 {
		return errCut
	}
	w.writes--
	return nil
}

// record and variables, as boot.Store and boot.Loader.
type (
	record    struct{ *world }
	variables struct{ *world }
)

func (r record) Load() (boot.State, boot.LoaderView, error) {
	if r.at.lost {
		return boot.State{}, boot.LoaderView{}, boot.ErrLost
	}
	b, err := r.at.record.Encode()
	if err != nil {
		return boot.State{}, boot.LoaderView{}, err
	}
	s, err := boot.Decode(b)
	return s, boot.LoaderView{}, err
}

func (r record) Commit(s boot.State) (boot.State, error) {
	if err := r.write(); err != nil {
		return s, err
	}
	s.Sequence++
	b, err := s.Encode()
	if err != nil {
		return s, err
	}
	r.at.record, err = boot.Decode(b)
	r.at.lost = false
	return s, err
}

func (r record) LoadTrust(boot.Hash) ([]byte, error)             { return nil, errors.New("none") }
func (r record) SaveTrust([]byte, boot.Trust) (boot.Hash, error) { return boot.Hash{}, nil }
func (r record) FindTrust() [][]byte                             { return nil }
func (r record) SaveWords(boot.Words) error                      { return nil }

func (v variables) Read() (boot.Vars, error) {
	if v.at.vars == nil {
		return boot.Vars{}, boot.ErrNoVars
	}
	return *v.at.clone().vars, nil
}

func (v variables) Write(vars boot.Vars) error {
	if err := v.write(); err != nil {
		return err
	}
	v.told++
	v.log = append(v.log, fmt.Sprint("told ", vars, " from ", v.at.vars))
	if len(vars.Order) != 2 {
		v.t.Fatalf("the loader is told %v", vars)
	}
	vars.Order = slices.Clone(vars.Order)
	for i := range vars.Order {
		vars.Order[i].Good = false
	}
	v.at.vars = &vars
	return nil
}
func (v variables) Most() uint8 { return v.policy.Most }

// loader is what a boot loader does at power on: it returns the bootname whose kernel it started.
func (w *world) loader() string {
	if w.at.vars == nil {
		n := min(3, w.policy.Most)
		w.at.vars = &boot.Vars{Order: []boot.Turn{{Name: "A", Tries: n}, {Name: "B", Tries: n}}}
	}
	v := w.at.vars
	if w.policy.Most == 0 {
		// A kernel that hangs there has nobody who counts: this one cannot be loaded.
		name := v.Next
		v.Next = ""
		if name == "" || !w.kernel(name) {
			name = v.Order[0].Name
		}
		if !w.kernel(name) {
			name = v.Order[1].Name
		}
		return name
	}
	for i, t := range v.Order {
		if t.Tries > 0 {
			v.Order[i].Tries--
			return t.Name
		}
	}
	for _, t := range v.Order { // none has tries left: the first whose kernel comes up
		if w.kernel(t.Name) {
			return t.Name
		}
	}
	return "A"
}

// kernel reports whether a slot has a kernel that comes to /init. It goes with the slot's system.
func (w *world) kernel(name string) bool {
	return name != w.dead && w.at.medium[slices.Index(w.policy.Bootnames, name)] != ""
}

func (w *world) slot(name string) string {
	return w.policy.Slots[slices.Index(w.policy.Bootnames, name)]
}

// powerOn is one boot with a power cut before the writes-th write; negative: none. after says what it came to.
func (w *world) powerOn(writes int) (d boot.Decision, err error) {
	w.at.up, w.writes, w.told = "", writes, 0
	w.log = append(w.log, fmt.Sprint("on with ", w.at.vars))
	started := w.loader()
	if !w.kernel(started) {
		if started != w.dead && !w.at.faulty {
			w.t.Fatalf("the loader starts %s, which is half written: %s", started, w.at.key())
		}
		return d, errCut // it hangs, and somebody pulls the plug
	}
	store := &loader.Store{Store: record{w}, Loader: variables{w}, Policy: w.policy, Started: w.slot(started), Say: func(string) {}}
	s, view, err := store.Load()
	f := boot.Facts{Seals: map[string]boot.Seal{}, Failed: map[string]status.Reason{}, Started: view.Started}
	look := func(slots []string, whole bool) {
		for _, slot := range slots {
			seal := boot.Seal{Status: boot.SealMissing}
			if v := w.at.medium[slices.Index(w.policy.Slots, slot)]; v != "" {
				seal = sealOf(v)
			}
			if !whole {
				seal.Whole = f.Seals[slot].Whole
			}
			f.Seals[slot] = seal
		}
	}
	if err != nil {
		look(w.policy.Slots, false)
		s = boot.Rebuild(f.Seals, w.policy)
	}
	s, _ = boot.Hear(s, view, w.policy)
	w.log = append(w.log, fmt.Sprint("heard ", s.Told, s.Slots, s.Mark))
	s, outside := boot.Begin(s, status.None, true, w.policy)
	if outside {
		if s, err = store.Commit(s); err != nil {
			return d, err
		}
	}
	return w.decide(store, s, f, look)
}

func (w *world) decide(store *loader.Store, s boot.State, f boot.Facts, look func([]string, bool)) (d boot.Decision, err error) {
	for range 50 {
		d = boot.Decide(s, f, w.policy)
		switch d.Action {
		case boot.Look, boot.Attest:
			look(d.Slots, d.Action == boot.Attest)
			continue
		}
		if s, err = store.Commit(d.State); err != nil {
			return d, err
		}
		switch d.Action {
		case boot.Boot:
			if d.Slot != f.Started {
				w.t.Fatalf("slot %s is started by the kernel of %s", d.Slot, f.Started)
			}
			look([]string{d.Slot}, false)
			if f.Seals[d.Slot].Status != boot.SealValid || f.Seals[d.Slot].Manifest != s.Entry(d.Slot).Manifest {
				continue
			}
			w.at.up = d.Slot
		case boot.GoRescue:
			if f.Retry {
				return d, nil
			}
			if boot.Retries(s, f, w.policy) {
				f.Retry = true // nobody comes, and its time is over
				continue
			}
		}
		return d, nil
	}
	w.t.Fatal("no decision after 50 steps")
	return d, nil
}

// step is something that happens to a device.
type step struct {
	name  string
	fault bool                // of the hardware, or by somebody else: one on a path
	do    func(w *world) bool // false: it cannot happen here
}

// tell changes the record in the running system.
func (w *world) tell(change func(boot.State) (boot.State, error), writes int) bool {
	if w.at.up == "" || w.at.lost {
		return false
	}
	w.writes = writes
	store := &loader.Store{Store: record{w}, Loader: variables{w}, Policy: w.policy, Say: func(string) {}}
	s, view, _ := store.Load()
	s, _ = boot.Hear(s, view, w.policy)
	s, err := change(s)
	if err == nil {
		_, err = store.Commit(s)
	}
	if errors.Is(err, errCut) {
		w.at.up = ""
	}
	return err == nil || errors.Is(err, errCut)
}

// install writes version 2 or 3 into the slot that is not running, with a cut before the n-th of its durable steps.
func (w *world) install(cut int) bool {
	if w.at.up == "" || !w.at.record.Entry(w.at.up).Good || w.at.record.Staged.Size > 0 {
		return false
	}
	version := "2"
	if slices.Contains(w.at.medium[:], "2") {
		return false
	}
	target := 1 - slices.Index(w.policy.Slots, w.at.up)
	o := boot.Offer{Manifest: sealOf(version).Manifest, Version: version, Epoch: 1}
	note := func(s boot.State) (boot.State, error) { return boot.Note(s, w.policy.Slots[target], o, w.policy), nil }
	done := func(s boot.State) (boot.State, error) {
		return boot.Installed(s, w.policy.Slots[target], sealOf(version), w.policy), nil
	}
	steps := []func() bool{
		func() bool { return w.tell(note, -1) },
		func() bool { w.at.medium[target] = ""; return true },
		func() bool { w.at.medium[target] = version; return true },
		func() bool { return w.tell(done, -1) },
	}
	w.told = 0
	for i, s := range steps {
		if i == cut {
			w.at.up = ""
			return true
		}
		if !s() {
			return false
		}
	}
	if w.told > 2 {
		w.t.Fatalf("an update told the loader %d times", w.told)
	}
	return cut == len(steps)
}

func steps() (all []step) {
	for n := -1; n < 5; n++ {
		all = append(all, step{fmt.Sprintf("power on, cut before write %d", n), false, func(w *world) bool {
			_, err := w.powerOn(n)
			return (err == nil) == (n < 0) || err != nil && w.dead != "" // else the cut came too late to matter
		}})
	}
	for n := -1; n < 2; n++ {
		all = append(all,
			step{fmt.Sprintf("good, cut before write %d", n), false, func(w *world) bool {
				return w.tell(func(s boot.State) (boot.State, error) { return boot.Good(s, w.at.up, w.policy) }, n)
			}},
			step{fmt.Sprintf("bad, cut before write %d", n), false, func(w *world) bool {
				return w.tell(func(s boot.State) (boot.State, error) { return boot.Bad(s, w.at.up, false, w.policy) }, n)
			}},
			step{fmt.Sprintf("next, cut before write %d", n), false, func(w *world) bool {
				return w.tell(func(s boot.State) (boot.State, error) {
					other := w.policy.Slots[1-slices.Index(w.policy.Slots, w.at.up)]
					return boot.Next(s, other, w.policy)
				}, n)
			}},
		)
	}
	for n := range 5 {
		all = append(all, step{fmt.Sprintf("install, cut before step %d", n), false, func(w *world) bool { return w.install(n) }})
	}
	return append(all,
		step{"variables lost", true, func(w *world) bool { w.at.vars, w.at.up = nil, ""; return true }},
		step{"record lost", true, func(w *world) bool { w.at.lost, w.at.up = true, ""; return true }},
		step{"somebody makes B the first", true, func(w *world) bool { return w.foreign("B", "A") }},
		step{"somebody makes A the first", true, func(w *world) bool { return w.foreign("A", "B") }},
		step{"variables of nobody", true, func(w *world) bool {
			w.at.vars, w.at.up = &boot.Vars{Order: []boot.Turn{{Name: "B"}, {Name: "A"}}}, ""
			return true
		}},
	)
}

func (w *world) foreign(first, second string) bool {
	w.at.up = ""
	w.at.vars = &boot.Vars{Order: []boot.Turn{{Name: first, Tries: min(3, w.policy.Most)}, {Name: second, Tries: min(3, w.policy.Most)}}}
	return true
}

func (w *world) explore() (states, transitions int, closed bool) {
	limit := 4_000
	if os.Getenv("LIFEBOAT_MODEL") == "full" {
		limit = 0
	}
	start := place{medium: [2]string{"1", "1"}}
	start.record = boot.Factory(map[string]boot.Seal{a: sealOf("1"), b: sealOf("1")}, w.policy)
	type node struct {
		place
		from int
		by   string
	}
	nodes := []node{{place: start, from: -1}}
	keys := map[string]bool{start.key(): true}
	all := steps()
	story := func(i int) string {
		var lines []string
		for ; i >= 0; i = nodes[i].from {
			lines = append(lines, fmt.Sprintf("%s\n    %s", nodes[i].by, nodes[i].key()))
		}
		slices.Reverse(lines)
		return strings.Join(lines, "\n")
	}
	for i := 0; i < len(nodes); i++ {
		if why := w.comesBack(nodes[i].place); why != "" {
			w.t.Fatalf("%s, after\n%s", why, story(i))
		}
		for _, s := range all {
			w.at = nodes[i].clone()
			if s.fault && w.at.faulty || !s.do(w) {
				continue
			}
			w.at.faulty = w.at.faulty || s.fault
			transitions++
			w.at.record.Boot, w.at.record.Events, w.at.record.Falls, w.at.record.Guards = 0, nil, nil, nil
			if k := w.at.key(); !keys[k] {
				keys[k] = true
				nodes = append(nodes, node{w.at, i, s.name})
			}
		}
		if limit > 0 && len(nodes) > limit {
			return len(nodes), transitions, false
		}
	}
	return len(nodes), transitions, true
}

// comesBack says why a device does not come back from p by itself, "" if it does: a sealed slot boots, after so many starts
// at most, and goes on booting, with two restarts in a row at most without rescue; and a boot without news tells the loader nothing that it does not need.
func (w *world) comesBack(p place) string {
	w.at, w.log = p.clone(), nil
	live := false
	for i, name := range w.policy.Bootnames {
		live = live || w.at.medium[i] != "" && name != w.dead
	}
	if !live {
		return ""
	}
	const most = 24
	restarts := 0
	for n := range most {
		d, err := w.powerOn(-1)
		if restarts++; err != nil || d.Action != boot.Restart || d.State.Turn != "" {
			restarts = 0 // or it was in rescue for a while
		}
		if restarts > 2 {
			return fmt.Sprintf("restarted %d times in a row\n%s\n", restarts, strings.Join(w.log, "\n"))
		}
		if err != nil || d.Action != boot.Boot || w.at.up == "" {
			continue
		}
		if d.Trial || d.State.Entry(d.Slot).Tries < 2 {
			return ""
		}
		// The next one is a boot like any other.
		needs := 0
		if w.policy.Most == 1 {
			needs = 1 // it is armed again
		}
		first := w.at.up
		if _, err := w.powerOn(-1); err == nil && w.at.up == first && w.told > needs {
			return fmt.Sprintf("boot %d without news tells the loader %d times\n%s\n", n+2, w.told, strings.Join(w.log, "\n"))
		}
		return ""
	}
	return fmt.Sprintf("nothing has booted after %d starts", most)
}
