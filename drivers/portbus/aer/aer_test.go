package aer_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
)

func TestProbe(t *testing.T) {
	for _, prof := range []string{"6.12", "6.1"} {
		r := newRig(t, options{profile: prof})
		if v := r.read("rp0", pci.AERRootCmd); v != pci.RootCmdAll {
			t.Errorf("%s: Root Error Command = %#x, want %#x", prof, v, pci.RootCmdAll)
		}
		served := 0
		for _, d := range r.bus.Devices() {
			if d.Service() == portbus.AER {
				if p := d.Port(); p.Express().HasRoot() != (p.Service(d.Service()) != nil) {
					t.Errorf("%s: %s is served: %v", prof, d.Name(), p.Service(d.Service()) != nil)
				}
				served++
			}
		}
		if hs := r.Port("rp0").IRQHandlers(); len(hs) != 1 || hs[0].Name() != "aerdrv" {
			t.Errorf("%s: the vector is %q's, want aerdrv's", prof, hs[0].Name())
		}
		// Where every port offers the service the driver declines those that receive no messages.
		err := r.bus.BindDevice(t.Context(), "aer", up0+":pcie102")
		if !errors.Is(err, unix.ENODEV) {
			t.Errorf("%s: binding aer to a switch = %v, want ENODEV", prof, err)
		}
		if want := map[string]int{"6.12": 2, "6.1": 5}[prof]; served != want {
			t.Errorf("%s: %d ports offer AER, want %d", prof, served, want)
		}
		if err := r.bus.UnbindDevice("aer", rp0+":pcie002"); err != nil {
			t.Fatal(err)
		}
		if v := r.read("rp0", pci.AERRootCmd); v != 0 {
			t.Errorf("%s: Root Error Command after unbinding = %#x, want 0", prof, v)
		}
		r.ForgetRecords()
		if err := r.bus.BindDevice(t.Context(), "aer", rp0+":pcie002"); err != nil {
			t.Fatal(err)
		}
		number := r.Port("rp0").IRQHandlers()[0].IRQ().Number()
		if l := r.AwaitLine(t, "enabled").Text; l != fmt.Sprintf("pcieport %s: AER: enabled with IRQ %d", rp0, number) {
			t.Errorf("%s: %q", prof, l)
		}
	}
}

// Every correctable error that the models have, of a root port and of an endpoint behind a switch.
func TestCorrectable(t *testing.T) {
	r := newRig(t, options{})
	for _, c := range []struct{ name, label, id string }{
		{"rp0", "pcieport " + rp0, "1b36:000c"}, {"dn0", "pcieport " + dn0, "104c:8233"}, {"eth0", "fake " + eth0, "8086:10d3"},
	} {
		for _, bit := range []int{0, 6, 7, 8, 12, 13, 14, 15} {
			mask := r.read(c.name, pci.AERCorMask)
			r.write(c.name, pci.AERCorMask, 0)
			stats, root := r.fn(c.name).AER, r.fn("rp0").AER
			before, total, received := stats.Bit(pci.AERCorrectable, bit), stats.Total(pci.AERCorrectable), root.Root(pci.AERCorrectable)
			r.hit(c.name, pci.AERError{Correctable: 1 << bit})
			r.Await(t, "the error", func() bool { return r.read(c.name, pci.AERCorSta) == 0 })
			e, _ := pci.FindExpress(r.fn(c.name).Config)
			r.Await(t, "Device Status", func() bool { return r.fn(c.name).Config.Read16(e.At+pci.ExpDevSta)&pci.DevStaErrors == 0 })
			if b, n, x := stats.Bit(pci.AERCorrectable, bit), stats.Total(pci.AERCorrectable), root.Root(pci.AERCorrectable); b != before+1 || n != total+1 || x != received+1 {
				t.Errorf("%s, bit %d: counted %d, %d, %d more, want 1 each", c.name, bit, b-before, n-total, x-received)
			}
			r.write(c.name, pci.AERCorMask, mask)
			lines, events := r.quiet("rp1") // another port: what is under way here is over
			first := ""
			if bit == 0 {
				first = " (First)"
			}
			addr := strings.Fields(c.label)[1]
			r.want("lines", append(lines[:1:1], lines[2:]...), []string{
				"pcieport " + rp0 + ": AER: Correctable error message received from " + addr,
				c.label + ": " + fmt.Sprintf("  device [%s] error status/mask=%08x/00000000", c.id, 1<<bit),
				c.label + ": " + fmt.Sprintf("   [%2d] %-22s%s", bit, pci.AERBitName(pci.AERCorrectable, bit), first),
			})
			r.want("events", events, nil)
		}
	}
}

