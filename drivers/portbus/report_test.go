package portbus

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/bits"
	"slices"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/profile"
)

// registers is a function that is its config space, and nothing else.
type registers struct {
	bus.Device
	b [4096]byte
}

func (r *registers) Config() bus.Config { return r }
func (r *registers) Err() error         { return nil }
func (r *registers) Size() int          { return len(r.b) }

func (r *registers) Read8(o bus.Off) uint8       { return r.b[o] }
func (r *registers) Read16(o bus.Off) uint16     { return binary.LittleEndian.Uint16(r.b[o:]) }
func (r *registers) Read32(o bus.Off) uint32     { return binary.LittleEndian.Uint32(r.b[o:]) }
func (r *registers) Write8(o bus.Off, v uint8)   { r.b[o] = v }
func (r *registers) Write16(o bus.Off, v uint16) { binary.LittleEndian.PutUint16(r.b[o:], v) }
func (r *registers) Write32(o bus.Off, v uint32) { binary.LittleEndian.PutUint32(r.b[o:], v) }
func (r *registers) member(driver string) *pci.Member {
	a := pci.Addr{Domain: 0x1000, Bus: 1}
	f := &pci.Function{Addr: a, ID: pci.FunctionID{Vendor: 0x8086, Device: 0x10d3}, Config: r, AER: &pci.AERStats{}}
	return &pci.Member{Function: f, Device: r, Driver: driver, Use: func(f func(pci.Instance)) { f(nil) }}
}

const regAER bus.Off = 0x100 // where registers has the capability

// endpoint is a function of that type with Advanced Error Reporting.
func endpoint(t pci.ExpType) *registers {
	r := &registers{}
	r.Write16(pci.CfgVendor, 0x8086)
	r.Write16(pci.CfgStatus, uint16(pci.StatusCaps))
	r.Write8(pci.CfgCapPtr, 0x40)
	r.Write8(0x40, pci.CapPCIe)
	r.Write16(0x42, 2|uint16(t)<<4)
	r.Write32(regAER, pci.ExtCapAER|2<<16)
	return r
}

// told is what a port without anything else says.
func told(t *testing.T, name string) (*Port, *messages) {
	t.Helper()
	prof, err := profile.Find(name)
	if err != nil {
		t.Fatal(err)
	}
	l := &messages{}
	return &Port{prof: prof, env: pci.Env{Log: slog.New(l)}}, l
}

// messages keeps them; slog.Handler.
type messages struct{ lines []string }

func (l *messages) Enabled(context.Context, slog.Level) bool { return true }
func (l *messages) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *messages) WithGroup(string) slog.Handler            { return l }
func (l *messages) Handle(_ context.Context, r slog.Record) error {
	l.lines = append(l.lines, r.Message)
	return nil
}

