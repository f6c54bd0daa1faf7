package vfiouser

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
)

// The write queue: register writes of the client in memory that both sides have, so that a posted
// write is no message. See the package's documentation for the layout.
const (
	queueTail  = 0x00 // 64 bits, client: how many writes it put in, ever
	queueHead  = 0x40 // 64 bits, server: how many of them the device has
	queueSleep = 0x80 // 32 bits, server: 1 while it must be kicked
	queueRing  = 0x1000
	entrySize  = 32

	queueEntries = 1024 // a power of two
)

func queueBytes(entries int) int64 { return queueRing + int64(entries)*entrySize }

// post is one write. Entry words: offset in 47:0, region in 55:48, log2 of the width in 57:56; the
// value; when it was written, where the server wants to know.
type post struct {
	region uint8
	width  uint8
	off    uint64
	value  uint64
}

const offMask = 1<<48 - 1

func (p *post) word() uint64 {
	log2 := uint64(0)
	for 1<<log2 < p.width {
		log2++
	}
	return p.off&offMask | uint64(p.region)<<48 | log2<<56
}

func postOf(word, value uint64) post {
	return post{region: uint8(word >> 48), width: 1 << (word >> 56 & 3), off: word & offMask, value: value}
}

// producer is the client's end. Safe for concurrent use.
type producer struct {
	limit time.Duration
	dead  func() bool
	timed bool // entries say when

	mu   sync.Mutex
	mem  []byte // nil: closed
	kick kick
	mask uint64
	tail uint64
	head uint64 // as it was seen last
}

// newProducer maps the queue that a server offers; event, its doorbell, is the producer's from then on,
// where there is no error.
func newProducer(memory *os.File, event, entries int, limit time.Duration, dead func() bool) (*producer, error) {
	if entries < 2 || entries > 1<<20 || entries&(entries-1) != 0 {
		return nil, fmt.Errorf("the server's write queue has %d entries: %w", entries, bus.ErrProtocol)
	}
	if !isEventfd(event) {
		return nil, fmt.Errorf("the write queue's doorbell is no eventfd: %w", bus.ErrProtocol)
	}
	b, stays, err := mapFile(memory, 0, uint64(queueBytes(entries)))
	if err != nil {
		return nil, fmt.Errorf("mapping the write queue: %w", err)
	}
	if !stays {
		return nil, fmt.Errorf("the write queue's memory is not sealed against shrinking: %w", bus.ErrProtocol)
	}
	return &producer{limit: limit, dead: dead, mem: b, kick: kick{fd: event}, mask: uint64(entries - 1)}, nil
}

// put appends a write. It waits while the queue is full, and fails where the server takes nothing
// out of it for too long, or says what cannot be.
func (q *producer) put(p post) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mem == nil {
		return nil
	}
	if q.tail-q.head > q.mask {
		if err := q.await(q.mask); err != nil {
			return err
		}
	}
	at := queueRing + int(q.tail&q.mask)*entrySize
	binary.LittleEndian.PutUint64(q.mem[at:], p.word())
	binary.LittleEndian.PutUint64(q.mem[at+8:], p.value)
	if q.timed {
		binary.LittleEndian.PutUint64(q.mem[at+16:], uint64(monotonic()))
	}
	q.tail++
	dma.Store64(q.mem, queueTail, q.tail)
	// The store comes before this load, here and in the server the other way round: one of the two
	// sees the other's.
	if dma.Load32(q.mem, queueSleep) != 0 {
		q.kick.ring(q.dead)
	}
	return nil
}

// started ties Go's clock, which costs no system call, to CLOCK_MONOTONIC, which all processes have.
var started, startedAt = func() (int64, time.Time) {
	var ts unix.Timespec
	at := time.Now()
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, at
	}
	return ts.Nano(), at
}()

// monotonic is CLOCK_MONOTONIC in nanoseconds.
func monotonic() int64 { return started + int64(time.Since(startedAt)) }