// Severity and masks are config space's, read at each error.
func TestSeverityAndMask(t *testing.T) {
	r := newRig(t, options{votes: votes{"eth0": ok, "eth1": ok, "eth2": ok}})
	count := func(sev pci.AERSeverity) uint64 { return r.fn("rp1").AER.Bit(sev, 14) }
	hit := func() []string {
		r.hit("rp1", pci.AERError{Uncorrectable: uncTO})
		r.AwaitLine(t, "device recovery successful")
		lines, _ := r.quiet("rp1")
		return lines
	}
	if l := hit(); !strings.Contains(l[0], "Uncorrectable (Non-Fatal)") || count(pci.AERNonFatal) != 1 || r.read("rp1", pci.AERUncSta) != 0 {
		t.Errorf("%q, counted %d, status %#x, want a non-fatal one, 1, 0", l[0], count(pci.AERNonFatal), r.read("rp1", pci.AERUncSta))
	}
	r.write("rp1", pci.AERUncSev, r.read("rp1", pci.AERUncSev)|uncTO)
	if l := hit(); !strings.Contains(l[0], "Uncorrectable (Fatal)") || count(pci.AERFatal) != 1 {
		t.Errorf("%q, counted %d, want a fatal one, 1", l[0], count(pci.AERFatal))
	}
	// A port's own fatal error stays, as in the kernel.
	if v := r.read("rp1", pci.AERUncSta); v != uncTO {
		t.Errorf("Uncorrectable Error Status after a fatal error = %#x, want %#x", v, uncTO)
	}
	r.write("rp1", pci.AERUncSta, uncTO)
	r.write("rp1", pci.AERUncMask, uncTO)
	r.hit("rp1", pci.AERError{Uncorrectable: uncTO})
	if l, e := r.quiet("rp1"); len(l)+len(e) != 0 || r.read("rp1", pci.AERUncSta) != uncTO {
		t.Errorf("a masked error says %q, %q, status %#x, want nothing, %#x", l, e, r.read("rp1", pci.AERUncSta), uncTO)
	}
	// With another that is not masked it shows in the status, and is not counted.
	n := count(pci.AERNonFatal)
	r.hit("rp1", pci.AERError{Uncorrectable: uncUnsup, Header: [4]uint32{0x11223344, 2, 3, 4}})
	r.AwaitLine(t, "device recovery successful")
	lines, _ := r.quiet("rp1")
	p := "pcieport " + rp1 + ": "
	r.want("lines", lines, []string{
		p + "AER: Uncorrectable (Non-Fatal) error message received from " + rp1,
		p + "PCIe Bus Error: severity=Uncorrectable (Non-Fatal), type=Transaction Layer, (Requester ID)",
		p + "  device [1b36:000c] error status/mask=00104000/00004000",
		p + "   [20] UnsupReq               (First)",
		p + "AER:   TLP Header: 11223344 00000002 00000003 00000004",
		p + "AER: device recovery successful",
	})
	if count(pci.AERNonFatal) != n {
		t.Error("a masked error was counted")
	}
}

// Several at once: the message names one, the others are found by their status, at most five.
func TestMultiple(t *testing.T) {
	r := newRig(t, options{})
	r.write("rp0", pci.AERRootCmd, 0) // they gather
	for _, name := range []string{"eth1", "eth0", "dn1"} {
		r.hit(name, pci.AERError{Correctable: corBadTLP})
	}
	if sta, src := r.read("rp0", pci.AERRootSta), uint16(r.read("rp0", pci.AERErrSrc)); sta&0xff != pci.RootStaCor|pci.RootStaMultiCor || src != 0x400 {
		t.Fatalf("Root Error Status %#x, source %#x, want 0x3, 0x400", sta, src)
	}
	r.write("rp0", pci.AERRootCmd, pci.RootCmdAll)
	r.Await(t, "all", func() bool { return r.read("dn1", pci.AERCorSta) == 0 })
	lines, _ := r.quiet("rp1")
	var got []string
	for _, l := range lines {
		if !strings.Contains(l, "  ") || strings.Contains(l, "first") {
			got = append(got, l)
		}
	}
	const what = ": PCIe Bus Error: severity=Correctable, type=Data Link Layer, (Receiver ID)"
	r.want("lines", got, []string{
		"pcieport " + rp0 + ": AER: Multiple Correctable error message received from " + eth1,
		"fake " + eth0 + what, "pcieport " + dn1 + what, "fake " + eth1 + what,
		"fake " + eth1 + ": AER:   Error of this Agent is reported first",
	})
}

