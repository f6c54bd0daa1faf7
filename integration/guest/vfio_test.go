//go:build vm

package guest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/netdev/netdevtest"
	"github.com/ring3dev/ring3/vfio"
)

// enough is what tests may lock that are about other things: rings and buffers of two NICs.
const enough = 256 << 20

// openVFIO gives a device to vfio-pci and opens it.
func openVFIO(t testing.TB, id string, o vfio.Options) *vfio.Device {
	t.Helper()
	addr := Address(t, id)
	Bind(t, addr, "vfio-pci")
	byCdev(t, addr)
	o.Log = bustest.Log(t)
	d, err := vfio.Open(context.Background(), addr, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("closing %s: %v", id, err)
		}
	})
	return d
}

// byCdev lets nobody open a device by its own file and iommufd, where the kernel has them: all
// these tests then do. Debian's has not.
func byCdev(t testing.TB, addr string) {
	t.Helper()
	files, err := filepath.Glob("/sys/bus/pci/devices/" + addr + "/vfio-dev/vfio*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		for _, path := range []string{"/dev/iommu", "/dev/vfio/devices/" + filepath.Base(f)} {
			if _, err := os.Stat(path); err != nil {
				continue // Debian's kernel has the entries in vfio-dev, but not what they are for
			}
			if out, code := RunRoot(t, "chown", strconv.Itoa(Nobody), path); code != 0 {
				t.Fatalf("chown %s: exit status %d: %s", path, code, out)
			}
		}
	}
}

// askBack has the kernel ask for a device, as root's unbind does, which returns when it has it.
func askBack(t *testing.T, d *vfio.Device) {
	t.Helper()
	WriteRoot(t, "/sys/bus/pci/drivers/vfio-pci/unbind", d.Address())
}

// conform holds the backend to its contract.
func conform(t *testing.T, id string, hooks func(*testing.T, bus.Device) bustest.Subject) {
	Memlock(t, enough)
	bustest.All(t, func(t *testing.T) bustest.Subject {
		d := openVFIO(t, id, vfio.Options{})
		s := hooks(t, d)
		s.Kill = func() { askBack(t, d) }
		return s
	})
}

// slowE1000e gives the model's throttling timers, which send what they held back, time to run out
// on a machine that has other things to do.
func slowE1000e(t *testing.T, d bus.Device) bustest.Subject {
	s := bustest.E1000e(t, d)
	lower := s.Lower
	s.Lower = func() {
		lower()
		time.Sleep(100 * time.Millisecond)
	}
	return s
}

func TestVFIOedu(t *testing.T)    { conform(t, "edu0", bustest.Edu) }
func TestVFIOe1000e(t *testing.T) { conform(t, "nic0", slowE1000e) }
func TestVFIOe1000(t *testing.T)  { conform(t, "old0", bustest.E1000) }

// without hides interrupt modes of a device.
type without struct {
	bus.Device
	modes []bus.IRQMode
}

func (d without) IRQVectors(m bus.IRQMode) int {
	for _, w := range d.modes {
		if m == w {
			return 0
		}
	}
	return d.Device.IRQVectors(m)
}

// TestVFIONetdev holds the driver to its contract, in every interrupt mode.
func TestVFIONetdev(t *testing.T) {
	Memlock(t, enough)
	for _, c := range []struct {
		name   string
		ids    [2]string
		queues int
		irq    string
		hide   []bus.IRQMode
	}{
		{"e1000e-MSI-X", [2]string{"nic0", "nic1"}, 2, "", nil},
		{"e1000e-MSI", [2]string{"nic0", "nic1"}, 1, "", []bus.IRQMode{bus.MSIX}},
		{"e1000e-INTx", [2]string{"nic0", "nic1"}, 1, "intx", nil},
		{"e1000", [2]string{"old0", "old1"}, 1, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			netdevtest.All(t, []int{64}, func(t *testing.T, ring int) netdevtest.Pair {
				o := map[string]string{"ring": strconv.Itoa(ring), "queues": strconv.Itoa(c.queues)}
				if c.irq != "" {
					o["bus"] = c.irq
				}
				var nics [2]pci.Instance
				var devs [2]*vfio.Device
				for i, id := range c.ids {
					devs[i] = openVFIO(t, id, vfio.Options{})
					nics[i] = bindDriver(t, without{devs[i], c.hide}, o)
				}
				p := netdevtest.Pair{
					A: nics[0].(netdev.Device), B: nics[1].(netdev.Device),
					CloseA: nics[0].Close,
					Close:  func() error { return errors.Join(nics[0].Close(), nics[1].Close(), devs[0].Close(), devs[1].Close()) },
				}
				if strings.HasPrefix(c.name, "e1000e") {
					p.NoTSO = "QEMU's e1000e before 8.1 cuts frames into IP fragments"
				} else {
					p.NoCsumGood, p.EmptySegments = "QEMU's e1000 looks at no checksum", true
				}
				return p
			})
		})
	}
}

