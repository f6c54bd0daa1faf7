package vfiouser

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// vectors are the interrupts of a session: the device's, and the client's eventfds that they are to
// signal. set and close are the message loop's; unstick runs beside them.
type vectors struct {
	x      *session
	index  int // of what is enabled; -1: nothing
	want   [numIRQs]int
	irqs   []*bus.IRQ
	resume *resume

	mu    sync.Mutex // guards outs, and the closing of what is in them; after an out's
	outs  []*out     // by vector
	error out        // is told of the device's death
	carry sync.WaitGroup
}

// out is where a vector's interrupts go.
type out struct {
	mu       sync.Mutex // held while fd is written to
	fd       int        // the client's eventfd; -1: nowhere
	carrying bool       // a goroutine waits for the vector, and writes
}

func (v *vectors) init(x *session) { v.x, v.index, v.error.fd = x, -1, -1 }

// have is how many vectors the device offers of a kind.
func (v *vectors) have(index uint32) int {
	switch {
	case index < uint32(len(irqModes)):
		return v.x.dev.IRQVectors(irqModes[index])
	case index == irqErr:
		return 1
	}
	return 0
}

// irqInfo is DEVICE_GET_IRQ_INFO.
func (x *session) irqInfo(r *reader) (writer, error) {
	q := r.irqInfo()
	if r.short || q.argsz < irqInfoSize {
		return nil, errShort
	}
	if q.index >= numIRQs {
		return nil, fmt.Errorf("interrupts of kind %d of %d: %w", q.index, numIRQs, unix.EINVAL)
	}
	i := irqInfo{argsz: irqInfoSize, flags: irqEventfd, index: q.index, count: uint32(x.irqs.have(q.index))}
	switch q.index {
	case irqINTx:
		i.flags |= irqMaskable | irqAutomasked
	case irqMSI, irqMSIX:
		i.flags |= irqNoResize
	}
	w := x.begin()
	w.irqInfo(i)
	return w, nil
}

// set is DEVICE_SET_IRQS.
func (v *vectors) set(r *reader, m *message) error {
	q := r.irqSet()
	if r.short || q.argsz < irqSetSize {
		return errShort
	}
	data, action := q.flags&setData, q.flags&setAction
	bad := func(what string) error {
		return fmt.Errorf("%s: flags %#x, kind %d, vectors %d to %d, %d bytes, %d descriptors: %w", what, q.flags, q.index, q.start, uint64(q.start)+uint64(q.count), len(r.b), len(m.fds), unix.EINVAL)
	}
	switch have := uint64(v.have(q.index)); {
	case q.index >= numIRQs:
		return bad("no such kind")
	case q.flags&^(setData|setAction) != 0 || data&(data-1) != 0 || data == 0 || action&(action-1) != 0 || action == 0:
		return bad("no one kind of data and one action")
	case uint64(q.start)+uint64(q.count) > have:
		return bad(fmt.Sprintf("there are %d", have))
	case data == setBool && len(r.b) != int(q.count) || data != setBool && len(r.b) != 0 && data != setEventfd:
		return bad("the data does not fit")
	case len(m.fds) > 0 && (data != setEventfd || len(m.fds) != int(q.count)):
		return bad("the descriptors do not fit")
	case q.count == 0 && (q.start != 0 || data != setNone || action != setTrigger):
		return bad("no vectors")
	}
	for _, fd := range m.fds {
		if !isEventfd(fd) {
			return bad("a descriptor is no eventfd")
		}
	}
	if q.index == irqErr {
		return v.setError(q, m)
	}
	if action != setTrigger {
		return v.mask(q, r.b, m)
	}
	switch {
	case q.count == 0:
		return v.disable(int(q.index))
	case data == setEventfd && len(m.fds) == 0:
		return v.unassign(q)
	case data == setEventfd:
		return v.assign(q, m)
	}
	v.trigger(q, r.b)
	return nil
}

