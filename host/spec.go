package host

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ring3dev/ring3/bus/fault"
)

// DeviceSpec is one device as the user writes it: NAME=BACKEND:DEVICE[,option=value...].
type DeviceSpec struct {
	Name    string            // at most 15 characters, as an interface's
	Backend string            // "qemu", "sim", "vfio", "uio", "vfio-user", "fabric"
	Device  string            // what the backend calls it: a model, an address, a socket
	Options map[string]string // for the driver: "mac", "ring"
	Props   []string          // for the backend's model, written BACKEND.KEY=VALUE: "KEY=VALUE"
	IOMMU   bool              // iommu=on: behind QEMU's IOMMU
	Bus     map[string]string // for the backend itself: "api" of vfio, "dma" of uio, "tpm" and "state" of qemu, "node" of fabric, "under"
}

// String is what ParseDevice reads, options in byte order.
func (d DeviceSpec) String() string {
	s := d.Name + "=" + d.Backend + ":" + d.Device
	for _, options := range []map[string]string{d.Bus, d.Options} {
		for _, k := range slices.Sorted(maps.Keys(options)) {
			s += "," + k + "=" + options[k]
		}
	}
	if d.IOMMU {
		s += ",iommu=on"
	}
	for _, p := range d.Props {
		s += "," + d.Backend + "." + p
	}
	return s
}

// maxName is the longest name of a network interface (IFNAMSIZ less the final zero).
const maxName = 15

// checkName holds names to what a file, an interface and a pktgen device may be called.
func checkName(s string) error {
	bad := strings.IndexFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("_.-", c))
	})
	if s == "" || len(s) > maxName || bad >= 0 || s[0] == '-' || s[0] == '.' {
		return usagef("device name %q: want 1 to %d letters, digits, '_', '.' or '-', not '.' or '-' first", s, maxName)
	}
	return nil
}

// ParseDevice reads a device specification. Errors are usage errors.
func ParseDevice(s string) (DeviceSpec, error) {
	var d DeviceSpec
	name, rest, ok := strings.Cut(s, "=")
	if !ok {
		return d, usagef("device %q: want NAME=BACKEND:DEVICE[,option=value...], such as eth0=qemu:e1000e", s)
	}
	if err := checkName(name); err != nil {
		return d, err
	}
	parts := strings.Split(rest, ",")
	backend, device, ok := strings.Cut(parts[0], ":")
	if !ok || device == "" {
		return d, usagef("device %s: %q: want BACKEND:DEVICE, such as qemu:e1000e", name, parts[0])
	}
	if backends[backend] == nil {
		return d, usagef("device %s: unknown backend %q: there are %s", name, backend, backendNames())
	}
	if err := checkHardware(backend, device); err != nil {
		return d, usagef("device %s: %v", name, err)
	}
	d = DeviceSpec{Name: name, Backend: backend, Device: device, Options: map[string]string{}}
	iommu := ""
	for _, o := range parts[1:] {
		k, v, ok := strings.Cut(o, "=")
		switch prop, isProp := strings.CutPrefix(k, backend+"."); {
		case !ok || k == "" || prop == "":
			return d, usagef("device %s: option %q: want option=value", name, o)
		case isProp && isHardware(backend):
			return d, usagef("device %s: option %q: real hardware has no properties to set", name, o)
		case isProp && backend == vfioUser:
			return d, usagef("device %s: option %q: who serves it has its properties", name, o)
		case isProp && backend == onFabric:
			return d, usagef("device %s: option %q: the fabric has its properties", name, o)
		case busOptions[backend][k] != nil:
			values := busOptions[backend][k]
			switch {
			case len(values) == 0 && (v == "" || d.Bus[k] != ""):
				return d, usagef("device %s: option %q: want a value, once", name, o)
			case len(values) > 0 && (!slices.Contains(values, v) || d.Bus[k] != ""):
				return d, usagef("device %s: option %q: want %s=%s, once", name, o, k, strings.Join(values, " or "+k+"="))
			}
			if d.Bus == nil {
				d.Bus = map[string]string{}
			}
			d.Bus[k] = v
		case isProp:
			d.Props = append(d.Props, prop+"="+v)
		case k == "iommu": // the backend's, not the driver's
			if v != "on" && v != "off" || iommu != "" || backend != "qemu" {
				return d, usagef("device %s: option %q: want iommu=on or iommu=off, once, with the backend qemu", name, o)
			}
			iommu, d.IOMMU = v, v == "on"
		default:
			if _, twice := d.Options[k]; twice {
				return d, usagef("device %s: option %s is given twice", name, k)
			}
			d.Options[k] = v
		}
	}
	if err := checkFabric(&d); err != nil {
		return d, err
	}
	return d, checkTPM(d)
}

