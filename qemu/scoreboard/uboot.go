package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

// U-Boot's environment: le32 CRC-32 of what follows but the flag, with redundancy one byte flag that counts up, then
// name=value strings that end with NUL, a further NUL, and NULs to the end.
const envSize = 16 << 10

// envCopies are where the raw copies lie, in bytes: each in an erase group of its own.
var envCopies = []int64{1 << 20, 2 << 20}

type uenv struct {
	vars map[string]string
	flag byte
}

func parseEnv(b string, redundant bool) (e uenv, ok bool) {
	head := 4
	if redundant {
		head = 5
	}
	if len(b) != envSize || binary.LittleEndian.Uint32([]byte(b)) != crc32.ChecksumIEEE([]byte(b[head:])) {
		return e, false
	}
	if redundant {
		e.flag = b[4]
	}
	e.vars = map[string]string{}
	for s := range strings.SplitSeq(b[head:], "\x00") {
		name, value, found := strings.Cut(s, "=")
		if !found {
			break
		}
		e.vars[name] = value
	}
	return e, true
}

func (e uenv) encode(redundant bool) string {
	head := 4
	if redundant {
		head = 5
	}
	b := make([]byte, head, envSize)
	for _, name := range slices.Sorted(maps.Keys(e.vars)) {
		b = append(b, name+"="+e.vars[name]+"\x00"...)
	}
	b = append(b, make([]byte, envSize-len(b))...)
	if redundant {
		b[4] = e.flag
	}
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[head:]))
	return string(b)
}

// raucUBoot is RAUC's U-Boot backend with the logic of its example script: BOOT_ORDER and BOOT_X_LEFT (hexadecimal),
// three tries, written back before the kernel is loaded; without an attempt left, all counters start anew.
type raucUBoot struct{ redundant bool }

// boardVars are what a board's environment holds besides: what no compiled-in default can know, and much that it does.
func boardVars() map[string]string {
	vars := map[string]string{"ethaddr": "02:00:5e:10:20:30", "serial#": "LB0001234"}
	for i := range 48 {
		vars[fmt.Sprintf("cmd_%02d", i)] = fmt.Sprintf("load mmc 0:%d ${loadaddr} image.%d; if test -n \"${fdt}\"; then bootm; fi", i%4+1, i)
	}
	return vars
}

func (s raucUBoot) names() []string {
	if s.redundant {
		return []string{"env1", "env2"}
	}
	return []string{"env1"}
}

// pick is the environment that U-Boot and libubootenv take, and its copy; -1: none is valid.
func (s raucUBoot) pick(c Content) (best uenv, at int) {
	at = -1
	for i, name := range s.names() {
		e, ok := parseEnv(c[name], s.redundant)
		newer := e.flag > best.flag && !(e.flag == 255 && best.flag == 0) || e.flag == 0 && best.flag == 255
		if ok && (at < 0 || newer) {
			best, at = e, i
		}
	}
	return best, at
}

// save is saveenv and fw_setenv. A file system that cannot be read is not written to either.
func (s raucUBoot) save(v *View, vars map[string]string) {
	if c := v.System["env1"]; strings.HasPrefix(c, unreadable) && c != missing {
		return
	}
	now, at := s.pick(v.System)
	e := uenv{vars: vars}
	to := s.names()[0]
	if s.redundant {
		e.flag = now.flag + 1
		to = s.names()[(at+1)%2]
	}
	v.System[to] = e.encode(s.redundant)
	v.Loader = maps.Clone(v.System)
}

func (s raucUBoot) Boot(v View) (slot, stop string, next View) {
	v = v.clone()
	v.System = maps.Clone(v.Loader)
	vars := map[string]string{}
	if e, at := s.pick(v.Loader); at >= 0 {
		vars = e.vars
	}
	for name, value := range map[string]string{"BOOT_ORDER": "A B", "BOOT_A_LEFT": "3", "BOOT_B_LEFT": "3"} {
		if vars[name] == "" {
			vars[name] = value
		}
	}
	for range 2 { // the second time after the reset of the counters
		for x := range strings.FieldsSeq(vars["BOOT_ORDER"]) {
			left, _ := strconv.ParseInt(vars["BOOT_"+x+"_LEFT"], 16, 32) // as test's -gt
			if slot == "" && (x == "A" || x == "B") && left > 0 {
				slot = x
				vars["BOOT_"+x+"_LEFT"] = strconv.FormatInt(left-1, 16)
			}
		}
		if slot != "" {
			break
		}
		vars["BOOT_A_LEFT"], vars["BOOT_B_LEFT"] = "3", "3"
	}
	s.save(&v, vars)
	return slot, "resets again and again: no slot is in BOOT_ORDER", v
}

func (s raucUBoot) Up(v View, slot string) (View, string) {
	v = v.clone()
	e, at := s.pick(v.System)
	if at < 0 {
		return v, "rauc status mark-good fails: fw_setenv finds no valid environment"
	}
	e.vars["BOOT_"+slot+"_LEFT"] = "3"
	s.save(&v, e.vars)
	return v, ""
}

func (s raucUBoot) Health(v View) string {
	if e, at := s.pick(v.System); at < 0 || e.vars["ethaddr"] == "" {
		return "U-Boot went on with its compiled-in environment: the order, the counters and the board's own variables (ethaddr, serial#) are lost"
	}
	for _, name := range s.names() {
		if _, ok := parseEnv(v.System[name], s.redundant); !ok {
			return name + " is dead"
		}
	}
	return ""
}

// readRawEnv reads the copies of a raw environment.
func readRawEnv(redundant bool) Reader {
	return func(file string) (View, error) {
		f, err := os.Open(file)
		if err != nil {
			return View{}, err
		}
		defer f.Close()
		c := Content{}
		for i, name := range (raucUBoot{redundant}).names() {
			b := make([]byte, envSize)
			if _, err := f.ReadAt(b, envCopies[i]); err != nil {
				return View{}, err
			}
			c[name] = string(b)
		}
		return View{c, maps.Clone(c)}, nil
	}
}

// readFATEnv reads uboot.env from a FAT file system.
func readFATEnv(file string) (View, error) {
	c, err := fatFiles(file, "uboot.env")
	if err != nil {
		return View{}, err
	}
	c["env1"] = c["uboot.env"]
	delete(c, "uboot.env")
	return View{c, maps.Clone(c)}, nil
}
