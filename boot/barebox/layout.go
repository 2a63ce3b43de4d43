package barebox

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
)

// Layout is what the state node of the device tree says: where in the data each variable lies.
type Layout struct {
	Magic  uint32
	Stride int64          // bytes from one copy to the next (backend-stridesize); unused on flash
	Fresh  []byte         // the data where nothing valid is there: each variable's default
	At     map[string]int // where a variable of 32 bits lies, by its name ("bootstate.system0.priority")
}

// maxData is the most bytes that the variables of a state may have.
const maxData = 4096

// ReadLayout reads the state node of a device tree as Linux shows it (/proc/device-tree, where barebox has put it): state is
// its alias, "state" as a rule. The device tree is the boot loader's, and as trustworthy.
func ReadLayout(tree, state string) (Layout, error) {
	dir := tree + "/" + state
	if node := text(tree + "/aliases/" + state); node != "" {
		dir = tree + node
	}
	magic, stride := property(dir+"/magic"), property(dir+"/backend-stridesize")
	l := Layout{At: map[string]int{}}
	if len(magic) != 4 || text(dir+"/backend-type") != "raw" {
		return l, errors.New(dir + " is no state of barebox in its raw format")
	}
	if property(dir+"/algo") != nil {
		return l, errors.New("barebox's state is authenticated: its key is barebox's alone")
	}
	l.Magic = binary.BigEndian.Uint32(magic)
	if len(stride) == 4 {
		l.Stride = int64(binary.BigEndian.Uint32(stride))
	}
	l.add(dir, "", 0)
	if len(l.Fresh) == 0 || l.Stride > 1<<20 {
		return l, errors.New("barebox's state has no variables, or too large copies")
	}
	return l, nil
}

// add takes the variables below a node.
func (l *Layout) add(dir, prefix string, depth int) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if !e.IsDir() || depth > 4 {
			continue
		}
		sub := dir + "/" + e.Name()
		name, _, _ := strings.Cut(e.Name(), "@")
		kind, reg := text(sub+"/type"), property(sub+"/reg")
		if kind == "" {
			l.add(sub, prefix+name+".", depth+1)
		}
		if kind == "" || len(reg) != 8 {
			continue
		}
		at, n := int64(binary.BigEndian.Uint32(reg)), int64(binary.BigEndian.Uint32(reg[4:]))
		if at+n > maxData {
			continue
		}
		for int64(len(l.Fresh)) < at+n {
			l.Fresh = append(l.Fresh, 0)
		}
		value := property(sub + "/default")
		switch kind {
		case "uint8", "uint32", "enum32":
			if len(value) == 4 { // a cell, kept as the processor keeps it
				binary.LittleEndian.PutUint32(value, binary.BigEndian.Uint32(value))
			}
			if n == 4 {
				l.At[prefix+name] = int(at)
			}
		case "string":
			value = []byte(text(sub + "/default"))
		}
		copy(l.Fresh[at:at+n], value)
	}
}

// property is a property of a node, nil where it has none.
func property(file string) []byte {
	b, _ := os.ReadFile(file)
	return b
}

// text is a property that is a string, which ends in a zero.
func text(file string) string {
	s, _, _ := strings.Cut(string(property(file)), "\x00")
	return s
}
