package rapidio

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

func TestFindFeatures(t *testing.T) {
	base := space{RegPEF: uint32(PEFExtValid), RegAsmInfo: 0x0001_0100}
	for _, c := range []struct {
		name string
		regs space
		want Features
	}{
		{"none", space{RegAsmInfo: 0x100, 0x100: EFSerialEndpoint}, Features{}},
		{"pointer 0", base.with(space{RegAsmInfo: 0}), Features{}},
		{"one", base.with(space{0x100: EFSerialEndpointFre}), Features{EFPtr: 0x100, PHY: 0x100}},
		{"chain", base.with(space{0x100: 0x8000<<16 | 0x99, 0x8000: 0x200<<16 | EFErrorMgmt, 0x200: 0x208<<16 | 0x19, 0x208: EFRoutingTables}),
			Features{EFPtr: 0x100, ErrMgmt: 0x8000, PHY: 0x200, PHYMap2: true, Routing: 0x208}},
		{"the first counts", base.with(space{0x100: 0x200<<16 | EFSerialSwitchRec, 0x200: 0x11}), Features{EFPtr: 0x100, PHY: 0x100}},
		{"revision 1.2", base.with(space{0x100: 0x06}), Features{EFPtr: 0x100, PHY: 0x100}},
		{"loop", base.with(space{0x100: 0x200<<16 | EFErrorMgmt, 0x200: 0x100<<16 | 1}), Features{EFPtr: 0x100, ErrMgmt: 0x100, PHY: 0x200, Malformed: 0x100}},
		{"itself", base.with(space{0x100: 0x100<<16 | 1}), Features{EFPtr: 0x100, PHY: 0x100, Malformed: 0x100}},
		{"into the capabilities", base.with(space{0x100: 0x10<<16 | 1}), Features{EFPtr: 0x100, PHY: 0x100, Malformed: 0x10}},
		{"unaligned", base.with(space{0x100: 0x204<<16 | 1, 0x204: EFErrorMgmt}), Features{EFPtr: 0x100, PHY: 0x100, Malformed: 0x204}},
		{"nothing there", base.with(space{0x100: 0x200<<16 | 1}), Features{EFPtr: 0x100, PHY: 0x100, Malformed: 0x200}},
		{"all ones", base.with(space{0x100: 0xffffffff}), Features{EFPtr: 0x100, Malformed: 0x100}},
	} {
		got, err := FindFeatures(t.Context(), c.regs)
		if err != nil || got != c.want {
			t.Errorf("%s: FindFeatures() = %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
}

// failing is a space whose read number k fails.
type failing struct {
	space
	k *int
}

func (f failing) Read32(ctx context.Context, off Off) (uint32, error) {
	if *f.k--; *f.k < 0 {
		return 0, ErrNoReply
	}
	return f.space.Read32(ctx, off)
}

func TestReadDevice(t *testing.T) {
	f := newModel(Small, 5)
	sw, err := ReadDevice(t.Context(), space(f.sw.v))
	if err != nil || sw.VID != modelVendor || sw.DID != modelSwitch || !sw.IsSwitch() || sw.Ports() != 5 || sw.PHY != 0x100 || sw.ErrMgmt != 0x500 || sw.AsmRev != 1 {
		t.Errorf("ReadDevice(switch) = %+v, %v", sw, err)
	}
	ep, err := ReadDevice(t.Context(), space(f.ports[1].regs.v))
	if err != nil || ep.DID != modelEndpoint || ep.IsSwitch() || ep.Hop != 0xff || ep.Rev != 0x12 || ep.AsmDID != 1 || ep.AsmVID != modelVendor || ep.SrcOps&OpMessage == 0 || ep.DstOps&OpDoorbell == 0 {
		t.Errorf("ReadDevice(endpoint) = %+v, %v", ep, err)
	}
	bad := space(f.sw.v).with(space{RegSwitchPort: 0})
	if d, err := ReadDevice(t.Context(), bad); d != nil || !errors.Is(err, bus.ErrProtocol) {
		t.Errorf("ReadDevice(switch without ports) = %v, %v, want ErrProtocol", d, err)
	}
	// Each read fails once: always an error, never half a device.
	for n := 0; ; n++ {
		k := n
		d, err := ReadDevice(t.Context(), failing{space(f.sw.v), &k})
		if err == nil {
			if n < 10 {
				t.Errorf("ReadDevice succeeded after %d reads", n)
			}
			break
		}
		if d != nil || !errors.Is(err, ErrNoReply) {
			t.Errorf("read %d failing: ReadDevice() = %v, %v, want ErrNoReply", n, d, err)
		}
	}
}

// A device whose registers are whatever somebody thought of: the walk ends, inside the space.
func FuzzFindFeatures(f *testing.F) {
	f.Add([]byte{0x02, 0x00, 0x00, 0x01, 0x01, 0x00, 0x00, 0x07})
	f.Fuzz(func(t *testing.T, data []byte) {
		reads := 0
		got, err := FindFeatures(t.Context(), accessFunc(func(off Off) (uint32, error) {
			if reads++; reads > efMax+2 || off%4 != 0 || off > 0xffff {
				t.Fatalf("read %d at %#x", reads, off)
			}
			switch off {
			case RegPEF:
				return uint32(PEFExtValid), nil
			case RegAsmInfo:
				return 0x100, nil
			}
			at := (int(off) - 0x100) % max(len(data)-3, 1)
			if at < 0 || at+4 > len(data) {
				return 0, nil
			}
			return binary.BigEndian.Uint32(data[at:]), nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range []Off{got.PHY, got.ErrMgmt, got.Routing} {
			if off != 0 && (off < RegExtFeatures || off > 0xffff || off%8 != 0) {
				t.Fatalf("%+v: a block at %#x", got, off)
			}
		}
	})
}

type accessFunc func(off Off) (uint32, error)

func (f accessFunc) Read32(_ context.Context, off Off) (uint32, error) { return f(off) }

func TestWidths(t *testing.T) {
	r := newRig(t, Small, 3)
	ctx := t.Context()
	d := r.device("00:e:0002")
	if err := d.Write32(ctx, RegComponentTag, 0x01020304); err != nil {
		t.Fatal(err)
	}
	if v, err := d.Read8(ctx, RegComponentTag+1); v != 2 || err != nil {
		t.Errorf("Read8 = %#x, %v, want the second byte, 2", v, err)
	}
	if v, err := d.Read16(ctx, RegComponentTag+2); v != 0x0304 || err != nil {
		t.Errorf("Read16 = %#x, %v, want 0x0304", v, err)
	}
	if err := d.Write8(ctx, RegComponentTag+3, 0xff); err != nil {
		t.Error(err)
	}
	if err := d.Write16(ctx, RegComponentTag, 0xaabb); err != nil {
		t.Error(err)
	}
	if v, err := d.Read32(ctx, RegComponentTag); v != 0xaabb03ff || err != nil {
		t.Errorf("Read32 = %#x, %v, want 0xaabb03ff", v, err)
	}
	before := r.f.ports[0].reads.Load()
	for _, c := range []struct {
		off Off
		w   Width
	}{{1, 2}, {2, 4}, {1, 4}, {3, 2}, {ConfigSize, 1}, {ConfigSize, 4}, {0, 0}, {0, 3}, {0, 8}, {0xffffffff, 1}} {
		if _, err := r.m.Read(ctx, 0, 0, c.off, c.w); !errors.Is(err, ErrRange) {
			t.Errorf("Read(%#x, %d bytes) = %v, want ErrRange", c.off, c.w, err)
		}
		if err := r.m.Write(ctx, 0, 0, c.off, c.w, 0); !errors.Is(err, ErrRange) {
			t.Errorf("Write(%#x, %d bytes) = %v, want ErrRange", c.off, c.w, err)
		}
		if _, err := r.m.LocalRead(ctx, c.off, c.w); !errors.Is(err, ErrRange) {
			t.Errorf("LocalRead(%#x, %d bytes) = %v, want ErrRange", c.off, c.w, err)
		}
		if err := r.m.LocalWrite(ctx, c.off, c.w, 0); !errors.Is(err, ErrRange) {
			t.Errorf("LocalWrite(%#x, %d bytes) = %v, want ErrRange", c.off, c.w, err)
		}
	}
	if got := r.f.ports[0].reads.Load(); got != before {
		t.Errorf("%d impossible reads reached the port", got-before)
	}
	if _, err := r.m.Read32(ctx, 77, 1, 0); !errors.Is(err, ErrResponse) || err.Error() != "rapidio0: reading 0x0 of 0x004d, hop 1: error response" {
		t.Errorf("Read32 of nobody = %v", err)
	}
	if id, err := r.m.DestID(ctx); id != 0 || err != nil {
		t.Errorf("DestID() = %d, %v, want 0", id, err)
	}
}
