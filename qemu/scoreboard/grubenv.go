package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os/exec"
	"strconv"
	"strings"
)

// GRUB's environment block: a file of 1024 bytes that starts with a line, then name=value lines (backslash quotes
// backslash and newline), filled with '#'. No checksum, no end mark: GRUB takes any size that has the first line.
const (
	blockSize  = 1024
	blockMagic = "# GRUB Environment Block\n"
)

// missing is the content of a file that is not there: grub-editenv makes a new one, where it refuses a bad one.
const missing = unreadable + "missing"

// notMounted is how the content of all files of a file system starts that the system does not mount.
const notMounted = unreadable + "not mounted: "

// parseBlock returns the variables, ok false where GRUB and grub-editenv say "invalid environment block".
func parseBlock(b string) (vars map[string]string, ok bool) {
	if !strings.HasPrefix(b, blockMagic) || len(b) == len(blockMagic) {
		return nil, false
	}
	vars = map[string]string{}
	b = b[len(blockMagic):]
	for len(b) > 0 {
		if b[0] == '#' {
			_, b, _ = strings.Cut(b, "\n")
			continue
		}
		name, rest, found := strings.Cut(b, "=")
		if !found {
			break
		}
		var value strings.Builder
		i := 0
		for ; i < len(rest) && rest[i] != '\n'; i++ {
			if rest[i] == '\\' && i+1 < len(rest) {
				i++
			}
			value.WriteByte(rest[i])
		}
		if i == len(rest) {
			break // a value without an end is none
		}
		vars[name] = value.String()
		b = rest[i+1:]
	}
	return vars, true
}

// setBlock changes variables as GRUB's save_env and grub-editenv set do; the others keep their places.
func setBlock(b string, set ...string) string {
	body := strings.TrimRight(strings.TrimPrefix(b, blockMagic), "#")
	for i := 0; i < len(set); i += 2 {
		line := set[i] + "=" + set[i+1] + "\n"
		at := strings.Index("\n"+body, "\n"+set[i]+"=")
		if at < 0 {
			body += line
			continue
		}
		end := strings.IndexByte(body[at:], '\n')
		if end < 0 {
			body = body[:at] + line
			continue
		}
		body = body[:at] + line + body[at+end+1:]
	}
	b = blockMagic + body
	return b + strings.Repeat("#", max(0, blockSize-len(b)))
}

// save is GRUB's save_env: in place on the blocks where its own reading of the file system found the file; silent where
// the file is no block. The system sees it where it reads the same content, thus the same blocks.
func (v *View) save(file string, set ...string) {
	old := v.Loader[file]
	if _, ok := parseBlock(old); !ok {
		return
	}
	if v.System[file] == old {
		v.System[file] = setBlock(old, set...)
	}
	v.Loader[file] = setBlock(old, set...)
}

// edit is grub-editenv set in the running system.
func (v *View) edit(file string, set ...string) error {
	old := v.System[file]
	if old == missing {
		old = blockMagic
	}
	if _, ok := parseBlock(old); !ok {
		return errors.New("grub-editenv: invalid environment block")
	}
	v.System[file] = setBlock(old, set...)
	return nil
}

// mounted is a medium that a system has mounted: from now on all see what it sees. What it cannot mount stays as it is.
func (v View) mounted() View {
	for _, content := range v.System {
		if !strings.HasPrefix(content, notMounted) {
			return View{maps.Clone(v.System), maps.Clone(v.System)}
		}
	}
	return v.clone()
}

func number(s string) int {
	n, _ := strconv.Atoi(s) // as GRUB's test does
	return n
}

func other(slot, a, b string) string {
	if slot == a {
		return b
	}
	return a
}

// raucGRUB is RAUC's grub backend with the logic of its example grub.conf: ORDER, X_OK and X_TRY; one try; without a
// slot to be tried, the menu's first entry, which is a rescue system.
//
// confident is the variant whose script has 1 for X_OK where the environment says nothing; the example has 0.
type raucGRUB struct{ confident bool }

const grubenv = "grubenv"