// bindDriver brings a NIC into service.
func bindDriver(t testing.TB, d bus.Device, o map[string]string) pci.Instance {
	t.Helper()
	r := pci.Bind(context.Background(), d, pci.Env{Name: "eth0", Log: bustest.Log(t), Options: o}, []*pci.Driver{e1000.Driver})
	if r.Outcome != pci.Bound {
		t.Fatalf("binding %s = %s, %v", d.Address(), r.Outcome, r.Err)
	}
	t.Cleanup(func() { _ = r.Instance.Close() })
	return r.Instance
}

// TestVFIOFunction is what host needs of a device beside the contract.
func TestVFIOFunction(t *testing.T) {
	d := openVFIO(t, "nic0", vfio.Options{})
	f := d.Function()
	if f.Addr.String() != Address(t, "nic0") || f.ID.String() != "8086:10d3" || f.Header != pci.HeaderDevice || len(f.BARs) != 4 {
		t.Errorf("Function = %+v, want an e1000e with four BARs", f)
	}
	for _, r := range f.BARs {
		if r.Addr == 0 || r.Size < 32 || (r.Kind == bus.RegionIO) != (r.Index == 2) {
			t.Errorf("BAR %d = %+v, want it placed, number 2 in I/O space", r.Index, r)
		}
	}
	a := d.Access()
	if a.Group < 0 || a.API == vfio.Auto || len(a.Members) != 1 || a.Members[0].Driver != "vfio-pci" || d.Backend() != "vfio" {
		t.Errorf("Access = %+v, Backend %s, want it by its group, where it is alone", a, d.Backend())
	}
	i := d.Space().Info()
	if len(i.Ranges) < 2 || a.API == vfio.Group && i.MoreMappings < 60000 || i.PageSizes&4096 == 0 {
		t.Errorf("Space = %+v, want the IOMMU's addresses, without those of interrupts", i)
	}
	for _, r := range i.Ranges {
		if r.First <= 0xfee00000 && r.Last >= 0xfee00000 {
			t.Errorf("addresses %#x to %#x hold those of interrupts", r.First, r.Last)
		}
	}
	t.Logf("%s: %+v", d.Address(), i)
}

// TestVFIOReset resets by whatever there is: a function by itself, which QEMU's e1000e does without
// forgetting its registers, and one without a reset by the bus that it shares with its group.
func TestVFIOReset(t *testing.T) {
	d := openVFIO(t, "nic0", vfio.Options{})
	if err := d.Reset(t.Context()); err != nil {
		t.Error(err)
	}
	edu := openVFIO(t, "edu0", vfio.Options{})
	if err := edu.Reset(t.Context()); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Reset of edu on the root bus = %v, want ErrNotSupported", err)
	}
	space := vfio.NewSpace()
	defer space.Close()
	NeedSharedGroup(t)
	Bind(t, Address(t, "shared1"), "vfio-pci") // of the same group
	shared := openVFIO(t, "shared0", vfio.Options{Space: space})
	r, err := shared.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	const rdbah bus.Off = 0x2804 // Receive Descriptor Base Address High, RW: 0 after a reset
	r.Write32(rdbah, 5)
	if err := shared.Reset(t.Context()); err != nil || r.Read32(rdbah) != 0 {
		t.Errorf("Reset by the bus = %v, RDBAH = %d, want nil, 0", err, r.Read32(rdbah))
	}
	other := openVFIO(t, "shared1", vfio.Options{Space: space})
	if err := shared.Reset(t.Context()); !errors.Is(err, bus.ErrNotSupported) || !strings.Contains(err.Error(), other.Address()+", which is in use") {
		t.Errorf("Reset of a bus with another that is in use = %v, want ErrNotSupported", err)
	}
}

