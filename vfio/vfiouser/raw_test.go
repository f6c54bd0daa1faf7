package vfiouser

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/sim"
)

// raw is one end of a connection, for saying anything.
type raw struct {
	t  testing.TB
	s  *sock
	in message
	id uint16
}

func newRaw(t testing.TB, fd int) *raw {
	t.Helper()
	s, err := newSock(fd, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	r := &raw{t: t, s: s}
	t.Cleanup(func() {
		r.in.closeFDs()
		s.close()
	})
	return r
}

// rawClient is a client of a server. end closes the connection and says how the session ended.
func rawClient(t testing.TB, srv *Server) (r *raw, end func() error) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := connOf(t, p[1])
	done := make(chan error, 1)
	go func() { done <- srv.ServeConn(context.Background(), conn) }()
	r = newRaw(t, p[0])
	ended := false
	end = func() error {
		if ended {
			return nil
		}
		ended = true
		r.s.close()
		return <-done
	}
	t.Cleanup(func() { _ = end() })
	return r, end
}

// send sends a message, with descriptors that are closed then.
func (r *raw) send(h header, body []byte, fds ...int) error {
	b := append(make([]byte, headerSize), body...)
	if h.size == 0 {
		h.size = uint32(len(b))
	}
	h.put(b)
	err := r.s.send(b, fds...)
	for _, fd := range fds {
		unix.Close(fd)
	}
	return err
}

// ask sends a command and returns the reply's error number, or -1 where the peer closed the
// connection.
func (r *raw) ask(cmd command, body []byte, fds ...int) (errno int, reply []byte) {
	r.t.Helper()
	r.id++
	if err := r.send(header{id: r.id, cmd: cmd}, body, fds...); err != nil {
		return -1, nil
	}
	if err := r.s.receive(&r.in, ownTransfer+64); err != nil {
		if !ended(err) {
			r.t.Errorf("%s: no answer: %v", cmd, err)
		}
		return -1, nil
	}
	if r.in.id != r.id || !r.in.isReply() || r.in.cmd != cmd {
		r.t.Errorf("%s: the reply is to message %d, %s, flags %#x", cmd, r.in.id, r.in.cmd, r.in.flags)
	}
	if r.in.flags&flagError != 0 {
		if len(r.in.body) != 0 || r.in.errno == 0 {
			r.t.Errorf("%s: a refusal with %d bytes, error %d", cmd, len(r.in.body), r.in.errno)
		}
		return int(r.in.errno), nil
	}
	return 0, r.in.body
}

// hello agrees on a version.
func (r *raw) hello() {
	r.t.Helper()
	if errno, b := r.ask(cmdVersion, []byte("\x00\x00\x00\x00{\"capabilities\":{\"max_msg_fds\":16}}\x00")); errno != 0 || !strings.Contains(string(b), "max_data_xfer_size") {
		r.t.Fatalf("VERSION: error %d, %q", errno, b)
	}
}

func body(f func(w *writer)) []byte {
	var w writer
	f(&w)
	return w
}