// oneEvent is what is written to an eventfd.
var oneEvent = func() (b [8]byte) {
	binary.NativeEndian.PutUint64(b[:], 1)
	return b
}()

// await waits until at most left writes are in the queue. Called with mu held.
func (q *producer) await(left uint64) error {
	begun := time.Now()
	for n := 0; ; n++ {
		q.head = dma.Load64(q.mem, queueHead)
		if q.tail-q.head > q.mask+1 {
			return fmt.Errorf("the write queue's head is %d, its tail %d, of %d entries: %w", q.head, q.tail, q.mask+1, bus.ErrProtocol)
		}
		if q.tail-q.head <= left {
			return nil
		}
		switch {
		case q.dead():
			return nil // why was said
		case n < 64:
			runtime.Gosched()
			continue
		case n&0xff == 0 && time.Since(begun) > q.limit:
			return fmt.Errorf("the write queue has been full for %v: %w", q.limit, bus.ErrTimeout)
		}
		time.Sleep(20 * time.Microsecond)
	}
}

// flush waits until the device has all that was put in before.
func (q *producer) flush() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mem == nil || q.tail == q.head {
		return nil
	}
	return q.await(0)
}

func (q *producer) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mem != nil {
		_ = unix.Munmap(q.mem)
		q.kick.close()
		q.mem = nil
	}
}

// consumer is the server's end. Its methods are called with the group's lock held, but for empty, sleep and
// wake, which one goroutine calls.
type consumer struct {
	memory *os.File
	kick   int
	mem    []byte
	mask   uint64
	head   uint64
	tail   uint64 // as it was seen last
}

func newConsumer() (*consumer, error) {
	f, err := newMemory("ring3-queue", queueBytes(queueEntries))
	if err != nil {
		return nil, err
	}
	q := &consumer{memory: f, kick: -1, mask: queueEntries - 1}
	if q.mem, err = unix.Mmap(int(f.Fd()), 0, int(queueBytes(queueEntries)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		q.kick, err = sink()
	}
	if err != nil {
		q.close()
		return nil, fmt.Errorf("making a write queue: %w", err)
	}
	return q, nil
}

// empty says whether nothing was put in since head writes were taken: what the memory has as the head the client
// may write, too.
func (q *consumer) empty(head uint64) bool { return dma.Load64(q.mem, queueTail) == head }

// sleep asks for a kick. What was put in before is seen by an empty after it.
func (q *consumer) sleep() { dma.Store32(q.mem, queueSleep, 1) }

func (q *consumer) wake() { dma.Store32(q.mem, queueSleep, 0) }

// look sees what was put in. A client whose tail cannot be is an error.
func (q *consumer) look() error {
	tail := dma.Load64(q.mem, queueTail)
	if tail-q.head > q.mask+1 {
		return fmt.Errorf("the write queue's tail is %d, its head %d, of %d entries: %w", tail, q.head, q.mask+1, bus.ErrProtocol)
	}
	q.tail = tail
	return nil
}

// count is how many of the writes that were seen there are to take.
func (q *consumer) count() int { return int(q.tail - q.head) }

// when is the time of the first write, of at least one.
func (q *consumer) when() uint64 {
	return dma.Load64(q.mem, queueRing+int(q.head&q.mask)*entrySize+16)
}

// take takes the first write out, of at least one, once it is made.
func (q *consumer) take(do func(p post) error) error {
	at := queueRing + int(q.head&q.mask)*entrySize
	if err := do(postOf(dma.Load64(q.mem, at), dma.Load64(q.mem, at+8))); err != nil {
		return err
	}
	q.head++
	dma.Store64(q.mem, queueHead, q.head)
	return nil
}

func (q *consumer) close() {
	if q.mem != nil {
		_ = unix.Munmap(q.mem)
	}
	if q.kick >= 0 {
		_ = unix.Close(q.kick)
	}
	q.memory.Close()
	q.mem, q.kick = nil, -1
}
