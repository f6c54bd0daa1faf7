package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/ioctl"
)

// AnswerTimeout is how long QEMU may take to answer a register access before the
// machine is declared dead. Its main loop may be held up by a back end (a stopped
// swtpm, a full pipe), so it is generous.
const AnswerTimeout = 5 * time.Second

const (
	// maxPosted is how many posted writes may be unanswered before a writer waits. QEMU's
	// replies stay in the socket's buffer until somebody reads them, and where that is full
	// QEMU stops: it takes about 270 replies, since each costs a whole buffer of the
	// kernel's. Nobody may be there to read them, so there must never be more.
	maxPosted = 128
	// drainEvery is how many writes pass between two looks at the replies.
	drainEvery = 32
)

// qtest is a client of QEMU's qtest protocol on a blocking Unix socket whose send and
// receive time-outs are AnswerTimeout. Safe for concurrent use.
//
// Replies are read by whoever needs one, under the lock, so a register access wakes no
// other goroutine. Only when INTx is in use does watch look for messages that come by
// themselves.
type qtest struct {
	fd    int                       // -1 once closed; changes only under mu and with watch gone
	onIRQ func(line int, high bool) // called with mu held
	fail  func(error)               // told once why the link died; called with mu held
	once  sync.Once
	dead  atomic.Bool

	keep     bool // the socket is others' too: it is not shut down
	quit     int  // eventfd that ends watch, where keep is set; -1: there is none
	watching sync.WaitGroup

	mu      sync.Mutex
	pending int                  // commands whose reply has not been read
	since   int                  // writes since the last drain
	in      []byte               // received, not yet parsed
	buf     [8192]byte           // backs in
	out     [64]byte             // the command being sent
	copyOut [2*maxCopy + 64]byte // the same, of a copy
}

func newQtest(fd int, onIRQ func(int, bool), fail func(error)) *qtest {
	tv := unix.NsecToTimeval(AnswerTimeout.Nanoseconds())
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		// It cannot fail on a socket.
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &tv)
	}
	return &qtest{fd: fd, quit: -1, onIRQ: onIRQ, fail: fail}
}

// kill marks the link dead. Reads give all-ones from here on, and whoever sees one can
// already ask why.
func (q *qtest) kill(err error) {
	q.once.Do(func() { q.fail(err) })
	q.dead.Store(true)
}

