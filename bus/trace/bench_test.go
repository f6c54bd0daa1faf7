package trace_test

import (
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/trace"
)

// What one access costs: not wrapped, wrapped with recording off and on, and a doorbell that
// publishes 32 descriptors.
func BenchmarkWrite(b *testing.B) {
	d, p, r := open(b, trace.Options{})
	var bare bus.Region = p
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			bare.Write32(regCTRL, 1)
		}
	})
	d.SetEnabled(false)
	b.Run("off", func(b *testing.B) {
		for b.Loop() {
			r.Write32(regCTRL, 1)
		}
	})
	d.SetEnabled(true)
	b.Run("on", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r.Write32(regCTRL, 1)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	d, p, r := open(b, trace.Options{})
	var bare bus.Region = p
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			bare.Read32(regCTRL)
		}
	})
	d.SetEnabled(false)
	b.Run("off", func(b *testing.B) {
		for b.Loop() {
			r.Read32(regCTRL)
		}
	})
	d.SetEnabled(true)
	b.Run("on", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r.Read32(regCTRL)
		}
	})
}

func BenchmarkDoorbell(b *testing.B) {
	d, _, r := open(b, trace.Options{})
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 4096})
	if err != nil {
		b.Fatal(err)
	}
	r.Write32(regTDB, uint32(m.IOVA))
	r.Write32(regTDBH, uint32(m.IOVA>>32))
	r.Write32(regTDL, 4096)
	b.ReportAllocs()
	for tail := uint32(0); b.Loop(); {
		tail = (tail + 32) % 256
		r.Write32(regTDT, tail)
	}
}
