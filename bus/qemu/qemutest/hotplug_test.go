package qemutest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
)

// slot is a port with hot-plug as its driver would use it, at the least.
type slot struct {
	t  *testing.T
	fn *pci.Function
	at bus.Off
}

func slotOf(t *testing.T, m *qemu.Machine, port string) slot {
	t.Helper()
	f, err := m.Function(port)
	if err != nil {
		t.Fatal(err)
	}
	e, ok := pci.FindExpress(f.Config)
	if !ok || !e.Slot {
		t.Fatalf("%s: %+v, want a slot", port, e)
	}
	return slot{t, f, e.At}
}

// control writes Slot Control, and clears the events that are set: no others (QEMU restores all then).
func (s slot) control(clear, set uint16) {
	c := s.fn.Config
	c.Write16(s.at+pci.ExpSltCtl, c.Read16(s.at+pci.ExpSltCtl)&^clear|set)
	c.Write16(s.at+pci.ExpSltSta, c.Read16(s.at+pci.ExpSltSta)&pci.SltStaEvents)
}

func (s slot) on()  { s.control(pci.SltCtlPowerOff|pci.SltCtlPowerLED, pci.LEDOn<<8) }
func (s slot) off() { s.control(pci.SltCtlPowerLED, pci.SltCtlPowerOff|pci.LEDOff<<8) }

// hot is a machine whose ejected devices are told.
func hot(t *testing.T, c qemu.Config) (*qemu.Machine, <-chan string) {
	t.Helper()
	ejected := make(chan string, 64)
	c.Ejected = func(name string) { ejected <- name }
	return Machine(t, c), ejected
}

