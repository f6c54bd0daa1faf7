package sim

import (
	"encoding/binary"

	"github.com/ring3dev/ring3/bus"
)

// e1Context is a context descriptor, 3.3.6.
type e1Context struct {
	ipcss, ipcso, ipcse int
	tucss, tucso, tucse int
	paylen, hdr, mss    int
	tcp, v4             bool
}

// context takes a context descriptor.
func (c *e1000) context(t *e1TxQueue, low, high uint64) {
	i := 0
	if high&e1TxTSE != 0 && !c.m.pcie {
		i = 1
	}
	t.ctx[i] = e1Context{
		ipcss: int(low & 0xff), ipcso: int(low >> 8 & 0xff), ipcse: int(low >> 16 & 0xffff),
		tucss: int(low >> 32 & 0xff), tucso: int(low >> 40 & 0xff), tucse: int(low >> 48),
		paylen: int(high & 0xfffff), hdr: int(high >> 40 & 0xff), mss: int(high >> 48),
		tcp: high&(1<<24) != 0, v4: high&(1<<25) != 0,
	}
}

// segContext is the context for segmentation.
func (c *e1000) segContext(t *e1TxQueue) *e1Context {
	if c.m.pcie {
		return &t.ctx[0]
	}
	return &t.ctx[1]
}

// putSum puts a checksum in: over css to cse, where 0 is the end, at cso, where the part of it
// is that the software has made (3.3.6). Offsets that lie outside do nothing.
func putSum(f []byte, css, cso, cse int) {
	end := len(f)
	if cse != 0 && cse < end {
		end = cse + 1
	}
	if css >= end || cso+2 > len(f) {
		return
	}
	v := ^fold(sum(f[css:end], 0))
	if v == 0 {
		v = 0xffff // the same, and in UDP not "none"
	}
	binary.BigEndian.PutUint16(f[cso:], v)
}

// segment takes n bytes more of a frame that is cut up, 3.5, and sends each segment that is full.
func (c *e1000) segment(t *e1TxQueue, addr bus.IOVA, n int) {
	x, b := &t.seg, c.tx.buf[4:]
	if x.hdr == 0 || x.mss < e1MinMSS {
		t.drop = true
		c.count(e1TSCTFC)
		return
	}
	f := c.s.mem(addr, n)
	if f == nil {
		t.drop = true
		return
	}
	for len(f) > 0 {
		k := min(len(f), x.hdr+x.mss-t.n)
		copy(b[t.n:], f[:k])
		if t.n < x.hdr && t.n+k >= x.hdr {
			copy(t.hdr[:], b[:x.hdr])
		}
		f = f[k:]
		if t.n += k; t.n == x.hdr+x.mss {
			c.sendSegment(t, x, (t.segs+1)*x.mss >= x.paylen)
		}
	}
}

// lastSegment sends what is left.
func (c *e1000) lastSegment(t *e1TxQueue) {
	x := &t.seg
	if t.n > x.hdr || t.segs == 0 && t.n == x.hdr {
		c.sendSegment(t, x, true)
	}
	if t.segs > 0 {
		c.count(e1TSCTC)
	}
}

// sendSegment makes the header that of a segment, 3.5, and sends it.
func (c *e1000) sendSegment(t *e1TxQueue, x *e1Context, last bool) {
	f := c.tx.buf[4 : 4+t.n]
	be := binary.BigEndian
	switch {
	case x.v4 && x.ipcss+20 <= x.hdr:
		be.PutUint16(f[x.ipcss+2:], uint16(t.n-x.ipcss))
		be.PutUint16(f[x.ipcss+4:], be.Uint16(f[x.ipcss+4:])+uint16(t.segs))
	case !x.v4 && x.ipcss+40 <= x.hdr:
		be.PutUint16(f[x.ipcss+4:], uint16(t.n-x.ipcss-40))
	}
	switch {
	case x.tcp && x.tucss+20 <= x.hdr:
		be.PutUint32(f[x.tucss+4:], be.Uint32(f[x.tucss+4:])+uint32(t.segs*x.mss))
		if !last {
			f[x.tucss+13] &^= 0x09 // FIN, PSH
		}
	case !x.tcp && x.tucss+8 <= x.hdr:
		be.PutUint16(f[x.tucss+4:], uint16(t.n-x.tucss))
	}
	if t.first&e1TxTXSM != 0 {
		if x.tucso+2 <= x.hdr && x.tucss <= t.n {
			be.PutUint16(f[x.tucso:], fold(uint64(be.Uint16(f[x.tucso:]))+uint64(t.n-x.tucss)))
		}
		putSum(f, x.tucss, x.tucso, x.tucse)
	}
	if t.first&e1TxIXSM != 0 {
		putSum(f, x.ipcss, x.ipcso, x.ipcse)
	}
	c.finish(t, t.n)
	copy(c.tx.buf[4:], t.hdr[:x.hdr])
	t.n = x.hdr
	t.segs++
}