func eventfd(t testing.TB) int {
	t.Helper()
	fd, err := sink()
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// memory is a memfd, sealed or not.
func memory(t testing.TB, size int64, sealed bool) int {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	if sealed {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

func dmaMapBody(m dmaMap) []byte {
	m.argsz = dmaMapSize
	return body(func(w *writer) { w.dmaMap(m) })
}

func irqBody(m irqSet, data ...byte) []byte {
	m.argsz = irqSetSize
	return append(body(func(w *writer) { w.irqSet(m) }), data...)
}

func accessBody(off uint64, region, count uint32, data ...byte) []byte {
	return append(body(func(w *writer) { w.access(access{off, region, count}) }), data...)
}

// Every command, malformed: it is refused with a number, nothing reaches the device, and the connection
// lives on.
func TestMalformed(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t, false)
	srv, err := NewServer(f, fakeServer(t))
	if err != nil {
		t.Fatal(err)
	}
	r, _ := rawClient(t, srv)
	r.hello()
	f.took()
	const einval, enosys, eexist, enoent, enotsup = int(unix.EINVAL), int(unix.ENOSYS), int(unix.EEXIST), int(unix.ENOENT), int(unix.EOPNOTSUPP)
	big := ^uint64(0)
	type c struct {
		name  string
		cmd   command
		body  []byte
		fds   func() []int
		errno int
	}
	events := func(n int) func() []int {
		return func() (fds []int) {
			for range n {
				fds = append(fds, eventfd(t))
			}
			return fds
		}
	}
	memories := func(n int, size int64) func() []int {
		return func() (fds []int) {
			for range n {
				fds = append(fds, memory(t, size, true))
			}
			return fds
		}
	}
	info := func(i deviceInfo) []byte { return body(func(w *writer) { w.deviceInfo(i) }) }
	region := func(i regionInfo) []byte { return body(func(w *writer) { w.regionInfo(i) }) }
	irq := func(i irqInfo) []byte { return body(func(w *writer) { w.irqInfo(i) }) }
	unmap := func(u dmaUnmap) []byte { u.argsz = dmaUnmapSize; return body(func(w *writer) { w.dmaUnmap(u) }) }
	fds := func(i ioFDs) []byte { return body(func(w *writer) { w.ioFDs(i) }) }
	multi := func(n uint64, rest ...byte) []byte { return append(body(func(w *writer) { w.u64(n) }), rest...) }
	for _, c := range []c{
		{"a second version", cmdVersion, []byte{0, 0, 0, 0}, nil, einval},
		{"no such command", 200, nil, nil, enosys},
		{"a command of the server's", cmdDMARead, make([]byte, 16), nil, enosys},
		{"command 0", 0, nil, nil, enosys},
		{"device info, empty", cmdDeviceInfo, nil, nil, einval},
		{"device info, argsz", cmdDeviceInfo, info(deviceInfo{argsz: 15}), nil, einval},
		{"region info, short", cmdRegionInfo, make([]byte, 31), nil, einval},
		{"region info, argsz", cmdRegionInfo, region(regionInfo{argsz: 8}), nil, einval},
		{"region info, index", cmdRegionInfo, region(regionInfo{argsz: 32, index: 9}), nil, einval},
		{"region info, far index", cmdRegionInfo, region(regionInfo{argsz: 32, index: ^uint32(0)}), nil, einval},
		{"irq info, short", cmdIRQInfo, make([]byte, 15), nil, einval},
		{"irq info, index", cmdIRQInfo, irq(irqInfo{argsz: 16, index: 5}), nil, einval},
		{"irq info, argsz", cmdIRQInfo, irq(irqInfo{argsz: 1}), nil, einval},
		{"read, short", cmdRegionRead, make([]byte, 15), nil, einval},
		{"read, long", cmdRegionRead, accessBody(0, 0, 4, 1, 2, 3, 4), nil, einval},
		{"read of nothing", cmdRegionRead, accessBody(0, 0, 0), nil, einval},
		{"read beyond", cmdRegionRead, accessBody(4096, 0, 4), nil, einval},
		{"read over the end", cmdRegionRead, accessBody(4094, 0, 4), nil, einval},
		{"read near 2^64", cmdRegionRead, accessBody(big-1, 0, 4), nil, einval},
		{"read, count near 2^32", cmdRegionRead, accessBody(0, 0, ^uint32(0)), nil, einval},
		{"read of no region", cmdRegionRead, accessBody(0, 1, 4), nil, einval},
		{"read of the ROM", cmdRegionRead, accessBody(0, 6, 4), nil, einval},
		{"read of a far region", cmdRegionRead, accessBody(0, ^uint32(0), 4), nil, einval},
		{"config beyond", cmdRegionRead, accessBody(4096, 7, 1), nil, einval},
		{"write, short", cmdRegionWrite, make([]byte, 15), nil, einval},
		{"write, too few data", cmdRegionWrite, accessBody(0, 0, 4, 1, 2), nil, einval},
		{"write, too many data", cmdRegionWrite, accessBody(0, 0, 1, 1, 2), nil, einval},
		{"write beyond", cmdRegionWrite, accessBody(4096, 0, 1, 1), nil, einval},
		{"write near 2^64", cmdRegionWrite, accessBody(big, 0, 1, 1), nil, einval},
		{"many writes, short", cmdWriteMulti, multi(1), nil, einval},
		{"many writes, none there", cmdWriteMulti, nil, nil, einval},
		{"many writes, too many", cmdWriteMulti, multi(big), nil, einval},
		{"many writes, 2^64/24", cmdWriteMulti, multi(big/24+1, make([]byte, 24)...), nil, einval},
		{"many writes, one of 9 bytes", cmdWriteMulti, multi(1, accessBody(0, 0, 9, make([]byte, 8)...)...), nil, einval},
		{"many writes, the second beyond", cmdWriteMulti, multi(2, append(accessBody(0, 0, 4, make([]byte, 8)...), accessBody(5000, 0, 4, make([]byte, 8)...)...)...), nil, einval},
		{"io fds, short", cmdRegionFDs, make([]byte, 8), nil, einval},
		{"io fds, argsz", cmdRegionFDs, fds(ioFDs{argsz: 15}), nil, einval},
		{"io fds, flags", cmdRegionFDs, fds(ioFDs{argsz: 16, flags: 1}), nil, einval},
		{"io fds, count", cmdRegionFDs, fds(ioFDs{argsz: 16, count: 1}), nil, einval},
		{"io fds, index", cmdRegionFDs, fds(ioFDs{argsz: 16, index: 99}), nil, einval},
		{"map, short", cmdDMAMap, make([]byte, 31), nil, einval},
		{"map, long", cmdDMAMap, append(dmaMapBody(dmaMap{flags: 3, size: 4096}), 0), nil, einval},
		{"map, argsz", cmdDMAMap, body(func(w *writer) { w.dmaMap(dmaMap{argsz: 8, flags: 3, size: 4096}) }), nil, einval},
		{"map, no size", cmdDMAMap, dmaMapBody(dmaMap{flags: 3}), nil, einval},
		{"map, no direction", cmdDMAMap, dmaMapBody(dmaMap{size: 4096}), nil, einval},
		{"map, unknown flag", cmdDMAMap, dmaMapBody(dmaMap{flags: 1 << 9, size: 4096}), nil, einval},
		{"map, half a page", cmdDMAMap, dmaMapBody(dmaMap{flags: 3, size: 2048}), nil, einval},
		{"map, unaligned", cmdDMAMap, dmaMapBody(dmaMap{flags: 3, addr: 1, size: 4096}), nil, einval},
		{"map over 2^64", cmdDMAMap, dmaMapBody(dmaMap{flags: 3, addr: big &^ 4095, size: 8192}), nil, einval},
		{"map of 2^64", cmdDMAMap, dmaMapBody(dmaMap{flags: 3, addr: 4096, size: big &^ 4095}), nil, einval},
		{"map, offset near 2^64", cmdDMAMap, dmaMapBody(dmaMap{flags: 3, offset: big &^ 4095, size: 4096}), memories(1, 4096), einval},
		{"map, offset near 2^63", cmdDMAMap, dmaMapBody(dmaMap{flags: 3, offset: 1<<63 - 4096, size: 4096}), memories(1, 4096), einval},
		{"map, two files", cmdDMAMap, dmaMapBody(dmaMap{flags: 3, size: 4096}), memories(2, 4096), einval},
		{"map, mmap without a file", cmdDMAMap, dmaMapBody(dmaMap{flags: 7, size: 4096}), nil, einval},
		{"map, a short file", cmdDMAMap, dmaMapBody(dmaMap{flags: 3, size: 8192}), memories(1, 4096), einval},
		{"map, beyond the file", cmdDMAMap, dmaMapBody(dmaMap{flags: 3, offset: 4096, size: 4096}), memories(1, 4096), einval},
		{"unmap, short", cmdDMAUnmap, make([]byte, 23), nil, einval},
		{"unmap of nothing", cmdDMAUnmap, unmap(dmaUnmap{addr: 4096, size: 4096}), nil, enoent},
		{"unmap, bitmap", cmdDMAUnmap, unmap(dmaUnmap{flags: 1, addr: 4096, size: 4096}), nil, enotsup},
		{"unmap all, with an address", cmdDMAUnmap, unmap(dmaUnmap{flags: 2, addr: 4096}), nil, enotsup},
		{"irqs, short", cmdSetIRQs, make([]byte, 19), nil, einval},
		{"irqs, argsz", cmdSetIRQs, body(func(w *writer) { w.irqSet(irqSet{argsz: 4, flags: 0x21}) }), nil, einval},
		{"irqs, no action", cmdSetIRQs, irqBody(irqSet{flags: 1, count: 1}), nil, einval},
		{"irqs, two actions", cmdSetIRQs, irqBody(irqSet{flags: 1 | 8 | 16, count: 1}), nil, einval},
		{"irqs, no data", cmdSetIRQs, irqBody(irqSet{flags: 32, count: 1}), nil, einval},
		{"irqs, two kinds of data", cmdSetIRQs, irqBody(irqSet{flags: 32 | 3, count: 1}, 1), nil, einval},
		{"irqs, unknown flag", cmdSetIRQs, irqBody(irqSet{flags: 0x100 | 0x21}), nil, einval},
		{"irqs, kind", cmdSetIRQs, irqBody(irqSet{flags: 0x24, index: 9, count: 1}), events(1), einval},
		{"irqs, no vectors of a far kind", cmdSetIRQs, irqBody(irqSet{flags: 0x21, index: 65536000}), nil, einval},
		{"irqs, start", cmdSetIRQs, irqBody(irqSet{flags: 0x24, index: 2, start: 100, count: 1}), events(1), einval},
		{"irqs, start near 2^32", cmdSetIRQs, irqBody(irqSet{flags: 0x24, index: 2, start: ^uint32(0), count: 1}), events(1), einval},
		{"irqs, count near 2^32", cmdSetIRQs, irqBody(irqSet{flags: 0x21, index: 2, count: ^uint32(0)}), nil, einval},
		{"irqs, too few descriptors", cmdSetIRQs, irqBody(irqSet{flags: 0x24, index: 2, count: 3}), events(2), einval},
		{"irqs, too many descriptors", cmdSetIRQs, irqBody(irqSet{flags: 0x24, index: 2, count: 1}), events(3), einval},
		{"irqs, descriptors without", cmdSetIRQs, irqBody(irqSet{flags: 0x21, index: 2, count: 1}), events(1), einval},
		{"irqs, no eventfd", cmdSetIRQs, irqBody(irqSet{flags: 0x24, index: 2, count: 1}), memories(1, 4096), einval},
		{"irqs, booleans", cmdSetIRQs, irqBody(irqSet{flags: 0x22, index: 2, count: 3}, 1, 1), nil, einval},
		{"irqs, data of none", cmdSetIRQs, irqBody(irqSet{flags: 0x21, index: 2, count: 1}, 1), nil, einval},
		{"irqs, none but masked", cmdSetIRQs, irqBody(irqSet{flags: 9, index: 0}), nil, einval},
		{"irqs, none from 3", cmdSetIRQs, irqBody(irqSet{flags: 0x21, index: 2, start: 3}), nil, einval},
		{"irqs, mask of MSI", cmdSetIRQs, irqBody(irqSet{flags: 9, index: 1, count: 1}), nil, enotsup},
		{"irqs, told of masks", cmdSetIRQs, irqBody(irqSet{flags: 12, index: 0, count: 1}), events(1), enotsup},
		{"irqs, resumed without a line", cmdSetIRQs, irqBody(irqSet{flags: 20, index: 0, count: 1}), events(1), einval},
		{"irqs, error masked", cmdSetIRQs, irqBody(irqSet{flags: 9, index: 3, count: 1}), nil, einval},
		{"irqs, requests", cmdSetIRQs, irqBody(irqSet{flags: 0x24, index: 4, count: 1}), events(1), einval},
		{"descriptors with a read", cmdRegionRead, accessBody(0, 9, 4), events(16), einval},
	} {
		var fds []int
		if c.fds != nil {
			fds = c.fds()
		}
		if errno, _ := r.ask(c.cmd, c.body, fds...); errno != c.errno {
			t.Errorf("%s: error %d (%s), want %d (%s)", c.name, errno, unix.Errno(max(errno, 0)), c.errno, unix.Errno(c.errno))
		}
	}
	f.wantLog(t, "what is malformed")
	// What overlaps.
	if errno, _ := r.ask(cmdDMAMap, dmaMapBody(dmaMap{flags: 3, addr: 0x10000, size: 8192}), memory(t, 8192, true)); errno != 0 {
		t.Fatalf("a plain window: error %d", errno)
	}
	for _, m := range []dmaMap{{addr: 0x10000, size: 4096}, {addr: 0x11000, size: 4096}, {addr: 0xf000, size: 8192}, {addr: 0, size: 1 << 40}, {addr: 0x11000, size: 1 << 20}} {
		m.flags = 3
		if errno, _ := r.ask(cmdDMAMap, dmaMapBody(m)); errno != eexist {
			t.Errorf("a window at %#x over another: error %d, want EEXIST", m.addr, errno)
		}
	}
	for _, u := range []dmaUnmap{{addr: 0x10000, size: 4096}, {addr: 0x11000, size: 4096}} {
		if errno, _ := r.ask(cmdDMAUnmap, unmap(u)); errno != enoent {
			t.Errorf("a part of a window unmapped: error %d, want ENOENT", errno)
		}
	}
	if errno, _ := r.ask(cmdDMAUnmap, unmap(dmaUnmap{flags: 2})); errno != 0 {
		t.Errorf("unmapping all: error %d", errno)
	}
	f.wantLog(t, "windows", "place 0x10000 0x2000 dir=0 mapped=true", "release 0x10000")
	// What is left of a long series of descriptors would show as a leak.
}

// What breaks the framing ends the connection, and the server takes the next client.
func TestBrokenFraming(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t, false)
	srv, err := NewServer(f, ServerOptions{Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	many := func() (fds []int) {
		for range ownFDs + 4 {
			fds = append(fds, eventfd(t))
		}
		return fds
	}
	for name, do := range map[string]func(r *raw){
		"size 0":               func(r *raw) { _ = r.send(header{cmd: cmdReset, size: 15}, nil) },
		"size near 2^32":       func(r *raw) { _ = r.send(header{cmd: cmdReset, size: ^uint32(0)}, nil) },
		"size above the limit": func(r *raw) { _ = r.send(header{cmd: cmdRegionWrite, size: ownTransfer + 4096}, nil) },
		"type 7":               func(r *raw) { _ = r.send(header{cmd: cmdReset, flags: 7}, nil) },
		"a reply":              func(r *raw) { _ = r.send(header{cmd: cmdReset, flags: typeReply}, nil) },
		"too many descriptors": func(r *raw) { _ = r.send(header{cmd: cmdReset}, nil, many()...) },
		"half a header":        func(r *raw) { _ = r.s.send([]byte{1, 2, 3}) },
		"half a body":          func(r *raw) { _ = r.send(header{cmd: cmdRegionWrite, size: 500}, make([]byte, 20), eventfd(t)) },
	} {
		r, end := rawClient(t, srv)
		r.hello()
		do(r)
		// It ends by itself.
		var m message
		if err := r.s.receive(&m, 100); err == nil || errors.Is(err, errIdle) {
			t.Errorf("%s: the connection lives on: %v", name, err)
		}
		if err := end(); err == nil || !errors.Is(err, bus.ErrProtocol) && !errors.Is(err, bus.ErrTimeout) {
			t.Errorf("%s: the session ended with %v, want a reason", name, err)
		}
	}
	for name, b := range map[string]string{
		"no version":          "",
		"half a version":      "\x00\x00\x00",
		"another major":       "\x01\x00\x00\x00",
		"no zero":             "\x00\x00\x00\x00{}",
		"no JSON":             "\x00\x00\x00\x00{\x00",
		"a list":              "\x00\x00\x00\x00[]\x00",
		"a negative limit":    "\x00\x00\x00\x00{\"capabilities\":{\"max_msg_fds\":-1}}\x00",
		"a limit near 2^63":   "\x00\x00\x00\x00{\"capabilities\":{\"max_data_xfer_size\":9223372036854775807}}\x00",
		"a limit of 0 bytes":  "\x00\x00\x00\x00{\"capabilities\":{\"max_data_xfer_size\":0}}\x00",
		"a number for a word": "\x00\x00\x00\x00{\"capabilities\":{\"twin_socket\":7}}\x00",
		"pages of 1 byte":     "\x00\x00\x00\x00{\"capabilities\":{\"pgsizes\":1}}\x00",
	} {
		r, end := rawClient(t, srv)
		if errno, _ := r.ask(cmdVersion, []byte(b)); errno == 0 {
			t.Errorf("%s: accepted", name)
		}
		if err := end(); err == nil {
			t.Errorf("%s: the session ended without a reason", name)
		}
	}
	r, end := rawClient(t, srv)
	if errno, _ := r.ask(cmdDeviceInfo, make([]byte, 16)); errno != int(unix.EINVAL) {
		t.Errorf("a first message that is no version: error %d, want EINVAL", errno)
	}
	_ = end()
	// One that says nothing does not keep others out.
	_, end = rawClient(t, srv)
	time.Sleep(300 * time.Millisecond)
	_ = end()
	r, _ = rawClient(t, srv)
	r.hello()
}

// What a plain client of another make does works: QEMU's long reads, writes without reply, many writes
// in one, lines with an eventfd to resume.
func TestPlainClient(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t, false)
	srv, err := NewServer(f, fakeServer(t))
	if err != nil {
		t.Fatal(err)
	}
	r, end := rawClient(t, srv)
	r.hello()
	if errno, b := r.ask(cmdRegionRead, accessBody(0, 7, 4096)); errno != 0 || len(b) != 16+4096 || b[16] != 0x34 || b[16+0x40] != pci5 {
		t.Errorf("all of config space: error %d, %d bytes", errno, len(b))
	}
	f.took()
	if errno, b := r.ask(cmdRegionRead, accessBody(6, 0, 11)); errno != 0 || len(b) != 16+11 {
		t.Errorf("a read of 11 bytes: error %d, %d bytes", errno, len(b))
	}
	f.wantLog(t, "a read of 11 bytes", "read16 0+0x6", "read32 0+0x8", "read32 0+0xc", "read8 0+0x10")
	if err := r.send(header{cmd: cmdRegionWrite, flags: flagNoReply}, accessBody(8, 0, 4, 1, 0, 0, 0)); err != nil {
		t.Fatal(err)
	}
	if err := r.send(header{cmd: cmdRegionWrite, flags: flagNoReply}, accessBody(1<<40, 0, 4, 1, 0, 0, 0)); err != nil {
		t.Fatal(err) // refused, and nobody told
	}
	multi := append(body(func(w *writer) { w.u64(2) }), accessBody(0x10, 0, 4, 2, 0, 0, 0, 0, 0, 0, 0)...)
	if errno, b := r.ask(cmdWriteMulti, append(multi, accessBody(0x18, 0, 8, 3, 0, 0, 0, 0, 0, 0, 0)...)); errno != 0 || len(b) != 8 || b[0] != 2 {
		t.Errorf("two writes in one: error %d, % x", errno, b)
	}
	f.wantLog(t, "writes", "write32 0+0x8=0x1", "write32 0+0x10=0x2", "write64 0+0x18=0x3")
	// A line.
	ev, resume := eventfd(t), eventfd(t)
	dup := func(fd int) int {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	defer unix.Close(ev)
	defer unix.Close(resume)
	if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setEventfd | setTrigger, count: 1}), dup(ev)); errno != 0 {
		t.Fatalf("a line: error %d", errno)
	}
	if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setEventfd | setUnmask, count: 1}), dup(resume)); errno != 0 {
		t.Fatalf("a line to resume: error %d", errno)
	}
	f.fire(0)
	waitFor(t, "a line", func() bool { return drainEventfd(ev) })
	f.took()
	notify(resume, 1)
	waitFor(t, "an unmask", func() bool { return len(f.took()) > 0 })
	if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setNone | setTrigger, count: 1})); errno != 0 || !drainEventfd(ev) {
		t.Errorf("a trigger: error %d, or no eventfd", errno)
	}
	if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setNone | setMask, count: 1})); errno != 0 {
		t.Errorf("mask: error %d", errno)
	}
	if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setBool | setUnmask, count: 1}, 1)); errno != 0 {
		t.Errorf("unmask: error %d", errno)
	}
	f.wantLog(t, "masks", "config16 0x4=0x403", "config16 0x4=0x3", "unmask")
	// The eventfd is taken away: nothing comes any more.
	if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setEventfd | setTrigger, count: 1})); errno != 0 {
		t.Errorf("taking away: error %d", errno)
	}
	f.fire(0)
	time.Sleep(10 * time.Millisecond)
	if drainEventfd(ev) {
		t.Error("an eventfd that was taken away was signalled")
	}
	// More MSI-X vectors, one by one: those that were there stay.
	msix := [3]int{eventfd(t), eventfd(t), eventfd(t)}
	for i, fd := range msix {
		defer unix.Close(fd)
		if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setEventfd | setTrigger, index: irqMSIX, start: uint32(40 * i), count: 1}), dup(fd)); errno != 0 {
			t.Fatalf("vector %d: error %d", 40*i, errno)
		}
	}
	for i, fd := range msix {
		f.fire(40 * i)
		waitFor(t, "a vector", func() bool { return drainEventfd(fd) })
	}
	// Death is told on the error interrupt.
	dead := eventfd(t)
	defer unix.Close(dead)
	if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setEventfd | setTrigger, index: irqErr, count: 1}), dup(dead)); errno != 0 {
		t.Errorf("error interrupt: error %d", errno)
	}
	_ = f.die(bus.ErrGone)
	waitFor(t, "the error interrupt", func() bool { return drainEventfd(dead) })
	if err := end(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("the session ended with %v, want the device's end", err)
	}
}

