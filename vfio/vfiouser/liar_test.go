package vfiouser

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
)

// answer is a server's reply, with descriptors that are closed once they are sent.
type answer struct {
	body  []byte
	fds   []int
	errno uint32
	mute  bool            // there is none
	after func(r *raw)    // done once it is sent
	head  func(h *header) // changes the header
}

// liar is a server that answers as it is told. What it is not told it answers as it should: a device
// with one region of a page, and config space.
type liar struct {
	t    testing.TB
	r    *raw
	on   map[command]func(m *message) answer
	caps string // in the version's reply
	fds  []int  // that go with it
	done chan struct{}
}

// lie starts a liar, and gives the client's end.
func lie(t testing.TB, on map[command]func(m *message) answer) (*liar, *net.UnixConn) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := &liar{t: t, r: newRaw(t, p[1]), on: on, done: make(chan struct{})}
	t.Cleanup(func() {
		l.r.s.shutdown()
		<-l.done
		l.r.in.closeFDs()
		l.r.s.close()
	})
	return l, connOf(t, p[0])
}

func (l *liar) start() *liar {
	go func() {
		defer close(l.done)
		for l.one() {
		}
		l.r.s.shutdown()
	}()
	return l
}

// one answers a message.
func (l *liar) one() bool {
	m := &l.r.in
	if err := l.r.s.receive(m, ownTransfer+64); err != nil {
		return false
	}
	if m.isReply() {
		m.closeFDs()
		return true
	}
	do := l.on[m.cmd]
	if do == nil {
		do = l.honest
	}
	a := do(m)
	defer func() {
		for _, fd := range a.fds {
			unix.Close(fd)
		}
	}()
	m.closeFDs()
	if a.mute || m.flags&flagNoReply != 0 {
		return true
	}
	b := append(make([]byte, headerSize), a.body...)
	h := header{id: m.id, cmd: m.cmd, size: uint32(len(b)), flags: typeReply}
	if a.errno != 0 {
		b, h.size, h.errno, h.flags = b[:headerSize], headerSize, a.errno, typeReply|flagError
	}
	if a.head != nil {
		a.head(&h)
	}
	h.put(b)
	if err := l.r.s.send(b, a.fds...); err != nil {
		return false
	}
	if a.after != nil {
		a.after(l.r)
	}
	return true
}

func (l *liar) honest(m *message) answer {
	r := reader{b: m.body}
	switch m.cmd {
	case cmdVersion:
		caps := l.caps
		if caps == "" {
			caps = "{}"
		}
		fds := l.fds
		l.fds = nil
		return answer{body: []byte("\x00\x00\x00\x00{\"capabilities\":" + caps + "}\x00"), fds: fds}
	case cmdDeviceInfo:
		return answer{body: body(func(w *writer) { w.deviceInfo(deviceInfo{16, devicePCI | deviceReset, 9, 5}) })}
	case cmdRegionInfo:
		return answer{body: body(func(w *writer) { w.regionInfo(plainRegion(r.regionInfo().index)) })}
	case cmdIRQInfo:
		i := r.irqInfo().index
		return answer{body: body(func(w *writer) { w.irqInfo(irqInfo{16, irqEventfd, i, 1}) })}
	case cmdRegionRead:
		a := r.access()
		return answer{body: append(body(func(w *writer) { w.access(a) }), make([]byte, a.count)...)}
	case cmdRegionWrite, cmdSetIRQs, cmdDMAMap, cmdDMAUnmap, cmdReset:
		return answer{}
	}
	return answer{errno: uint32(unix.ENOSYS)}
}

// plainRegion is an honest answer.
func plainRegion(index uint32) regionInfo {
	i := regionInfo{argsz: regionInfoSize, index: index, flags: regionRead | regionWrite}
	switch index {
	case 0:
		i.size = 4096
	case regionConfig:
		i.size = 256
	default:
		i.flags = 0
	}
	return i
}

const liarTimeout = 300 * time.Millisecond