// TestVFIOStray has a device reach for memory that is not its own: nothing is read or
// written, and the kernel's log has it, which only root may read.
func TestVFIOStray(t *testing.T) {
	d := openVFIO(t, "edu0", vfio.Options{})
	s := bustest.Edu(t, d)
	src, err := d.DMA().Alloc(bus.DMARequest{Size: 4096, Mask: s.MoveMask})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Free()
	dst, err := d.DMA().Alloc(bus.DMARequest{Size: 4096, Mask: s.MoveMask, Dir: bus.ToDevice})
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Free()
	copy(src.Bytes, "mine")
	before := strings.Count(KernelLog(t), "DMAR: [DMA Write")
	// Memory that it may only read, and an address where nothing is.
	for _, at := range []bus.IOVA{dst.IOVA, src.IOVA + 4096} {
		if err := s.Move(t.Context(), at, src.IOVA, 100); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(dst.Bytes, make([]byte, 4096)) {
		t.Error("memory that the device may only read was written to")
	}
	log := KernelLog(t)
	if n := strings.Count(log, "DMAR: [DMA Write"); n < before+2 {
		t.Errorf("%d faults in the kernel's log, want 2 more than %d:\n%s", n, before, log)
	}
	if want := "fault addr 0x" + strconv.FormatUint(uint64(src.IOVA)+4096, 16); !strings.Contains(log, want) {
		t.Errorf("the kernel's log lacks %q", want)
	}
	if err := d.Err(); err != nil {
		t.Errorf("Err = %v, want nil: nobody tells an unprivileged process", err)
	}
}

// TestVFIOAskedBack ends a device under traffic: within a moment the kernel has it back.
func TestVFIOAskedBack(t *testing.T) {
	Memlock(t, enough)
	d := openVFIO(t, "nic0", vfio.Options{})
	nic := bindDriver(t, d, nil).(netdev.Device)
	stop := traffic(t, nic)
	start := time.Now()
	askBack(t, d)
	if took := time.Since(start); took > time.Second {
		t.Errorf("the kernel had the device back after %v, want it within 1 s", took)
	} else {
		t.Logf("the kernel had the device back after %v", took)
	}
	if err := d.Err(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Err = %v, want ErrGone", err)
	}
	stop()
}

// TestVFIOUnplug pulls a NIC out under traffic, from QEMU's side: the process lives on, and the
// kernel has the device within a moment of asking for it.
func TestVFIOUnplug(t *testing.T) {
	Memlock(t, enough)
	d := openVFIO(t, "hot0", vfio.Options{})
	nic := bindDriver(t, d, nil).(netdev.Device)
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	stop := traffic(t, nic)
	polled := make(chan struct{})
	go func() { // beside it one that only reads
		defer close(polled)
		for r.Read32(8) != 0xffffffff {
		}
	}()
	Unplug(t, "hot0")
	select {
	case <-d.Done(): // the kernel waits 5 s for somebody to think better of it
	case <-time.After(60 * time.Second):
		t.Fatal("the device was not asked back in 60 s")
	}
	asked := time.Now()
	WaitUnplugged(t, "hot0", 30*time.Second)
	<-polled
	if took := time.Since(asked); took > time.Second {
		t.Errorf("the device was gone %v after it was asked back, want 1 s", took)
	} else {
		t.Logf("the device was gone %v after it was asked back", took)
	}
	if err := d.Err(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Err = %v, want ErrGone", err)
	}
	stop()
	if err := nic.(pci.Instance).Close(); err != nil && !errors.Is(err, bus.ErrGone) {
		t.Errorf("Close of the driver = %v", err)
	}
	// For the next test; and what is plugged in serves as what was there.
	Plug(t, "e1000e", "id=hot0", "bus=port1", "netdev=net4", "mac=52:54:00:12:34:5a", "romfile=")
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		a, err := vfio.Look(d.Address(), vfio.Options{})
		if err == nil && a.Group >= 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("what was plugged in is not there after 60 s: %v", err)
		}
	}
	again := openVFIO(t, "hot0", vfio.Options{})
	defer traffic(t, bindDriver(t, again, nil).(netdev.Device))()
}

// transmit sends frames as fast as they go until ctx ends, and calls running once some hundred were sent.
// A device that is gone takes no more.
func transmit(ctx context.Context, nic netdev.Device, running func()) error {
	const burst = 32
	q := nic.Tx(0)
	pool, err := q.NewPool(4 * burst)
	if err != nil {
		return err
	}
	bufs := make([]*dma.Buf, 0, burst)
	for sent := 0; ctx.Err() == nil; {
		for len(bufs) < burst {
			b := pool.Get()
			if b == nil {
				break
			}
			b.Data = b.Data[:60]
			copy(b.Data, "\xff\xff\xff\xff\xff\xff")
			bufs = append(bufs, b)
		}
		n := q.Burst(bufs)
		bufs = append(bufs[:0], bufs[n:]...)
		if q.Reap(); sent < 10*burst && sent+n >= 10*burst {
			running()
		}
		sent += n
	}
	for _, b := range bufs {
		b.Free()
	}
	return nil
}

// traffic is transmit in the background, until the function that it returns is called.
func traffic(t *testing.T, nic netdev.Device) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended, running := make(chan error, 1), make(chan struct{})
	go func() { ended <- transmit(ctx, nic, func() { close(running) }) }()
	select {
	case <-running:
	case <-time.After(30 * time.Second):
		t.Fatalf("no frames were sent in 30 s (%v, %+v); the kernel's log:\n%s", nic.Err(), nic.Stats(), KernelLog(t))
	}
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
