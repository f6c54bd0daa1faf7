package sim_test

import (
	"context"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
)

// BenchmarkE1000 is what a frame of 60 bytes costs the models, at 32 a doorbell: sent into an
// open cable, and to one that receives it.
func BenchmarkE1000(b *testing.B) {
	for _, model := range []string{"e1000", "e1000e"} {
		for _, wired := range []bool{false, true} {
			name := model + "/open"
			if wired {
				name = model + "/wired"
			}
			b.Run(name, func(b *testing.B) { benchTx(b, model, wired) })
		}
	}
}

func benchTx(b *testing.B, model string, wired bool) {
	c := sim.Config{Devices: []sim.DeviceSpec{{Name: "a", Model: model}, {Name: "b", Model: model}}}
	if wired {
		c.Wires = [][2]string{{"a", "b"}}
	}
	m, err := sim.Start(context.Background(), c)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	const ring, burst = 1024, 32
	var r [2]bus.Region
	for i, name := range []string{"a", "b"} {
		d, err := m.Device(name)
		if err != nil {
			b.Fatal(err)
		}
		if r[i], err = d.Region(0); err != nil {
			b.Fatal(err)
		}
		mem, err := d.DMA().Alloc(bus.DMARequest{Size: ring*16 + ring*2048})
		if err != nil {
			b.Fatal(err)
		}
		defer mem.Free()
		pci.SetCommand(d.Config(), pci.CmdMem|pci.CmdMaster, 0)
		for k := range ring {
			at := mem.Bytes[k*16:]
			put64(at, uint64(mem.IOVA)+ring*16+uint64(k)*2048)
			if i == 0 {
				put64(at[8:], 60|tEOP|tIFCS)
				if k%burst == burst-1 {
					put64(at[8:], 60|tEOP|tIFCS|tRS)
				}
				f := mem.Bytes[ring*16+k*2048:]
				f[0], f[12], f[13] = 2, 0x88, 0xb5
			}
		}
		for _, base := range []bus.Off{rRX, rTX} {
			r[i].Write32(base, uint32(mem.IOVA))
			r[i].Write32(base+8, ring*16)
		}
	}
	r[1].Write32(rRCTL, fEN|fUPE|fSECRC)
	r[1].Write32(rRX+0x18, ring-1)
	r[0].Write32(rTCTL, 1<<1)
	tail := uint32(0)
	b.ReportAllocs()
	for n := 0; n < b.N; n += burst {
		tail = (tail + burst) % ring
		r[0].Write32(rTX+0x18, tail)
		if wired {
			r[1].Write32(rRX+0x18, (tail-1)%ring)
		}
	}
	if wired && b.N >= burst {
		if v := r[1].Read32(rGPRC); v < uint32(b.N) {
			b.Errorf("%d frames arrived, want %d", v, b.N)
		}
	}
}
