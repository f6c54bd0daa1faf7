package trace

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultRecords is how many records a device keeps.
const DefaultRecords = 4096

// recorder is a ring of records with one lock, which also guards what doorbells and DMA memory
// need. Taking it costs less than making each word of a record atomic.
type recorder struct {
	on     atomic.Bool
	shared Memory // nil: there is none. What it was given stays; records are put into it with mu held

	mu     sync.Mutex
	ring   []Record        // a power of two
	next   uint64          // number of the next record
	closed bool            // nothing more will come
	asleep []chan struct{} // readers that wait for the next record
}

func newRecorder(n int) *recorder {
	size := 1
	for size < n {
		size *= 2
	}
	t := &recorder{ring: make([]Record, size)}
	t.on.Store(true)
	return t
}

// slot begins a record. Called with mu held; until mu is released the record is the caller's.
func (t *recorder) slot(k Kind) *Record { return t.slotAt(k, int64(time.Since(epoch))) }

// slotAt is slot where the time is known.
func (t *recorder) slotAt(k Kind, now int64) *Record {
	r := &t.ring[t.next&uint64(len(t.ring)-1)]
	// Field by field: the data of an earlier record need not be cleared.
	r.Seq, r.Time, r.Kind, r.Op = t.next, now, k, OpNone
	r.Off, r.Value, r.Aux, r.Count = 0, 0, 0, 0
	r.Width, r.Mode, r.Region, r.failed, r.desc, r.n = 0, 0, NoRegion, false, 0, 0
	t.next++
	if len(t.asleep) > 0 {
		t.wake()
	}
	return r
}

// done ends what slot began.
func (t *recorder) done(r *Record) {
	if t.shared != nil {
		t.share(r)
	}
}

// wake tells the readers that wait. Called with mu held.
func (t *recorder) wake() {
	for _, ch := range t.asleep {
		select {
		case ch <- struct{}{}:
		default: // told already
		}
	}
	t.asleep = t.asleep[:0]
}

// sleep asks for a word on ch when there is a record numbered pos; false: there is, or there
// never will be.
func (t *recorder) sleep(ch chan struct{}, pos uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next > pos || t.closed {
		return false
	}
	if !slices.Contains(t.asleep, ch) {
		t.asleep = append(t.asleep, ch)
	}
	return true
}

// copyChunk bounds how long a reader keeps the driver waiting.
const copyChunk = 64

// read copies records from pos on. pos moves on by n and lost.
func (t *recorder) read(pos uint64, buf []Record) (n int, lost uint64, end bool) {
	for n < len(buf) {
		t.mu.Lock()
		if oldest := t.oldest(); pos+lost < oldest && n == 0 {
			lost = oldest - pos
		} else if pos+lost+uint64(n) < oldest {
			t.mu.Unlock() // overtaken between two chunks: the next read tells
			return n, lost, false
		}
		at := pos + lost + uint64(n)
		k := min(len(buf)-n, copyChunk, int(t.next-at))
		for i := range k {
			buf[n+i] = t.ring[(at+uint64(i))&uint64(len(t.ring)-1)]
		}
		n += k
		end = t.closed && at+uint64(k) == t.next
		t.mu.Unlock()
		if k == 0 || end {
			break
		}
	}
	return n, lost, end
}

// oldest is the number of the oldest record that is still there. Called with mu held.
func (t *recorder) oldest() uint64 {
	if t.next < uint64(len(t.ring)) {
		return 0
	}
	return t.next - uint64(len(t.ring))
}

// Reader reads a device's records in order, at a pace of its own. It belongs to one goroutine;
// any number may read one device.
type Reader struct {
	d   *Device
	pos uint64
}

// NewReader begins with the next record, or up to back records earlier.
func (d *Device) NewReader(back int) *Reader {
	t := d.rec
	t.mu.Lock()
	defer t.mu.Unlock()
	held := t.next - t.oldest()
	return &Reader{d: d, pos: t.next - min(held, uint64(max(back, 0)))}
}

// Read copies what is there, at most len(buf) records, and does not wait. lost is how many
// records before these were overwritten before they could be read. end says that the device is
// closed and everything was read.
func (r *Reader) Read(buf []Record) (n int, lost uint64, end bool) {
	n, lost, end = r.d.rec.read(r.pos, buf)
	r.pos += lost + uint64(n)
	return n, lost, end
}

// Last is the last n records, oldest first: what a crash report wants. [Device.Entries] names
// them.
func (d *Device) Last(n int) []Record {
	r := d.NewReader(n)
	buf := make([]Record, d.Recorded()-r.pos)
	n, _, _ = r.Read(buf)
	return buf[:n]
}

// Recorded is how many records were ever made.
func (d *Device) Recorded() uint64 {
	d.rec.mu.Lock()
	defer d.rec.mu.Unlock()
	return d.rec.next
}