// Correctable ones come first, where both kinds are in one message.
func TestBothKinds(t *testing.T) {
	r := newRig(t, options{votes: votes{"eth2": ok}})
	r.hit("eth2", pci.AERError{Correctable: corBadTLP, Uncorrectable: uncMalf})
	r.AwaitLine(t, "device recovery successful")
	lines, _ := r.quiet("rp1")
	p, e := "pcieport "+rp1+": AER: ", "fake "+eth2+": "
	r.want("lines", lines, []string{
		p + "Correctable error message received from " + eth2,
		e + "PCIe Bus Error: severity=Correctable, type=Data Link Layer, (Receiver ID)",
		e + "  device [8086:10d3] error status/mask=00000040/0000e000",
		e + "   [ 6] BadTLP                ",
		p + "Uncorrectable (Fatal) error message received from " + eth2,
		e + "AER: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Inaccessible, (Unregistered Agent ID)",
		p + "Root Port link has been reset (0)",
		p + "device recovery successful",
	})
	// The reset cleared the record, so that the next error is alone.
	if v := r.read("eth2", pci.AERUncSta); v != 0 {
		t.Errorf("Uncorrectable Error Status after the reset = %#x, want 0", v)
	}
}

// Sources that nobody knows, and names of bus 0, which mean that somebody must be found.
func TestUnknownSource(t *testing.T) {
	for _, c := range []struct {
		name   string
		source uint32
		status uint32
		want   []string
	}{
		{"unknown", 0x0000_7788, pci.RootStaCor, []string{"Correctable error message received from 1000:77:11.0", "found no error details for 1000:77:11.0"}},
		{"unknown, uncorrectable", 0x7788_0000, pci.RootStaUnc | pci.RootStaFatal, []string{"Uncorrectable (Fatal) error message received from 1000:77:11.0", "found no error details for 1000:77:11.0"}},
		{"bus 0", 0x0000_0000, pci.RootStaCor, []string{"Correctable error message received from 1000:00:00.0", "found no error details for 1000:00:00.0"}},
		{"known, without an error", 0x0000_0300, pci.RootStaCor, []string{"Correctable error message received from " + eth0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, options{wrap: lie(c.status, c.source)})
			r.hit("rp0", pci.AERError{Correctable: corRxErr})
			r.Await(t, "the lines", func() bool { return len(r.Lines()) >= len(c.want) })
			var got []string
			lines, _ := r.quiet("rp1")
			for _, l := range lines {
				got = append(got, strings.TrimPrefix(l, "pcieport "+rp0+": AER: "))
			}
			r.want("lines", got, c.want)
		})
	}
	// Bus 0, and somebody who has such an error.
	r := newRig(t, options{wrap: lie(pci.RootStaCor, 0)})
	r.write("rp0", pci.AERRootCmd, 0)
	r.hit("eth1", pci.AERError{Correctable: corBadTLP})
	r.write("rp0", pci.AERRootCmd, pci.RootCmdAll)
	r.AwaitLine(t, "fake "+eth1+":    [ 6] BadTLP")
}

// lie makes rp0 say, whenever it received something, what it received.
func lie(status, source uint32) func(string, bus.Device) bus.Device {
	return func(name string, dev bus.Device) bus.Device {
		if name != "rp0" {
			return dev
		}
		at, _ := pci.FindExtCap(dev.Config(), pci.ExtCapAER)
		return &liar{Device: dev, c: &lying{dev.Config(), at, status, source}}
	}
}

type liar struct {
	bus.Device
	c *lying
}

func (l *liar) Config() bus.Config { return l.c }
func (l *liar) Clock() bus.Clock   { return bus.ClockOf(l.Device) }

type lying struct {
	bus.Config
	at             bus.Off
	status, source uint32
}

func (l *lying) Read32(o bus.Off) uint32 {
	v := l.Config.Read32(o)
	switch {
	case o == l.at+pci.AERRootSta && v&0x7f != 0:
		return v&^0x7f | l.status
	case o == l.at+pci.AERErrSrc:
		return l.source
	case o == l.at+pci.AERCorSta:
		return 0
	}
	return v
}

func (l *lying) Write32(o bus.Off, v uint32) {
	if o == l.at+pci.AERRootSta {
		v |= 0x7f
	}
	l.Config.Write32(o, v)
}
