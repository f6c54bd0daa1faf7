package pci

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

func capsOf(c bus.Config) string {
	var s []string
	for id, at := range Caps(c) {
		s = append(s, fmt.Sprintf("%02x@%02x", id, at))
	}
	return strings.Join(s, " ")
}

func extCapsOf(c bus.Config) string {
	var s []string
	for id, at := range ExtCaps(c) {
		s = append(s, fmt.Sprintf("%04x@%03x", id, at))
	}
	return strings.Join(s, " ")
}

func TestCaps(t *testing.T) {
	f := device(1, 1).cap(0x40, CapPM, 0x52).cap(0x50, CapMSI, 0xe0).cap(0xe0, CapMSIX, 0)
	if got, want := capsOf(f), "01@40 05@50 11@e0"; got != want {
		t.Errorf("Caps = %s, want %s: the low two bits of a pointer are reserved", got, want)
	}
	if at, ok := FindCap(f, CapMSIX); !ok || at != 0xe0 {
		t.Errorf("FindCap(MSI-X) = %#x, %t, want 0xe0", at, ok)
	}
	if at, ok := FindCap(f, CapPCIe); ok || at != 0 {
		t.Errorf("FindCap(PCIe) = %#x, %t, want none", at, ok)
	}
	for name, bad := range map[string]struct {
		f    *fn
		want string
	}{
		"loop":        {device(1, 1).cap(0x40, 1, 0x50).cap(0x50, 2, 0x40), "01@40 02@50"},
		"self":        {device(1, 1).cap(0x40, 1, 0x40), "01@40"},
		"into header": {device(1, 1).cap(0x40, 1, 0x3c), "01@40"},
		"all-ones":    {device(1, 1).cap(0x40, 1, 0x50).cap(0x50, 0xff, 0xff), "01@40"},
		"last dword":  {device(1, 1).cap(0xfc, 9, 0), "09@fc"},
	} {
		if got := capsOf(bad.f); got != bad.want || bad.f.misuse != 0 {
			t.Errorf("%s: Caps = %s, %d bad accesses, want %s", name, got, bad.f.misuse, bad.want)
		}
	}
	f.set16(CfgStatus, 0)
	if got := capsOf(f); got != "" {
		t.Errorf("Caps without the Status bit = %s, want none", got)
	}
	if got := capsOf(&space{size: 256, dead: true}); got != "" {
		t.Errorf("Caps of a dead link = %s, want none", got)
	}
}

func TestExtCaps(t *testing.T) {
	f := device(1, 1)
	f.set32(0x100, 0x14010001) // AER, next 0x140
	f.set32(0x140, 0xff810003) // DSN, next 0xff8
	f.set32(0xff8, 0x0001000d)
	if got, want := extCapsOf(f), "0001@100 0003@140 000d@ff8"; got != want {
		t.Errorf("ExtCaps = %s, want %s", got, want)
	}
	if at, ok := FindExtCap(f, ExtCapDSN); !ok || at != 0x140 {
		t.Errorf("FindExtCap(DSN) = %#x, %t, want 0x140", at, ok)
	}
	f.set32(0xff8, 0x1001000d) // back to the start
	if got, want := extCapsOf(f), "0001@100 0003@140 000d@ff8"; got != want {
		t.Errorf("ExtCaps of a loop = %s, want %s", got, want)
	}
	f.set32(0x140, 0x0ff10003) // below 0x100
	if got, want := extCapsOf(f), "0001@100 0003@140"; got != want {
		t.Errorf("ExtCaps = %s, want %s", got, want)
	}
	f.size = 256
	if got := extCapsOf(f); got != "" || f.misuse != 0 {
		t.Errorf("ExtCaps of a conventional function = %s, %d bad accesses, want none", got, f.misuse)
	}
}