// Each bit of each register alone, in each severity: text, layer, agent, and what is counted.
func TestReportBits(t *testing.T) {
	cor := map[int][2]string{
		0: {"Physical Layer", "Receiver ID"}, 6: {"Data Link Layer", "Receiver ID"}, 7: {"Data Link Layer", "Receiver ID"},
		8: {"Data Link Layer", "Transmitter ID"}, 12: {"Data Link Layer", "Transmitter ID"},
	}
	unc := map[int][2]string{
		4: {"Data Link Layer", "Receiver ID"}, 14: {"Transaction Layer", "Requester ID"}, 15: {"Transaction Layer", "Completer ID"}, 20: {"Transaction Layer", "Requester ID"},
	}
	const headers = 1<<12 | 1<<15 | 1<<16 | 1<<18 | 1<<19 | 1<<20
	for _, c := range []struct {
		profile, severity string
		sev               pci.AERSeverity
		sta, mask         bus.Off
		special           map[int][2]string
	}{
		{"6.12", "Correctable", pci.AERCorrectable, pci.AERCorSta, pci.AERCorMask, cor},
		{"6.1", "Corrected", pci.AERCorrectable, pci.AERCorSta, pci.AERCorMask, cor},
		{"6.12", "Uncorrectable (Non-Fatal)", pci.AERNonFatal, pci.AERUncSta, pci.AERUncMask, unc},
		{"6.1", "Uncorrected (Non-Fatal)", pci.AERNonFatal, pci.AERUncSta, pci.AERUncMask, unc},
		{"6.12", "Uncorrectable (Fatal)", pci.AERFatal, pci.AERUncSta, pci.AERUncMask, unc},
		{"6.1", "Uncorrected (Fatal)", pci.AERFatal, pci.AERUncSta, pci.AERUncMask, unc},
	} {
		for bit := range 32 {
			p, log := told(t, c.profile)
			r := endpoint(pci.ExpDownstream)
			m := r.member("fake")
			r.Write32(regAER+c.sta, 1<<bit)
			r.Write32(regAER+pci.AERCap, 0xe0|uint32(bit))
			for i := range uint32(4) {
				r.Write32(regAER+pci.AERHeader+bus.Off(4*i), i+1)
			}
			e, ok := ReadError(m, c.sev, false)
			if !ok {
				t.Fatalf("ReadError(%s, bit %d) = %+v, false", c.severity, bit, e)
			}
			p.Report(m, e)
			la, ok := c.special[bit]
			if !ok {
				la = [2]string{"Transaction Layer", "Receiver ID"}
			}
			name := pci.AERBitName(c.sev, bit)
			if name == "" {
				name = "Unknown Error Bit"
			}
			first := " (First)"
			if c.sev == pci.AERCorrectable && bit != 0 {
				first = ""
			}
			want := []string{
				fmt.Sprintf("fake 1000:01:00.0: PCIe Bus Error: severity=%s, type=%s, (%s)", c.severity, la[0], la[1]),
				fmt.Sprintf("fake 1000:01:00.0:   device [8086:10d3] error status/mask=%08x/00000000", uint32(1)<<bit),
				fmt.Sprintf("fake 1000:01:00.0:    [%2d] %-22s%s", bit, name, first),
			}
			if c.sev != pci.AERCorrectable && headers>>bit&1 != 0 {
				want = append(want, "fake 1000:01:00.0: AER:   TLP Header: 00000001 00000002 00000003 00000004")
			}
			if got := log.lines; !slices.Equal(got, want) {
				t.Errorf("%s, bit %d: lines =\n%q, want\n%q", c.severity, bit, got, want)
			}
			counted := uint64(1)
			if c.sev == pci.AERCorrectable && bit > 15 {
				counted = 0 // the kernel has no counter of it
			}
			if s := m.Function.AER; s.Bit(c.sev, bit) != counted || s.Total(c.sev) != 1 {
				t.Errorf("%s, bit %d: counted %d, in all %d, want %d, 1", c.severity, bit, s.Bit(c.sev, bit), s.Total(c.sev), counted)
			}
			r.Write32(regAER+c.mask, 1<<bit)
			if e, ok := ReadError(m, c.sev, false); ok || HasError(m, c.sev) {
				t.Errorf("ReadError(%s, bit %d, masked) = %+v, true", c.severity, bit, e)
			}
		}
	}
}

// Which functions are read when an error is fatal.
func TestReadFatal(t *testing.T) {
	for _, c := range []struct {
		kind    pci.ExpType
		healthy bool
		read    bool
	}{
		{pci.ExpRootPort, false, true}, {pci.ExpCollector, false, true}, {pci.ExpDownstream, false, true},
		{pci.ExpUpstream, false, false}, {pci.ExpEndpoint, false, false}, {pci.ExpRootEndpoint, false, false},
		{pci.ExpUpstream, true, true}, {pci.ExpEndpoint, true, true},
	} {
		r := endpoint(c.kind)
		r.Write32(regAER+pci.AERUncSta, 1<<18)
		e, ok := ReadError(r.member("fake"), pci.AERFatal, c.healthy)
		want := uint32(0)
		if c.read {
			want = 1 << 18
		}
		if !ok || e.Status != want {
			t.Errorf("ReadError(fatal at %s, healthy %v) = %#x, %v, want %#x, true", c.kind, c.healthy, e.Status, ok, want)
		}
	}
	// One that does not answer, and one that never had the capability.
	dead := &registers{}
	for i := range dead.b {
		dead.b[i] = 0xff
	}
	m := dead.member("")
	if e, ok := ReadError(m, pci.AERFatal, false); !ok || e.Status != 0 {
		t.Errorf("ReadError(fatal at one that is gone) = %+v, %v, want status 0, true", e, ok)
	}
	for _, sev := range []pci.AERSeverity{pci.AERNonFatal, pci.AERCorrectable} {
		if e, ok := ReadError(m, sev, true); ok {
			t.Errorf("ReadError(severity %d of one that is gone) = %+v, true", sev, e)
		}
	}
	m.Function.AER = nil
	if e, ok := ReadError(m, pci.AERFatal, false); ok {
		t.Errorf("ReadError(fatal without the capability) = %+v, true", e)
	}
}

