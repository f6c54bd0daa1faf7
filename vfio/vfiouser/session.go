package vfiouser

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// session is one client's time with the device. Messages are handled in order, by one goroutine;
// another drains the write queue and the doorbells.
type session struct {
	srv    *Server
	dev    bus.Device
	s      *sock
	twin   *sock // nil: commands to the client go the same way as its own
	client capabilities

	cfg     *vconfig
	regions [regionROM]bus.Region // nil: there is none
	table   vtable

	in    message
	out   []byte
	asks  asks
	bells bells
	irqs  vectors
	dma   windows

	words    bool // last words are welcome
	mourning sync.Once
	ended    chan struct{}
	helpers  sync.WaitGroup

	failMu sync.Mutex // guards failed
	failed error      // what the client did wrong, as somebody beside the message loop found
}

func newSession(s *Server, k *sock) *session {
	x := &session{srv: s, dev: s.dev, s: k, out: make([]byte, 0, 4096), ended: make(chan struct{})}
	x.asks.init()
	x.irqs.init(x)
	x.bells.x, x.bells.wake, x.dma.x = x, -1, x
	if x.bells.group = s.o.Group; s.o.Group == nil {
		x.bells.group = new(Group) // of its own
	}
	return x
}

// run is the session, from the version to the cleaning up.
func (x *session) run(ctx context.Context, v *visit) error {
	err := x.open()
	if err == nil {
		err = x.handshake()
	}
	if err == nil {
		x.helpers.Go(func() { x.guard(ctx) })
		x.helpers.Go(x.attend)
		x.bells.group.join(&x.bells)
		x.bells.start()
		err = x.loop()
		x.bells.group.leave(&x.bells)
		if x.dead() {
			x.mourn()
		}
	}
	close(v.leaving)
	x.close()
	if x.bells.failed != nil {
		err = x.bells.failed
	} else if e := x.failure(); e != nil {
		err = e
	}
	switch {
	case err == nil:
		return nil
	case x.dev.Err() != nil:
		return x.srv.errorf("the client is sent away: %w", x.dev.Err())
	case ctx.Err() != nil:
		return x.srv.errorf("the client is sent away: %w", bus.ErrClosed)
	case ended(err):
		return nil
	}
	return x.srv.errorf("the client is sent away: %w", err)
}

// open opens what there is of the device.
func (x *session) open() error {
	for _, i := range x.dev.Regions() {
		if i.Index < 0 || i.Index >= regionROM {
			continue
		}
		r, err := x.dev.Region(i.Index)
		if err != nil {
			return err
		}
		x.regions[i.Index] = r
	}
	x.cfg = newVConfig(x)
	x.table = newVTable(x.dev)
	return nil
}

// guard ends the session where something outside wants it: the device's death, with its reason for
// last words, or ctx.
func (x *session) guard(ctx context.Context) {
	select {
	case <-x.ended:
		return
	case <-ctx.Done():
	case <-x.dev.Done():
		x.mourn()
	}
	x.shutdown()
}

// fail ends the session for a reason, of which the first counts.
func (x *session) fail(err error) {
	x.failMu.Lock()
	if x.failed == nil {
		x.failed = err
	}
	x.failMu.Unlock()
	x.shutdown()
}

// failure is that reason; nil: there is none.
func (x *session) failure() error {
	x.failMu.Lock()
	defer x.failMu.Unlock()
	return x.failed
}

// dead says whether the device died.
func (x *session) dead() bool {
	select {
	case <-x.dev.Done():
		return true
	default:
		return false
	}
}

// tellTime is how long the client's end is put off until its eventfd told of the device's: no time, unless the
// client keeps that full.
const tellTime = 100 * time.Millisecond

// mourn tells the client that the device died, and why, once.
func (x *session) mourn() {
	x.mourning.Do(func() {
		told := make(chan struct{})
		x.helpers.Go(func() {
			x.irqs.died()
			close(told)
		})
		select {
		case <-told:
		case <-time.After(tellTime): // attend lets it go once this session ends
		}
		if x.words {
			w := append(make(writer, headerSize), wordsOf(x.dev.Err())...)
			h := header{cmd: cmdLastWords, size: uint32(len(w)), flags: typeCommand | flagNoReply}
			h.put(w)
			_ = x.twin.send(w)
		}
	})
}

// attend waits for the client's end, whatever the other goroutines are held up by, and then sees
// to it that eventfds that the client left full hold up nobody. One that keeps them full is sent away.
func (x *session) attend() {
	for !x.s.hangup(x.srv.patience()) {
		if x.irqs.stuffed() {
			x.fail(fmt.Errorf("the client keeps an eventfd full: %w", bus.ErrProtocol))
		}
	}
	x.shutdown()
	x.irqs.unstick(x.ended)
}

func (x *session) shutdown() {
	x.s.shutdown()
	if x.twin != nil {
		x.twin.shutdown()
	}
}

// hangup waits until the connection is shut down in both directions, by either side, and says whether it is. A
// client that only says no more still has its answers to come, and the message loop sees its end.
func (s *sock) hangup(limit time.Duration) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return true
	}
	p := [1]unix.PollFd{{Fd: int32(s.fd)}} // POLLHUP comes unasked
	n, err := unix.Poll(p[:], max(1, int(limit.Milliseconds())))
	return n > 0 || err != nil && err != unix.EINTR
}

