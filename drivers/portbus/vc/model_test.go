package vc

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/internal/portmodel"
	"github.com/ring3dev/ring3/sysfs"
)

// bare is a port without a machine, with a table of 128 phases for its three channels at 0x60, and one for each channel from 0xa0 on.
func bare(t *testing.T, spoil func(*portmodel.Port)) (*portmodel.Port, *portmodel.Tree, *portbus.Port) {
	t.Helper()
	m, tree, drv := portmodel.New(portmodel.Spec{Type: pci.ExpRootPort, VC: 3}), &portmodel.Tree{}, Driver
	m.Set32(portmodel.VC+pci.VCCap1, 0, 3<<10|2<<4)
	m.Set32(portmodel.VC+pci.VCCap2, 0, 0b1001|6<<24)
	m.Set32(portmodel.VC+resource(0), 0, 0b101|6<<16|0xa<<24)
	for off := bus.Off(0x60); off < 0x200; off += 4 {
		m.Open(portmodel.VC+off, 0xffffffff)
	}
	if spoil != nil {
		spoil(m)
	}
	b, _ := portbus.New(&drv)
	inst, err := tree.Probe(t, m, b.PortDriver(), "")
	if err != nil {
		t.Fatal(err)
	}
	return m, tree, inst.(*portbus.Port)
}

