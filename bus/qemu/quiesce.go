package qemu

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/ioctl"
)

// Quiesce makes the machine harmless, and as good as new, after whoever used its parts has gone: nothing of what that was doing reaches memory when
// it returns. The machine is reset as a whole (interrupts masked, devices reset, bus mastering off, in one step of QEMU's), what edu, which ignores a reset, still has
// to copy is waited for, and RAM is empty. A TPM is not reset, since that would be a new start with empty PCRs: its command is aborted, its localities given up.
//
// A QEMU that does not answer is killed; the error then wraps bus.ErrGone, Done is closed, and only another QEMU helps. ctx bounds it like AnswerTimeout does.
func (p *Process) Quiesce(ctx context.Context) error {
	p.quiescing.Lock()
	defer p.quiescing.Unlock()
	err := p.Err()
	if err != nil {
		return err
	}
	// Without a limit a worker could leave so many commands behind that reading their answers takes for ever.
	limit := time.Now().Add(2 * AnswerTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(limit) {
		limit = d
	}
	stop := context.AfterFunc(ctx, p.child.Kill)
	defer stop()
	if err = p.quiesce(limit); err == nil {
		return nil
	}
	select {
	case <-p.child.Done(): // that is why
		err = fmt.Errorf("%w: %s", err, p.child.End())
	case <-time.After(200 * time.Millisecond):
	}
	p.kill()
	if e := context.Cause(ctx); e != nil {
		err = e
	}
	return fmt.Errorf("qemu: quiescing QEMU (pid %d), which was ended for that: %w (%w)", p.PID(), err, bus.ErrGone)
}

func (p *Process) quiesce(limit time.Time) error {
	select {
	case <-p.closing:
		return bus.ErrClosed
	default:
	}
	q := &wire{fd: p.qtest, limit: limit}
	if err := q.sync(); err != nil {
		return fmt.Errorf("emptying its socket: %w", err)
	}
	tpm := p.platformDevice()
	if tpm != nil {
		if err := q.abortTPM(tpm); err != nil {
			return fmt.Errorf("%s: aborting its command: %w", tpm.spec.Name, err)
		}
	} else if err := p.reset(q, limit); err != nil {
		return err
	}
	// What interrupt lines have done is between the answers.
	if err := q.sync(); err != nil {
		return fmt.Errorf("emptying its socket: %w", err)
	}
	p.bell.clear()
	// Pages that are not there cost nothing, and are zero. The first are firmware's.
	if err := unix.Fallocate(int(p.ram.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, lowRAM, ramSize-lowRAM); err != nil {
		return fmt.Errorf("emptying its RAM: %w", err)
	}
	return nil
}

// platformDevice is the machine's TPM, if it has one.
func (p *Process) platformDevice() *seat {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.seats {
		if IsTPM(s.spec.Model) {
			return s
		}
	}
	return nil
}

// reset resets the machine, and checks that it did.
func (p *Process) reset(q *wire, limit time.Time) error {
	edus, err := p.copying(q)
	if err != nil {
		return err
	}
	select {
	case <-p.resets:
	default:
	}
	if _, err := p.qmp.execute("system_reset", nil); err != nil {
		return fmt.Errorf("resetting it: %w", err)
	}
	late := time.NewTimer(time.Until(limit))
	defer late.Stop()
	select {
	case <-p.resets:
	case <-p.child.Done():
		return p.Err()
	case <-late.C:
		return fmt.Errorf("resetting it: nothing said until the deadline: %w", bus.ErrTimeout)
	}
	over := time.Now().Add(eduTime)
	if err := p.unclog(); err != nil {
		return fmt.Errorf("resetting it: %w", err)
	}
	// Who holds the machine can have put it to sleep, which a reset does not end.
	var status struct{ Running bool }
	if r, err := p.qmp.execute("query-status", nil); err != nil {
		return fmt.Errorf("asking whether it runs: %w", err)
	} else if err := json.Unmarshal(r, &status); err != nil || !status.Running {
		return fmt.Errorf("it does not run after its reset (%s): %w", r, bus.ErrProtocol)
	}
	p.mu.Lock()
	var roots []int
	for _, s := range p.seats {
		if s.ready && s.spec.Bus == "" {
			roots = append(roots, s.slot)
		}
	}
	p.mu.Unlock()
	for _, slot := range roots {
		v, err := q.config(0, slot, pci.CfgCommand)
		if err != nil {
			return err
		}
		if v := uint16(v); v&uint16(pci.CmdMaster) != 0 {
			return fmt.Errorf("resetting it: slot %d still masters the bus (Command %#04x): %w", slot, v, bus.ErrProtocol)
		}
	}
	if edus {
		time.Sleep(time.Until(over))
	}
	return nil
}

// What QEMU's edu does not lose with a reset: a copy that was begun is made 100 ms later. Without bus mastering it goes nowhere, so that is waited for.
const (
	eduCommand = 0x98 // DMA command; bit 0: busy
	eduTime    = 110 * time.Millisecond
)

// copying says whether an edu copies, or may.
func (p *Process) copying(q *wire) (bool, error) {
	p.mu.Lock()
	var edus [][]int
	for _, s := range p.seats {
		if s.ready && s.spec.Model == "edu" {
			edus = append(edus, p.path(s))
		}
	}
	p.mu.Unlock()
	for _, path := range edus {
		b := uint32(0)
		for _, slot := range path[:len(path)-1] {
			v, err := q.config(int(b), slot, 0x18)
			if err != nil {
				return false, err
			}
			b = v >> 8 & 0xff
		}
		bar, err := q.config(int(b), path[len(path)-1], 0x10)
		if err != nil {
			return false, err
		}
		bar &^= 0xf
		if bar == 0 { // nobody has looked at it since the last reset
			continue
		}
		v, err := q.ask("readl 0x" + strconv.FormatUint(uint64(bar)+eduCommand, 16))
		if err != nil || v&1 != 0 {
			return true, err
		}
	}
	return false, nil
}

// path are the slots from the root bus down to a device. Called with mu held.
func (p *Process) path(s *seat) []int {
	path := []int{s.slot}
	for s.spec.Bus != "" {
		up := s
		for _, o := range p.seats {
			if o.spec.Name == s.spec.Bus {
				up = o
			}
		}
		if up == s {
			break
		}
		s = up
		path = append([]int{s.slot}, path...)
	}
	return path
}

// wire speaks qtest where somebody else has spoken before, of whom nothing is believed.
type wire struct {
	fd    int
	limit time.Time
	in    []byte
}

// maxWireLine is how long a line of QEMU's may be: the answer to a read of memory.
const maxWireLine = 1 << 20

// lineOf reads a line, and sends what is left of out as QEMU takes it: while it waits for its answers to be read it takes nothing.
func (w *wire) lineOf(out *[]byte) (string, error) {
	buf := make([]byte, 64<<10)
	for {
		if i := bytes.IndexByte(w.in, '\n'); i >= 0 {
			l := string(w.in[:i])
			w.in = w.in[i+1:]
			return l, nil
		}
		if len(w.in) > maxWireLine {
			return "", fmt.Errorf("a line of %d bytes: %w", len(w.in), bus.ErrProtocol)
		}
		events := int16(unix.POLLIN)
		if len(*out) > 0 {
			events |= unix.POLLOUT
		}
		wait := min(time.Until(w.limit), AnswerTimeout)
		f := []unix.PollFd{{Fd: int32(w.fd), Events: events}}
		n, err := unix.Poll(f, int(max(wait, 0)/time.Millisecond))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return "", fmt.Errorf("waiting for an answer: %w", err)
		case n == 0:
			return "", fmt.Errorf("waiting for an answer: none within %v: %w", wait.Round(time.Millisecond), bus.ErrTimeout)
		}
		if f[0].Revents&unix.POLLOUT != 0 && len(*out) > 0 {
			n, err := unix.SendmsgN(w.fd, *out, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if err != nil && err != unix.EAGAIN && err != unix.EINTR {
				return "", fmt.Errorf("sending a command: %w", err)
			}
			*out = (*out)[max(n, 0):]
		}
		if f[0].Revents&^unix.POLLOUT != 0 {
			n, err := ioctl.RecvNow(w.fd, buf)
			switch {
			case err == unix.EAGAIN || err == unix.EINTR:
			case err != nil:
				return "", fmt.Errorf("waiting for an answer: %w", err)
			case n == 0:
				return "", fmt.Errorf("waiting for an answer: %w", io.ErrUnexpectedEOF)
			default:
				w.in = append(w.in, buf[:n]...)
			}
		}
		if time.Now().After(w.limit) {
			return "", fmt.Errorf("waiting for an answer: more than can be read in time: %w", bus.ErrTimeout)
		}
	}
}

// sync reads away what is there, up to the answer to a command that nobody can have given before. A command that is cut short, which nobody leaves who
// writes whole lines, ends this QEMU.
func (w *wire) sync() error {
	mark := "ring3-" + rand.Text()
	out := []byte(mark + "\n")
	for {
		l, err := w.lineOf(&out)
		if err != nil {
			return err
		}
		if strings.HasPrefix(l, "FAIL ") && strings.Contains(l, mark) {
			return nil
		}
	}
}

// ask sends a command and reads its answer.
func (w *wire) ask(cmd string) (uint64, error) {
	out := []byte(cmd + "\n")
	for {
		l, err := w.lineOf(&out)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", cmd, err)
		}
		m, err := parseReply([]byte(l))
		switch {
		case err != nil:
			return 0, fmt.Errorf("%s: %q: %w (%w)", cmd, l, err, bus.ErrProtocol)
		case !m.irq:
			return m.value, nil
		}
	}
}

// config reads four bytes of config space, by the ports that are there whatever anybody has set.
func (w *wire) config(b, slot int, off bus.Off) (uint32, error) {
	if _, err := w.ask(fmt.Sprintf("outl 0xcf8 0x%x", 1<<31|uint32(b)<<16|uint32(slot)<<11|uint32(off)&0xfc)); err != nil {
		return 0, err
	}
	v, err := w.ask("inl 0xcfc")
	return uint32(v), err
}

// Registers of a TPM with a FIFO (TIS 1.3, 5.3) and with a command response buffer (PC Client PTP 1.03, 6.5), in each locality's 4 KiB.
const (
	tisAccess  = 0x00 // ACCESS, 8 bits
	tisEnable  = 0x08 // INT_ENABLE
	tisCause   = 0x10 // INT_STATUS, W1C
	tisStatus  = 0x18 // STS, 8 bits of it
	tisActive  = 1 << 5
	tisReady   = 1 << 6 // of STS: commandReady
	crbControl = 0x08   // LOC_CTRL; bit 1: relinquish
	crbRequest = 0x40   // CTRL_REQ; bit 1: goIdle
	crbCancel  = 0x48
	crbStart   = 0x4c
	crbEnable  = 0x50

	localities = 5
	abortTime  = 2 * time.Second // TIMEOUT_B of TIS, for the abort of a command
)

// abortTPM aborts what a TPM does, and gives its localities up. One that does not end its command in time goes on with it, and its next driver waits.
func (w *wire) abortTPM(s *seat) error {
	base := platformModels[s.spec.Model].base
	var err error
	read := func(cmd string, off uint64) (v uint64) {
		if err == nil {
			v, err = w.ask(fmt.Sprintf("%s 0x%x", cmd, base+off))
		}
		return v
	}
	write := func(cmd string, off, v uint64) {
		if err == nil {
			_, err = w.ask(fmt.Sprintf("%s 0x%x 0x%x", cmd, base+off, v))
		}
	}
	wait := func(done func() bool) {
		end := time.Now().Add(abortTime)
		for err == nil && !done() && time.Now().Before(end) {
			time.Sleep(time.Millisecond)
		}
	}
	if s.spec.Model == "tpm-crb" {
		write("writel", crbEnable, 0)
		if read("readl", crbStart)&1 != 0 {
			write("writel", crbCancel, 1)
			wait(func() bool { return read("readl", crbStart)&1 == 0 })
			write("writel", crbCancel, 0)
		}
		write("writel", crbRequest, 1<<1)
		write("writel", crbControl, 1<<1)
		return err
	}
	for l := range uint64(localities) {
		at := l << 12
		if read("readb", at+tisAccess)&tisActive == 0 {
			continue
		}
		write("writel", at+tisEnable, 0)
		write("writeb", at+tisStatus, tisReady)
		wait(func() bool { return read("readb", at+tisStatus)&tisReady != 0 })
		write("writel", at+tisCause, 0xff)
		write("writeb", at+tisAccess, tisActive)
	}
	return err
}