// Every bit of Command alone.
func TestSetCommand(t *testing.T) {
	for i := range 16 {
		f := device(1, 1)
		f.writable[CfgCommand], f.writable[CfgCommand+1] = 0xff, 0xff
		f.set16(CfgStatus, 0x1234)
		bit := Command(1) << i
		if old := SetCommand(f, bit, 0); old != 0 || Command(f.Read16(CfgCommand)) != bit {
			t.Errorf("SetCommand(%s) left %s, want it alone", bit, Command(f.Read16(CfgCommand)))
		}
		if old := SetCommand(f, ^bit, bit); old != bit || Command(f.Read16(CfgCommand)) != ^bit {
			t.Errorf("SetCommand(all, %s) left %s, want all but it", bit, Command(f.Read16(CfgCommand)))
		}
		if got := f.Read16(CfgStatus); got != 0x1234 {
			t.Errorf("Status = %#x, want it untouched", got)
		}
	}
	for v, want := range map[Command]string{CmdIO: "IO", CmdMem: "Mem", CmdMaster: "Master", CmdParity: "Parity", CmdSERR: "SERR", CmdINTxDisable: "INTxDisable", CmdMem | 0x8000: "Mem|0x8000", 0: "0x0"} {
		if got := v.String(); got != want {
			t.Errorf("Command(%#x).String() = %s, want %s", uint16(v), got, want)
		}
	}
	for v, want := range map[Status]string{StatusINTx: "INTx", StatusCaps: "Caps", 0x2010: "Caps|0x2000"} {
		if got := v.String(); got != want {
			t.Errorf("Status(%#x).String() = %s, want %s", uint16(v), got, want)
		}
	}
}

func TestINTx(t *testing.T) {
	f := device(1, 1)
	for pin, want := range map[byte]uint8{0: 0, 1: 1, 4: 4, 5: 0, 0xff: 0} {
		f.data[CfgIRQPin] = pin
		if got := INTxPin(f); got != want {
			t.Errorf("INTxPin of %d = %d, want %d", pin, got, want)
		}
	}
	for status, want := range map[uint16]bool{0: false, 0x0008: true, 0xfff7: false, 0xffff: false} {
		f.set16(CfgStatus, status)
		if got := INTxPending(f); got != want {
			t.Errorf("INTxPending with status %#x = %t, want %t", status, got, want)
		}
	}
}

func TestServes(t *testing.T) {
	id := FunctionID{Vendor: 0x8086, Device: 0x10d3, SubVendor: 0x1af4, SubDevice: 0x1100, Class: 0x020000}
	for _, tt := range []struct {
		id   ID
		want bool
	}{
		{ID{Vendor: 0x8086, Device: 0x10d3}, true},
		{ID{Vendor: 0x8086, Device: Any}, true},
		{ID{Vendor: Any, Device: Any}, true},
		{ID{Vendor: 0x8086, Device: 0x10d4}, false},
		{ID{Vendor: 0x8086, Device: 0x10d3, SubVendor: 0x1af4, SubDevice: 0x1100}, true},
		{ID{Vendor: 0x8086, Device: 0x10d3, SubVendor: 0x8086}, false},
		{ID{Vendor: Any, Device: Any, Class: 0x020000, ClassMask: 0xffff00}, true},
		{ID{Vendor: Any, Device: Any, Class: 0x010000, ClassMask: 0xff0000}, false},
	} {
		if got := (&Driver{IDs: []ID{tt.id}}).Serves(id); got != tt.want {
			t.Errorf("Serves with %+v = %t, want %t", tt.id, got, tt.want)
		}
	}
}

// Walks end, and stay inside, whatever config space holds.
func FuzzCaps(f *testing.F) {
	f.Add([]byte{6: 0x10, 0x34: 0x40, 0x40: 5, 0x41: 0x50}, []byte{1, 0, 1, 0x14}, uint16(256))
	f.Fuzz(func(t *testing.T, head, ext []byte, size uint16) {
		s := newSpace(256 + int(size)%2*3840)
		copy(s.data[:256], head)
		copy(s.data[256:], ext)
		n := 0
		for _, at := range Caps(s) {
			if n++; at < 0x40 || at > 0xfc || n > 48 {
				t.Fatalf("capability %d at %#x", n, at)
			}
		}
		n = 0
		for _, at := range ExtCaps(s) {
			if n++; at < 0x100 || at > 0xffc || n > 960 {
				t.Fatalf("extended capability %d at %#x", n, at)
			}
		}
		if m, err := OpenMSI(s); err == nil {
			_ = m.Set(0xfee00000, 0, 0)
			_ = m.Mask(0)
			m.Enable()
		}
		if m, err := OpenMSIX(s, func(int) (bus.Region, error) { return newRegionModel(4096), nil }); err == nil {
			for i := range m.Vectors() {
				_ = m.Set(i, 0xfee00000, 0)
				_ = m.Mask(i)
				m.Pending(i)
			}
		}
		configFile(s)
		if s.misuse != 0 {
			t.Errorf("%d accesses out of bounds or unaligned", s.misuse)
		}
	})
}
