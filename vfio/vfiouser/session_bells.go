package vfiouser

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/rt"
)

// bells are the ways by which the client writes registers without a message: the write queue of
// ring3's clients, and doorbells for everybody's. One goroutine looks after them; the message loop
// drains them before each message, so that what was written before is done before.
type bells struct {
	x     *session
	group *Group    // whose mu guards what follows
	queue *consumer // nil: there is none

	failed  error // what the client did wrong
	rings   []ring
	memory  *os.File // where the rings' values are
	values  []byte
	offered bool   // rings are made
	rungs   uint64 // doorbells that were made, ever

	wake    int // eventfd: there is something new to look at, or the end; -1: not started
	ending  bool
	running sync.WaitGroup
	poll    []unix.PollFd // sleep's
}

// ring is one doorbell.
type ring struct {
	region int
	off    uint64
	width  int
	kick   int // eventfd
	at     int // of its value
	rung   bool
}

// start begins to look, where there is anything.
func (b *bells) start() {
	b.group.mu.Lock()
	defer b.group.mu.Unlock()
	b.startLocked()
}

func (b *bells) startLocked() {
	if b.queue == nil && len(b.rings) == 0 || b.ending {
		return
	}
	if b.wake >= 0 {
		notify(b.wake, 1)
		return
	}
	fd, err := sink()
	if err != nil {
		b.failed = err
		return
	}
	b.wake = fd
	b.running.Go(b.look)
}

// stop waits until nobody looks, and gives everything back.
func (b *bells) stop() {
	b.group.mu.Lock()
	b.ending = true
	notify(b.wake, 1)
	b.group.mu.Unlock()
	b.running.Wait()
	if b.queue != nil {
		b.queue.close()
	}
	for _, r := range b.rings {
		_ = unix.Close(r.kick)
	}
	if b.values != nil {
		_ = unix.Munmap(b.values)
	}
	if b.memory != nil {
		b.memory.Close()
	}
	closeFD(&b.wake)
}

// drain makes the writes that are there, of the whole group. An error is this client's.
func (b *bells) drain() error {
	b.group.mu.Lock()
	defer b.group.mu.Unlock()
	b.group.drain(b)
	return b.failed
}

// made counts what was made for this client, by whichever goroutine. Called with the group's mu held.
func (b *bells) made() uint64 {
	n := b.rungs
	if b.queue != nil {
		n += b.queue.head
	}
	return n
}

// How long look waits for the next write before it sleeps: a driver that is busy writes again before
// that, and need not kick. It is longer where it was woken soon the last time, so that a driver's naps
// do not put it to sleep, each time to be woken in tens of microseconds.
const (
	leastSpin = 20 * time.Microsecond
	mostSpin  = 200 * time.Microsecond
)

// nextSpin is how long to wait after a sleep of some time.
func nextSpin(spin, slept time.Duration) time.Duration {
	if slept < mostSpin {
		return min(2*spin, mostSpin)
	}
	return max(spin/2, leastSpin)
}

// look makes writes as they come.
func (b *bells) look() {
	spin := time.Duration(0)
	if runtime.GOMAXPROCS(0) > 1 && b.queue != nil {
		spin = leastSpin
		runtime.LockOSThread() // it is woken where its caches are
	}
	idle, before := time.Now(), uint64(0)
	for {
		b.group.mu.Lock()
		b.group.drain(b)
		made, err, ending := b.made(), b.failed, b.ending
		head := uint64(0)
		if b.queue != nil {
			head = b.queue.head
		}
		b.group.mu.Unlock()
		switch {
		case ending:
			return
		case err != nil:
			b.x.shutdown() // the message loop says why
			return
		case made != before:
			idle, before = time.Now(), made
			continue
		case spin > 0 && b.spin(head, idle, spin):
			continue
		}
		begun := time.Now()
		if !b.sleep(head) {
			return
		}
		if idle = time.Now(); spin > 0 {
			spin = nextSpin(spin, idle.Sub(begun))
		}
	}
}