// Wire connects two network devices.
type Wire struct {
	A, B  string
	Lossy bool // frames that find no descriptor are lost, as on a cable without pause frames
}

func (w Wire) String() string {
	if w.Lossy {
		return w.A + "-" + w.B + ",lossy"
	}
	return w.A + "-" + w.B
}

// ParseWire reads A-B[,lossy].
func ParseWire(s string, devices []DeviceSpec) (Wire, error) {
	pair, opt, hasOpt := strings.Cut(s, ",")
	if hasOpt && opt != "lossy" {
		return Wire{}, usagef("wire %q: unknown option %q: there is lossy", s, opt)
	}
	a, b, err := parsePair("wire", pair, "[,lossy]", devices)
	return Wire{A: a, B: b, Lossy: hasOpt}, err
}

// parsePair reads A-B; names may hold a '-' themselves, so the devices decide where to cut.
func parsePair(what, s, options string, devices []DeviceSpec) (a, b string, err error) {
	known := func(n string) bool {
		return slices.ContainsFunc(devices, func(d DeviceSpec) bool { return d.Name == n })
	}
	if !strings.Contains(s, "-") {
		return "", "", usagef("%s %q: want NAME-NAME%s, such as eth0-eth1", what, s, options)
	}
	for i, c := range s {
		if c == '-' && known(s[:i]) && known(s[i+1:]) {
			if s[:i] == s[i+1:] {
				return "", "", usagef("%s %q: both ends are the same device", what, s)
			}
			return s[:i], s[i+1:], nil
		}
	}
	a, b, _ = strings.Cut(s, "-")
	if known(a) {
		a = b
	}
	return "", "", usagef("%s %q: no device is named %s", what, s, a)
}

// Plan is everything that a user asked to be brought up, checked against itself.
type Plan struct {
	Devices  []DeviceSpec
	Wires    []Wire
	Captures map[string]string // file by device name
	Taps     []TapSpec
	Forwards [][2]string           // pairs of devices that send what the other receives
	Faults   map[string]fault.Plan // by device name
	Arm      bool                  // every device may be told to fail while it is in use
	Trace    TracePlan
	RT       int // priority of real-time threads; 0: there are none
	Measure  MeasurePlan
	Profile  string // the kernel whose texts are followed: "6.12", "6.1"; empty: the first
}

// ParsePlan reads devices, wires and captures (NAME=FILE) and checks them against each
// other. No devices means two e1000e, eth0 and eth1, wired to each other.
func ParsePlan(devices, wires, captures []string) (Plan, error) {
	if len(devices) == 0 {
		devices = []string{"eth0=qemu:e1000e", "eth1=qemu:e1000e"}
		if len(wires) == 0 {
			wires = []string{"eth0-eth1"}
		}
	}
	p := Plan{Captures: map[string]string{}}
	for _, s := range devices {
		d, err := ParseDevice(s)
		if err != nil {
			return p, err
		}
		if p.find(d.Name) != nil {
			return p, usagef("two devices are named %s", d.Name)
		}
		for _, o := range p.Devices {
			if isHardware(d.Backend) && isHardware(o.Backend) && o.Device == d.Device {
				return p, usagef("%s and %s are the same device, %s", o.Name, d.Name, d.Device)
			}
			if a, b := fabricOf(o), fabricOf(d); a.path != "" && a == b {
				return p, usagef("%s and %s are the same node, %s of %s", o.Name, d.Name, a.node, a.path)
			}
		}
		if err := p.checkUnder(d); err != nil {
			return p, err
		}
		p.Devices = append(p.Devices, d)
	}
	wired := map[string]bool{}
	for _, s := range wires {
		w, err := ParseWire(s, p.Devices)
		if err != nil {
			return p, err
		}
		for _, n := range []string{w.A, w.B} {
			if wired[n] {
				return p, usagef("wire %q: %s has a wire already", s, n)
			}
			wired[n] = true
		}
		if n := p.hardwareOf(w.A, w.B); n != "" {
			return p, usagef("wire %q: %s is real hardware, and its wire is a cable", s, n)
		}
		if n := p.servedOf(w.A, w.B); n != "" {
			return p, usagef("wire %q: %s is served by another process, which has its wire", s, n)
		}
		if n := p.nodeOf(w.A, w.B); n != "" {
			return p, usagef("wire %q: %s is a node of a fabric, which has its links", s, n)
		}
		for _, n := range []string{w.A, w.B} {
			if isTPM(*p.find(n)) {
				return p, usagef("wire %q: %s is a TPM, which has no wire", s, n)
			}
		}
		if a, b := p.find(w.A), p.find(w.B); a.Backend != b.Backend {
			return p, usagef("wire %q: %s is on %s and %s on %s: a wire stays on one backend", s, w.A, a.Backend, w.B, b.Backend)
		}
		p.Wires = append(p.Wires, w)
	}
	for _, s := range captures {
		n, file, err := p.fileOf("pcap", "captured", s, p.Captures)
		if err != nil {
			return p, err
		}
		if p.hardwareOf(n) != "" {
			return p, usagef("--pcap %q: %s is real hardware, whose frames nobody here sees pass: capture at the far end", s, n)
		}
		if p.servedOf(n) != "" {
			return p, usagef("--pcap %q: %s is served by another process, which sees its frames pass: capture there ('ring3 serve --pcap')", s, n)
		}
		if p.nodeOf(n) != "" {
			return p, usagef("--pcap %q: %s is a node of a fabric, and nobody captures there: give it to the kernel (--tap %s) and capture that interface", s, n, n)
		}
		p.Captures[n] = file
	}
	return p, nil
}