func TestReportInaccessible(t *testing.T) {
	p, log := told(t, "6.1")
	m := endpoint(pci.ExpEndpoint).member("")
	p.Report(m, ErrorInfo{Severity: pci.AERFatal, ID: 0x100, Devices: 2})
	want := []string{
		"pci 1000:01:00.0: AER: PCIe Bus Error: severity=Uncorrected (Fatal), type=Inaccessible, (Unregistered Agent ID)",
		"pci 1000:01:00.0: AER:   Error of this Agent is reported first",
	}
	if got := log.lines; !slices.Equal(got, want) {
		t.Errorf("lines = %q, want %q", got, want)
	}
	if n := m.Function.AER.Total(pci.AERFatal); n != 0 {
		t.Errorf("counted %d, want 0", n)
	}
}

// Several bits: one line each, one error in all. Golden lines of kernel 6.1 (0x1001 at a root port), of 6.12 in the words.
func TestReportSeveral(t *testing.T) {
	p, log := told(t, "6.1")
	r := endpoint(pci.ExpRootPort)
	m := r.member("pcieport")
	r.Write32(regAER+pci.AERCorSta, 0x1001)
	r.Write32(regAER+pci.AERCorMask, 0xe000)
	e, _ := ReadError(m, pci.AERCorrectable, false)
	p.Report(m, e)
	want := []string{
		"pcieport 1000:01:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Transmitter ID)",
		"pcieport 1000:01:00.0:   device [8086:10d3] error status/mask=00001001/0000e000",
		"pcieport 1000:01:00.0:    [ 0] RxErr                  (First)",
		"pcieport 1000:01:00.0:    [12] Timeout               ",
	}
	if got := log.lines; !slices.Equal(got, want) {
		t.Errorf("lines =\n%q, want\n%q", got, want)
	}
	if s := m.Function.AER; s.Total(pci.AERCorrectable) != 1 || s.Bit(pci.AERCorrectable, 0) != 1 || s.Bit(pci.AERCorrectable, 12) != 1 {
		t.Errorf("counted %d, want 1", s.Total(pci.AERCorrectable))
	}
}

// Whatever registers say, a report is a few lines, and says nothing that is masked.
func FuzzReport(f *testing.F) {
	f.Add(uint8(4), uint8(0), uint32(0x4000), uint32(0), uint32(14), []byte{0x10, 0, 2, 0})
	f.Add(uint8(0), uint8(1), ^uint32(0), ^uint32(0), ^uint32(0), []byte{})
	f.Fuzz(func(t *testing.T, kind, sev uint8, status, mask, ctl uint32, noise []byte) {
		p, log := told(t, "")
		r := endpoint(pci.ExpType(kind & 15))
		copy(r.b[0x44:0x100], noise)
		s := pci.AERSeverity(sev % 3)
		sta, msk := pci.AERUncSta, pci.AERUncMask
		if s == pci.AERCorrectable {
			sta, msk = pci.AERCorSta, pci.AERCorMask
		}
		r.Write32(regAER+sta, status)
		r.Write32(regAER+msk, mask)
		r.Write32(regAER+pci.AERCap, ctl)
		m := r.member("")
		e, ok := ReadError(m, s, sev&0x80 != 0)
		if !ok {
			return
		}
		p.Report(m, e)
		if n := len(log.lines); n > 4+bits.OnesCount32(e.Unmasked()) || n == 0 {
			t.Errorf("%d lines of status %#x, mask %#x", n, e.Status, e.Mask)
		}
	})
}
