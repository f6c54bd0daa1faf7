package e1000

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
)

// What bursts of all that can come become in the ring: frames, the same one many times, frames that are padded, and
// what is no frame.
func TestMixedBursts(t *testing.T) {
	n, _ := still(t, device82574, nil)
	q := &n.tx[0]
	pool, err := q.NewPool(64)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	r := rand.New(rand.NewPCG(3, 4))
	var errors, octets uint64
	for range 3000 {
		type want struct {
			addr bus.IOVA
			n    int
		}
		var bufs []*dma.Buf
		var wants []want
		for more := r.IntN(80); len(bufs) < more; {
			size := minWire + r.IntN(q.limit-minWire)
			switch r.IntN(8) {
			case 0:
				size = minFrame + r.IntN(minWire-minFrame)
			case 1:
				size = r.IntN(minFrame)
			case 2:
				size = q.limit + 1
			}
			b := pool.Get()
			if b == nil {
				break
			}
			b.Data = b.Mem[:size]
			copies := 1
			if size >= minWire && size <= q.limit && r.IntN(3) == 0 {
				copies += r.IntN(70)
				b.Retain(copies - 1)
			}
			for range copies {
				bufs = append(bufs, b)
				if size >= minFrame && size <= q.limit {
					wants = append(wants, want{b.Addr, max(size, minWire)})
					octets += uint64(max(size, minWire))
				} else {
					errors++
				}
			}
		}
		first := q.c.tail
		if k := q.Burst(bufs); k != len(bufs) {
			t.Fatalf("Burst = %d, want all %d: the ring has room for %d", k, len(bufs), q.c.room())
		}
		if used := int(q.c.tail - first); used != len(wants) {
			t.Fatalf("%d descriptors for %d buffers, want %d", used, len(bufs), len(wants))
		}
		silent := 0 // descriptors since the last that reports
		for i, w := range wants {
			d := q.ring[int(q.c.at(first+uint64(i)))*descSize:]
			addr, cmd := bus.IOVA(binary.LittleEndian.Uint64(d)), txCmd(binary.LittleEndian.Uint64(d[8:]))
			if addr != w.addr || int(cmd&txLen) != w.n || cmd&(txEOP|txIFCS) != txEOP|txIFCS {
				t.Fatalf("descriptor %d: %d bytes at %#x, command %#x, want %d at %#x", i, cmd&txLen, addr, cmd, w.n, w.addr)
			}
			if silent++; cmd&txRS != 0 {
				silent = 0
			}
			if silent >= reportEvery || i == len(wants)-1 && silent != 0 {
				t.Fatalf("descriptor %d of %d: the last %d do not report", i, len(wants), silent)
			}
		}
		if q.errors != errors || q.octets != octets {
			t.Fatalf("%d errors and %d octets counted, want %d and %d", q.errors, q.octets, errors, octets)
		}
		// The model does nothing; the device was done with all.
		for c := q.c.head; c != q.c.tail; c++ {
			d := q.ring[int(q.c.at(c))*descSize:]
			binary.LittleEndian.PutUint64(d[8:], binary.LittleEndian.Uint64(d[8:])|uint64(txDD))
		}
		if left := q.Reap(); left != 0 || pool.Free() != pool.Len() {
			t.Fatalf("after Reap: %d in flight, %d of %d buffers free", left, pool.Free(), pool.Len())
		}
	}
}