func (r raucGRUB) Boot(v View) (slot, stop string, next View) {
	v = v.clone()
	vars := map[string]string{"ORDER": "A B", "A_OK": "0", "B_OK": "0", "A_TRY": "0", "B_TRY": "0"}
	if r.confident {
		vars["A_OK"], vars["B_OK"] = "1", "1"
	}
	if saved, ok := parseBlock(v.Loader[grubenv]); ok {
		maps.Copy(vars, saved)
	}
	for s := range strings.FieldsSeq(vars["ORDER"]) {
		if s != "A" && s != "B" {
			continue
		}
		try := number(vars[s+"_TRY"])
		vars[s+"_TRY"] = "1"
		if number(vars[s+"_OK"]) == 1 && try == 0 {
			slot = s
			break
		}
	}
	if slot == "" {
		for _, s := range []string{"A", "B"} {
			if number(vars[s+"_OK"]) == 1 {
				vars[s+"_TRY"] = "0"
			}
		}
	}
	v.save(grubenv, "A_TRY", vars["A_TRY"], "B_TRY", vars["B_TRY"])
	return slot, "stops: no slot is good and untried, the menu's rescue entry is what is left", v
}

func (raucGRUB) Up(v View, slot string) (View, string) {
	v = v.mounted()
	if err := v.edit(grubenv, slot+"_OK", "1", slot+"_TRY", "0"); err != nil {
		return v, "rauc status mark-good fails: " + err.Error()
	}
	return v.mounted(), ""
}

func (raucGRUB) Health(View) string { return "" }

// raucGRUBConfig is the same logic for GRUB itself.
const raucGRUBConfig = `set ORDER="A B"
set A_OK=0
set B_OK=0
set A_TRY=0
set B_TRY=0
load_env --file (hd1)/grubenv
set slot=
for s in $ORDER; do
  if [ -z "$slot" ]; then
    if [ "$s" = A ]; then
      if [ "$A_OK" -eq 1 -a "$A_TRY" -eq 0 ]; then set slot=A; fi
      set A_TRY=1
    elif [ "$s" = B ]; then
      if [ "$B_OK" -eq 1 -a "$B_TRY" -eq 0 ]; then set slot=B; fi
      set B_TRY=1
    fi
  fi
done
if [ -z "$slot" ]; then
  if [ "$A_OK" -eq 1 ]; then set A_TRY=0; fi
  if [ "$B_OK" -eq 1 ]; then set B_TRY=0; fi
  set slot=rescue
fi
save_env --file (hd1)/grubenv A_TRY B_TRY
echo "BOOT slot=$slot "
`

// swupdateGRUB is SWUpdate's grub backend. SWUpdate ships no boot loader script; this one does what its best practice
// document asks for: ustate 1 is a trial of one start (GRUB cannot count), after it the other slot and ustate 3.
type swupdateGRUB struct{}

func (swupdateGRUB) Boot(v View) (slot, stop string, next View) {
	v = v.clone()
	vars := map[string]string{"bootslot": "a", "ustate": "0", "bootcount": "0"}
	if saved, ok := parseBlock(v.Loader[grubenv]); ok {
		maps.Copy(vars, saved)
	}
	slot = "a"
	if vars["bootslot"] == "b" {
		slot = "b"
	}
	if vars["ustate"] == "1" {
		if vars["bootcount"] == "0" {
			v.save(grubenv, "bootcount", "1")
		} else {
			slot = other(slot, "a", "b")
			v.save(grubenv, "bootslot", slot, "ustate", "3", "bootcount", "0")
		}
	}
	return slot, "", v
}

func (swupdateGRUB) Up(v View, slot string) (View, string) {
	v = v.mounted()
	vars, ok := parseBlock(v.System[grubenv])
	if !ok {
		return v, "swupdate's grub backend and grub-editenv refuse the environment"
	}
	if vars["ustate"] == "1" {
		if err := v.edit(grubenv, "ustate", "0", "bootcount", "0"); err != nil {
			return v, err.Error()
		}
	}
	return v.mounted(), ""
}

func (swupdateGRUB) Health(View) string { return "" }

const swupdateGRUBConfig = `set bootslot=a
set ustate=0
set bootcount=0
load_env --file (hd1)/grubenv
if [ "$bootslot" != b ]; then set bootslot=a; fi
if [ "$ustate" = 1 ]; then
  if [ "$bootcount" = 0 ]; then
    set bootcount=1
    save_env --file (hd1)/grubenv bootcount
  else
    if [ "$bootslot" = a ]; then set bootslot=b; else set bootslot=a; fi
    set ustate=3
    set bootcount=0
    save_env --file (hd1)/grubenv bootslot ustate bootcount
  fi
fi
echo "BOOT slot=$bootslot "
`

