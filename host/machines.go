package host

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
)

// machine is what carries a group of devices: one QEMU, or one set of models in this process.
type machine interface {
	Device(name string) (bus.Device, error)
	// Function is nil, without an error, for what is no PCI function.
	Function(name string) (*pci.Function, error)
	Done() <-chan struct{}
	Err() error
	Close() error
}

// starter starts a machine that is fully described.
type starter func(ctx context.Context) (machine, error)

// backends are those that this program can use. Each plans a group of devices, in the PCI
// domain given.
var backends = map[string]func(s *System, c Config, group []DeviceSpec, domain uint32) (starter, error){
	"qemu": (*System).planQEMU,
	"sim":  (*System).planSim,
	"uio":  (*System).planUIO,
	"vfio": (*System).planVFIO,

	vfioUser: (*System).planVFIOUser,
	onFabric: (*System).planFabric,
}

// backendNames lists them for messages.
func backendNames() string {
	names := make([]string, 0, len(backends))
	for n := range backends {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// isNetwork says whether a device can be wired, as far as its backend knows before it runs.
func isNetwork(d DeviceSpec) bool {
	switch d.Backend {
	case "sim":
		return sim.IsNetwork(d.Device)
	case "qemu":
		return qemu.IsNetwork(d.Device)
	}
	return false
}

// startMachines starts one machine for each group of devices, all at once. again: they had come into service before, and what stands in a slot may
// have lost it.
func (s *System) startMachines(ctx context.Context, c Config, again bool) error {
	groups := s.plan.groups()
	starters := make([]starter, len(groups))
	domain := s.numbers.base.Domain
	if domain == 0 {
		domain = freeDomain()
	}
	for i, g := range groups {
		var err error
		if starters[i], err = backends[g[0].Backend](s, c, g, domain+uint32(i)); err != nil {
			return err
		}
	}
	machines := make([]machine, len(groups))
	errs := make([]error, len(groups))
	var wg sync.WaitGroup
	for i, start := range starters {
		wg.Go(func() { machines[i], errs[i] = start(ctx) })
	}
	wg.Wait()
	for i, m := range machines {
		if errs[i] != nil {
			continue
		}
		s.machines = append(s.machines, m)
		for _, d := range groups[i] {
			b := &boundDevice{spec: d, machine: m, use: new(sync.Mutex), ifindex: s.ifindexOf(d.Name)}
			var err error
			if b.dev, err = m.Device(d.Name); err == nil {
				b.fn, err = m.Function(d.Name)
			}
			if errors.Is(err, bus.ErrGone) && again && d.under() != "" {
				continue // it is in its slot, which is off: the port's services will look after it
			}
			b.emulator, _ = m.(*tpmMachine)
			errs[i] = errors.Join(errs[i], err)
			s.put(b)
		}
	}
	return errors.Join(errs...)
}

// props are a device's properties, with a station address of its own for a network device: a backend
// counts from one for each machine, and several machines must not begin alike.
func (s *System) props(d DeviceSpec) []string {
	p := slices.Clone(d.Props)
	if isNetwork(d) {
		n := 0x3456 + s.numberOf(d.Name, aNIC)
		p = slices.Insert(p, 0, fmt.Sprintf("mac=52:54:00:12:%02x:%02x", n>>8&0xff, n&0xff))
	}
	return p
}

// reserve is what the hot-plug ports of a group keep for what is plugged in later: the most that one of them asks for (hotplug_mem=64M), of
// both kinds of memory.
func reserve(group []DeviceSpec) (r pci.Reserve, err error) {
	for _, d := range group {
		v := d.Bus["hotplug_mem"]
		if v == "" {
			continue
		}
		n, err := parseSize(v)
		if err != nil || n < 1<<20 || n > maxReserve {
			return r, usagef("device %s: hotplug_mem=%s: want 1M to 64G", d.Name, v)
		}
		r.Mem, r.Pref = max(r.Mem, n), max(r.Pref, n)
	}
	return r, nil
}

// maxReserve is as much as the buses have of 64-bit memory.
const maxReserve = 64 << 30

// parseSize reads a number of bytes, with K, M or G.
func parseSize(s string) (uint64, error) {
	shift := 0
	if i := strings.IndexAny(s, "KMGkmg"); i >= 0 && i == len(s)-1 {
		shift = map[byte]int{'k': 10, 'm': 20, 'g': 30}[s[i]|0x20]
		s = s[:i]
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return n << shift, err
}

// wiresOf are the wires of a group.
func (s *System) wiresOf(group []DeviceSpec) (wires [][2]string) {
	for _, w := range s.plan.Wires {
		if slices.ContainsFunc(group, func(d DeviceSpec) bool { return d.Name == w.A }) {
			wires = append(wires, [2]string{w.A, w.B})
		}
	}
	return wires
}

// capture opens the capture file that was asked for, if any.
func (s *System) capture(d DeviceSpec) (*capture, error) {
	file := s.plan.Captures[d.Name]
	if file == "" {
		return nil, nil
	}
	c, err := s.openCapture(d.Name, file)
	if err != nil {
		return nil, err
	}
	s.captures = append(s.captures, c)
	return c, nil
}

// qemuSpec and simSpec are a device as its backend takes it.
func (s *System) qemuSpec(d DeviceSpec) qemu.DeviceSpec {
	q := qemu.DeviceSpec{Name: d.Name, Model: d.Device, Bus: d.under(), Props: s.props(d), IOMMU: d.IOMMU}
	if qemu.HasSlot(d.Device) {
		q.Props = slices.Insert(q.Props, 0, s.nextSlot(d.Name))
	}
	return q
}

func (s *System) simSpec(d DeviceSpec) sim.DeviceSpec {
	q := sim.DeviceSpec{Name: d.Name, Model: d.Device, Bus: d.under(), Props: s.props(d)}
	if sim.HasSlot(d.Device) && !slices.ContainsFunc(q.Props, func(p string) bool { return strings.HasPrefix(p, "slot=") }) {
		q.Props = append(q.Props, s.nextSlot(d.Name))
	}
	return q
}

// nextSlot numbers the slots of ports through, since a machine numbers only its own.
func (s *System) nextSlot(name string) string {
	return fmt.Sprintf("slot=%d", s.numberOf(name, aSlot)+1)
}

// qemuConfig is the QEMU of a group as it is started.
func (s *System) qemuConfig(c Config, group []DeviceSpec, domain uint32) (qemu.Config, error) {
	q := qemu.Config{Domain: domain, Log: s.log, Wires: s.wiresOf(group), Ejected: s.ejected}
	var err error
	if q.Reserve, err = reserve(group); err != nil {
		return q, err
	}
	if c.Started != nil {
		q.Started = func(pid int) { c.Started(pid, "qemu") }
	}
	for _, d := range group {
		spec := s.qemuSpec(d)
		if s.serving && spec.Bus == "" {
			// Alone below a port it can be reset, whatever it is.
			spec.Bus = d.Name + "-port"
			q.Devices = append(q.Devices, qemu.DeviceSpec{Name: spec.Bus, Model: "pcie-root-port"})
		}
		if s.outside == nil {
			cap, err := s.capture(d)
			if err != nil {
				return q, err
			}
			if cap != nil {
				spec.Capture = cap.file
			}
		}
		q.Devices = append(q.Devices, spec)
	}
	return q, nil
}

func (s *System) planQEMU(c Config, group []DeviceSpec, domain uint32) (starter, error) {
	q, err := s.qemuConfig(c, group, domain)
	if err != nil {
		return nil, err
	}
	if s.outside != nil {
		if qemu.IsTPM(group[0].Device) {
			s.tpmOf(&q, group[0])
		}
		return s.attachQEMU(group, q), nil
	}
	if qemu.IsTPM(group[0].Device) { // alone, since it has no wire
		return s.planTPM(c, group[0], q), nil
	}
	return func(ctx context.Context) (machine, error) {
		done, err := connectFabrics(ctx, group, q.Devices)
		if err != nil {
			return nil, err
		}
		defer done()
		m, err := qemu.Start(ctx, q)
		if err != nil {
			return nil, qemuMissing(err)
		}
		return m, nil
	}, nil
}

func (s *System) planSim(_ Config, group []DeviceSpec, domain uint32) (starter, error) {
	m := sim.Config{Domain: domain, Log: s.log, Wires: s.wiresOf(group), Ejected: s.ejected}
	var err error
	if m.Reserve, err = reserve(group); err != nil {
		return nil, err
	}
	for _, d := range group {
		spec := s.simSpec(d)
		if isTPM(d) {
			spec.Number = s.numberOf(d.Name, aTPM)
		}
		cap, err := s.capture(d)
		if err == nil && cap != nil {
			spec.Capture, err = s.recordTo(d, cap)
		}
		if err != nil {
			return nil, err
		}
		m.Devices = append(m.Devices, spec)
	}
	return func(ctx context.Context) (machine, error) { return sim.Start(ctx, m) }, nil
}

// recordTo is what writes a model's frames to its capture file.
func (s *System) recordTo(d DeviceSpec, c *capture) (func(frame []byte), error) {
	w, err := c.writer()
	if err != nil {
		return nil, fmt.Errorf("%s: writing the capture %s: %w", d.Name, c.path, err)
	}
	return func(f []byte) {
		if err := w.Write(f, time.Now()); err != nil {
			s.log.Warn(fmt.Sprintf("%s: the capture %s ends here: %v", d.Name, c.path, err))
		}
	}, nil
}

// freeDomain is a PCI domain above those that the machine uses, so that addresses of
// virtual devices never meet those of real ones.
func freeDomain() uint32 {
	domain := uint32(qemu.DefaultDomain)
	names, _ := filepath.Glob("/sys/bus/pci/devices/*")
	for _, n := range names {
		a, err := pci.ParseAddr(strings.TrimSpace(filepath.Base(n)))
		if err == nil && a.Domain >= domain {
			domain = a.Domain + 1
		}
	}
	return domain
}
