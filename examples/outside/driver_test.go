package testdev_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"

	"example.com/testdev"
	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu/qemutest"
	"github.com/ring3dev/ring3/bus/sim/simtest"
)

// probe is the driver's Probe as a host calls it, for tests in which it fails.
func probe(dev bus.Device, d *pci.Driver, options map[string]string) pci.Result {
	return pci.Bind(context.Background(), dev, pci.Env{Name: "dev0", Options: options}, []*pci.Driver{d})
}

// each runs a test on QEMU's model of the device, and on ring3's own, for which nothing needs to
// be installed. The driver does not know which it is.
func each(t *testing.T, model string, test func(t *testing.T, dev bus.Device)) {
	for name, open := range map[string]func(t *testing.T) bus.Device{
		"qemu": func(t *testing.T) bus.Device { return qemutest.Open(t, model) },
		"sim":  func(t *testing.T) bus.Device { return simtest.Open(t, model) },
	} {
		t.Run(name, func(t *testing.T) {
			bustest.NoLeaks(t)
			test(t, open(t))
		})
	}
}

func TestTests(t *testing.T) { each(t, "pci-testdev", tests) }

func tests(t *testing.T, dev bus.Device) {
	d := bustest.Bind(t, dev, testdev.Driver, map[string]string{"writes": "100"}).(*testdev.Device)
	seen := map[string]testdev.Result{}
	for _, r := range d.Results() {
		t.Log(r)
		seen[r.Name] = r
	}
	for name, kind := range map[string]bus.RegionKind{"mmio-no-eventfd": bus.RegionMem, "portio-no-eventfd": bus.RegionIO} {
		if r := seen[name]; r.Kind != kind || r.Writes != 100 || r.Counted != 100 {
			t.Errorf("test %s = %+v, want 100 of 100 writes counted in %s", name, r, kind)
		}
	}
	// An eventfd takes what would be counted.
	if r, ok := seen["mmio-wildcard-eventfd"]; !ok || r.Counted != 0 {
		t.Errorf("test mmio-wildcard-eventfd = %+v, want none counted", r)
	}
	if len(seen) < 6 {
		t.Errorf("%d tests, want at least 6", len(seen))
	}
}

func TestAttrs(t *testing.T) { each(t, "pci-testdev", attrs) }