// close leaves the device as no client had been there. The order is that of bus.Device.Close.
func (x *session) close() {
	x.shutdown()
	x.bells.stop()
	x.irqs.close()
	if x.dev.Err() == nil {
		pci.SetCommand(x.dev.Config(), 0, pci.CmdMaster)
		if err := x.resetDevice(); err != nil && !errors.Is(err, bus.ErrNotSupported) && x.dev.Err() == nil {
			x.srv.o.Log.Warn(x.srv.errorf("resetting the device after a client: %w", err).Error())
		}
		if x.cfg != nil {
			x.cfg.restore()
		}
	}
	x.dma.close()
	close(x.ended)
	x.helpers.Wait()
	x.in.closeFDs()
	x.asks.close()
	x.s.close()
	if x.twin != nil {
		x.twin.close()
	}
}

// handshake answers the version message, which must be the first, and come soon.
func (x *session) handshake() error {
	m := &x.in
	if err := x.s.receive(m, maxVersion); err != nil {
		return fmt.Errorf("waiting for a version: %w", err)
	}
	if m.cmd != cmdVersion || m.isReply() {
		_ = x.s.send(reply(m, nil, unix.EINVAL))
		return fmt.Errorf("the first message is %s, want VERSION: %w", m.cmd, bus.ErrProtocol)
	}
	v, err := parseVersion(m.body)
	if err == nil && v.major != versionMajor {
		err = fmt.Errorf("the client speaks version %d.%d, want %d: %w", v.major, v.minor, versionMajor, bus.ErrNotSupported)
	}
	if err != nil {
		_ = x.s.send(reply(m, nil, unix.EINVAL))
		return err
	}
	x.client = v.caps
	return x.agree(v)
}

// agree answers with what both have, and passes the descriptors that go with it.
func (x *session) agree(v version) error {
	own := version{versionMajor, min(v.minor, versionMinor), ownLimits()}
	own.caps.WriteMultiple = v.caps.WriteMultiple
	var fds []int
	index := func(fd int) *int {
		i := len(fds)
		fds = append(fds, fd)
		return &i
	}
	client := -1
	if t := v.caps.Twin; t != nil && t.Supported && x.client.fds() > 0 {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("making a twin socket: %w", err)
		}
		if x.twin, err = newSock(p[0], x.srv.o.Timeout); err != nil {
			return errors.Join(err, unix.Close(p[0]), unix.Close(p[1]))
		}
		client = p[1]
		defer unix.Close(client)
		own.caps.Twin = &twinSocket{Supported: true, FD: index(client)}
	}
	if r := v.caps.Ring3; r != nil {
		own.caps.Ring3 = &ring3Caps{LastWords: r.LastWords && x.twin != nil}
		x.words = own.caps.Ring3.LastWords
		if r.Queue != nil && x.client.fds() >= len(fds)+2 {
			q, err := newConsumer()
			if err != nil {
				return err
			}
			x.bells.queue = q
			own.caps.Ring3.Queue = &queueOffer{Memory: index(int(q.memory.Fd())), Kick: index(q.kick), Entries: queueEntries, Timed: x.srv.o.Group != nil}
		}
	}
	body, err := own.body()
	if err != nil {
		return err
	}
	return x.s.send(reply(&x.in, append(make(writer, headerSize), body...), 0), fds...)
}

// loop handles messages until there are no more.
func (x *session) loop() error {
	for {
		m, err := x.next()
		if err != nil {
			return err
		}
		if m.isReply() {
			return fmt.Errorf("a reply to message %d, which asked for none: %w", m.id, bus.ErrProtocol)
		}
		// What the client wrote before it asked.
		if err := x.bells.drain(); err != nil {
			return err
		}
		w, fds, err := x.handle(m)
		m.closeFDs()
		if x.dead() {
			return bus.ErrGone // whatever was read is all-ones, and the reason comes first
		}
		if m.flags&flagNoReply != 0 {
			if err != nil {
				x.srv.o.Log.Debug(x.srv.errorf("%s: %w", m.cmd, err).Error())
			}
			continue
		}
		errno := unix.Errno(0)
		if err != nil {
			x.srv.o.Log.Debug(x.srv.errorf("%s: %w", m.cmd, err).Error())
			w, fds, errno = nil, nil, errnoOf(err)
		}
		if w != nil {
			x.out = w
		}
		if err := x.s.send(reply(m, w, errno), fds...); err != nil {
			return err
		}
	}
}

// begin starts a reply in the scratch buffer.
func (x *session) begin() writer { return writer(x.out[:headerSize]) }

// handle does what a message says. The reply's header is still to be written; nil is a reply
// without a body.
func (x *session) handle(m *message) (writer, []int, error) {
	r := reader{b: m.body}
	switch m.cmd {
	case cmdRegionRead:
		w, err := x.readRegion(&r)
		return w, nil, err
	case cmdRegionWrite:
		w, err := x.writeRegion(&r)
		return w, nil, err
	case cmdWriteMulti:
		w, err := x.writeMulti(&r)
		return w, nil, err
	case cmdSetIRQs:
		return nil, nil, x.irqs.set(&r, m)
	case cmdDMAMap:
		return nil, nil, x.dma.add(&r, m)
	case cmdDMAUnmap:
		w, err := x.dma.remove(&r)
		return w, nil, err
	case cmdDeviceInfo:
		w, err := x.deviceInfo(&r)
		return w, nil, err
	case cmdRegionInfo:
		return x.regionInfo(&r)
	case cmdRegionFDs:
		return x.bells.offer(&r)
	case cmdIRQInfo:
		w, err := x.irqInfo(&r)
		return w, nil, err
	case cmdReset:
		x.cfg.device.Lock()
		defer x.cfg.device.Unlock()
		return nil, nil, x.resetDevice()
	case cmdVersion:
		return nil, nil, fmt.Errorf("a second VERSION: %w", unix.EINVAL)
	}
	return nil, nil, unix.ENOSYS
}

func (x *session) resetDevice() error {
	ctx, cancel := context.WithTimeout(context.Background(), resetTimeout)
	defer cancel()
	return x.srv.reset(ctx)
}