// mender is the scheme of grub-mender-grubenv: two environments, each with a lock that says that it is being edited,
// and for the system alone the lock's checksum. Partition 2 is A, 3 is B.
type mender struct{}

const (
	mEnv1, mLock1, mSum1 = "mender_grubenv1/env", "mender_grubenv1/lock", "mender_grubenv1/lock.sha256sum"
	mEnv2, mLock2, mSum2 = "mender_grubenv2/env", "mender_grubenv2/lock", "mender_grubenv2/lock.sha256sum"
)

var menderFiles = []string{mEnv1, mLock1, mSum1, mEnv2, mLock2, mSum2}

// menderSum is what sha256sum makes of a lock.
func menderSum(lock string) string {
	h := sha256.Sum256([]byte(lock))
	return hex.EncodeToString(h[:]) + "  lock\n"
}

var menderVars = []string{"bootcount", "mender_boot_part", "upgrade_available"}

func (mender) Boot(v View) (slot, stop string, next View) {
	v = v.clone()
	vars := map[string]string{}
	load := func(file string, names ...string) {
		saved, _ := parseBlock(v.Loader[file])
		for _, n := range names {
			if value, ok := saved[n]; ok {
				vars[n] = value
			}
		}
	}
	save := func(file string, names ...string) {
		var set []string
		for _, n := range names {
			if value, ok := vars[n]; ok {
				set = append(set, n, value)
			}
		}
		v.save(file, set...)
	}
	vars["editing"] = "invalid"
	if load(mLock2, "editing"); vars["editing"] != "0" {
		load(mEnv1, menderVars...)
		save(mEnv2, menderVars...)
		vars["editing"] = "0"
		save(mLock2, "editing")
	} else {
		vars["editing"] = "invalid"
		if load(mLock1, "editing"); vars["editing"] != "0" {
			load(mEnv2, menderVars...)
			save(mEnv1, menderVars...)
			vars["editing"] = "0"
			save(mLock1, "editing")
		}
	}
	load(mEnv1, menderVars...)
	bit := func(s string) bool { return s == "0" || s == "1" }
	part := number(vars["mender_boot_part"])
	if part != 2 && part != 3 || !bit(vars["bootcount"]) || !bit(vars["upgrade_available"]) {
		if part != 3 {
			vars["mender_boot_part"] = "2"
		}
	}
	if vars["upgrade_available"] == "1" {
		if vars["bootcount"] != "0" {
			vars["mender_boot_part"] = other(vars["mender_boot_part"], "2", "3")
			vars["upgrade_available"], vars["bootcount"] = "0", "0"
		} else {
			vars["bootcount"] = "1"
		}
		for _, copy := range [][2]string{{mLock2, mEnv2}, {mLock1, mEnv1}} {
			vars["editing"] = "1"
			save(copy[0], "editing")
			save(copy[1], menderVars...)
			vars["editing"] = "0"
			save(copy[0], "editing")
		}
	}
	return map[string]string{"2": "A", "3": "B"}[vars["mender_boot_part"]], "stops: no partition is chosen", v
}

// Up is the system's `upgrade_available 0` after an update, and the repair that every use of the tool starts with. The
// tool is tried even where there is nothing to commit: the next update would.
func (mender) Up(v View, _ string) (View, string) {
	v = v.mounted()
	s := v.System
	whole := func(lock, sum string) bool {
		return !strings.HasPrefix(s[lock], unreadable) && s[sum] == menderSum(s[lock])
	}
	repair := func(env, lock, sum, fromEnv string) {
		if strings.HasPrefix(s[fromEnv], unreadable) || strings.HasPrefix(s[env], unreadable) && s[env] != missing {
			return
		}
		s[env] = s[fromEnv] + s[env][min(len(s[env]), len(s[fromEnv])):] // dd conv=notrunc
		s[lock] = setBlock(blockMagic, "editing", "0")
		s[sum] = menderSum(s[lock])
	}
	switch one, two := whole(mLock1, mSum1), whole(mLock2, mSum2); {
	case one && !two:
		repair(mEnv2, mLock2, mSum2, mEnv1)
	case two && !one:
		repair(mEnv1, mLock1, mSum1, mEnv2)
	case !one && !two:
		return v, "grub-mender-grubenv-set fails: both locks are corrupt"
	}
	vars, ok := parseBlock(s[mEnv1])
	if !ok {
		return v, "grub-mender-grubenv-set fails: environment 1 is no environment block"
	}
	if _, ok := parseBlock(s[mEnv2]); !ok {
		return v, "grub-mender-grubenv-set fails: environment 2 is no environment block"
	}
	if vars["upgrade_available"] == "1" {
		for _, f := range []string{mEnv2, mEnv1} {
			if err := v.edit(f, "upgrade_available", "0"); err != nil {
				return v, err.Error()
			}
		}
	}
	return v.mounted(), ""
}

