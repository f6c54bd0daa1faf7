package hwbind

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ring3dev/ring3/internal/mounts"
)

// blockUses are the block devices below at that are mounted, are swap, are held by another
// (device mapper, md) that is, or that anybody has for himself.
func (m *Machine) blockUses(at string) []string {
	b := m.newBlocks()
	var out []string
	for _, name := range b.of(at) {
		out = append(out, b.uses(name, name, nil)...)
	}
	if len(out) > 0 {
		return out
	}
	// File systems that say nothing above (ZFS, bcache), other mount namespaces.
	for _, name := range b.of(at) {
		if m.Ops.Claimed(filepath.Join(m.Dev, name)) {
			out = append(out, name+" is in use by a file system, a volume manager or a program")
		}
	}
	return out
}

// blocks is what block devices are used for.
type blocks struct {
	m       *Machine
	class   string
	mounted []mounts.Entry
	swaps   []string // names of block devices
}

func (m *Machine) newBlocks() *blocks {
	b := &blocks{m: m, class: filepath.Join(string(m.Sys), "class/block")}
	b.mounted = mounts.Parse(text(m.Proc, "self/mountinfo"))
	for line := range strings.Lines(text(m.Proc, "swaps")) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "partition" {
			b.swaps = append(b.swaps, b.name(f[0]))
		}
	}
	return b
}

// name is a block device's name in sysfs, by a path to its node.
func (b *blocks) name(path string) string {
	rest, ok := strings.CutPrefix(path, "/dev/")
	if !ok {
		return ""
	}
	if to, err := filepath.EvalSymlinks(filepath.Join(b.m.Dev, rest)); err == nil {
		return filepath.Base(to)
	}
	return filepath.Base(rest)
}

// of are the block devices of the devices below at, disks and partitions.
func (b *blocks) of(at string) []string {
	roots := append([]string{at}, b.subsystems(at)...)
	var out []string
	for _, name := range names(b.class) {
		dir, err := filepath.EvalSymlinks(filepath.Join(b.class, name))
		if err == nil && slices.ContainsFunc(roots, func(r string) bool { return below(dir, r) }) {
			out = append(out, name)
		}
	}
	return out
}

// subsystems are where the disks of NVMe controllers below at stand, which the kernel puts
// beside the controllers because there may be several paths to one.
func (b *blocks) subsystems(at string) []string {
	class := filepath.Join(string(b.m.Sys), "class/nvme-subsystem")
	var out []string
	for _, name := range names(class) {
		dir, err := filepath.EvalSymlinks(filepath.Join(class, name))
		if err != nil {
			continue
		}
		for _, c := range names(dir) {
			to, err := filepath.EvalSymlinks(filepath.Join(dir, c))
			if err == nil && strings.HasPrefix(c, "nvme") && below(to, at) {
				out = append(out, dir)
				break
			}
		}
	}
	return out
}

// uses is what a block device is used for, itself or through what it holds up. says names it,
// with how we came to it.
func (b *blocks) uses(name, says string, seen []string) []string {
	if slices.Contains(seen, name) {
		return nil
	}
	seen = append(seen, name)
	var out []string
	if at := b.mounts(name); len(at) > 0 {
		out = append(out, says+" is mounted at "+strings.Join(at, ", "))
	}
	if slices.Contains(b.swaps, name) {
		out = append(out, says+" is swap")
	}
	for _, h := range names(filepath.Join(b.class, name, "holders")) {
		label := h
		if dm := text(b.class, h, "dm/name"); dm != "" {
			label += " (" + dm + ")"
		}
		out = append(out, b.uses(h, says+" holds "+label+", which", seen)...)
	}
	return out
}

// mounts is where a block device is mounted. A file system of several devices (btrfs) has a
// device number of its own and names one of them, so its list is read too.
func (b *blocks) mounts(name string) []string {
	number := text(b.class, name, "dev")
	var out []string
	for _, e := range b.mounted {
		if number != "" && e.Dev == number || e.Source != "" && b.name(e.Source) == name {
			out = append(out, e.Dir)
		}
	}
	if len(out) > 0 {
		return out
	}
	if fs, _ := filepath.Glob(filepath.Join(string(b.m.Sys), "fs/btrfs/*/devices", name)); len(fs) > 0 {
		if _, err := os.Lstat(fs[0]); err == nil {
			return []string{"a btrfs of several devices"}
		}
	}
	return nil
}