// An honest liar is a device.
func TestHonest(t *testing.T) {
	bustest.NoLeaks(t)
	l, c := lie(t, nil)
	l.start()
	d, err := Open(t.Context(), c, Options{Timeout: liarTimeout})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	if _, err := d.EnableIRQs(bus.MSIX, 1); err != nil {
		t.Fatal(err)
	}
	if err := d.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A server that lies while the device is opened: an error that says which lie, nothing held, no SIGBUS.
func TestLies(t *testing.T) {
	region := func(i regionInfo, caps []byte, fds func() []int) func(m *message) answer {
		return func(m *message) answer {
			r := reader{b: m.body}
			if q := r.regionInfo(); q.index != i.index {
				return answer{body: body(func(w *writer) { w.regionInfo(plainRegion(q.index)) })}
			}
			a := answer{body: append(body(func(w *writer) { w.regionInfo(i) }), caps...)}
			if fds != nil {
				a.fds = fds()
			}
			return a
		}
	}
	one := func(size int64, sealed bool) func() []int {
		return func() []int { return []int{memory(t, size, sealed)} }
	}
	parts := func(p ...bus.Part) []byte { return sparse(p) }
	mapped := regionInfo{argsz: regionInfoSize, flags: 7, size: 4096}
	withCaps := func(size uint64, argsz uint32) regionInfo {
		return regionInfo{argsz: argsz, flags: 15, caps: 32, size: size}
	}
	ask := func(c command, a answer) map[command]func(m *message) answer {
		return map[command]func(m *message) answer{c: func(*message) answer { return a }}
	}
	info := func(i deviceInfo) answer { return answer{body: body(func(w *writer) { w.deviceInfo(i) })} }
	for name, c := range map[string]struct {
		on   map[command]func(m *message) answer
		caps string
		fds  func() []int
		want error
	}{
		"no version":              {on: ask(cmdVersion, answer{errno: 22}), want: unix.EINVAL},
		"no number":               {on: ask(cmdVersion, answer{errno: 1 << 20}), want: nil},
		"version 1":               {on: ask(cmdVersion, answer{body: []byte("\x01\x00\x00\x00")}), want: bus.ErrProtocol},
		"version 0.9":             {on: ask(cmdVersion, answer{body: []byte("\x00\x00\x09\x00")}), want: bus.ErrProtocol},
		"a short version":         {on: ask(cmdVersion, answer{body: []byte("\x00")}), want: bus.ErrProtocol},
		"no JSON":                 {on: ask(cmdVersion, answer{body: []byte("\x00\x00\x00\x00abc\x00")}), want: bus.ErrProtocol},
		"another message's reply": {on: ask(cmdVersion, answer{head: func(h *header) { h.id += 5 }}), want: bus.ErrProtocol},
		"a type of reply":         {on: ask(cmdVersion, answer{head: func(h *header) { h.flags = 5 }}), want: bus.ErrProtocol},
		"a size of 3":             {on: ask(cmdVersion, answer{head: func(h *header) { h.size = 3 }}), want: bus.ErrProtocol},
		"a size near 2^32":        {on: ask(cmdVersion, answer{head: func(h *header) { h.size = ^uint32(0) }}), want: bus.ErrProtocol},
		"half a reply":            {on: ask(cmdVersion, answer{head: func(h *header) { h.size = 100 }}), want: bus.ErrTimeout},
		"no answer":               {on: ask(cmdDeviceInfo, answer{mute: true}), want: bus.ErrTimeout},
		"twin without a socket":   {caps: `{"twin_socket":{"supported":true,"fd_index":0}}`, want: bus.ErrProtocol},
		"twin without an index":   {caps: `{"twin_socket":{"supported":true}}`, fds: one(4096, true), want: bus.ErrProtocol},
		"twin far away":           {caps: `{"twin_socket":{"supported":true,"fd_index":-1}}`, fds: one(4096, true), want: bus.ErrProtocol},
		"twin of memory":          {caps: `{"twin_socket":{"supported":true,"fd_index":0}}`, fds: one(4096, true), want: bus.ErrProtocol},
		"queue without memory":    {caps: `{"ring3":{"write_queue":{"fd_index":0,"kick_index":1,"entries":1024}}}`, want: bus.ErrProtocol},
		"queue that is short":     {caps: `{"ring3":{"write_queue":{"fd_index":0,"kick_index":1,"entries":1024}}}`, fds: func() []int { return []int{memory(t, 4096, true), eventfd(t)} }, want: bus.ErrProtocol},
		"queue that may shrink":   {caps: `{"ring3":{"write_queue":{"fd_index":0,"kick_index":1,"entries":1024}}}`, fds: func() []int { return []int{memory(t, 1<<20, false), eventfd(t)} }, want: bus.ErrProtocol},
		"queue of 3":              {caps: `{"ring3":{"write_queue":{"fd_index":0,"kick_index":1,"entries":3}}}`, fds: func() []int { return []int{memory(t, 1<<20, true), eventfd(t)} }, want: bus.ErrProtocol},
		"queue without end":       {caps: `{"ring3":{"write_queue":{"fd_index":0,"kick_index":1,"entries":4611686018427387904}}}`, fds: func() []int { return []int{memory(t, 1<<20, true), eventfd(t)} }, want: bus.ErrProtocol},
		"queue without a bell":    {caps: `{"ring3":{"write_queue":{"fd_index":0,"kick_index":1,"entries":1024}}}`, fds: func() []int { return []int{memory(t, 1<<20, true), memory(t, 10, true)} }, want: bus.ErrProtocol},
		"queue twice the same":    {caps: `{"ring3":{"write_queue":{"fd_index":0,"kick_index":0,"entries":1024}}}`, fds: one(1<<20, true), want: bus.ErrProtocol},
		"descriptors for nothing": {fds: func() []int { return []int{memory(t, 10, true), eventfd(t), eventfd(t)} }, want: errFine},
		"a short device":          {on: ask(cmdDeviceInfo, answer{body: []byte{1}}), want: bus.ErrProtocol},
		"no PCI":                  {on: ask(cmdDeviceInfo, info(deviceInfo{16, 1, 9, 5})), want: bus.ErrNotSupported},
		"no config space":         {on: ask(cmdDeviceInfo, info(deviceInfo{16, 2, 7, 5})), want: bus.ErrProtocol},
		"regions without end":     {on: ask(cmdDeviceInfo, info(deviceInfo{16, 2, ^uint32(0), 5})), want: bus.ErrProtocol},
		"no interrupts":           {on: ask(cmdDeviceInfo, info(deviceInfo{16, 2, 9, 0})), want: bus.ErrProtocol},
		"a short region":          {on: ask(cmdRegionInfo, answer{body: make([]byte, 31)}), want: bus.ErrProtocol},
		"config of 17":            {on: map[command]func(*message) answer{cmdRegionInfo: region(regionInfo{argsz: 32, index: 7, flags: 3, size: 17}, nil, nil)}, want: bus.ErrProtocol},
		"config without end":      {on: map[command]func(*message) answer{cmdRegionInfo: region(regionInfo{argsz: 32, index: 7, flags: 3, size: 1 << 63}, nil, nil)}, want: bus.ErrProtocol},
		"another region":          {on: ask(cmdRegionInfo, answer{body: body(func(w *writer) { w.regionInfo(regionInfo{argsz: 32, index: 3, flags: 3, size: 256}) })}), want: bus.ErrProtocol},
		"a region near 2^64":      {on: map[command]func(*message) answer{cmdRegionInfo: region(regionInfo{argsz: 32, flags: 3, size: ^uint64(0)}, nil, nil)}, want: bus.ErrProtocol},
		"two files for a region":  {on: map[command]func(*message) answer{cmdRegionInfo: region(mapped, nil, func() []int { return []int{memory(t, 4096, true), memory(t, 4096, true)} })}, want: bus.ErrProtocol},
		"a short file":            {on: map[command]func(*message) answer{cmdRegionInfo: region(mapped, nil, one(100, true))}, want: bus.ErrProtocol},
		"an empty file":           {on: map[command]func(*message) answer{cmdRegionInfo: region(mapped, nil, one(0, true))}, want: bus.ErrProtocol},
		"a file that may shrink":  {on: map[command]func(*message) answer{cmdRegionInfo: region(mapped, nil, one(4096, false))}, want: errFine},
		"an eventfd to map":       {on: map[command]func(*message) answer{cmdRegionInfo: region(mapped, nil, func() []int { return []int{eventfd(t)} })}, want: errFine},
		"a file nowhere":          {on: map[command]func(*message) answer{cmdRegionInfo: region(regionInfo{argsz: 32, flags: 7, size: 4096, offset: ^uint64(0) &^ 4095}, nil, one(4096, true))}, want: bus.ErrProtocol},
		"a map without a file":    {on: map[command]func(*message) answer{cmdRegionInfo: region(mapped, nil, nil)}, want: errFine},
		"parts beyond":            {on: map[command]func(*message) answer{cmdRegionInfo: region(withCaps(4096, 64), parts(bus.Part{Off: 4096, Size: 4096}), one(1<<20, true))}, want: bus.ErrProtocol},
		"parts that overlap":      {on: map[command]func(*message) answer{cmdRegionInfo: region(withCaps(1<<16, 80), parts(bus.Part{Size: 8192}, bus.Part{Off: 4096, Size: 4096}), one(1<<20, true))}, want: bus.ErrProtocol},
		"parts near 2^64":         {on: map[command]func(*message) answer{cmdRegionInfo: region(withCaps(4096, 64), parts(bus.Part{Off: ^bus.Off(4095), Size: 8192}), one(1<<20, true))}, want: bus.ErrProtocol},
		"half a page":             {on: map[command]func(*message) answer{cmdRegionInfo: region(withCaps(4096, 64), parts(bus.Part{Size: 100}), one(1<<20, true))}, want: bus.ErrProtocol},
		"capabilities nowhere":    {on: map[command]func(*message) answer{cmdRegionInfo: region(regionInfo{argsz: 64, flags: 15, caps: 60, size: 4096}, make([]byte, 32), one(4096, true))}, want: bus.ErrProtocol},
		"capabilities in a ring":  {on: map[command]func(*message) answer{cmdRegionInfo: region(withCaps(4096, 64), body(func(w *writer) { w.u16(9); w.u16(1); w.u32(32, 0, 0); w.u64(0); w.u64(0) }), one(4096, true))}, want: bus.ErrProtocol},
		"parts without end":       {on: map[command]func(*message) answer{cmdRegionInfo: region(withCaps(4096, 64), body(func(w *writer) { w.u16(1); w.u16(1); w.u32(0, ^uint32(0), 0); w.u64(0); w.u64(0) }), one(4096, true))}, want: bus.ErrProtocol},
		"capabilities for ever":   {on: map[command]func(*message) answer{cmdRegionInfo: region(regionInfo{argsz: ^uint32(0), flags: 15, caps: 32, size: 4096}, nil, one(4096, true))}, want: bus.ErrProtocol},
		"short interrupts":        {on: ask(cmdIRQInfo, answer{body: make([]byte, 7)}), want: bus.ErrProtocol},
		"too many interrupts":     {on: ask(cmdIRQInfo, answer{body: body(func(w *writer) { w.irqInfo(irqInfo{16, 1, 0, 2}) })}), want: bus.ErrProtocol},
		"interrupts without end": {on: map[command]func(*message) answer{cmdIRQInfo: func(m *message) answer {
			r := reader{b: m.body}
			i := r.irqInfo()
			n := min(i.index*^uint32(0), ^uint32(0))
			return answer{body: body(func(w *writer) { w.irqInfo(irqInfo{16, 1, i.index, n}) })}
		}}, want: bus.ErrProtocol},
		"a short read": {on: ask(cmdRegionRead, answer{body: make([]byte, 17)}), want: bus.ErrProtocol},
		"a long read":  {on: ask(cmdRegionRead, answer{body: make([]byte, 100)}), want: bus.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			bustest.NoLeaks(t)
			l, conn := lie(t, c.on)
			l.caps = c.caps
			if c.fds != nil {
				l.fds = c.fds()
			}
			l.start()
			d, err := Open(t.Context(), conn, Options{Timeout: liarTimeout, Log: bustest.Log(t)})
			if errors.Is(c.want, errFine) {
				if err != nil {
					t.Fatalf("Open = %v, want a device", err)
				}
				r := regionOf(t, d, 0)
				r.Write32(0, 1)
				r.Read32(0)
				_ = d.Close()
				return
			}
			if err == nil {
				_ = d.Close()
				t.Fatal("Open = nil, want an error")
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("Open = %v, want %v", err, c.want)
			}
			if strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "vfio-user:") {
				t.Errorf("Open = %q, want one line that says where", err)
			}
		})
	}
}