// setError takes the eventfd that is told of the device's death.
func (v *vectors) setError(q irqSet, m *message) error {
	if q.flags&setAction != setTrigger {
		return fmt.Errorf("masking of error interrupts: %w", unix.EINVAL)
	}
	if q.flags&setEventfd == 0 && q.count != 0 {
		v.error.add(1) // the client tries it
		return nil
	}
	fd := -1
	if len(m.fds) == 1 {
		fd, m.fds[0] = m.fds[0], -1
	}
	v.put(&v.error, fd)
	return nil
}

// died tells the client of the device's death. A client that keeps its eventfd full has it wait, until unstick.
func (v *vectors) died() { v.error.add(1) }

// add adds to where interrupts go.
func (o *out) add(n uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	notify(o.fd, n)
}

// put has interrupts go to fd from now on.
func (v *vectors) put(o *out, fd int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	closeFD(&o.fd)
	o.fd = fd
}

// notify adds to an eventfd.
func notify(fd int, n uint64) {
	if fd < 0 {
		return
	}
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], n)
	_, _ = unix.Write(fd, b[:])
}

// assign gives vectors eventfds, and enables what is not enabled yet.
func (v *vectors) assign(q irqSet, m *message) error {
	if err := v.ensure(int(q.index), int(q.start+q.count)); err != nil {
		return err
	}
	for i := range m.fds {
		v.attach(int(q.start)+i, m.fds[i])
		m.fds[i] = -1
	}
	return nil
}

// ensure enables at least n vectors of a kind. What was enabled of another is disabled.
func (v *vectors) ensure(index, n int) error {
	n = max(n, v.want[index])
	if v.index == index && len(v.irqs) >= n {
		return nil
	}
	if index == irqMSIX {
		// More at once, so that one more is no new start; nobody hears what was given no eventfd.
		n = min(max(n, 64), v.have(irqMSIX))
	}
	var old []*out
	if v.index == index {
		old = v.outs
	}
	err := v.release(old == nil)
	var irqs []*bus.IRQ
	if err == nil {
		irqs, err = v.x.dev.EnableIRQs(irqModes[index], n)
	}
	if err != nil {
		for _, o := range old {
			closeFD(&o.fd)
		}
		return err
	}
	v.index, v.irqs = index, irqs
	v.mu.Lock()
	v.outs = nil
	for range irqs {
		v.outs = append(v.outs, &out{fd: -1})
	}
	v.mu.Unlock()
	for i, o := range old {
		if o.fd >= 0 {
			v.attach(i, o.fd)
		}
	}
	v.x.cfg.setLine(index == irqINTx)
	return nil
}

// attach has a vector signal an eventfd, which is the session's from then on.
func (v *vectors) attach(i, fd int) {
	q, o := v.irqs[i], v.outs[i]
	v.put(o, fd)
	if o.carrying {
		return
	}
	// A model would hold up everybody in an eventfd that blocks.
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil && flags&unix.O_NONBLOCK != 0 && q.Divert(fd) {
		return
	}
	o.carrying = true
	v.carry.Go(func() { o.carry(q) })
}

func closeFD(fd *int) {
	if *fd >= 0 {
		_ = unix.Close(*fd)
		*fd = -1
	}
}

// carry passes on what a vector is told, until that is closed.
func (o *out) carry(q *bus.IRQ) {
	for {
		n, err := q.Wait(context.Background())
		if err != nil {
			return
		}
		o.add(n)
	}
}

// unassign takes eventfds away, and remembers how many vectors the client speaks of.
func (v *vectors) unassign(q irqSet) error {
	v.want[q.index] = max(v.want[q.index], int(q.start+q.count))
	if v.index != int(q.index) {
		return nil
	}
	for i := int(q.start); i < min(int(q.start+q.count), len(v.irqs)); i++ {
		if v.outs[i].fd < 0 {
			continue
		}
		fd, err := sink()
		if err != nil {
			return err
		}
		v.attach(i, fd)
	}
	return nil
}

