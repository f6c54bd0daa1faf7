package host

import (
	"bytes"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/internal/userns"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/procfs"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/sysfs"
)

// tree is what a System exports.
//
//	proc/net/pktgen/  proc/net/dev  proc/interrupts  proc/irq/N/
//	sys/class/net/NAME  sys/bus/pci/{devices,drivers,slots}/  sys/bus/pci_express/  sys/devices/{pciDDDD:BB,virtual/net/lo}/
//	sys/module/NAME/parameters/  dev/aer_inject
//	sys/bus/rapidio/  sys/class/rapidio_port/  sys/devices/virtual/rapidio_port/
//	sys/class/{tpm,tpmrm,misc}/  sys/devices/{platform,pnp0,LNXSYSTM:00}/  dev/{tpmN,tpmrmN,hwrng}
//	sys/kernel/security/ima
//	ns/               the same beside the kernel's own entries, for ring3 shell
type tree struct {
	root      *node.Dir
	class     *node.Dir // ns/sys/class/net, merged with the machine's
	sys       *node.Dir
	functions *pci.Sysfs
	modules   sync.Mutex // held while sys/module changes
}

func (s *System) newTree(keep, dir string) error {
	t := &tree{root: &node.Dir{}}
	s.tree = t
	s.exportProc(t.root.MkdirAll("proc"))
	t.sys = t.root.MkdirAll("sys")
	t.functions = pci.NewSysfsOps(t.sys, sysfsOps{s})
	for _, d := range s.drivers {
		t.functions.AddDriver(d.Name)
	}
	t.sys.MkdirAll(classNet)
	s.exportPorts(t.root)
	t.exportRIO(s.rio.bus)
	for _, b := range s.bound() {
		t.addFunction(s, b)
		t.addNet(b)
	}
	s.exportModules()
	if err := exportNodes(t.sys, s.facts); err != nil {
		return err
	}
	if err := s.exportTPMs(t.root, dir); err != nil {
		return err
	}
	s.exportMeasurements(t.root)
	ns := userns.View(t.root, keep)
	ns.MkdirAll("proc").Put("interrupts", s.irqs.merged())
	ns.MkdirAll("proc/net").Put("dev", s.mergedNetDev())
	s.exportLoopback(t.sys, ns)
	for _, name := range userns.BusFiles {
		ns.MkdirAll(path.Dir(name)).Put(path.Base(name), t.sys.MkdirAll(strings.TrimPrefix(path.Dir(name), "/sys")).Lookup(path.Base(name)))
	}
	t.root.Put(userns.ViewName, ns)
	t.class = ns.MkdirAll("sys/class/net")
	return nil
}

// classNet is where network devices stand by name.
const classNet = "/class/net"

// addFunction shows a function in its place, or shows it anew after its binding changed.
func (t *tree) addFunction(s *System, b *boundDevice) {
	if b.fn == nil || t == nil {
		return
	}
	info := pci.SysfsInfo{Driver: b.driverName(), IRQ: s.irqs.firstOf(b), MSI: s.irqs.messages(b), NoReset: b.fn.Header != pci.HeaderDevice && b.fn.Parent == nil}
	if u, ok := b.inst.(pci.AttrUser); ok {
		info.Attrs = u.Attrs()
	}
	if u, ok := b.inst.(pci.DirUser); ok {
		info.Dirs = u.Dirs()
	}
	dir := t.functions.Add(b.fn, b.dev.Config(), info)
	if r, ok := b.machine.(*real); ok && isHardware(b.spec.Backend) {
		r.asTheKernel(dir)
	}
}

// removeFunction takes a function away, and all that is in its directory.
func (t *tree) removeFunction(b *boundDevice) {
	if b.fn != nil {
		t.functions.Remove(b.fn)
	}
}

// addNet shows a network device below its function, as the kernel does it, with a link in class/net.
func (t *tree) addNet(b *boundDevice) {
	under := netParent(b)
	if b.net == nil || under == "" {
		return
	}
	at := under + "/net/" + b.spec.Name
	t.sys.MkdirAll(path.Dir(at)).Put(b.spec.Name, netdev.ClassDir(b.net, netdev.ClassOptions{
		Device:    "../../../" + path.Base(under),
		Subsystem: sysfs.Rel(at, classNet),
		IfIndex:   b.ifindex,
	}))
	t.sys.MkdirAll(classNet).Put(b.spec.Name, &sysfs.Link{Target: sysfs.Rel(classNet, at)})
}

// netParent is the device in /sys that a network device stands below: a function, or a master port.
func netParent(b *boundDevice) string {
	switch {
	case b.rio != nil:
		return portsDir + "/" + b.rio.port.Name()
	case b.fn != nil:
		return pci.SysfsPath(b.fn)
	}
	return ""
}

// removeNet takes it away.
func (t *tree) removeNet(b *boundDevice) {
	t.sys.MkdirAll(classNet).Remove(b.spec.Name)
	under := netParent(b)
	if d, ok := t.sys.MkdirAll(path.Dir(under)).Lookup(path.Base(under)).(*node.Dir); ok {
		d.Remove("net")
	}
}

// portsDir is where the master ports of RapidIO networks stand in /sys.
const portsDir = "/devices/virtual/rapidio_port"

// exportRIO shows the RapidIO subsystem, if there is one.
func (t *tree) exportRIO(b *rapidio.Bus) {
	if b == nil {
		return
	}
	t.sys.MkdirAll("bus").Put("rapidio", b.SysfsBus())
	t.sys.MkdirAll("class").Put("rapidio_port", b.SysfsClass())
	t.sys.MkdirAll(path.Dir(portsDir)).Put(path.Base(portsDir), b.SysfsDevices())
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
	for _, b := range s.bound() {
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