const pci5 = 5 // MSI

// A client's file that may shrink is read and written, and one that shrinks harms nobody.
func TestShrinking(t *testing.T) {
	m, err := sim.Start(t.Context(), sim.Config{Devices: []sim.DeviceSpec{{Name: "d", Model: "edu"}}, Clock: sim.Eager})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	dev, err := m.Device("d")
	if err != nil {
		t.Fatal(err)
	}
	srv, err := NewServer(dev, simServer(t, m))
	if err != nil {
		t.Fatal(err)
	}
	r, _ := rawClient(t, srv)
	r.hello()
	fd := memory(t, 8192, false)
	mem := os.NewFile(uintptr(fd), "memory")
	defer mem.Close()
	passed, err := unix.FcntlInt(mem.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if errno, _ := r.ask(cmdDMAMap, dmaMapBody(dmaMap{flags: 3, addr: 0x10000, size: 8192}), passed); errno != 0 {
		t.Fatalf("an unsealed file: error %d", errno)
	}
	write := func(region uint32, off uint64, v uint32) {
		t.Helper()
		if errno, _ := r.ask(cmdRegionWrite, accessBody(off, region, 4, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))); errno != 0 {
			t.Fatalf("write: error %d", errno)
		}
	}
	move := func(src, dst, n, cmd uint32) {
		t.Helper()
		write(0, 0x80, src)
		write(0, 0x88, dst)
		write(0, 0x90, n)
		write(0, 0x98, cmd|1)
		waitFor(t, "a transfer", func() bool {
			_, b := r.ask(cmdRegionRead, accessBody(0x98, 0, 4))
			return b[16]&1 == 0
		})
	}
	write(7, 4, 7) // bus master
	if _, err := mem.WriteAt([]byte("a file"), 10); err != nil {
		t.Fatal(err)
	}
	move(0x1000a, 0x40000, 6, 0)
	move(0x40000, 0x11000, 6, 2)
	got := make([]byte, 6)
	if _, err := mem.ReadAt(got, 4096); err != nil || string(got) != "a file" {
		t.Errorf("the device moved %q, %v", got, err)
	}
	if err := mem.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	move(0x40000, 0x11000, 6, 2) // beyond the end now
	move(0x11000, 0x40000, 6, 0)
	if st, err := mem.Stat(); err != nil || st.Size() != 4096 {
		t.Errorf("the client's file has %d bytes, %v: the device made it grow", st.Size(), err)
	}
	if n, err := m.StrayDMA(); n != 2 || !strings.Contains(err.Error(), "nobody answers") {
		t.Errorf("%d times stray DMA, %v, want 2", n, err)
	}
	r.hello0()
}