func (mender) Health(v View) string {
	one, ok1 := parseBlock(v.System[mEnv1])
	two, ok2 := parseBlock(v.System[mEnv2])
	switch {
	case !ok1 && !ok2:
		return "both copies of the environment are dead"
	case !ok1:
		return "copy 1 of the environment is dead"
	case !ok2:
		return "copy 2 of the environment is dead"
	case !maps.Equal(one, two):
		return "the copies of the environment differ and nothing notices"
	}
	return ""
}

const menderGRUBConfig = `function where { set e=(hd1)/mender_grubenv$1/env; set l=(hd1)/mender_grubenv$1/lock; }
function keep { save_env --file $e bootcount mender_boot_part upgrade_available; set editing=0; save_env --file $l editing; }
set editing=invalid
load_env --file (hd1)/mender_grubenv2/lock editing
if [ "$editing" != 0 ]; then
  load_env --file (hd1)/mender_grubenv1/env bootcount mender_boot_part upgrade_available
  where 2; keep
else
  set editing=invalid
  load_env --file (hd1)/mender_grubenv1/lock editing
  if [ "$editing" != 0 ]; then
    load_env --file (hd1)/mender_grubenv2/env bootcount mender_boot_part upgrade_available
    where 1; keep
  fi
fi
load_env --file (hd1)/mender_grubenv1/env bootcount mender_boot_part upgrade_available
set bad=0
if [ "$mender_boot_part" != 2 -a "$mender_boot_part" != 3 ]; then set bad=1; fi
if [ "$bootcount" != 0 -a "$bootcount" != 1 ]; then set bad=1; fi
if [ "$upgrade_available" != 0 -a "$upgrade_available" != 1 ]; then set bad=1; fi
if [ "$bad" = 1 -a "$mender_boot_part" != 3 ]; then set mender_boot_part=2; fi
if [ "$upgrade_available" = 1 ]; then
  if [ "$bootcount" != 0 ]; then
    if [ "$mender_boot_part" = 2 ]; then set mender_boot_part=3; else set mender_boot_part=2; fi
    set upgrade_available=0
    set bootcount=0
  else
    set bootcount=1
  fi
  where 2; set editing=1; save_env --file $l editing; keep
  where 1; set editing=1; save_env --file $l editing; keep
fi
if [ "$mender_boot_part" = 2 ]; then set slot=A; else set slot=B; fi
echo "BOOT slot=$slot "
`

// grubFiles reads files as GRUB does, with its own drivers (grub-fstest).
func grubFiles(image string, files []string) (Content, error) {
	c := Content{}
	for _, f := range files {
		out, err := exec.Command("grub-fstest", "-r", "loop0", image, "cat", "(loop0)/"+f).CombinedOutput()
		var exit *exec.ExitError
		switch {
		case err == nil:
			c[f] = string(out)
		case !errors.As(err, &exit):
			return nil, fmt.Errorf("grub-fstest: %w", err)
		case strings.Contains(string(out), "not found"):
			c[f] = missing
		default:
			c[f] = unreadable + firstLine(string(out))
		}
		// The tool says "error: ..." and still ends with 0 for some faults.
		if err == nil && strings.HasPrefix(c[f], "grub-fstest: ") {
			c[f] = unreadable + firstLine(c[f])
			if strings.Contains(c[f], "not found") {
				c[f] = missing
			}
		}
	}
	return c, nil
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}

// absent is the content for an error of package fat.
func absent(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return missing
	}
	return unreadable + err.Error()
}