// fileOf reads NAME=FILE of a flag: a file for a device that has none of that kind yet, and
// that no other device has.
func (p *Plan) fileOf(flag, done, s string, files map[string]string) (name, file string, err error) {
	n, file, ok := strings.Cut(s, "=")
	switch {
	case !ok || file == "":
		return "", "", usagef("--%s %q: want NAME=FILE, such as eth0=out.pcap", flag, s)
	case p.find(n) == nil:
		return "", "", usagef("--%s %q: no device is named %s", flag, s, n)
	case files[n] != "":
		return "", "", usagef("--%s %q: %s is %s to %s already", flag, s, n, done, files[n])
	}
	for other, f := range files {
		if samePath(f, file) && file != "-" {
			return "", "", usagef("--%s %q: %s is %s to that file already", flag, s, other, done)
		}
	}
	return n, file, nil
}

// samePath says whether two paths are spelled for one file.
func samePath(a, b string) bool {
	x, err1 := filepath.Abs(a)
	y, err2 := filepath.Abs(b)
	return err1 == nil && err2 == nil && x == y
}

func (p *Plan) find(name string) *DeviceSpec {
	for i := range p.Devices {
		if p.Devices[i].Name == name {
			return &p.Devices[i]
		}
	}
	return nil
}

// groups splits the devices into sets that are wired together, or stand under one port; each is one machine.
// Order is kept.
func (p *Plan) groups() [][]DeviceSpec {
	root := make([]int, len(p.Devices))
	index := map[string]int{}
	for i, d := range p.Devices {
		root[i], index[d.Name] = i, i
	}
	join := func(a, b string) {
		x, y := root[index[a]], root[index[b]]
		for i := range root {
			if root[i] == max(x, y) {
				root[i] = min(x, y)
			}
		}
	}
	for _, w := range p.Wires {
		join(w.A, w.B)
	}
	for _, d := range p.Devices {
		if up := d.under(); up != "" {
			join(d.Name, up)
		}
	}
	var out [][]DeviceSpec
	at := map[int]int{}
	for i, d := range p.Devices {
		g, ok := at[root[i]]
		if !ok {
			g = len(out)
			at[root[i]] = g
			out = append(out, nil)
		}
		out[g] = append(out[g], d)
	}
	return out
}

// under is the name of the port that a device stands under; "" for the root bus.
func (d *DeviceSpec) under() string { return d.Bus["under"] }

// checkUnder says what is wrong with the port that a device is to stand under.
func (p *Plan) checkUnder(d DeviceSpec) error {
	up := d.under()
	if up == "" {
		return nil
	}
	port := p.find(up)
	switch {
	case port == nil:
		return usagef("device %s: under=%s: no device before it is named so", d.Name, up)
	case port.Backend != d.Backend:
		return usagef("device %s: under=%s: that is on the backend %s, and this on %s: a port and what is under it are on one", d.Name, up, port.Backend, d.Backend)
	case isTPM(d):
		return usagef("device %s: under=%s: a TPM stands under no port", d.Name, up)
	}
	return nil
}

// usageError is wrong usage: exit status 2.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, a ...any) error { return &usageError{fmt.Sprintf(format, a...)} }