var errFine = errors.New("it can be used all the same")

// A server that goes bad later: the device is dead for a reason, reads are all-ones, nothing hangs.
func TestTurns(t *testing.T) {
	dmaBody := func(addr, n uint64, data ...byte) []byte {
		return append(body(func(w *writer) { w.dmaAccess(dmaAccess{addr, n}) }), data...)
	}
	say := func(h header, b []byte, fds ...int) func(r *raw) {
		return func(r *raw) { _ = r.send(h, b, fds...) }
	}
	for name, c := range map[string]struct {
		after func(r *raw) // after a read was answered
		mute  bool
		head  func(h *header)
		want  error // nil: it lives
	}{
		"no answer":                  {mute: true, want: bus.ErrTimeout},
		"a reply nobody asked for":   {after: say(header{flags: typeReply}, nil), want: bus.ErrProtocol},
		"half a message":             {after: func(r *raw) { _ = r.s.send([]byte{1}) }, want: bus.ErrTimeout},
		"the end":                    {after: func(r *raw) { r.s.shutdown() }, want: bus.ErrGone},
		"a wrong reply":              {head: func(h *header) { h.id++ }, want: bus.ErrProtocol},
		"a reply to another command": {head: func(h *header) { h.cmd = cmdReset }, want: bus.ErrProtocol},
		"a reply to no command":      {head: func(h *header) { h.cmd = 0 }, want: nil},
		"a command with descriptors": {after: func(r *raw) { fd, _ := sink(); _ = r.send(header{cmd: cmdDMARead}, dmaBody(0, 4), fd) }, want: bus.ErrProtocol},
		"DMA outside":                {after: say(header{cmd: cmdDMARead}, dmaBody(0x123456, 4)), want: nil},
		"DMA near 2^64":              {after: say(header{cmd: cmdDMAWrite}, dmaBody(^uint64(0), 4, 1, 2, 3, 4)), want: nil},
		"DMA of 2^64":                {after: say(header{cmd: cmdDMARead}, dmaBody(0x100000000, ^uint64(0))), want: nil},
		"DMA of 2 MiB":               {after: say(header{cmd: cmdDMARead}, dmaBody(0x100000000, 2<<20)), want: nil},
		"DMA, short":                 {after: say(header{cmd: cmdDMAWrite}, []byte{1, 2, 3}), want: nil},
		"DMA, too few data":          {after: say(header{cmd: cmdDMAWrite}, dmaBody(0x100000000, 8, 1)), want: nil},
		"an unknown command":         {after: say(header{cmd: 99}, make([]byte, 5000)), want: nil},
		"last words, empty":          {after: say(header{cmd: cmdLastWords}, nil), want: bus.ErrGone},
		"last words, many":           {after: say(header{cmd: cmdLastWords}, make([]byte, 100000)), want: bus.ErrGone},
		"a flood of commands": {after: func(r *raw) {
			for range 2000 {
				if r.send(header{cmd: cmdDMARead, flags: flagNoReply}, dmaBody(0x1000, 4)) != nil {
					return
				}
			}
		}, want: nil},
	} {
		for _, idle := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				bustest.NoLeaks(t)
				var on sync.Once
				l, conn := lie(t, map[command]func(m *message) answer{})
				turned := make(chan struct{})
				l.on[cmdRegionRead] = func(m *message) answer {
					a := l.honest(m)
					r := reader{b: m.body}
					if q := r.access(); q.region == 0 {
						on.Do(func() {
							a.after, a.mute, a.head = c.after, c.mute, c.head
							close(turned)
						})
					}
					return a
				}
				l.start()
				d, err := Open(t.Context(), conn, Options{Timeout: liarTimeout, Log: bustest.Log(t)})
				if err != nil {
					t.Fatal(err)
				}
				defer d.Close()
				r := regionOf(t, d, 0)
				r.Read32(0)
				<-turned
				if idle {
					time.Sleep(20 * time.Millisecond) // somebody else notices
				}
				begun := time.Now()
				for time.Since(begun) < 2*liarTimeout && d.Err() == nil {
					r.Write32(4, 1)
					r.Read32(0)
					if c.want == nil && time.Since(begun) > 50*time.Millisecond {
						break
					}
				}
				if c.want == nil {
					if err := d.Err(); err != nil {
						t.Errorf("Err = %v, want nil: it can be borne", err)
					}
					return
				}
				select {
				case <-d.Done():
				case <-time.After(10 * time.Second):
					t.Fatal("Done is not closed")
				}
				if err := d.Err(); !errors.Is(err, c.want) {
					t.Errorf("Err = %v, want %v", err, c.want)
				}
				if v := r.Read32(0); v != ^uint32(0) {
					t.Errorf("a read of a dead device = %#x", v)
				}
			})
		}
	}
}