// close ends and waits for what is under way, then closes the socket. It is idempotent.
func (q *qtest) close() {
	q.dead.Store(true)
	if !q.keep {
		_ = unix.Shutdown(q.fd, unix.SHUT_RDWR) // ends a blocked receive, and watch
	} else if q.quit >= 0 {
		_, _ = unix.Write(q.quit, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	q.watching.Wait()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.quit >= 0 {
		_ = unix.Close(q.quit)
		q.quit = -1
	}
	if q.fd >= 0 {
		_ = unix.Close(q.fd)
		q.fd = -1
	}
}

// Commands, by access width. The qtest names: b, w, l, q for 1, 2, 4, 8 bytes.
var (
	cmdRead  = [9]string{1: "readb ", 2: "readw ", 4: "readl ", 8: "readq "}
	cmdWrite = [9]string{1: "writeb ", 2: "writew ", 4: "writel ", 8: "writeq "}
	cmdIn    = [9]string{1: "inb ", 2: "inw ", 4: "inl "}
	cmdOut   = [9]string{1: "outb ", 2: "outw ", 4: "outl "}
)

// post sends a write and does not wait for its reply.
func (q *qtest) post(cmd string, addr, val uint64) {
	if q.dead.Load() {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.send(cmd, addr, val, true) {
		q.posted()
	}
}

// posted looks after the replies of posted writes, of which there must not be too many. It says false where the link is dead. Called
// with mu held.
func (q *qtest) posted() bool {
	q.since++
	if q.since < drainEvery {
		return true
	}
	q.since = 0
	q.drain()
	if q.pending < maxPosted {
		return true
	}
	for q.pending > maxPosted/2 {
		if _, ok := q.next(); !ok {
			return false
		}
	}
	return q.settle()
}

// ask sends a read and waits for its value. ok is false when the link is dead.
func (q *qtest) ask(cmd string, addr uint64) (v uint64, ok bool) {
	if q.dead.Load() {
		return 0, false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.send(cmd, addr, 0, false) {
		return 0, false
	}
	for q.pending > 0 {
		if v, ok = q.next(); !ok {
			return 0, false
		}
	}
	return v, q.settle()
}

// flush waits until QEMU has done everything sent so far, and handles the interrupt
// messages that came of it.
func (q *qtest) flush() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.pending > 0 && !q.dead.Load() {
		if _, ok := q.next(); !ok {
			return
		}
	}
	q.settle()
}

// command sends a line that is not an access ("irq_intercept_in ioapic") and waits for
// its reply.
func (q *qtest) command(line string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dead.Load() || !q.write([]byte(line+"\n")) {
		return fmt.Errorf("qtest %s: %w", line, bus.ErrGone)
	}
	for q.pending > 0 {
		if _, ok := q.next(); !ok {
			return fmt.Errorf("qtest %s: %w", line, bus.ErrGone)
		}
	}
	if !q.settle() {
		return fmt.Errorf("qtest %s: %w", line, bus.ErrProtocol)
	}
	return nil
}

// send formats and writes one access. Called with mu held.
func (q *qtest) send(cmd string, addr, val uint64, withVal bool) bool {
	b := append(q.out[:0], cmd...)
	b = append(b, "0x"...)
	b = strconv.AppendUint(b, addr, 16)
	if withVal {
		b = append(b, " 0x"...)
		b = strconv.AppendUint(b, val, 16)
	}
	return q.write(append(b, '\n'))
}

func (q *qtest) write(line []byte) bool {
	if q.fd < 0 || q.dead.Load() {
		return false
	}
	for len(line) > 0 {
		n, err := unix.Write(q.fd, line)
		switch {
		case err == nil:
			line = line[n:]
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			q.kill(fmt.Errorf("writing a qtest command: no answer within %v: %w", AnswerTimeout, bus.ErrTimeout))
			return false
		default:
			q.kill(fmt.Errorf("writing a qtest command: %w (%w)", err, bus.ErrGone))
			return false
		}
	}
	q.pending++
	return true
}

// next blocks until a reply (not an interrupt message) has been read. Called with mu held.
func (q *qtest) next() (uint64, bool) {
	for {
		line, ok := q.line()
		if !ok {
			if !q.receive() {
				return 0, false
			}
			continue
		}
		if v, isReply, ok := q.handle(line); !ok || isReply {
			return v, ok
		}
	}
}

// settle handles the messages that were read together with the last reply: watch waits for
// the socket, which they have left. Called with mu held.
func (q *qtest) settle() bool {
	for len(q.in) > 0 {
		line, ok := q.line()
		if !ok {
			break // the rest of it will come
		}
		if _, _, ok := q.handle(line); !ok {
			return false
		}
	}
	return true
}

// drain handles what has arrived, without blocking. Called with mu held.
func (q *qtest) drain() {
	for {
		line, ok := q.line()
		if ok {
			if _, _, ok := q.handle(line); !ok {
				return
			}
			continue
		}
		q.makeRoom()
		n, err := ioctl.RecvNow(q.fd, q.buf[len(q.in):])
		if err != nil || n == 0 {
			return // nothing there, or an end that the next blocking access will see
		}
		q.in = q.buf[:len(q.in)+n]
	}
}

// receive blocks for more bytes. Called with mu held.
func (q *qtest) receive() bool {
	q.makeRoom()
	deadline := time.Now().Add(AnswerTimeout)
	for {
		n, err := unix.Read(q.fd, q.buf[len(q.in):])
		switch {
		case n > 0:
			q.in = q.buf[:len(q.in)+n]
			return true
		case err == unix.EINTR && time.Now().Before(deadline):
			continue
		case err == unix.EAGAIN || err == unix.EINTR:
			q.kill(fmt.Errorf("waiting for a qtest reply: none within %v: %w", AnswerTimeout, bus.ErrTimeout))
		case err == nil:
			q.kill(fmt.Errorf("waiting for a qtest reply: %w (%w)", io.ErrUnexpectedEOF, bus.ErrGone))
		default:
			q.kill(fmt.Errorf("waiting for a qtest reply: %w (%w)", err, bus.ErrGone))
		}
		return false
	}
}

// makeRoom moves what is unparsed to the start of the buffer.
func (q *qtest) makeRoom() {
	n := copy(q.buf[:], q.in)
	q.in = q.buf[:n]
	if n == len(q.buf) {
		q.in = q.buf[:0]
		q.kill(fmt.Errorf("reading a qtest reply: no line end within %d bytes: %w", n, bus.ErrProtocol))
	}
}

// line takes one line from the buffer, without its end.
func (q *qtest) line() ([]byte, bool) {
	i := bytes.IndexByte(q.in, '\n')
	if i < 0 {
		return nil, false
	}
	l := q.in[:i]
	q.in = q.in[i+1:]
	return l, true
}

// handle acts on one line. ok is false when it killed the link.
func (q *qtest) handle(line []byte) (v uint64, isReply, ok bool) {
	m, err := parseReply(line)
	if err == nil && m.irq {
		if q.onIRQ != nil {
			q.onIRQ(m.line, m.high)
		}
		return 0, false, true
	}
	if err == nil && q.pending == 0 {
		err = errors.New("a reply that nobody asked for")
	}
	if err != nil {
		q.kill(fmt.Errorf("reading a qtest reply: %q: %w (%w)", line, err, bus.ErrProtocol))
		return 0, false, false
	}
	q.pending--
	return m.value, true, true
}

// message is a line from QEMU: the reply to a command, or an interrupt line's change.
type message struct {
	irq   bool
	line  int // of an interrupt
	high  bool
	value uint64 // of a reply
}

// maxLine is the highest interrupt line of an IOAPIC that makes sense.
const maxLine = 239

var (
	pfxOK    = []byte("OK")
	pfxRaise = []byte("IRQ raise ")
	pfxLower = []byte("IRQ lower ")
)

// parseReply reads one line of the qtest protocol. It allocates nothing for a valid one.
func parseReply(l []byte) (message, error) {
	if bytes.HasPrefix(l, pfxOK) {
		rest := l[len(pfxOK):]
		if len(rest) == 0 {
			return message{}, nil
		}
		if len(rest) < 4 || rest[0] != ' ' || rest[1] != '0' || rest[2] != 'x' {
			return message{}, errors.New("want OK 0xVALUE")
		}
		v, ok := parseHex(rest[3:])
		if !ok {
			return message{}, errors.New("want a hexadecimal value of at most 64 bits")
		}
		return message{value: v}, nil
	}
	high := bytes.HasPrefix(l, pfxRaise)
	if !high && !bytes.HasPrefix(l, pfxLower) {
		return message{}, errors.New("want OK or IRQ")
	}
	n := 0
	num := l[len(pfxRaise):]
	for _, c := range num {
		if c < '0' || c > '9' || n > maxLine {
			return message{}, errors.New("want an interrupt number")
		}
		n = n*10 + int(c-'0')
	}
	if len(num) == 0 || n > maxLine {
		return message{}, errors.New("want an interrupt number")
	}
	return message{irq: true, line: n, high: high}, nil
}

func parseHex(b []byte) (uint64, bool) {
	if len(b) == 0 || len(b) > 16 {
		return 0, false
	}
	var v uint64
	for _, c := range b {
		var d byte
		switch {
		case c >= '0' && c <= '9':
			d = c - '0'
		case c >= 'a' && c <= 'f':
			d = c - 'a' + 10
		case c >= 'A' && c <= 'F':
			d = c - 'A' + 10
		default:
			return 0, false
		}
		v = v<<4 | uint64(d)
	}
	return v, true
}

// startWatch begins to look for interrupt messages.
func (q *qtest) startWatch() (err error) {
	if q.keep {
		if q.quit, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
			q.quit = -1
			return fmt.Errorf("making an eventfd: %w", err)
		}
	}
	q.watching.Go(q.watch)
	return nil
}

// watch looks for interrupt messages until the link dies; INTx needs it. Each time it
// finds only replies to posted writes it pauses longer (up to 100 us), so a stream of
// doorbells is not slowed down by somebody reading along.
func (q *qtest) watch() {
	const pauseMax = 100 * time.Microsecond
	pause := time.Duration(0)
	for !q.dead.Load() {
		p := []unix.PollFd{{Fd: int32(q.fd), Events: unix.POLLIN}, {Fd: int32(q.quit), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, 1000); err != nil && err != unix.EINTR {
			return
		}
		if p[0].Revents == 0 {
			continue
		}
		q.mu.Lock()
		before := q.pending
		q.drain()
		onlyReplies := q.pending < before
		q.mu.Unlock()
		if p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
			return // QEMU is going; whoever waits for the process says so
		}
		pause = min(pauseMax, 2*pause+10*time.Microsecond)
		if !onlyReplies {
			pause = 0
		}
		time.Sleep(pause)
	}
}