// spin waits for a write after the first head ones, until spin has passed since idle. It says whether there may be
// one.
func (b *bells) spin(head uint64, idle time.Time, spin time.Duration) bool {
	for time.Since(idle) < spin {
		for range 64 {
			if !b.queue.empty(head) {
				return true
			}
		}
		rt.Yield() // the client may wait for this very CPU
	}
	return false
}

// sleep waits for a kick, where there is no write after the first head ones. It says false where there will be none.
func (b *bells) sleep(head uint64) bool {
	if b.queue != nil {
		b.queue.sleep()
		defer b.queue.wake()
		if !b.queue.empty(head) {
			return true
		}
	}
	b.group.mu.Lock()
	fds := append(b.poll[:0], unix.PollFd{Fd: int32(b.wake), Events: unix.POLLIN})
	if b.queue != nil {
		fds = append(fds, unix.PollFd{Fd: int32(b.queue.kick), Events: unix.POLLIN})
	}
	for _, r := range b.rings {
		fds = append(fds, unix.PollFd{Fd: int32(r.kick), Events: unix.POLLIN})
	}
	b.poll = fds
	b.group.mu.Unlock()
	if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
		return false
	}
	drainEventfd(b.wake)
	if b.queue != nil {
		drainEventfd(b.queue.kick)
	}
	return true
}

// offer is DEVICE_GET_REGION_IO_FDS.
func (b *bells) offer(r *reader) (writer, []int, error) {
	q := r.ioFDs()
	switch {
	case r.short || q.argsz < ioFDsSize:
		return nil, nil, errShort
	case q.flags != 0 || q.count != 0 || q.index >= numRegions:
		return nil, nil, fmt.Errorf("flags %#x, count %d, region %d: %w", q.flags, q.count, q.index, unix.EINVAL)
	}
	b.group.mu.Lock()
	defer b.group.mu.Unlock()
	if err := b.makeRings(); err != nil {
		return nil, nil, err
	}
	var list writer
	var fds []int
	n := uint32(0)
	for _, r := range b.rings {
		if r.region != int(q.index) {
			continue
		}
		if len(fds) == 0 {
			fds = append(fds, int(b.memory.Fd()))
		}
		if len(fds) >= b.x.client.fds() {
			break // the client takes no more descriptors
		}
		list.shadowFD(shadowFD{off: r.off, size: uint64(r.width), fd: uint32(len(fds)), kind: typeShadowFD, mem: 0, memOff: uint64(r.at)})
		fds = append(fds, r.kick)
		n++
	}
	i := ioFDs{argsz: ioFDsSize + uint32(len(list)), index: q.index, count: n}
	if n == 0 || i.argsz > q.argsz {
		list, fds = nil, nil
	}
	w := b.x.begin()
	w.ioFDs(i)
	b.startLocked()
	return append(w, list...), fds, nil
}

// makeRings makes the doorbells of the driver's table, the first time that somebody asks.
func (b *bells) makeRings() error {
	if b.offered {
		return nil
	}
	b.offered = true
	var rings []ring
	for _, r := range b.x.srv.o.Registers {
		width := r.Width
		if width == 0 {
			width = 4
		}
		if r.Ring == nil || r.Region < 0 || r.Region >= regionROM || b.x.regions[r.Region] == nil || width != 4 && width != 8 {
			continue
		}
		for i := range max(r.Count, 1) {
			off := uint64(r.At(i))
			if size := b.x.sizeOf(r.Region); off&uint64(width-1) != 0 || off >= size || size-off < uint64(width) || len(rings) == maxDoorbells {
				continue
			}
			rings = append(rings, ring{region: r.Region, off: off, width: width, kick: -1, at: 64 * len(rings)})
		}
	}
	if len(rings) == 0 {
		return nil
	}
	return b.openRings(rings)
}

// openRings makes the memory and the eventfds.
func (b *bells) openRings(rings []ring) (err error) {
	if b.memory, err = newMemory("ring3-doorbells", pageSize); err != nil {
		return err
	}
	if b.values, err = unix.Mmap(int(b.memory.Fd()), 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("mapping doorbells: %w", err)
	}
	for _, r := range rings {
		if r.kick, err = sink(); err != nil {
			return err
		}
		b.rings = append(b.rings, r)
	}
	return nil
}
