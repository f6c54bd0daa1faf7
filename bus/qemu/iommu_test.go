package qemu

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// eduDMA has an edu move n bytes between bus address at and its own buffer, and waits until it
// says that it is done.
func eduDMA(t *testing.T, d bus.Device, at bus.IOVA, n int, fromDevice bool) {
	t.Helper()
	pci.SetCommand(d.Config(), pci.CmdMaster, 0)
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	const buffer = 0x40000
	src, dst, cmd := uint32(at), uint32(buffer), uint32(1)
	if fromDevice {
		src, dst, cmd = dst, src, cmd|2
	}
	r.Write32(0x80, src)
	r.Write32(0x88, dst)
	r.Write32(0x90, uint32(n))
	r.Write32(0x98, cmd)
	for end := time.Now().Add(20 * time.Second); r.Read32(0x98)&1 != 0; {
		if d.Err() != nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal("edu: DMA still runs after 20 s")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func alloc(t *testing.T, d bus.Device, r bus.DMARequest) *bus.Memory {
	t.Helper()
	r.Mask = 1<<28 - 1
	m, err := d.DMA().Alloc(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Free)
	return m
}

// wantFault checks that a device is dead of a DMA fault, and how.
func wantFault(t *testing.T, d bus.Device, words ...string) {
	t.Helper()
	select {
	case <-d.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("Done is still open 20 s after a fault")
	}
	err := d.Err()
	if !errors.Is(err, bus.ErrDMAFault) || !errors.Is(err, bus.ErrGone) {
		t.Fatalf("Err() = %v, want ErrDMAFault, which is ErrGone", err)
	}
	for _, w := range append(words, d.Address()) {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("Err() = %q, want it to have %q", err, w)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("Err() = %q, want one line", err)
	}
	if v := d.Config().Read32(0); v != 0xffffffff {
		t.Errorf("Config().Read32(0) after a fault = %#x, want all-ones", v)
	}
	if _, err := d.Region(0); !errors.Is(err, bus.ErrDMAFault) {
		t.Errorf("Region(0) after a fault = %v, want ErrDMAFault", err)
	}
	if m, err := d.DMA().Alloc(bus.DMARequest{Size: 1}); !errors.Is(err, bus.ErrDMAFault) {
		t.Errorf("Alloc after a fault = %v, %v, want ErrDMAFault", m, err)
	}
}

func twoEdus(t *testing.T) (*Machine, bus.Device, bus.Device) {
	t.Helper()
	m := start(t, Config{Devices: []DeviceSpec{{Name: "a", Model: "edu", IOMMU: true}, {Name: "b", Model: "edu", IOMMU: true}, {Name: "c", Model: "edu"}}})
	a, _ := m.Device("a")
	b, _ := m.Device("b")
	return m, a, b
}

// TestIOMMUStray points one device at another's memory.
func TestIOMMUStray(t *testing.T) {
	m, a, b := twoEdus(t)
	mine, victim := alloc(t, a, bus.DMARequest{Size: 4096}), alloc(t, b, bus.DMARequest{Size: 4096})
	for i := range victim.Bytes {
		mine.Bytes[i], victim.Bytes[i] = 0x11, 0x22
	}
	eduDMA(t, a, mine.IOVA, 100, false)
	if err := a.Err(); err != nil {
		t.Fatalf("DMA from memory of its own: %v", err)
	}
	eduDMA(t, a, victim.IOVA, 100, true)
	wantFault(t, a, "a: DMA write to", "memory of b", "reason 5")
	if !bytes.Equal(victim.Bytes, bytes.Repeat([]byte{0x22}, len(victim.Bytes))) {
		t.Error("the other device's memory was written to")
	}
	// The others live.
	if err := b.Err(); err != nil {
		t.Errorf("Err() of the other device = %v, want nil", err)
	}
	eduDMA(t, b, victim.IOVA, 100, false)
	eduDMA(t, b, victim.IOVA+200, 100, true)
	if err := b.Err(); err != nil {
		t.Errorf("Err() of the other device after its own DMA = %v, want nil", err)
	}
	// One without the option has addresses of RAM, all of them.
	c, _ := m.Device("c")
	through := alloc(t, c, bus.DMARequest{Size: 4096})
	copy(through.Bytes, "through")
	eduDMA(t, c, through.IOVA, 7, false)
	eduDMA(t, c, through.IOVA+100, 7, true)
	if got := string(through.Bytes[100:107]); got != "through" || c.Err() != nil {
		t.Errorf("a device without the option copied %q, Err %v, want %q", got, c.Err(), "through")
	}
	// A second fault finds room to be recorded.
	eduDMA(t, b, 0x1000, 16, false)
	wantFault(t, b, "b: DMA read from 0x1000", "reason 6")
}

// TestIOMMUFreed uses memory after it was freed, and finds it out without asking.
func TestIOMMUFreed(t *testing.T) {
	_, a, b := twoEdus(t)
	mem := alloc(t, a, bus.DMARequest{Size: 8192})
	at := mem.IOVA
	eduDMA(t, a, at, 64, false) // now the IOTLB has it
	if err := a.Err(); err != nil {
		t.Fatal(err)
	}
	mem.Free()
	other := alloc(t, b, bus.DMARequest{Size: 8192}) // its pages, as a rule
	eduDMA(t, a, at, 64, true)
	wantFault(t, a, "that memory of a was freed")
	if !bytes.Equal(other.Bytes, make([]byte, 8192)) {
		t.Error("memory that was freed and given to another was written to")
	}
}

// TestIOMMUDirection goes the wrong way. QEMU records that only where its IOTLB does not
// have the page, but it never lets it through.
func TestIOMMUDirection(t *testing.T) {
	_, a, b := twoEdus(t)
	out, in := bus.DMARequest{Size: 4096, Dir: bus.ToDevice}, bus.DMARequest{Size: 4096, Dir: bus.FromDevice}
	seen := alloc(t, a, out)
	eduDMA(t, a, seen.IOVA, 64, false)
	copy(seen.Bytes, "unchanged")
	eduDMA(t, a, seen.IOVA, 64, true)
	if got := string(seen.Bytes[:9]); got != "unchanged" {
		t.Errorf("memory for reading only was written to: %q", got)
	}
	eduDMA(t, a, alloc(t, a, out).IOVA, 64, true)
	wantFault(t, a, "DMA write to", "for reading only")
	eduDMA(t, b, alloc(t, b, in).IOVA, 64, false)
	wantFault(t, b, "DMA read from", "for writing only")
}

// TestIOMMUGuard runs over the end of a buffer.
func TestIOMMUGuard(t *testing.T) {
	_, a, _ := twoEdus(t)
	var all []*bus.Memory
	for range 4 {
		all = append(all, alloc(t, a, bus.DMARequest{Size: 4096}))
	}
	eduDMA(t, a, all[1].IOVA+4000, 200, true)
	wantFault(t, a, "DMA write to")
	for i, m := range all {
		if i != 1 && !bytes.Equal(m.Bytes, make([]byte, 4096)) {
			t.Errorf("buffer %d was written to", i)
		}
	}
}

// TestIOMMUOverflow lets two devices fault before anybody looks: the second one's fault is
// lost, its DMA is stopped, and its next one is told.
func TestIOMMUOverflow(t *testing.T) {
	m, a, b := twoEdus(t)
	m.iommu.mu.Lock() // nobody looks
	for _, d := range []bus.Device{a, b} {
		cfg := m.config(d.(*device).fn.Addr)
		pci.SetCommand(cfg, pci.CmdMaster, 0)
		r := &region{dev: d.(*device), info: d.Regions()[0]}
		r.Write32(0x80, 0x1000)
		r.Write32(0x88, 0x40000)
		r.Write32(0x90, 16)
		r.Write32(0x98, 1)
		for r.Read32(0x98)&1 != 0 {
			time.Sleep(5 * time.Millisecond)
		}
	}
	m.iommu.mu.Unlock()
	wantFault(t, a, "0x1000")
	if err := b.Err(); err != nil {
		t.Fatalf("Err() of the second = %v, want nil: there was no room for its fault", err)
	}
	eduDMA(t, b, 0x2000, 16, false)
	wantFault(t, b, "0x2000")
}

// TestIOMMUBlocked has a device go on after its fault, as one that runs wild would: nothing
// comes through, not even to its own memory, and nothing is recorded that could crowd out
// others.
func TestIOMMUBlocked(t *testing.T) {
	m, a, _ := twoEdus(t)
	mine := alloc(t, a, bus.DMARequest{Size: 4096})
	bar := a.Regions()[0].Addr
	eduDMA(t, a, mine.IOVA, 100, true) // the IOTLB has it now
	copy(mine.Bytes, "untouched")
	eduDMA(t, a, 0x1000, 16, false)
	wantFault(t, a, "0x1000")
	pci.SetCommand(m.config(a.(*device).fn.Addr), pci.CmdMaster, 0)
	for _, at := range []bus.IOVA{mine.IOVA, 0x2000} {
		for off, v := range map[uint64]uint64{0x80: 0x40000, 0x88: uint64(at), 0x90: 16} {
			m.qt.post(cmdWrite[4], bar+off, v)
		}
		m.qt.post(cmdWrite[4], bar+0x98, 3)
		for run := uint64(1); run&1 != 0; time.Sleep(5 * time.Millisecond) {
			run, _ = m.qt.ask(cmdRead[4], bar+0x98)
		}
	}
	if got := string(mine.Bytes[:9]); got != "untouched" {
		t.Errorf("a device that was cut off wrote to memory: %q", got)
	}
	if v, _ := m.qt.ask(cmdRead[4], iommuBase+vtdFSTS); v != 0 {
		t.Errorf("FSTS = %#x after DMA of a device that was cut off, want 0", v)
	}
	wantFault(t, a, "0x1000")
}

// TestIOMMUBelow puts devices below bridges: their requests carry other IDs there.
func TestIOMMUBelow(t *testing.T) {
	m := start(t, Config{Devices: []DeviceSpec{
		{Name: "rp0", Model: "pcie-root-port"},
		{Name: "sw0", Model: "x3130-upstream", Bus: "rp0"},
		{Name: "dn0", Model: "xio3130-downstream", Bus: "sw0"},
		{Name: "deep", Model: "edu", Bus: "dn0", IOMMU: true},
		{Name: "pcib", Model: "pcie-pci-bridge"},
		{Name: "conv", Model: "edu", Bus: "pcib", IOMMU: true},
		{Name: "old", Model: "i82801b11-bridge"},
		{Name: "older", Model: "edu", Bus: "old", IOMMU: true},
	}})
	for _, name := range []string{"deep", "conv", "older"} {
		d, err := m.Device(name)
		if err != nil {
			t.Fatal(err)
		}
		mem := alloc(t, d, bus.DMARequest{Size: 4096})
		copy(mem.Bytes, name)
		eduDMA(t, d, mem.IOVA, 16, false)
		eduDMA(t, d, mem.IOVA+100, 16, true)
		if got := string(mem.Bytes[100 : 100+len(name)]); got != name || d.Err() != nil {
			t.Errorf("%s copied %q, Err %v", name, got, d.Err())
		}
		q, err := d.EnableIRQs(bus.MSI, 1)
		if err != nil {
			t.Fatal(err)
		}
		r, _ := d.Region(0)
		r.Write32(0x60, 1)
		if _, err := q[0].Wait(t.Context()); err != nil {
			t.Errorf("%s: MSI: %v", name, err)
		}
		eduDMA(t, d, 0x5000, 16, false)
		wantFault(t, d, name+": DMA read from 0x5000")
	}
	_, err := Start(t.Context(), Config{Devices: []DeviceSpec{
		{Name: "pcib", Model: "pcie-pci-bridge"},
		{Name: "one", Model: "edu", Bus: "pcib", IOMMU: true},
		{Name: "two", Model: "edu", Bus: "pcib"},
	}})
	if err == nil || !strings.Contains(err.Error(), "one and two stand below the same conventional PCI bridge") || strings.Contains(err.Error(), "\n") {
		t.Errorf("Start with two devices of one requester ID = %v, want a refusal", err)
	}
}

// TestIOMMUErrors: what cannot be had is refused in a line.
func TestIOMMUErrors(t *testing.T) {
	_, err := Start(t.Context(), Config{Devices: []DeviceSpec{{Name: "p", Model: "pcie-root-port", IOMMU: true}}})
	if err == nil || !strings.Contains(err.Error(), "p: model pcie-root-port is a port or bridge") {
		t.Errorf("Start with an IOMMU for a port = %v, want a refusal", err)
	}
	c := &Config{Devices: []DeviceSpec{{Name: "d", Model: "edu"}}}
	if args := strings.Join(c.deviceArgs(&files{}).args, " "); strings.Contains(args, "iommu") {
		t.Errorf("without the option QEMU is started with %s", args)
	}
	said := c.inUsersWords("-device intel-iommu,intremap=off: 'intel-iommu' is not a valid device model name")
	if !strings.Contains(said, "no usable IOMMU") || !strings.Contains(said, "leave the option iommu out") {
		t.Errorf("of a QEMU without intel-iommu it says %q", said)
	}
}