// trigger fires vectors as if the device had.
func (v *vectors) trigger(q irqSet, which []byte) {
	for i := int(q.start); i < int(q.start+q.count); i++ {
		if v.index != int(q.index) || i >= len(v.irqs) || len(which) > 0 && which[i-int(q.start)] == 0 {
			continue
		}
		v.outs[i].add(1)
	}
}

// mask is the actions MASK and UNMASK, which a line has.
func (v *vectors) mask(q irqSet, which []byte, m *message) error {
	unmask := q.flags&setUnmask != 0
	switch {
	case q.index != irqINTx:
		return fmt.Errorf("masking of %s: %w", irqModes[min(q.index, irqMSIX)], bus.ErrNotSupported)
	case q.flags&setEventfd != 0 && !unmask:
		return fmt.Errorf("telling of masks: %w", bus.ErrNotSupported)
	case q.flags&setEventfd != 0:
		return v.setResume(m)
	case len(which) == 1 && which[0] == 0 || v.index != irqINTx:
		return nil
	}
	v.x.cfg.setMasked(!unmask)
	if unmask {
		v.irqs[0].Unmask()
	}
	return nil
}

// resume unmasks the line each time that an eventfd of the client's fires.
type resume struct {
	q    *bus.IRQ
	done sync.WaitGroup
}

// setResume takes that eventfd.
func (v *vectors) setResume(m *message) error {
	if v.index != irqINTx {
		return fmt.Errorf("an eventfd that unmasks a line that is not enabled: %w", unix.EINVAL)
	}
	v.dropResume()
	if len(m.fds) == 0 {
		return nil
	}
	q, err := bus.WrapIRQ(bus.INTx, 0, m.fds[0], nil)
	if err != nil {
		return err
	}
	line, cfg := v.irqs[0], v.x.cfg
	r := &resume{q: q}
	r.done.Go(func() {
		for {
			if _, err := q.Wait(context.Background()); err != nil {
				return
			}
			cfg.setMasked(false)
			line.Unmask()
		}
	})
	v.resume = r
	return nil
}

func (v *vectors) dropResume() {
	if r := v.resume; r != nil {
		_ = r.q.Close()
		r.done.Wait()
		v.resume = nil
	}
}

// disable is what the client asks for, of one kind.
func (v *vectors) disable(index int) error {
	v.want[index] = 0
	if v.index != index {
		return nil
	}
	return v.release(true)
}

// release disables what is enabled. Its eventfds are closed, or left for whoever takes them over.
func (v *vectors) release(closing bool) error {
	if v.index < 0 {
		return nil
	}
	v.dropResume()
	if v.index == irqINTx {
		v.x.cfg.setLine(false)
	}
	err := v.x.dev.DisableIRQs()
	for _, q := range v.irqs {
		_ = q.Close() // a device that died may not have
	}
	v.carry.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	if closing {
		for _, o := range v.outs {
			closeFD(&o.fd)
		}
	}
	v.index, v.irqs, v.outs = -1, nil, nil
	return err
}

// close is the end of the session.
func (v *vectors) close() {
	_ = v.release(true)
	v.put(&v.error, -1)
}

// stuffed says whether the client keeps an eventfd full, which holds up the device's model if it blocks.
func (v *vectors) stuffed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return full(v.error.fd) || slices.ContainsFunc(v.outs, func(o *out) bool { return full(o.fd) })
}

// unstick empties the client's eventfds, until done: whoever is held up by one that is full goes on.
// A client can make that happen only by meaning to, and by keeping its eventfds blocking. What it is still
// to read of the device's death is left.
func (v *vectors) unstick(done <-chan struct{}) {
	const every = 10 * time.Millisecond
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
			v.mu.Lock()
			for _, o := range v.outs {
				drainEventfd(o.fd)
			}
			if full(v.error.fd) {
				drainEventfd(v.error.fd)
			}
			v.mu.Unlock()
		}
	}
}
