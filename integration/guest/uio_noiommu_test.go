//go:build vm

package guest

import (
	"errors"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/netdev/netdevtest"
	"github.com/ring3dev/ring3/uio"
)

// hugePages reserves so many huge pages of 2 MiB, until the end of the test.
func hugePages(t *testing.T, n int) {
	t.Helper()
	const file = "/proc/sys/vm/nr_hugepages"
	if err := os.WriteFile(file, []byte(strconv.Itoa(n)), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, []byte("0"), 0o644); err != nil {
			t.Error(err)
		}
	})
	b, err := os.ReadFile(file)
	t.Logf("huge pages: %d wanted, %s, %v", n, b, err)
}

func openUnsafe(t *testing.T, addr string) *uio.Device {
	t.Helper()
	d, err := uio.Open(t.Context(), addr, uio.Options{DMAUnsafe: true, Log: bustest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return d
}

// The device moves memory at physical addresses: an edu that reaches all of them.
func TestNoIOMMURootUIOEdu(t *testing.T) {
	hugePages(t, 32)
	QMP(t, "device_add", map[string]any{"driver": "edu", "id": "wide0", "bus": "port0", "dma_mask": 1<<32 - 1})
	t.Cleanup(func() {
		Unplug(t, "wide0")
		WaitUnplugged(t, "wide0", 20*time.Second)
	})
	addr := plugged(t, "wide0")
	Bind(t, addr, "uio_pci_generic")
	bustest.All(t, func(t *testing.T) bustest.Subject {
		s := bustest.Edu(t, openUnsafe(t, addr))
		s.MoveMask = 0
		return s
	})
}

// One that reaches 256 MiB is given memory there, which the kernel hands out last.
func TestNoIOMMURootUIOMask(t *testing.T) {
	hugePages(t, 300)
	addr := Address(t, "edu0")
	Bind(t, addr, "uio_pci_generic")
	s := bustest.Edu(t, openUnsafe(t, addr))
	m, err := s.Device.DMA().Alloc(bus.DMARequest{Size: 8192, Align: 32 << 20, Mask: s.MoveMask})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	if m.IOVA%(32<<20) != 0 || uint64(m.IOVA)+8191 > s.MoveMask {
		t.Fatalf("memory at %#x, want it below %#x, aligned to 32 MiB", m.IOVA, s.MoveMask)
	}
	copy(m.Bytes, "to be moved")
	if err := s.Move(t.Context(), m.IOVA+4096, m.IOVA, 11); err != nil {
		t.Fatal(err)
	}
	if got := string(m.Bytes[4096 : 4096+11]); got != "to be moved" {
		t.Errorf("the device wrote %q", got)
	}
}

// Without reserved huge pages there is memory too, if less.
func TestNoIOMMURootUIOSmallPages(t *testing.T) {
	addr := Address(t, "nic0")
	Bind(t, addr, "uio_pci_generic")
	d := openUnsafe(t, addr)
	var live []*bus.Memory
	for _, q := range []bus.DMARequest{{Size: 4096}, {Size: 100, Boundary: 4096}, {Size: 64 << 10, Boundary: 64 << 10, Align: 64 << 10}} {
		m, err := d.DMA().Alloc(q)
		if err != nil {
			t.Errorf("Alloc(%+v) = %v", q, err)
			continue
		}
		live = append(live, m)
	}
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 4 << 20})
	if m != nil {
		t.Error("Alloc of 4 MiB gave memory")
	}
	oneLine(t, "Alloc of 4 MiB", err, unix.ENOMEM, addr, "vm.nr_hugepages")
	for _, m := range live {
		m.Free()
	}
}

// The network driver, unchanged, with INTx.
func TestNoIOMMURootUIOe1000(t *testing.T) {
	hugePages(t, 100)
	addrs := []string{Address(t, "old0"), Address(t, "old1")}
	for _, a := range addrs {
		Bind(t, a, "uio_pci_generic")
	}
	netdevtest.All(t, []int{64}, func(t *testing.T, ring int) netdevtest.Pair {
		var inst []pci.Instance
		var devs []*uio.Device
		for i, a := range addrs {
			d := openUnsafe(t, a)
			env := pci.Env{Name: "eth" + strconv.Itoa(i), Options: map[string]string{"ring": strconv.Itoa(ring)}}
			r := pci.Bind(t.Context(), d, env, []*pci.Driver{e1000.Driver})
			if r.Outcome != pci.Bound {
				t.Fatalf("Bind of %s = %s, %v", a, r.Outcome, r.Err)
			}
			t.Cleanup(func() {
				if err := r.Instance.Close(); err != nil {
					t.Errorf("Close of %s = %v", a, err)
				}
			})
			inst, devs = append(inst, r.Instance), append(devs, d)
		}
		return netdevtest.Pair{
			A: inst[0].(netdev.Device), B: inst[1].(netdev.Device),
			NoCsumGood: "QEMU's e1000 looks at no checksum", EmptySegments: true,
			CloseA: inst[0].Close,
			Close: func() error {
				return errors.Join(inst[0].Close(), inst[1].Close(), devs[0].Close(), devs[1].Close())
			},
		}
	})
}

// Nobody is not told physical addresses, whoever opened the device.
func TestNoIOMMUUIORights(t *testing.T) {
	f := boundUIO(t, "edu0")
	_, err := uio.Open(t.Context(), f.Device, uio.Options{Files: f, DMAUnsafe: true})
	oneLine(t, "Open with dma=unsafe", err, unix.EPERM, f.Device, "CAP_SYS_ADMIN", "root")
	m, err := openUIO(t, f).DMA().Alloc(bus.DMARequest{Size: 4096})
	if m != nil {
		t.Error("Alloc gave memory")
	}
	oneLine(t, "Alloc", err, bus.ErrNoIOMMU, f.Device, "dma=unsafe")
}