// The write queue's memory is the server's to write: a head that cannot be ends the link, one that does
// not move times out.
func TestQueueLies(t *testing.T) {
	for name, c := range map[string]struct {
		head uint64
		want error
	}{"stands": {0, bus.ErrTimeout}, "beyond the tail": {1 << 40, bus.ErrProtocol}, "behind": {^uint64(0) - 5000, bus.ErrProtocol}} {
		t.Run(name, func(t *testing.T) {
			bustest.NoLeaks(t)
			l, conn := lie(t, nil)
			caps, err := json.Marshal(map[string]any{"ring3": map[string]any{"write_queue": map[string]any{"fd_index": 0, "kick_index": 1, "entries": 16}}})
			if err != nil {
				t.Fatal(err)
			}
			mem := memory(t, queueBytes(16), true)
			b, err := unix.Mmap(mem, 0, int(queueBytes(16)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Munmap(b) }()
			l.caps, l.fds = string(caps), []int{mem, eventfd(t)}
			l.start()
			d, err := Open(t.Context(), conn, Options{Timeout: liarTimeout})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			for i := range 8 {
				b[queueHead+i] = byte(c.head >> (8 * i))
			}
			r := regionOf(t, d, 0)
			for i := range uint32(40) {
				r.Write32(0, i)
			}
			if err := d.Err(); !errors.Is(err, c.want) {
				t.Errorf("Err = %v, want %v", err, c.want)
			}
		})
	}
}

// Interrupts without end: the driver's handler is called, no more often than it can be, and everything
// else goes on.
func TestInterruptFlood(t *testing.T) {
	bustest.NoLeaks(t)
	flood := make(chan int, 1)
	l, conn := lie(t, map[command]func(m *message) answer{cmdSetIRQs: func(m *message) answer {
		if len(m.fds) > 0 {
			fd := m.fds[0]
			m.fds[0] = -1
			flood <- fd
		}
		return answer{}
	}})
	l.start()
	d, err := Open(t.Context(), conn, Options{Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	q, err := d.EnableIRQs(bus.MSIX, 1)
	if err != nil {
		t.Fatal(err)
	}
	fd := <-flood
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		defer unix.Close(fd)
		for {
			select {
			case <-stop:
				return
			default:
				notify(fd, 1)
			}
		}
	}()
	r := regionOf(t, d, 0)
	h := bus.Handle(q[0], "flood", func(uint64) { r.Read32(0) })
	for range 200 {
		if r.Read32(0) != 0 {
			t.Fatal("a read beside the flood fails")
		}
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	close(stop)
	<-stopped
}

// Open gives up when its context ends.
func TestOpenCancelled(t *testing.T) {
	bustest.NoLeaks(t)
	l, conn := lie(t, map[command]func(m *message) answer{cmdDeviceInfo: func(*message) answer { return answer{mute: true} }})
	l.start()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if _, err := Open(ctx, conn, Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Open = %v, want the context's end", err)
	}
	if d := time.Since(begun); d > 3*time.Second {
		t.Errorf("it took %v", d)
	}
}
