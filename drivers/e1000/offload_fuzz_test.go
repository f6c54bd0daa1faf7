package e1000

import (
	"encoding/binary"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
)

// FuzzPlan: whatever a frame and its Meta say, the descriptors stay within the frame's buffer and the
// ring, and what is refused gives its buffer back.
func FuzzPlan(f *testing.F) {
	tcp, meta := tcpFrame(f, false, 3000, 1000)
	f.Add(tcp, uint8(meta.Flags), meta.CsumStart, meta.CsumOffset, meta.HdrLen, meta.GSOSize)
	tcp, meta = tcpFrame(f, true, 3000, 1000)
	f.Add(tcp, uint8(meta.Flags|dma.VLAN), meta.CsumStart, meta.CsumOffset, meta.HdrLen, meta.GSOSize)
	f.Add(tcp[:40], uint8(dma.NeedsCsum), uint16(20), uint16(6), uint16(0), uint16(0))
	var n [2]*nic
	var pools [2]*dma.Pool
	for i, id := range []uint16{device82574, device82540} {
		n[i], pools[i] = still(f, id, nil)
		n[i].applyFeatures(n[i].available())
	}
	f.Fuzz(func(t *testing.T, frame []byte, flags uint8, start, offset, hdr, mss uint16) {
		if len(frame) > netdev.MaxGSO {
			return
		}
		for i, n := range n {
			planned(t, &n.tx[0], pools[i], frame, dma.Meta{Flags: dma.MetaFlags(flags), CsumStart: start, CsumOffset: offset, HdrLen: hdr, GSOSize: mss, VLAN: 5})
		}
	})
}

// planned sends one frame, and has queue and pool as they were, whatever came of it: a smaller input is tried next.
func planned(t *testing.T, q *txQueue, pool *dma.Pool, frame []byte, m dma.Meta) {
	b := load(pool, frame, m)
	first := q.c.tail
	if k := q.Burst([]*dma.Buf{b}); k != 1 {
		b.Free()
		t.Fatalf("Burst = %d, want 1: %v", k, q.nic.Err())
	}
	defer func() {
		for c := first; c < q.c.tail; c++ {
			q.ring[int(q.c.at(c))*descSize+12] |= byte(txDD >> 32)
		}
		q.nic.regs.Write32(regTDH(0), q.c.at(q.c.tail))
		q.Reap()
		if n := pool.Len() - pool.Free(); n != 0 {
			t.Errorf("%d buffers are missing", n)
		}
	}()
	checkDescriptors(t, q, first, b)
}

// checkDescriptors looks at what stands in the ring from first on.
func checkDescriptors(t *testing.T, q *txQueue, first uint64, b *dma.Buf) {
	t.Helper()
	low, high := b.Addr, b.Addr+bus.IOVA(len(b.Mem))
	for c := first; c != q.c.tail; c++ {
		d := q.ring[int(q.c.at(c))*descSize:]
		addr, cmd := bus.IOVA(binary.LittleEndian.Uint64(d)), txCmd(binary.LittleEndian.Uint64(d[8:]))
		if cmd&txDEXT != 0 && cmd&txData == 0 { // a context
			continue
		}
		if n := bus.IOVA(cmd & txLen); n == 0 || addr < low || addr+n > high {
			t.Fatalf("descriptor %d: %d bytes at %#x, want them in %#x to %#x", c-first, n, addr, low, high)
		}
		if last := cmd&txEOP != 0; last != (c+1 == q.c.tail) {
			t.Fatalf("descriptor %d of %d: end of packet %t", c-first, q.c.tail-first, last)
		}
	}
}