func wantEjected(t *testing.T, ejected <-chan string, name string) {
	t.Helper()
	select {
	case got := <-ejected:
		if got != name {
			t.Errorf("ejected %s, want %s", got, name)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("%s was not ejected within 20 s", name)
	}
}

// plug puts a device in and brings it up.
func plug(t *testing.T, m *qemu.Machine, port string, spec qemu.DeviceSpec) (*pci.Function, bus.Device) {
	t.Helper()
	spec.Bus = port
	if err := m.Plug(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	s := slotOf(t, m, port)
	if found, err := m.Rescan(s.fn); err != nil || len(found) != 0 {
		t.Fatalf("before power Rescan = %v, %v, want nothing", found, err)
	}
	if sta := s.fn.Config.Read16(s.at + pci.ExpSltSta); sta&(pci.SltStaPresent|pci.SltStaButton) != pci.SltStaPresent|pci.SltStaButton {
		t.Errorf("Slot Status = %#x, want a card and its button", sta)
	}
	s.on()
	found, err := m.Rescan(s.fn)
	if err != nil || len(found) != 1 || found[0].Err != nil {
		t.Fatalf("Rescan = %v, %v, want one", found, err)
	}
	name, dev, ok := m.Named(found[0])
	if !ok || name != spec.Name || dev == nil {
		t.Fatalf("Named = %s, %v, %v, want %s", name, dev, ok, spec.Name)
	}
	if d, err := m.Device(spec.Name); err != nil || d != dev {
		t.Errorf("Device(%s) = %v, %v, want the same as Named", spec.Name, d, err)
	}
	return found[0], dev
}

// eject takes it out as a port's driver does.
func eject(t *testing.T, m *qemu.Machine, ejected <-chan string, port, name string) {
	t.Helper()
	if err := m.Eject(name); err != nil {
		t.Fatal(err)
	}
	s := slotOf(t, m, port)
	f, err := m.Function(name)
	if err != nil {
		t.Fatal(err)
	}
	dev, _ := m.Device(name)
	m.Forget(f)
	s.off()
	wantEjected(t, ejected, name)
	if err := dev.Err(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Err of a removed device = %v, want ErrGone", err)
	}
	select {
	case <-dev.Done():
	default:
		t.Error("Done of a removed device is open")
	}
	if err := dev.Close(); err != nil {
		t.Errorf("Close of a removed device = %v", err)
	}
}

// eduMoves lets an edu move bytes by DMA, and says so by MSI.
func eduMoves(t *testing.T, dev bus.Device) {
	t.Helper()
	r, err := dev.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	if v := r.Read32(0); v&0xff != 0xed {
		t.Fatalf("edu's register 0 = %#x, want 0x____00ed", v)
	}
	mem, err := dev.DMA().Alloc(bus.DMARequest{Size: 4096, Mask: 1<<28 - 1})
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Free()
	pci.SetCommand(dev.Config(), pci.CmdMaster, 0)
	q, err := dev.EnableIRQs(bus.MSI, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := dev.DisableIRQs(); err != nil {
			t.Error(err)
		}
	}()
	copy(mem.Bytes, "hot-plugged")
	const buffer = 0x40000 // edu's own
	for _, move := range []struct{ from, to, cmd uint64 }{
		{uint64(mem.IOVA), buffer, 1 | 4},
		{buffer, uint64(mem.IOVA) + 64, 1 | 2 | 4},
	} {
		r.Write64(0x80, move.from)
		r.Write64(0x88, move.to)
		r.Write64(0x90, 64)
		r.Write64(0x98, move.cmd)
		if _, err := q[0].Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.Write32(0x64, r.Read32(0x24))
	}
	if got := string(mem.Bytes[64:75]); got != "hot-plugged" {
		t.Errorf("DMA moved %q", got)
	}
}

var switchPorts = []qemu.DeviceSpec{
	{Name: "rp0", Model: "pcie-root-port"},
	{Name: "rp1", Model: "ioh3420"},
	{Name: "sw0", Model: "x3130-upstream", Bus: "rp1"},
	{Name: "dn0", Model: "xio3130-downstream", Bus: "sw0"},
	{Name: "dn1", Model: "xio3130-downstream", Bus: "sw0"},
	{Name: "d0", Model: "edu", Bus: "dn0"},
}

// A device comes and goes below a root port and below a switch, with registers, DMA and interrupts each time.
func TestPlug(t *testing.T) {
	bustest.NoLeaks(t)
	m, ejected := hot(t, qemu.Config{Devices: switchPorts})
	slots := map[uint32]string{}
	for _, f := range m.Topology().Functions {
		if e, ok := pci.FindExpress(f.Config); ok && e.Slot {
			n := f.Config.Read32(e.At+pci.ExpSltCap) >> pci.SltCapSlotAt
			if slots[n] != "" {
				t.Errorf("%s and %s are slot %d both", slots[n], f.Addr, n)
			}
			slots[n] = f.Addr.String()
		}
	}
	for _, port := range []string{"rp0", "dn1"} {
		t.Run(port, func(t *testing.T) {
			var first pci.Addr
			for i := range 2 {
				f, dev := plug(t, m, port, qemu.DeviceSpec{Name: "hot", Model: "edu"})
				if i == 0 {
					first = f.Addr
				}
				if f.Addr != first {
					t.Errorf("plugged again it is %s, want %s", f.Addr, first)
				}
				eduMoves(t, dev)
				eject(t, m, ejected, port, "hot")
				r, _ := m.Device("d0")
				eduMoves(t, r)
			}
		})
	}
}

// Network adapters come and go: nothing of them stays.
func TestPlugCycles(t *testing.T) {
	bustest.NoLeaks(t)
	m, ejected := hot(t, qemu.Config{Devices: switchPorts})
	count := func(dir string) int {
		es, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(es)
	}
	theirs := fmt.Sprintf("/proc/%d/fd", m.PID())
	var ours, qemus, functions int
	var free int
	for i := range 20 {
		f, dev := plug(t, m, "dn1", qemu.DeviceSpec{Name: "eth0", Model: "e1000e"})
		if _, err := dev.EnableIRQs(bus.MSIX, 3); err != nil {
			t.Fatal(err)
		}
		if free := dev.IRQVectors(bus.MSIX); free < 5 {
			t.Errorf("cycle %d: %d vectors, want 5", i, free)
		}
		if f.Parent.Secondary != f.Addr.Bus {
			t.Errorf("cycle %d: %s below bus %d", i, f.Addr, f.Parent.Secondary)
		}
		eject(t, m, ejected, "dn1", "eth0")
		d0, _ := m.Device("d0")
		n := d0.IRQVectors(bus.MSI)
		if i == 1 {
			ours, qemus, functions, free = count("/proc/self/fd"), count(theirs), len(m.Topology().Functions), n
		}
	}
	if n := count("/proc/self/fd"); n > ours {
		t.Errorf("%d descriptors after 20 cycles, and %d after 2", n, ours)
	}
	if n := count(theirs); n > qemus {
		t.Errorf("QEMU has %d descriptors after 20 cycles, and %d after 2", n, qemus)
	}
	if n := len(m.Topology().Functions); n != functions {
		t.Errorf("%d functions after 20 cycles, want %d", n, functions)
	}
	d0, _ := m.Device("d0")
	if n := d0.IRQVectors(bus.MSI); n != free {
		t.Errorf("%d vectors after 20 cycles, want %d", n, free)
	}
	said, err := m.Execute("human-monitor-command", map[string]any{"command-line": "info network"})
	if err != nil || strings.Contains(string(said), "netp") {
		t.Errorf("network of an ejected adapter: %s, %v", said, err)
	}
}

// Models of all kinds, bridges among them, with what each has to offer.
func TestPlugModels(t *testing.T) {
	m, ejected := hot(t, qemu.Config{Devices: switchPorts, Reserve: pci.Reserve{Mem: 64 << 20, Pref: 64 << 20}})
	rp, err := m.Function("rp0")
	if err != nil || rp.Windows.Mem.Size != 64<<20 || rp.Windows.Mem64.Size != 64<<20 {
		t.Fatalf("windows of the port = %+v, %v, want 64 MiB each", rp.Windows, err)
	}
	for _, tt := range []struct {
		model string
		props []string
		bars  int
	}{
		{"e1000e", nil, 4}, {"qemu-xhci", nil, 1}, {"pcie-pci-bridge", nil, 1}, {"x3130-upstream", nil, 0},
		{"bochs-display", []string{"vgamem=32M"}, 2}, {"edu", nil, 1}, {"virtio-net-pci", []string{"aer=on", "disable-legacy=on"}, 2},
	} {
		t.Run(tt.model, func(t *testing.T) {
			f, dev := plug(t, m, "rp0", qemu.DeviceSpec{Name: "hot", Model: tt.model, Props: tt.props})
			n := 0
			for _, r := range dev.Regions() {
				if r.Addr != 0 {
					n++
				}
			}
			if n != tt.bars {
				t.Errorf("%d BARs, want %d", n, tt.bars)
			}
			if tt.model == "virtio-net-pci" {
				reports(t, f)
				if err := m.InjectError("hot", pci.AERError{Uncorrectable: 1 << 20}); err != nil {
					t.Error(err)
				}
			}
			eject(t, m, ejected, "rp0", "hot")
		})
	}
}

// What cannot be plugged in says why, and leaves nothing behind.
func TestPlugErrors(t *testing.T) {
	m, _ := hot(t, qemu.Config{Devices: append([]qemu.DeviceSpec{
		{Name: "off", Model: "pcie-root-port", Props: []string{"hotplug=off"}},
		{Name: "conv", Model: "pcie-pci-bridge"},
	}, switchPorts...)})
	for _, tt := range []struct {
		spec qemu.DeviceSpec
		want string
		is   error
	}{
		{qemu.DeviceSpec{Name: "x", Model: "no-such", Bus: "rp0"}, "not a valid device model name", bus.ErrNotSupported},
		{qemu.DeviceSpec{Name: "x", Model: "e1000e", Bus: "rp0", Props: []string{"nothing=1"}}, "lists its properties", bus.ErrNotSupported},
		{qemu.DeviceSpec{Name: "x", Model: "e1000e", Bus: "rp0", Props: []string{`mac=a "b"\`}}, "", bus.ErrNotSupported},
		{qemu.DeviceSpec{Name: "x", Model: "edu", Bus: "nowhere"}, "no port named nowhere", bus.ErrNotSupported},
		{qemu.DeviceSpec{Name: "x", Model: "edu", Bus: "d0"}, "is no port with hot-plug", bus.ErrNotSupported},
		{qemu.DeviceSpec{Name: "x", Model: "edu", Bus: "sw0"}, "is no port with hot-plug", bus.ErrNotSupported},
		{qemu.DeviceSpec{Name: "x", Model: "edu", Bus: "conv"}, "is no port with hot-plug", bus.ErrNotSupported},
		{qemu.DeviceSpec{Name: "x", Model: "edu", Bus: "off"}, "hotplug=off", bus.ErrNotSupported},
		{qemu.DeviceSpec{Name: "x", Model: "edu"}, "on the root bus", bus.ErrNotSupported},
		{qemu.DeviceSpec{Name: "x", Model: "edu", Bus: "dn0"}, "d0 stands under dn0", bus.ErrBusy},
		{qemu.DeviceSpec{Name: "d0", Model: "edu", Bus: "rp0"}, "name is taken", bus.ErrBusy},
		{qemu.DeviceSpec{Name: "x", Model: "xio3130-downstream", Bus: "rp0"}, "downstream ports cannot be added later", bus.ErrNotSupported},
		{qemu.DeviceSpec{Name: "x", Model: "pcie-root-port", Bus: "rp0"}, "root ports stand on the root bus", bus.ErrNotSupported},
		{qemu.DeviceSpec{Name: "x", Model: "tpm-tis", Bus: "rp0"}, "no PCI device", bus.ErrNotSupported},
		{qemu.DeviceSpec{Name: "x", Model: "edu", Bus: "rp0", IOMMU: true}, "has no IOMMU", bus.ErrNotSupported},
		{qemu.DeviceSpec{Name: "x y", Model: "edu", Bus: "rp0"}, "device name", nil},
	} {
		err := m.Plug(t.Context(), tt.spec)
		if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("Plug(%+v) = %v, want %q and %v", tt.spec, err, tt.want, tt.is)
		}
	}
	for name, is := range map[string]error{"rp0": bus.ErrNotSupported, "dn0": bus.ErrNotSupported, "x": syscall.ENODEV} {
		if err := m.Eject(name); err == nil || !errors.Is(err, is) {
			t.Errorf("Eject(%s) = %v, want %v", name, err, is)
		}
	}
	if err := m.Eject("d0"); err != nil {
		t.Error(err)
	}
	if err := m.Eject("d0"); !errors.Is(err, bus.ErrBusy) {
		t.Errorf("a second Eject at once = %v, want ErrBusy", err)
	}
	plug(t, m, "rp0", qemu.DeviceSpec{Name: "x", Model: "e1000e"})
}

// A device ends while somebody uses it: reads give all-ones from then on, never QEMU's 0.
func TestDisconnect(t *testing.T) {
	m, ejected := hot(t, qemu.Config{Devices: switchPorts})
	f, dev := plug(t, m, "dn1", qemu.DeviceSpec{Name: "hot", Model: "edu"})
	r, err := dev.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-dev.Done():
					if v := r.Read32(0); v != ^uint32(0) {
						t.Errorf("a register of an ended device = %#x, want all-ones", v)
					}
					return
				default:
				}
				if v := r.Read32(0); v != ^uint32(0) && v&0xff != 0xed {
					t.Errorf("a register = %#x while the device is removed, want its value or all-ones", v)
				}
				m.Topology().Find(f.Addr)
			}
		})
	}
	sw, _ := m.Function("sw0")
	d0, _ := m.Device("d0")
	m.Disconnect(sw)
	readers.Wait()
	for _, d := range []bus.Device{dev, d0} {
		if err := d.Err(); !errors.Is(err, bus.ErrGone) {
			t.Errorf("Err after Disconnect = %v, want ErrGone", err)
		}
	}
	dn, _ := m.Device("dn1")
	if dn.Err() == nil {
		t.Error("a port behind the one that was disconnected lives")
	}
	m.Forget(sw)
	if _, err := m.Device("hot"); err == nil {
		t.Error("a device that was forgotten is found by its name")
	}
	// All of it is still there.
	found, err := m.Rescan(nil)
	if err != nil || len(found) != 5 {
		t.Fatalf("Rescan(nil) = %v, %v, want the switch, its ports and two devices", found, err)
	}
	for _, name := range []string{"hot", "d0"} {
		d, err := m.Device(name)
		if err != nil {
			t.Fatal(err)
		}
		eduMoves(t, d)
	}
	eject(t, m, ejected, "dn1", "hot")
}

// Two ports at once, by several at the same time.
func TestPlugAtOnce(t *testing.T) {
	bustest.NoLeaks(t)
	m, ejected := hot(t, qemu.Config{Devices: switchPorts})
	var all sync.WaitGroup
	for port, name := range map[string]string{"rp0": "a", "dn1": "b"} {
		all.Go(func() {
			if err := m.Plug(t.Context(), qemu.DeviceSpec{Name: name, Model: "e1000e", Bus: port}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, port := range []string{"rp0", "dn1"} {
		all.Go(slotOf(t, m, port).on)
	}
	all.Wait()
	found, err := m.Rescan(nil)
	if err != nil || len(found) != 2 {
		t.Fatalf("Rescan(nil) = %v, %v, want two", found, err)
	}
	for _, f := range found {
		m.Forget(f)
	}
	for _, name := range []string{"a", "b"} {
		if err := m.Eject(name); err != nil {
			t.Error(err)
		}
	}
	for _, port := range []string{"rp0", "dn1"} {
		slotOf(t, m, port).off()
	}
	got := map[string]bool{}
	for range 2 {
		select {
		case name := <-ejected:
			got[name] = true
		case <-time.After(20 * time.Second):
			t.Fatal("not ejected within 20 s")
		}
	}
	if !got["a"] || !got["b"] {
		t.Errorf("ejected %v, want a and b", got)
	}
}

// A device plugged in later stands behind the IOMMU if it wants to, and beside it another passes.
func TestPlugIOMMU(t *testing.T) {
	bustest.NoLeaks(t)
	devices := append(append([]qemu.DeviceSpec(nil), switchPorts[:5]...), qemu.DeviceSpec{Name: "d0", Model: "edu", Bus: "dn0", IOMMU: true})
	m, ejected := hot(t, qemu.Config{Devices: devices})
	d0, _ := m.Device("d0")
	eduMoves(t, d0)
	for i := range 6 {
		_, dev := plug(t, m, "dn1", qemu.DeviceSpec{Name: "hot", Model: "edu", IOMMU: i%2 == 0})
		eduMoves(t, dev)
		mem, err := dev.DMA().Alloc(bus.DMARequest{Size: 8192})
		if err != nil {
			t.Fatal(err)
		}
		if i == 2 { // a stray one is stopped
			r, _ := dev.Region(0)
			r.Write64(0x80, 0x1000)
			r.Write64(0x88, 0x40000)
			r.Write64(0x90, 64)
			r.Write64(0x98, 1)
			select {
			case <-dev.Done():
			case <-time.After(20 * time.Second):
				t.Error("stray DMA of a plugged device was not stopped")
			}
		}
		eject(t, m, ejected, "dn1", "hot")
		mem.Free()
		eduMoves(t, d0)
	}
}
