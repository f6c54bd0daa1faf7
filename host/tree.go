package host

import (
	"bytes"
	"os"
	"slices"
	"strings"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/internal/userns"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/procfs"
	"github.com/ring3dev/ring3/sysfs"
)

// tree is what a System exports.
//
//	proc/net/pktgen/  proc/net/dev  proc/interrupts  proc/irq/N/
//	sys/class/net/NAME  sys/bus/pci/{devices,drivers}/  sys/devices/{pciDDDD:BB,virtual/net/lo}/  sys/module/NAME/parameters/
//	sys/class/{tpm,tpmrm,misc}/  sys/devices/{platform,pnp0,LNXSYSTM:00}/  dev/{tpmN,tpmrmN,hwrng}
//	sys/kernel/security/ima
//	ns/               the same beside the kernel's own entries, for ring3 shell
type tree struct {
	root  *node.Dir
	class *node.Dir // ns/sys/class/net, merged with the machine's
}

func newTree(s *System, keep, dir string) (*tree, error) {
	t := &tree{root: &node.Dir{}}
	t.root.MkdirAll("dev")
	s.exportProc(t.root.MkdirAll("proc"))
	s.exportSys(t.root.MkdirAll("sys"))
	if err := exportNodes(t.root.MkdirAll("sys"), "/sys"); err != nil {
		return nil, err
	}
	if err := s.exportTPMs(t.root, dir); err != nil {
		return nil, err
	}
	s.exportMeasurements(t.root)
	ns := userns.View(t.root, keep)
	ns.MkdirAll("proc").Put("interrupts", s.irqs.merged())
	ns.MkdirAll("proc/net").Put("dev", s.mergedNetDev())
	s.exportLoopback(t.root.MkdirAll("sys"), ns)
	t.root.Put(userns.ViewName, ns)
	t.class = ns.MkdirAll("sys/class/net")
	return t, nil
}

// classNet is where network devices stand by name.
const classNet = "/class/net"

// exportSys fills sys/: each function in its place, its driver, and as the kernel does it a
// network device below its function, with a link in class/net.
func (s *System) exportSys(sys *node.Dir) {
	functions := pci.NewSysfs(sys)
	class := sys.MkdirAll(classNet)
	s.exportModules(sys)
	for i, b := range s.bound {
		if b.fn == nil {
			continue
		}
		info := pci.SysfsInfo{Driver: b.driver.Name, IRQ: s.irqs.first(b), MSI: s.irqs.messages(b)}
		if u, ok := b.inst.(pci.AttrUser); ok {
			info.Attrs = u.Attrs()
		}
		dir := functions.Add(b.fn, b.dev.Config(), info)
		if isHardware(b.spec.Backend) {
			asTheKernel(dir, b.fn.Addr)
		}
		if b.net == nil {
			continue
		}
		at := pci.SysfsPath(b.fn) + "/net/" + b.spec.Name
		dir.MkdirAll("net").Put(b.spec.Name, netdev.ClassDir(b.net, netdev.ClassOptions{
			Device:    "../../../" + b.fn.Addr.String(),
			Subsystem: sysfs.Rel(at, classNet),
			IfIndex:   firstIfIndex + i,
		}))
		class.Put(b.spec.Name, &sysfs.Link{Target: sysfs.Rel(classNet, at)})
	}
}

// firstIfIndex is the interface index of the first device; the kernel counts from 1.
const firstIfIndex = 1000

// exportProc fills proc/.
func (s *System) exportProc(proc *node.Dir) {
	net := proc.MkdirAll("net")
	net.Put("pktgen", s.pktgen.Dir())
	net.Put("dev", netdev.ProcNetDev(s.netDevices))
	proc.Put("interrupts", s.irqs.own())
	proc.Put("irq", s.irqs.dir())
}

// netDevices are lo, and the network devices in the order they were named.
func (s *System) netDevices() []netdev.Device {
	var out []netdev.Device
	if s.lo != nil {
		out = append(out, s.lo)
	}
	for _, b := range s.bound {
		if b.net != nil {
			out = append(out, b.net)
		}
	}
	return out
}

// mergedNetDev is the kernel's /proc/net/dev with our lines after it, but for lo, which is one line at the
// machine's place. A kernel interface with one of our names is left out: the name is ours there.
func (s *System) mergedNetDev() *procfs.File {
	return procfs.New(0o444, func(w *bytes.Buffer) error {
		ours := s.netDevices()
		put := func(i int) {
			netdev.ProcLine(w, ours[i].Info().Name, ours[i].Stats())
			ours = slices.Delete(ours, i, i+1)
		}
		b, err := os.ReadFile("/proc/self/net/dev")
		if err != nil {
			w.WriteString(netdev.ProcHeader)
		}
		for line := range strings.Lines(string(b)) {
			name, _, ok := strings.Cut(strings.TrimSpace(line), ":")
			i := slices.IndexFunc(ours, func(d netdev.Device) bool { return d.Info().Name == name })
			switch {
			case !ok || i < 0:
				w.WriteString(line)
			case ours[i].Info().Loopback:
				put(i)
			}
		}
		for len(ours) > 0 {
			put(0)
		}
		return nil
	}, nil)
}
