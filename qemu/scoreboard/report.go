package main

import (
	"fmt"
	"os/exec"
	"strings"
)

const intro = "# The scoreboard: peers' boot states under power cuts\n\n" +
	"`make scoreboard` writes this page; the figures with every operation are in `out/scoreboard/*.json`.\n\n" + `
## What is measured

The boot state is the little that says which slot starts, how often it may still be tried, and whether it has been good.
Each peer keeps it on a virtio disk of the virtual device, and its own tools and boot loaders do one update of each slot
to it: mark bad, install, first boot, mark good, plain boot, and mounting and unmounting where there is a file system.
QEMU's blklogwrites records every write and flush that reaches the disk. From it, operation by operation, lifeboat's crash
enumerator (` + "`disk/crash`" + `, the same that lifeboat itself is tested with) makes what a cut may leave: between two
flushes every prefix, every one left out, every one alone, all subsets where at most 12 writes or changed sectors matter;
and each with one sector torn, which then is zeros, noise, or half new. Every distinct image is read as the boot loader reads
it (GRUB's own drivers through grub-fstest, which know no journal) and as the system does (journal replayed). Then the device's
life is played on: boot loader and tool by their documented rules, in a world where both slots work, in one
where the slot that is new does not, and in one where the slot that runs breaks later.

| class | a state is in it if |
|---|---|
| **lost** | without a person no working system starts, although one would from the state before and from the one after: the boot loader stops, or it starts the slot that does not work for ever. Counted also where only the new system not working leads there: both states around the operation would have fallen back |
| **weak** | a system starts, but one that neither state around would have started; or the tool refuses every further update; or there is no fallback any more where there was one; or a copy is dead for ever, or the boot state's other content (a board's MAC address) is replaced by compiled-in defaults |
| fine | all else: as before the operation, or as after it |

On ext4 states are lost with whole sectors too, because GRUB reads the file system as it lies there: a file that was
truncated or replaced, and whose new blocks are still only in the journal, is empty or gone to it until Linux has replayed that.

"Whole sectors": every sector is old or new. A disk that loses no more than that is a good one; "torn" counts
the images that only a torn sector leaves. Each column counts distinct images, summed over the operations.

## The table

`

// page is the document.
func page(rows []*Row, versions string) string {
	var b strings.Builder
	b.WriteString(intro)
	b.WriteString("| boot state | medium | writes / flushes | states | distinct | whole sectors: lost | weak | torn: lost | weak |\n|---|---|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, r := range rows {
		s := r.sum()
		fmt.Fprintf(&b, "| %s | %s | %d / %d | %d | %d | %s | %s | %s | %s |\n", r.Title, r.Medium, s.Writes, s.Flushes, s.States, s.Distinct,
			part(s.Whole.Lost, s.Whole.Images), part(s.Whole.Weak, s.Whole.Images), part(s.Torn.Lost, s.Torn.Images), part(s.Torn.Weak, s.Torn.Images))
	}
	b.WriteString("\n## Row by row\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "\n### %s, %s\n\nWhat writes: %s.\n\n", r.Title, r.Medium, r.Uses)
		if r.Limit > 0 {
			fmt.Fprintf(&b, "Between two flushes at most %d systematic states are judged, spread evenly over all there are.\n\n", r.Limit)
		}
		b.WriteString("| operation | what it writes (F: flush) | distinct | whole: lost, weak | torn: lost, weak |\n|---|---|--:|--:|--:|\n")
		for i, t := range r.Tallies {
			if t.Writes == 0 {
				continue
			}
			fmt.Fprintf(&b, "| %s | %s | %d | %d, %d | %d, %d |\n", t.Op, shorten(r.Writes[i]), t.Distinct, t.Whole.Lost, t.Whole.Weak, t.Torn.Lost, t.Torn.Weak)
		}
		if found := findings(r); found != "" {
			b.WriteString("\n" + found)
		}
		if r.Booted > 0 {
			fmt.Fprintf(&b, "\nGRUB itself was started on %d of these states; it chose what the judge expected in %d.\n", r.Booted, r.Agreed)
		}
		fmt.Fprintf(&b, "\nWhat would mend it (measured only where a row has it): %s\n", r.Fix)
	}
	b.WriteString(outro)
	b.WriteString(versions)
	return b.String()
}