func TestLayout(t *testing.T) {
	_, _, p := bare(t, nil)
	d := dir(t, p)
	for name, want := range map[string]string{
		"low_priority_vcs": "3", "vc_arbitration": "[hardware] wrr128", "vc_arbitration_table": repeat(128, "0"),
		"vc0/arbitration": "[hardware] wrr64", "vc0/slots": repeat(64, "0"), "vc0/max_time_slots": "7", "vc1/arbitration": "[hardware]",
	} {
		if got := show(t, d, name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if d.Lookup("vc1").(*sysfs.Dir).Lookup("slots") != nil {
		t.Error("vc1 has no table, and a file slots")
	}
	// Eight bits an entry.
	if _, err := file(t, d, "vc0/slots").Write(t.Context(), []byte(repeat(64, "255", "7"))); err != nil {
		t.Error(err)
	}
	if got := show(t, d, "vc0/slots"); got != repeat(64, "255", "7") {
		t.Errorf("vc0/slots = %q", got)
	}
}

// Capability registers that lie lose what they lie about.
func TestLies(t *testing.T) {
	bustest.NoLeaks(t)
	for _, c := range []struct {
		what       string
		spoil      func(*portmodel.Port)
		tables     bool
		resources  int
		lowshows   string
		served     bool
		lineOfWant string
	}{
		{"a table over the registers", func(m *portmodel.Port) { m.Set32(portmodel.VC+pci.VCCap2, 0xff<<24, 1<<24) }, false, 3, "3", true, ""},
		{"a table beyond config space", func(m *portmodel.Port) { m.Set32(portmodel.VC+pci.VCCap2, 0xff<<24, 0xff<<24) }, false, 3, "3", true, ""},
		{"more in the group than there are", func(m *portmodel.Port) { m.Set32(portmodel.VC+pci.VCCap1, 0, 7<<4) }, true, 3, "3", true, ""},
		{"a capability that ends early", func(m *portmodel.Port) {
			m.Set(portmodel.VC+2, 0xffff, 1|0x224<<4)
			m.Set32(0x224, 0xffffffff, pci.ExtCapACS|1<<16)
		}, false, 1, "1", true, ""},
		{"a capability without room", func(m *portmodel.Port) {
			m.Set(portmodel.VC+2, 0xffff, 1|0x210<<4)
			m.Set32(0x210, 0xffffffff, pci.ExtCapACS|1<<16)
		}, false, 0, "", false, "does not fit into config space"},
	} {
		_, tree, p := bare(t, c.spoil)
		d := dir(t, p)
		if got := p.Service(portbus.VC) != nil; got != c.served {
			t.Errorf("%s: served: %t, want %t", c.what, got, c.served)
		}
		if !c.served {
			if got := strings.Join(tree.Lines(), "\n"); !strings.Contains(got, c.lineOfWant) {
				t.Errorf("%s: messages %q, want one with %q", c.what, got, c.lineOfWant)
			}
			continue
		}
		if got := d.Lookup("vc_arbitration_table") != nil; got != c.tables {
			t.Errorf("%s: a VC arbitration table: %t, want %t", c.what, got, c.tables)
		}
		n := 0
		for _, name := range d.Names() {
			if _, ok := d.Lookup(name).(*sysfs.Dir); ok && strings.HasPrefix(name, "vc") {
				n++
			}
		}
		if n != c.resources || show(t, d, "low_priority_vcs") != c.lowshows {
			t.Errorf("%s: %d channels, %s in the group, want %d, %s", c.what, n, show(t, d, "low_priority_vcs"), c.resources, c.lowshows)
		}
	}
}

// A port that never loads its table gets the old one back; a service that goes ends the wait.
func TestLoadTimeout(t *testing.T) {
	bustest.NoLeaks(t)
	m, _, p := bare(t, nil)
	d := dir(t, p)
	if _, err := file(t, d, "vc0/slots").Write(t.Context(), []byte(repeat(64, "1"))); err != nil {
		t.Fatal(err)
	}
	m.OnWrite(func(off bus.Off, _ int, v uint32) {
		if off == portmodel.VC+resCtl(0) && v&pci.VCResLoad != 0 {
			m.Set(portmodel.VC+resSta(0), 0, pci.VCStaLoad)
		}
	})
	_, err := file(t, d, "vc0/slots").Write(t.Context(), []byte(repeat(64, "2")))
	if got := show(t, d, "vc0/slots"); !errors.Is(err, unix.ETIMEDOUT) || !errors.Is(err, bus.ErrTimeout) || got != repeat(64, "1") {
		t.Errorf("a table that is never loaded = %v, shows %q; want ETIMEDOUT, the old one", err, got)
	}
	m.Set(portmodel.VC+resSta(0), pci.VCStaLoad, 0)
	done := make(chan error)
	go func() {
		_, err := file(t, d, "vc0/slots").Write(context.Background(), []byte(repeat(64, "2")))
		done <- err
	}()
	for m.Peek(portmodel.VC+resSta(0), 2)&uint32(pci.VCStaLoad) == 0 {
		time.Sleep(50 * time.Microsecond)
	}
	if err := p.Bus().Unregister("pcie_vc"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, context.Canceled) && !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("unbound while loading = %v, want it canceled", err)
	}
}

// Bits that the port does not take give EIO, and nothing changed.
func TestNotTaken(t *testing.T) {
	bustest.NoLeaks(t)
	m, _, p := bare(t, func(m *portmodel.Port) { m.Open(portmodel.VC+resCtl(1), 0) })
	m.Set32(portmodel.VC+resCtl(0), 0xfe, 0)
	d := dir(t, p)
	if _, err := file(t, d, "vc1/tc_map").Write(t.Context(), []byte("2")); !errors.Is(err, unix.EIO) || show(t, d, "vc1/tc_map") != "0x00" {
		t.Errorf("a map that is not taken = %v, shows %s", err, show(t, d, "vc1/tc_map"))
	}
}

func TestPack(t *testing.T) {
	for _, width := range []int{1, 2, 4, 8} {
		var entries []uint32
		for i := range 64 {
			entries = append(entries, uint32(i*7)&(1<<width-1))
		}
		if got := unpack(pack(entries, width), width); !slices.Equal(got, entries) {
			t.Errorf("unpack(pack) of %d bits = %v, want %v", width, got, entries)
		}
	}
	if got := pack([]uint32{1, 2, 3, 4, 5, 6, 7, 0}, 4); got[0] != 0x07654321 {
		t.Errorf("pack = %#x, want 0x07654321", got[0])
	}
}

// The port dies at each access: every write ends with an error, and nothing stays.
func TestDies(t *testing.T) {
	bustest.NoLeaks(t)
	run := func(k int) int {
		m, tree, p := bare(t, nil)
		d := dir(t, p)
		before := m.Accesses()
		if k > 0 {
			m.FailAt(k)
		}
		for _, w := range [][2]string{{"vc0/tc_map", "1"}, {"vc1/tc_map", "0x10"}, {"vc1/id", "1"}, {"vc1/enabled", "1"}, {"vc0/arbitration", "wrr64"}, {"vc0/slots", repeat(64, "1")}, {"vc_arbitration_table", repeat(128, "0", "1")}} {
			dead := m.Err() != nil
			_, err := file(t, d, w[0]).Write(t.Context(), []byte(w[1]))
			if err != nil && k == 0 || err == nil && dead {
				t.Errorf("access %d fails: writing %s = %v with the port dead: %t", k, w[0], err, dead)
			}
		}
		if err := p.Close(); err != nil {
			t.Errorf("access %d fails: Close = %v", k, err)
		}
		if got := tree.Lines(); len(got) > 1 {
			t.Errorf("access %d fails: messages %q", k, got)
		}
		return m.Accesses() - before
	}
	for k, n := 1, run(0); k <= n; k++ {
		run(k)
	}
}

// Whatever is written to whichever file: an errno, or a rule kept.
func FuzzStore(f *testing.F) {
	for _, s := range []string{"0x80", "wrr32", "1", repeat(32, "0")} {
		f.Add(uint8(0), s)
	}
	drv := Driver
	b, _ := portbus.New(&drv)
	m := portmodel.New(portmodel.Spec{Type: pci.ExpRootPort, VC: 3})
	inst, err := (&portmodel.Tree{}).Probe(f, m, b.PortDriver(), "")
	if err != nil {
		f.Fatal(err)
	}
	p := inst.(*portbus.Port)
	d := p.Dirs()[p.Addr().String()+":pcie020"]
	names := []string{"vc_arbitration", "vc0/id", "vc0/enabled", "vc0/tc_map", "vc1/id", "vc1/enabled", "vc1/tc_map", "vc2/id", "vc2/enabled", "vc2/tc_map", "vc1/arbitration"}
	f.Fuzz(func(t *testing.T, which uint8, text string) {
		_, err := file(t, d, names[int(which)%len(names)]).Write(t.Context(), []byte(text))
		if n := sysfsErrno(err); err != nil && n == 0 {
			t.Errorf("writing %q = %v, want an errno", text, err)
		}
		var maps, ids uint32
		for n := range 3 {
			ctl := m.Peek(portmodel.VC+resCtl(n), 4)
			if maps&mapOf(ctl) != 0 {
				t.Errorf("a class has two channels after %q", text)
			}
			maps |= mapOf(ctl)
			if enabledOf(ctl) {
				if ids&(1<<idOf(ctl)) != 0 {
					t.Errorf("an ID has two channels after %q", text)
				}
				ids |= 1 << idOf(ctl)
			}
		}
		if m.Peek(portmodel.VC+resCtl(0), 4)&0x87000001 != 0x80000001 {
			t.Errorf("VC 0 is not what it must be after %q", text)
		}
	})
}

func sysfsErrno(err error) unix.Errno {
	var e unix.Errno
	errors.As(err, &e)
	return e
}
