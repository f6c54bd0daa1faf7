package hwbind

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
)

// Uses says what uses a function now, each in words that follow "in use: "; none where
// nothing does. What stands behind a bridge, or below a USB or SCSI controller, counts.
func (m *Machine) Uses(f *syspci.Function) []string {
	at, err := filepath.EvalSymlinks(m.Sys.Path(f.Addr))
	if err != nil {
		return nil
	}
	out, seen := m.netUses(at)
	if !seen && f.Driver != "" && !IsUserDriver(f.Driver) && f.ID.Class>>16 == classNetwork {
		out = append(out, fmt.Sprintf("driver %s has no network interface in sight, so it may be in another network namespace (a container)", f.Driver))
	}
	out = append(out, m.blockUses(at)...)
	if n, _ := strconv.Atoi(text(at, "sriov_numvfs")); n > 0 {
		out = append(out, fmt.Sprintf("it has %d virtual functions, which would go with it", n))
	}
	return append(out, m.openBy(f)...)
}

// classNetwork is the base class of network controllers.
const classNetwork = 0x02

// below says whether a path lies in dir, or is it.
func below(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// netUses are the network interfaces of the devices below at that are up. seen: there is one,
// up or not.
func (m *Machine) netUses(at string) (uses []string, seen bool) {
	defaults := m.defaultRoutes()
	class := filepath.Join(string(m.Sys), "class/net")
	for _, name := range names(class) {
		dir, err := filepath.EvalSymlinks(filepath.Join(class, name))
		if err != nil || !below(dir, at) {
			continue
		}
		seen = true
		if !m.isUp(name) {
			continue
		}
		use := "interface " + name + " is up"
		if defaults[name] {
			use += " and has the default route"
		}
		for _, up := range m.uppers(name, nil) {
			use += ", " + up + " stands on it"
			if defaults[up] {
				use += " and has the default route"
			}
		}
		uses = append(uses, use)
	}
	return uses, seen
}

// isUp says whether an interface is administratively up.
func (m *Machine) isUp(name string) bool {
	const iffUp = 1
	flags, err := strconv.ParseUint(text(string(m.Sys), "class/net", name, "flags"), 0, 32)
	return err == nil && flags&iffUp != 0
}

// uppers are the interfaces that stand on one: bonds, bridges, VLANs, and what stands on those.
func (m *Machine) uppers(name string, have []string) []string {
	for _, link := range names(filepath.Join(string(m.Sys), "class/net", name)) {
		up, ok := strings.CutPrefix(link, "upper_")
		if !ok || slices.Contains(have, up) {
			continue
		}
		have = m.uppers(up, append(have, up))
	}
	return have
}

// defaultRoutes are the interfaces that packets to anywhere leave by.
func (m *Machine) defaultRoutes() map[string]bool {
	out := map[string]bool{}
	const rtfUp, rtfReject = 1, 0x200
	for line := range strings.Lines(text(m.Proc, "net/route")) {
		// Iface Destination Gateway Flags RefCnt Use Metric Mask ...
		f := strings.Fields(line)
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		if flags, err := strconv.ParseUint(f[3], 16, 32); err == nil && flags&rtfUp != 0 && flags&rtfReject == 0 {
			out[f[0]] = true
		}
	}
	for line := range strings.Lines(text(m.Proc, "net/ipv6_route")) {
		// destination, its prefix, source, its prefix, next hop, metric, references, use, flags, device
		f := strings.Fields(line)
		if len(f) < 10 || strings.Trim(f[0], "0") != "" || f[1] != "00" {
			continue
		}
		if flags, err := strconv.ParseUint(f[8], 16, 32); err == nil && flags&rtfUp != 0 && flags&rtfReject == 0 {
			out[f[9]] = true
		}
	}
	return out
}

// openBy are other processes that have the function's nodes open. Without root only one's own
// are seen.
func (m *Machine) openBy(f *syspci.Function) []string { return m.opened(m.Nodes(f)) }

// opened are other processes that have one of these nodes open.
func (m *Machine) opened(nodes []string) []string {
	if len(nodes) == 0 {
		return nil
	}
	var out []string
	for _, pid := range names(m.Proc) {
		if n, err := strconv.Atoi(pid); err != nil || n == os.Getpid() {
			continue
		}
		fds := filepath.Join(m.Proc, pid, "fd")
		for _, fd := range names(fds) {
			to, err := os.Readlink(filepath.Join(fds, fd))
			if err == nil && slices.Contains(nodes, to) {
				out = append(out, fmt.Sprintf("process %s (%s) has %s open", pid, text(m.Proc, pid, "comm"), to))
				break
			}
		}
	}
	return out
}

// Group is a function's IOMMU group: the other functions in it.
type Group struct {
	ID      int
	Members []*syspci.Function // the function itself among them, in the order of addresses
}

// group reads a function's group; nil where it has none.
func (m *Machine) group(f *syspci.Function) (*Group, error) {
	if f.Group == syspci.NoGroup {
		return nil, nil
	}
	members, err := m.Sys.Members(f.Group)
	if err != nil {
		return nil, err
	}
	return &Group{ID: f.Group, Members: members}, nil
}

// Others are the addresses of the other members.
func (g *Group) Others(a pci.Addr) []pci.Addr {
	var out []pci.Addr
	for _, o := range g.Members {
		if o.Addr != a {
			out = append(out, o.Addr)
		}
	}
	return out
}

// holders are the members that keep the group from user space: those at a kernel driver that
// does DMA. Bridges are not counted by the kernel, and a function without a driver does
// nothing.
func (g *Group) holders() []*syspci.Function {
	var out []*syspci.Function
	for _, o := range g.Members {
		if !o.Bridge && o.Driver != "" && o.Driver != VFIO && o.Driver != "pci-stub" {
			out = append(out, o)
		}
	}
	return out
}
