package host

import (
	"bytes"
	"os"
	"slices"
	"strings"

	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/internal/userns"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/procfs"
)

// tree is what a System exports.
//
//	proc/net/pktgen/  proc/net/dev  proc/interrupts  proc/irq/N/
//	sys/class/net/NAME  sys/bus/pci/{devices,drivers}/  sys/devices/pciDDDD:BB/
//	dev/
//	ns/               the same beside the kernel's own entries, for ring3 shell
type tree struct {
	root  *node.Dir
	class *node.Dir // ns/sys/class/net, merged with the machine's
}

func newTree(s *System, keep string) *tree {
	t := &tree{root: &node.Dir{}}
	t.root.MkdirAll("dev")
	s.exportProc(t.root.MkdirAll("proc"))
	s.exportSys(t.root.MkdirAll("sys"))
	ns := userns.View(t.root, keep)
	ns.MkdirAll("proc").Put("interrupts", s.irqs.merged())
	ns.MkdirAll("proc/net").Put("dev", s.mergedNetDev())
	t.root.Put(userns.ViewName, ns)
	t.class = ns.MkdirAll("sys/class/net")
	return t
}

// exportSys fills sys/.
func (s *System) exportSys(sys *node.Dir) {
}

// exportProc fills proc/.
func (s *System) exportProc(proc *node.Dir) {
	net := proc.MkdirAll("net")
	net.Put("pktgen", s.pktgen.Dir())
	net.Put("dev", netdev.ProcNetDev(s.netDevices))
	proc.Put("interrupts", s.irqs.own())
	proc.Put("irq", s.irqs.dir())
}

// netDevices are the network devices in the order they were named.
func (s *System) netDevices() []netdev.Device {
	var out []netdev.Device
	for _, b := range s.bound {
		if b.net != nil {
			out = append(out, b.net)
		}
	}
	return out
}

// mergedNetDev is the kernel's /proc/net/dev with our lines after it. A kernel interface
// with one of our names is left out: the name is ours there.
func (s *System) mergedNetDev() *procfs.File {
	return procfs.New(0o444, func(w *bytes.Buffer) error {
		ours := s.netDevices()
		b, err := os.ReadFile("/proc/self/net/dev")
		if err != nil {
			w.WriteString(netdev.ProcHeader)
		}
		for line := range strings.Lines(string(b)) {
			name, _, ok := strings.Cut(strings.TrimSpace(line), ":")
			if ok && slices.ContainsFunc(ours, func(d netdev.Device) bool { return d.Info().Name == name }) {
				continue
			}
			w.WriteString(line)
		}
		for _, d := range ours {
			netdev.ProcLine(w, d.Info().Name, d.Stats())
		}
		return nil
	}, nil)
}
