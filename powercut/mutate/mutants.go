package main

// mutant is the product with one promise taken away.
type mutant struct {
	name    string
	file    string
	changes []change
}

type change struct{ old, new string }

// nets are asked in this order.
var nets = []struct{ name, pkg, run string }{
	{"crash simulator", "./powercut", "^(TestLostWrite|TestReset|TestNewestLost|TestFaults|TestCollateral|TestFiftyCuts|TestRandomDepth)$"},
	{"crash simulator", "./boot/raw", "."},
	{"what is staged", "./staging", "."},
	{"what is staged", "./powercut", "^TestStaged"},
	{"torn seals", "./slots", "^TestSeal"},
	{"groups and twins", "./powercut", "^(TestGroup|TestRepair)"},
	{"boot loaders", "./boot/loader", "^TestModel$"},
	{"copies of the boot loader", "./boot/halves", "Cut$"},
	{"updates of the boot loader", "./powercut", "^TestLoader(Cut|Lost|Running)$"},
	{"crash simulator", "./powercut", "^TestCrash$"},
	{"model", "./boot", "Model|Rule22"},
}

var mutants = []mutant{
	// Flushes.
	{"no flush after the wipe", "slots/seal.go", []change{{
		"if err := putSeal(dev, make([]byte, SealSize)); err != nil {", "if _, err := dev.WriteAt(make([]byte, SealSize), dev.Size()-SealSize); err != nil {",
	}}},
	{"no flush after image and tree", "update/install.go", []change{{"err = d.Slots.Sync(m)", "err = nil"}}},
	{"no flush after the seal", "slots/seal.go", []change{{
		"if err := putSeal(dev, seal); err != nil {", "if _, err := dev.WriteAt(seal, dev.Size()-SealSize); err != nil {",
	}}},
	{"no flush after the record", "boot/raw/raw.go", []change{{
		"if err := s.dev.Flush(); err != nil {\n\t\t\treturn st, fmt.Errorf(\"flush state", "if err := error(nil); err != nil {\n\t\t\treturn st, fmt.Errorf(\"flush state",
	}}},
	{"what a reset left in the disk's cache is not flushed before the other copy is written over", "boot/raw/raw.go", []change{{"if !s.sure {", "if false {"}}},
	{"the record names a trust file that is not flushed", "boot/raw/trust.go", []change{{"if err := s.dev.Flush(); err != nil {\n\t\treturn file, fmt.Errorf(\"flush trust", "if err := error(nil); err != nil {\n\t\treturn file, fmt.Errorf(\"flush trust"}}},
	{"a trust file is written over the one that counts", "boot/raw/trust.go", []change{{"sum != keep.File && sum != keep.Pending", "true"}}},
	{"a flush of the record that fails is taken for done", "boot/raw/raw.go", []change{{
		"if err := s.dev.Flush(); err != nil {\n\t\t\treturn st, fmt.Errorf(\"flush state", "if err := s.dev.Flush(); false {\n\t\t\treturn st, fmt.Errorf(\"flush state",
	}}},

	{"a header says that what is staged is whole, and that is not flushed", "staging/staging.go", []change{{
		"			if err := dev.Flush(); err != nil {\n\t\t\t\treturn Area{}, fmt.Errorf(\"flush what was staged: %w\", err)\n\t\t\t}\n\t\t\treturn w.header", "			return w.header",
	}}},
	{"what was staged is written over while a header says that it is whole", "staging/staging.go", []change{{"if err := w.begin(done, stays); err != nil {", "if err := error(nil); err != nil {"}}},

	// What is written at all.
	{"the old seal is not wiped", "update/install.go", []change{{"if err := d.Slots.Wipe(m); err != nil {", "if err := error(nil); err != nil {"}}},
	{"the install is not noted", "update/install.go", []change{{
		"if !d.keep(o, boot.Note(d.state, t.Slot, o.Offer, d.Policy), rescue) {", "if false {",
	}}},
	{"no mark before a stick is read", "update/update.go", []change{{"if (look || staged) && d.commit(d.state) {", "if look || staged {"}}},
	{"one copy of a record that forbids something", "boot/raw/raw.go", []change{{"times = 2", "times = 1"}}},
	{"the newest copy of the record is overwritten", "boot/raw/raw.go", []change{{
		"if _, err := s.dev.WriteAt(b, s.offset(1-s.copy)); err != nil {", "if _, err := s.dev.WriteAt(b, s.offset(s.copy)); err != nil {",
	}}},

	{"what is staged is written over by what is to replace it", "staging/staging.go", []change{{"	if stays.Size > 0 {\n\t\tafter :=", "	if false {\n\t\tafter :="}}},
	{"what was installed is still staged", "boot/install.go", []change{{"	if s.isStaged(seal.Manifest) {", "	if false {"}}},
	{"the running system's install goes by the record as it was when it began", "update/running.go", []change{{
		"		if d.running != \"\" {\n			if err := d.reload(); err != nil {", "		if false {\n			if err := d.reload(); err != nil {",
	}}},

	// Checks.
	{"the record's CRC is not looked at", "boot/record.go", []change{{"recordCRC(b) != binary", "false && recordCRC(b) != binary"}}},
	{"the seal's CRC is not looked at", "slots/seal.go", []change{{"checksum(b[:end]) != binary", "false && checksum(b[:end]) != binary"}}},
	{"the slot is not read back", "update/install.go", []change{
		{"att, seals[i] = d.attest(ctx, m, true, seals[i])", "att, _ = d.attest(ctx, m, false, seals[i])"},
		{"case att.Seal.Status != boot.SealValid || att.Seal.Whole != boot.WholeRight:", "case att.Seal.Status != boot.SealValid:"},
	}},
	{"the seal is not read back", "update/install.go", []change{{
		"if s := d.facts.Seals[slot]; s.Status != boot.SealValid || s.Manifest != o.Offer.Manifest {", "if d.facts.Seals[slot] = att.Seal; false {",
	}}},
	{"a slot is adopted without being read", "boot/decide.go", []change{{
		"		case noted && seal.Manifest == s.Install.Manifest:\n			if seal.Whole == WholeUnread {", "		case noted && seal.Manifest == s.Install.Manifest:\n			if false {",
	}}},
	{"a block that differs is taken for one that is there", "slots/old.go", []change{{"old[at:at+verity.BlockSize])", "p[at:at+verity.BlockSize])"}}},
	{"the older copy of the record wins", "boot/raw/raw.go", []change{{"st.Sequence > s.newest.Sequence {\n\t\t\ts.newest, s.copy", "st.Sequence < s.newest.Sequence {\n\t\t\ts.newest, s.copy"}}},

	// Orders.
	{"sealed before image and tree are flushed", "update/install.go", []change{{
		"			err = d.Slots.Sync(m)\n", "			err = d.Slots.Seal(m, a.seal)\n\t\t\tif err == nil {\n\t\t\t\terr = d.Slots.Sync(m)\n\t\t\t}\n",
	}}},
	{"the record vouches before the seal is there", "update/install.go", []change{{
		"		if err := d.Slots.Seal(m, seals[i]); err != nil {\n", "		d.commit(boot.Installed(d.state, slot, att.Seal, d.Policy))\n\t\tif err := d.Slots.Seal(m, seals[i]); err != nil {\n",
	}}},
	{"wiped before the install is noted", "update/install.go", []change{{
		"		if !d.keep(o, boot.Note(d.state, t.Slot, o.Offer, d.Policy), rescue) {", "		d.Slots.Wipe(t.Slot)\n\t\tif !d.keep(o, boot.Note(d.state, t.Slot, o.Offer, d.Policy), rescue) {",
	}}},
	{"the try is counted after the slot was opened", "update/update.go", []change{
		{"		if !d.commit(dec.State) {\n", "		if dec.Action == boot.Boot {\n\t\t\td.state = dec.State\n\t\t} else if !d.commit(dec.State) {\n"},
		{"		if s, ok := d.start(ctx, dec); ok {\n", "		if s, ok := d.start(ctx, dec); ok {\n\t\t\td.commit(d.state)\n"},
	}},

	// Groups.
	{"what goes with a slot may be of another bundle", "update/group.go", []change{{"	case with.Manifest != s.Manifest:\n", "	case false:\n"}}},
	{"what goes with a slot is not looked at", "update/group.go", []change{{"		if s.Status != boot.SealValid || s.Whole == boot.WholeDamaged {\n", "		if true {\n"}}},
	{"what goes with a slot is not read back", "update/install.go", []change{
		{"		att, seals[i] = d.attest(ctx, m, true, seals[i])", "\t\twhole := i == len(members)-1\n\t\tif raw := seals[i]; whole {\n\t\t\tatt, seals[i] = d.attest(ctx, m, true, raw)\n\t\t} else {\n\t\t\tcontinue\n\t\t}"},
	}},
	{"a seal is taken for one of another class", "update/work.go", []change{{"seal.Image != w.job.Class", "false"}}},

	// Repair.
	{"a repair is not noted", "update/repair.go", []change{{"if !d.binds(boot.NoteRepair(d.state, target, d.Policy)) {", "if false {"}}},
	{"a repair forgets its target when it is cut", "boot/decide.go", []change{{"noted && !(p.Repair && e.Manifest == s.Install.Manifest) {", "noted {"}}},
	{"a copy is not read back", "update/repair.go", []change{{"		a, seal := d.attest(ctx, slot, true, seals[i])\n		if a.Seal.Status != boot.SealValid || a.Seal.Whole != boot.WholeRight ||", "		a, _ := d.attest(ctx, slot, false, seals[i])\n		seal := seals[i]\n		if a.Seal.Status != boot.SealValid ||"}}},
	{"a copy is not flushed before its seal", "update/repair.go", []change{{"			err = d.Slots.Sync(slot)\n", ""}}},
	{"a slot is copied that was not read whole", "update/repair.go", []change{{"d.judgeGroup(ctx, source, true); s.Status != boot.SealValid || s.Whole != boot.WholeRight ||", "d.judgeGroup(ctx, source, false); s.Status != boot.SealValid ||"}}},
	{"a repair is tried at every boot", "boot/repair.go", []change{{"|| s.Guarded(guardRepair) {", "{"}}},

	// Rules.
	{"the floor rises at install, before the trial", "boot/install.go", []change{{
		"	s.toFront(target)\n	s.Install, s.Asked = Install{}, 0\n", "	s.toFront(target)\n\ts.Floors.Version = seal.Version\n	s.Install, s.Asked = Install{}, 0\n",
	}}},
	{"the note replaces the target's entry", "boot/install.go", []change{{
		"	s.Install = Install{Target: target, Manifest: o.Manifest}\n", "	s.Install = Install{Target: target, Manifest: o.Manifest}\n\ts.set(Entry{Slot: target})\n",
	}}},
	{"tries are not counted down", "boot/decide.go", []change{{"	s.Slots[i].Tries--\n", ""}}},
	{"power losses are given back without a bound", "boot/decide.go", []change{{"e.Back < p.PowerLosses", "p.PowerLosses > 0"}}},
	{"what was given back is not in the record", "boot/record.go", []change{{"return e.Back > 0 })", "return false })"}}},
	{"a system that went down in order gets its try back", "boot/decide.go", []change{{"s.Last.Trial && how == status.PowerLoss &&", "s.Last.Trial && end == status.None &&"}}},
	{"the only good slot is a target", "boot/install.go", []change{{"	if len(good) == 1 {\n		free =", "	if false {\n		free ="}}},
	{"a system that was never good is booted for ever", "boot/decide.go", []change{{"		s.exhaust(i, p)\n", "		s.Slots[i] = s.again(s.Slots[i], p)\n"}}},

	// Boot loaders.
	{"the boot loader is told nothing", "boot/loader/store.go", []change{{"if s.seen != nil && s.seen.Equal(want, s.Policy.Most) {", "if true {"}}},
	{"the boot loader starts a slot that is being installed", "boot/vars.go", []change{{" && e.Slot != s.Install.Target", ""}}},
	{"tries that the boot loader used up are not taken off", "boot/vars.go", []change{{"e.Tries -= min(n, e.Tries)", "_ = n"}}},
	{"what stood in the boot loader's place before a cut is taken for somebody else's", "boot/vars.go", []change{{"if fits && (!ok", "if fits = false; fits && (!ok"}}},
	{"one slot's kernel starts another slot's system", "boot/decide.go", []change{{"if f.Started != \"\" && slot != \"\" && slot != f.Started {", "if false {"}}},
	{"a boot loader that cannot load a slot's kernel is asked for it as often as it counts", "boot/vars.go", []change{{"		if e.Slot != started {\n", "		if e.Slot != started {\n			s.Asked = 0\n"}}},
	{"a boot loader that does not listen is asked for ever", "boot/decide.go", []change{{"if s.Asked < maxAsked {", "if true {"}}},

	// Updates of the boot loader.
	{"a copy of the boot loader is not read back", "update/loaders.go", []change{{"if held, err = d.loaded(ctx, slot, seal, c); err == nil && !held {", "if false {"}}},
	{"the boot loader is brought after its slot was sealed and recorded", "update/install.go", []change{{"if err := d.bringLoaders(ctx, &o, slot, seals[len(seals)-1]); err != nil {", "if err := error(nil); err != nil {"}}},
	{"the copy that is started is written", "update/loaders.go", []change{{"first, other := CopyName(l.Slot, s.First), CopyName(l.Slot, 1-s.First)", "first, other := CopyName(l.Slot, 1-s.First), CopyName(l.Slot, s.First)"}}},
	{"the boot loader is switched to before it is written", "update/loaders.go", []change{{"		held, err := d.loaded(ctx, slot, seal, c)\n", "		if !s.Both {\n			_ = d.Copies.Switch(l.Slot, s.First)\n		}\n		held, err := d.loaded(ctx, slot, seal, c)\n"}}},
	{"a copy's header is written with the rest", "boot/halves/write.go", []change{{"w.fill()\n", "w.fill()\n	_, _ = dev.WriteAt(head, 0)\n"}}},
	{"a copy's header is not cleared first", "boot/halves/write.go", []change{{"if err := w.put(last, 0); err != nil {", "if err := error(nil); err != nil {"}}},
	{"a copy that is being written is not marked", "boot/halves/write.go", []change{{"copy(last, mark)", "_ = mark"}}},
	{"a fallback begins with the copy that is started", "boot/halves/write.go", []change{{"			return 1, nil\n		}\n	}\n	return 0, nil", "			return 0, nil\n		}\n	}\n	return 0, nil"}}},
	{"both copies of the GPT are written at once", "boot/halves/gpt.go", []change{{"		t.sum()\n		if err := g.write(t); err != nil {", "		t.sum()\n		g.dev = flushless{g.dev}\n		if err := g.write(t); err != nil {"}, {"// table is one of", "type flushless struct{ disk.Device }\n\nfunc (flushless) Flush() error { return nil }\n\n// table is one of"}}},
	{"the GPT's sums are not put right", "boot/halves/gpt.go", []change{{"		t.sum()\n		if err", "		if err"}}},
}