// hello0 shows that the server still answers.
func (r *raw) hello0() {
	r.t.Helper()
	if errno, _ := r.ask(cmdDeviceInfo, []byte{16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}); errno != 0 {
		r.t.Errorf("the server does not answer any more: error %d", errno)
	}
}

// An eventfd that blocks, and is full, holds up the device only while its client is there.
func TestFullEventfd(t *testing.T) {
	bustest.NoLeaks(t)
	m, dev := model(t, "edu", sim.RealTime)
	srv, err := NewServer(dev, simServer(t, m))
	if err != nil {
		t.Fatal(err)
	}
	for _, later := range []bool{false, true} {
		r, end := rawClient(t, srv)
		r.hello()
		fd := eventfd(t)
		defer unix.Close(fd)
		if !later {
			_ = unix.SetNonblock(fd, false)
		}
		passed, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setEventfd | setTrigger, index: irqMSI, count: 1}), passed); errno != 0 {
			t.Fatalf("an eventfd: error %d", errno)
		}
		if later {
			_ = unix.SetNonblock(fd, false)
		}
		notify(fd, ^uint64(0)-1) // one more blocks
		if err := r.send(header{cmd: cmdRegionWrite, flags: flagNoReply}, accessBody(4, 7, 2, 7, 0)); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := r.send(header{cmd: cmdRegionWrite, flags: flagNoReply}, accessBody(0x60, 0, 4, 1, 0, 0, 0)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(50 * time.Millisecond)
		ended := make(chan error, 1)
		go func() { ended <- end() }()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatal("the session does not end")
		}
	}
	r, _ := rawClient(t, srv)
	r.hello()
	r.hello0()
}