func part(n, of int) string {
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("**%d** of %d", n, of)
}

// shorten keeps a list of writes readable.
func shorten(s string) string {
	s = strings.TrimPrefix(strings.ReplaceAll(s, "| F", "F"), "F ")
	if parts := strings.Split(s, " F"); len(parts) > 7 {
		s = strings.Join(parts[:6], " F") + fmt.Sprintf(" F ... and %d flushes more", len(parts)-7)
	}
	return strings.TrimSpace(s)
}

// findings lists the worst of a row: each reason once, with the operation and the simplest state that shows it.
func findings(r *Row) string {
	type line struct {
		*Finding
		op    string
		total int
		ops   int
	}
	var lines []*line
	by := map[string]*line{}
	for _, class := range []Class{Lost, Weak} {
		for _, t := range r.Tallies {
			for _, f := range t.Findings {
				if f.Class != class {
					continue
				}
				key := f.Class.String() + neutral(f.Why)
				l := by[key]
				if l == nil {
					l = &line{Finding: f, op: t.Op}
					by[key] = l
					lines = append(lines, l)
				} else if l.Torn && !f.Torn {
					l.Finding, l.op = f, t.Op
				}
				l.total += f.Images
				l.ops++
			}
		}
	}
	var b strings.Builder
	for i, l := range lines {
		if i == 6 {
			fmt.Fprintf(&b, "- and %d reasons more, see the JSON file\n", len(lines)-i)
			break
		}
		where := ""
		if l.Where != "" {
			where = " (" + l.Where + ")"
		}
		fmt.Fprintf(&b, "- **%s**, %d images in %d operations: %s. Simplest: during \"%s\", %s%s.\n", l.Class, l.total, l.ops, l.Why, l.op, l.How, where)
	}
	return b.String()
}

// neutral is a reason without the slot's letter.
func neutral(why string) string {
	return strings.NewReplacer(" A", " X", " B", " X", " a ", " X ", " b ", " X ").Replace(why + " ")
}

const outro = `
## What this does not show

- The loader's rules beside GRUB's drivers are played by functions of this program (` + "`Scheme`" + `). Their tests hold them
  against grub-editenv and fw_printenv, not against every version of a boot loader.
- An operation starts from what the one before made durable: GRUB and U-Boot write without a flush, and what they wrote is
  taken as durable by the time Linux writes. Cuts in a row are not nested here.
- e2fsck -p stands for the check at boot and for the kernel's replay of ext4's journal; a check of FAT is not played.
- What else is on the medium (the boot loader's script, kernels) is looked at only for systemd-boot.
- Only the boot state is judged, not the slots, and no peer's rescue system is counted as a working one.
- An emulated disk is no eMMC; which of these states a medium really leaves depends on it.

## Versions

`

// versionsOf names what was run.
func versionsOf() (string, error) {
	var b strings.Builder
	for _, name := range []string{"rauc", "grub-common", "grub-pc-bin", "libubootenv-tool", "dosfstools", "e2fsprogs", "qemu-system-x86"} {
		out, err := exec.Command("dpkg-query", "-W", "-f", "${Version}", name).Output()
		if err != nil {
			return "", fmt.Errorf("version of %s: %w", name, err)
		}
		fmt.Fprintf(&b, "%s %s, ", name, out)
	}
	b.WriteString("all from Debian 12, unpacked: swupdate 2022.12, u-boot-qemu 2023.01, ovmf 2022.11, systemd-boot 252; mender-grubenv's order of writes as of its commit 5eb2675.\n")
	return b.String(), nil
}