func attrs(t *testing.T, dev bus.Device) {
	inst := bustest.Bind(t, dev, testdev.Driver, nil)
	files := inst.(pci.AttrUser).Attrs()
	read := func(name string) string {
		t.Helper()
		b, err := files[name].ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := read("writes"); got != "16\n" {
		t.Errorf("writes = %q, want 16", got)
	}
	if n, err := files["writes"].Write(t.Context(), []byte("3\n")); n != 2 || err != nil {
		t.Errorf("writing 3 to writes = %d, %v, want 2, nil", n, err)
	}
	if got, want := read("tests"), "io  0 portio-no-eventfd        3 of 3 counted\n"; !strings.Contains(got, want) {
		t.Errorf("tests = %q, want it to have %q", got, want)
	}
	for text, want := range map[string]error{"x": syscall.EINVAL, "": syscall.EINVAL, "0": syscall.ERANGE, "10001": syscall.ERANGE} {
		if n, err := files["writes"].Write(t.Context(), []byte(text)); n != 0 || !errors.Is(err, want) {
			t.Errorf("writing %q to writes = %d, %v, want 0, %v", text, n, err, want)
		}
	}
	if got := read("writes"); got != "3\n" {
		t.Errorf("writes after what failed = %q, want 3 as before", got)
	}
}

// What cannot be had is refused in one line that says what is wanted.
func TestRefused(t *testing.T) { each(t, "pci-testdev", refused) }

func refused(t *testing.T, dev bus.Device) {
	other := *testdev.Driver
	other.API = pci.API + 1
	for _, tt := range []struct {
		name    string
		driver  *pci.Driver
		options map[string]string
		is      error
		want    string
	}{
		{"another ring3", &other, nil, bus.ErrNotSupported, fmt.Sprintf("driver testdev was built for version %d of ring3's driver interface", pci.API+1)},
		{"no number", testdev.Driver, map[string]string{"writes": "many"}, pci.ErrOption, "option writes=many: want 1 to 10000"},
		{"out of range", testdev.Driver, map[string]string{"writes": "0"}, pci.ErrOption, "option writes=0: want 1 to 10000"},
		{"no such option", testdev.Driver, map[string]string{"reads": "1"}, pci.ErrOption, `driver testdev has no option "reads"`},
	} {
		r := probe(dev, tt.driver, tt.options)
		if r.Outcome != pci.Failed || !errors.Is(r.Err, tt.is) || !strings.Contains(r.Err.Error(), tt.want) || strings.Contains(r.Err.Error(), "\n") {
			t.Errorf("%s: Bind = %s, %v, want failed, one line with %q", tt.name, r.Outcome, r.Err, tt.want)
		}
	}
}

// The IDs choose the driver; where they lie, the registers tell.
func TestAnother(t *testing.T) {
	each(t, "edu", func(t *testing.T, dev bus.Device) {
		if inst, err := testdev.Driver.Probe(t.Context(), dev, pci.Env{Name: "x"}); !errors.Is(err, bus.ErrNotSupported) {
			t.Errorf("Probe of an edu = %v, %v, want ErrNotSupported: it has one region", inst, err)
		}
	})
}

func TestClosed(t *testing.T) { each(t, "pci-testdev", closed) }

func closed(t *testing.T, dev bus.Device) {
	d := bustest.Bind(t, dev, testdev.Driver, nil).(*testdev.Device)
	var c io.Closer = d
	for range 2 {
		if err := c.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
	}
	if err := d.Run(1); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Run after Close = %v, want ErrClosed", err)
	}
}

// A device whose link is dead is told from one that counts wrong.
func TestGone(t *testing.T) { each(t, "pci-testdev", gone) }

func gone(t *testing.T, dev bus.Device) {
	d := bustest.Bind(t, dev, testdev.Driver, nil).(*testdev.Device)
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Run(1); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Run on a closed device = %v, want ErrClosed", err)
	}
}

// liar is a device that gives another value for one register.
type liar struct {
	bus.Device
	off bus.Off
	v   uint32
}

func (l liar) Region(i int) (bus.Region, error) {
	r, err := l.Device.Region(i)
	return lyingRegion{r, l}, err
}

type lyingRegion struct {
	bus.Region
	liar liar
}

func (r lyingRegion) Read8(o bus.Off) uint8 {
	if o == r.liar.off {
		return uint8(r.liar.v)
	}
	return r.Region.Read8(o)
}

func (r lyingRegion) Read32(o bus.Off) uint32 {
	if o == r.liar.off {
		return r.liar.v
	}
	return r.Region.Read32(o)
}

// Whatever the device says, the driver returns an error and touches nothing outside.
func TestLiar(t *testing.T) { each(t, "pci-testdev", lies) }

func lies(t *testing.T, dev bus.Device) {
	for _, tt := range []struct {
		name string
		off  bus.Off
		v    uint32
		want string
	}{
		{"offset outside", 0x04, 0x10000, "OFFSET is 0x10000"},
		{"offset of the registers", 0x04, 0, "OFFSET is 0x0"},
		{"offset of all ones", 0x04, 0xffffffff, "OFFSET is 0xffffffff"},
		{"no such width", 0x01, 3, "WIDTH of test 0"},
		{"count", 0x0c, 17, "COUNT is 17 after 16 writes"},
	} {
		r := probe(liar{dev, tt.off, tt.v}, testdev.Driver, nil)
		if r.Outcome != pci.Failed || !errors.Is(r.Err, bus.ErrProtocol) || !strings.Contains(r.Err.Error(), tt.want) {
			t.Errorf("%s: Bind = %s, %v, want failed, with %q", tt.name, r.Outcome, r.Err, tt.want)
		}
	}
}
