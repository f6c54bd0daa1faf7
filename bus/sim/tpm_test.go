package sim

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// tpmOn is a machine whose time stands still, with one TPM.
func tpmOn(t testing.TB, model string, props ...string) (*Machine, bus.Region) {
	t.Helper()
	m := started(t, Config{Devices: []DeviceSpec{{Name: "tpm0", Model: model, Props: props}}, Clock: Stepped})
	r, err := m.devices[0].Region(0)
	if err != nil {
		t.Fatal(err)
	}
	return m, r
}

// command is one by its tag, code and parameters, in hex.
func command(tag uint16, code uint32, params string) []byte {
	return tpmAnswer(tag, code, unhex(params)...)
}

func cmd12(ord uint32, params string) []byte { return command(tagRequest12, ord, params) }
func cmd20(cc uint32, params string) []byte  { return command(tagNoSessions, cc, params) }

// pw20 is a command with handles, a password that is empty, and parameters.
func pw20(cc uint32, handles, params string) []byte {
	return command(tagSessions, cc, handles+"00000009"+"40000009"+"0000"+"00"+"0000"+params)
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

func resultOf(answer []byte) uint32 {
	if len(answer) < tpmHeader {
		return ^uint32(0)
	}
	return binary.BigEndian.Uint32(answer[6:])
}

// A platform device is where firmware says it is, and beside the functions of its machine.
func TestPlatform(t *testing.T) {
	m := started(t, Config{Clock: Stepped, Devices: []DeviceSpec{
		{Name: "a", Model: "tpm-tis"}, {Name: "edu0", Model: "edu"}, {Name: "b", Model: "tpm-tis", Props: []string{"family=1.2"}},
		{Name: "c", Model: "tpm-crb"}, {Name: "edu1", Model: "edu"},
	}})
	for _, c := range []struct {
		name, address, id string
		base, size        uint64
		vectors           int
	}{
		{"a", "MSFT0101:00", "MSFT0101", 0xfed40000, 0x5000, 1},
		{"b", "PNP0C31:00", "PNP0C31", 0xfed48000, 0x5000, 1},
		{"c", "MSFT0101:01", "MSFT0101", 0xfed50000, 0x1000, 0},
	} {
		d, err := m.Device(c.name)
		if err != nil {
			t.Fatal(err)
		}
		regions, ids := d.Regions(), bus.HardwareIDs(d)
		if d.Address() != c.address || len(ids) != 1 || ids[0] != c.id || len(regions) != 1 || regions[0] != (bus.RegionInfo{Size: c.size, Addr: c.base}) {
			t.Errorf("%s: Address, HardwareIDs, Regions = %s, %q, %+v, want %+v", c.name, d.Address(), ids, regions, c)
		}
		if n := d.IRQVectors(bus.INTx); n != c.vectors {
			t.Errorf("%s: IRQVectors(INTx) = %d, want %d", c.name, n, c.vectors)
		}
		if n, k := d.IRQVectors(bus.MSI), d.IRQVectors(bus.MSIX); n != 0 || k != 0 {
			t.Errorf("%s: IRQVectors(MSI, MSIX) = %d, %d, want none", c.name, n, k)
		}
		fn, err := m.Function(c.name)
		if fn != nil || err != nil {
			t.Errorf("Function(%s) = %v, %v, want nil, nil", c.name, fn, err)
		}
		if err := d.Reset(t.Context()); !errors.Is(err, bus.ErrNotSupported) {
			t.Errorf("%s: Reset = %v, want ErrNotSupported", c.name, err)
		}
		if _, err := d.DMA().(bus.Placer).Place(bus.Window{Size: 4096, Bytes: make([]byte, 4096)}); !errors.Is(err, bus.ErrNotSupported) {
			t.Errorf("%s: Place = %v, want ErrNotSupported", c.name, err)
		}
	}
	for name, want := range map[string]string{"edu0": "1000:00:03.0", "edu1": "1000:00:04.0"} {
		if d := m.find(name); d.Address() != want || bus.HardwareIDs(d) != nil {
			t.Errorf("%s: Address, HardwareIDs = %s, %q, want %s and none", name, d.Address(), bus.HardwareIDs(d), want)
		}
	}
	if n := len(m.Topology().Functions); n != 2 {
		t.Errorf("the topology has %d functions, want edu's two", n)
	}
}

// Two platform devices share line 5, which is masked when it fires.
func TestPlatformLine(t *testing.T) {
	m := started(t, Config{Clock: Stepped, Devices: []DeviceSpec{{Name: "a", Model: "tpm-tis"}, {Name: "b", Model: "tpm-tis"}}})
	a, b := m.find("a"), m.find("b")
	q := enabled(t, a, bus.INTx, 1)[0]
	p := enabled(t, b, bus.INTx, 1)[0]
	if q.HWIRQ() != 5 {
		t.Errorf("HWIRQ = %d, want 5", q.HWIRQ())
	}
	under(b, func() { b.line(true) })
	if x, y := fired(t, q), fired(t, p); x != 1 || y != 1 {
		t.Errorf("the line fired %d and %d times, want both once", x, y)
	}
	q.Unmask()
	if n := fired(t, q); n != 1 {
		t.Errorf("fired %d times after Unmask of a line that is high, want 1", n)
	}
	if err := m.Unplug("b"); err != nil {
		t.Fatal(err)
	}
	q.Unmask()
	if n := fired(t, q); n != 0 {
		t.Errorf("fired %d times after the device was pulled out, want 0", n)
	}
}

// Power-on reset forgets what was going on, and the TPM wants Startup again.
func TestTPMPowerOn(t *testing.T) {
	for _, model := range []string{"tpm-tis", "tpm-crb"} {
		m, r := tpmOn(t, model)
		transact := transactTIS
		if model == "tpm-crb" {
			transact = transactCRB
		}
		random := cmd20(ccGetRandom, "0008")
		for range 2 {
			if rc := resultOf(transact(t, m, r, random)); rc != rcInitialize {
				t.Errorf("%s: GetRandom at power-on = %#x, want %#x", model, rc, rcInitialize)
			}
			if rc := resultOf(transact(t, m, r, cmd20(ccStartup, "0000"))); rc != 0 {
				t.Errorf("%s: Startup = %#x, want 0", model, rc)
			}
			if rc := resultOf(transact(t, m, r, random)); rc != 0 {
				t.Errorf("%s: GetRandom = %#x, want 0", model, rc)
			}
			if err := m.Reset(context.Background(), "tpm0"); err != nil {
				t.Fatal(err)
			}
			if got := r.Read32(0) & 0xff; got != 0x81 {
				t.Errorf("%s: first register = %#x after power-on, want 0x81", model, got)
			}
		}
	}
}

// echo is a TPM that answers what it was sent, and from which locality.
type echo struct {
	starts int
	empty  bool
}

func (e *echo) PowerOn() { e.starts++ }

func (e *echo) Command(locality int, cmd []byte) []byte {
	if e.empty {
		return nil
	}
	return tpmAnswer(tagNoSessions, uint32(locality), cmd...)
}

// Another TPM can stand behind the registers.
func TestTPMSeam(t *testing.T) {
	for _, model := range []string{"tpm-tis", "tpm-crb"} {
		e := &echo{}
		m := started(t, Config{Devices: []DeviceSpec{{Name: "tpm0", Model: model, TPM: e}}, Clock: Stepped})
		r, _ := m.devices[0].Region(0)
		transact := transactTIS
		if model == "tpm-crb" {
			transact = transactCRB
		}
		cmd := cmd20(0x12345678, "0102")
		if got := transact(t, m, r, cmd); string(got[tpmHeader:]) != string(cmd) || e.starts != 1 {
			t.Errorf("%s: answer = % x, started %d times, want % x and once", model, got, e.starts, cmd)
		}
	}
	e := &echo{empty: true}
	m := started(t, Config{Devices: []DeviceSpec{{Name: "tpm0", Model: "tpm-tis", TPM: e}}, Clock: Stepped})
	r, _ := m.devices[0].Region(0)
	sendTIS(t, r, 0, cmd20(ccGetRandom, "0008"))
	r.Write32(tisSts, stsGo)
	m.Advance(time.Second)
	if got := r.Read32(tisSts) & 0xff; got != stsValid {
		t.Errorf("STS after no answer at all = %#x, want %#x", got, stsValid)
	}
}
