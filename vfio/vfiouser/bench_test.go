package vfiouser

import (
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/sim"
)

// benchEdu is edu's liveness register, reached as a benchmark says.
func benchEdu(b *testing.B, without Ways) bus.Region {
	b.Helper()
	_, dev := model(b, "edu", sim.RealTime)
	return regionOf(b, serve(b, dev, ServerOptions{}, Options{Without: without}), 0)
}

func BenchmarkRead(b *testing.B) {
	r := benchEdu(b, 0)
	b.ReportAllocs()
	for b.Loop() {
		r.Read32(4)
	}
}

func BenchmarkPostedMessage(b *testing.B) {
	r := benchEdu(b, WriteQueue)
	b.ReportAllocs()
	for b.Loop() {
		r.Write32(4, 1)
	}
	r.Read32(4)
}

func BenchmarkQueuedWrite(b *testing.B) {
	r := benchEdu(b, 0)
	b.ReportAllocs()
	for b.Loop() {
		r.Write32(4, 1)
	}
	r.Read32(4)
}

// The data path allocates nothing, on either side.
func TestAllocates(t *testing.T) {
	f := newFake(t, true)
	for _, without := range []Ways{0, WriteQueue, WriteQueue | TwinSocket} {
		m, dev := model(t, "edu", sim.RealTime)
		o := simServer(t, m)
		o.Registers = []bus.Register{{Region: 0, Off: 0x100, Ring: &bus.RingInfo{Size: 16}}}
		d := serve(t, dev, o, Options{Without: without})
		r := regionOf(t, d, 0)
		for name, do := range map[string]func(){
			"a read": func() { r.Read32(4) }, "a write": func() { r.Write32(4, 1) }, "a doorbell": func() { r.Write32(0x100, 1) },
			"config space": func() { d.Config().Read16(4) },
		} {
			do()
			r.Read32(4)
			if n := testing.AllocsPerRun(300, func() { do() }); n >= 1 {
				t.Errorf("without %d: %s allocates %v times", without, name, n)
			}
			r.Read32(4)
		}
	}
	d := serve(t, f, fakeServer(t), Options{})
	r := regionOf(t, d, 2)
	if n := testing.AllocsPerRun(300, func() { r.Write32(4096, r.Read32(4096)) }); n != 0 {
		t.Errorf("a mapped access allocates %v times", n)
	}
}
