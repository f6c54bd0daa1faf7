package qemu

import (
	"strconv"

	"github.com/ring3dev/ring3/bus"
)

// maxRun is how many reads are sent before the first answer is waited for: their answers must fit beside those of posted
// writes (maxPosted).
const maxRun = 64

// askRun sends reads at addr, addr+stride and so on, and waits for their values. It says false when the link is dead.
func (q *qtest) askRun(cmd string, addr, stride uint64, n int, got func(i int, v uint64)) bool {
	if q.dead.Load() {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for first := 0; first < n; {
		run := min(n-first, maxRun)
		for q.pending > maxPosted-run {
			if _, ok := q.next(); !ok {
				return false
			}
		}
		var buf [maxRun * 32]byte
		b := buf[:0]
		for i := range run {
			b = append(append(b, cmd...), "0x"...)
			b = append(strconv.AppendUint(b, addr+uint64(first+i)*stride, 16), '\n')
		}
		if !q.write(b) {
			return false
		}
		q.pending += run - 1 // write counted one
		for q.pending > run {
			if _, ok := q.next(); !ok { // of what was posted before
				return false
			}
		}
		for i := range run {
			v, ok := q.next()
			if !ok {
				return false
			}
			got(first+i, v)
		}
		first += run
	}
	return q.settle()
}

// run reads in a row, where all of it is in memory space and inside the region; else one by one.
func (r *region) run(off, stride bus.Off, width uint64, n int, put func(i int, v uint64)) {
	last := off + bus.Off(max(n-1, 0))*stride
	addr, first := r.at(off, width)
	_, end := r.at(last, width)
	if n < 2 || r.info.Kind != bus.RegionMem || !first || !end || last < off || uint64(stride)&(width-1) != 0 {
		for i := range n {
			put(i, r.read(off+bus.Off(i)*stride, int(width)))
		}
		return
	}
	for i := range n {
		put(i, ^uint64(0)) // what is not answered any more
	}
	r.dev.m.qt.askRun(cmdRead[width], addr, uint64(stride), n, put)
	if !r.dev.alive() { // QEMU reads 0 where a device was
		for i := range n {
			put(i, ^uint64(0))
		}
	}
}

// ReadRun32 is bus.ReadRunner's.
func (r *region) ReadRun32(off, stride bus.Off, p []uint32) {
	r.run(off, stride, 4, len(p), func(i int, v uint64) { p[i] = uint32(v) })
}

// ReadRun64 is bus.ReadRunner's.
func (r *region) ReadRun64(off, stride bus.Off, p []uint64) {
	r.run(off, stride, 8, len(p), func(i int, v uint64) { p[i] = v })
}
