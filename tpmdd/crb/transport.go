package crb

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
)

// transport is locality 0 of a command response buffer; tpmdd.Transport.
type transport struct {
	dev      bus.Device
	regs     bus.Region
	cmd, rsp window
	timeouts tpmdd.Timeouts
	canceled atomic.Bool // the command in flight
	aborting bool        // a command that took too long was cancelled, and may not have ended yet
}

// window is a part of the region.
type window struct {
	off  bus.Off
	size int
}

func (t *transport) errorf(format string, args ...any) error {
	return fmt.Errorf(t.dev.Address()+" tpm_crb: "+format, args...)
}

// buffers finds out where command and answer go, and that this is inside the region.
func (t *transport) buffers() error {
	r := func(o bus.Off) uint64 { return uint64(t.regs.Read32(o)) }
	for _, w := range []struct {
		name string
		put  *window
		addr uint64
		size uint64
	}{
		{"command", &t.cmd, r(regCMDHADDR)<<32 | r(regCMDLADDR), r(regCMDSIZE)},
		{"response", &t.rsp, r(regRSPADDRHi)<<32 | r(regRSPADDR), r(regRSPSIZE)},
	} {
		in := t.regs.Info()
		if err := tpmdd.Gone(t.dev); err != nil {
			return err
		}
		off := w.addr - in.Addr
		if w.addr < in.Addr || off >= in.Size || w.size > in.Size-off || off%8 != 0 || w.size < tpmdd.HeaderSize {
			return fmt.Errorf("the %s buffer is at %#x, %#x bytes, and the region at %#x, %#x bytes: %w", w.name, w.addr, w.size, in.Addr, in.Size, bus.ErrNotSupported)
		}
		*w.put = window{bus.Off(off), int(w.size)}
	}
	return nil
}

// SetTimeouts is tpmdd.Transport's.
func (t *transport) SetTimeouts(to tpmdd.Timeouts) { t.timeouts = to }

// MaxCommand is what the buffer takes, in bytes.
func (t *transport) MaxCommand() int { return t.cmd.size }

// Begin requests the locality and wakes the TPM up.
func (t *transport) Begin(context.Context) error {
	const want = locAssigned | locValid
	var l locState
	t.regs.Write32(regLOCCTRL, locRequest)
	if !tpmdd.Poll(t.timeouts.C, t.dev.Done(), func() bool {
		l = locState(t.regs.Read32(regLOCSTATE))
		return l&(want|locActive|locZero) == want
	}) {
		t.regs.Write32(regLOCCTRL, locRelinquish)
		return tpmdd.Late(t.dev, "requesting locality 0", t.timeouts.C, "LOC_STATE", l, unix.EPIPE)
	}
	if err := t.request("waking the TPM up", reqReady); err != nil {
		t.End()
		return err
	}
	return nil
}

// request sets a bit of CTRL_REQ and waits until the TPM cleared it.
func (t *transport) request(what string, bit ctrl) error {
	t.regs.Write32(regCTRLREQ, uint32(bit))
	if !t.cleared(regCTRLREQ, bit, t.timeouts.C) {
		return tpmdd.Late(t.dev, what, t.timeouts.C, "CTRL_REQ", bit, unix.EPIPE)
	}
	return nil
}

// cleared waits until the TPM cleared a bit.
func (t *transport) cleared(reg bus.Off, bit ctrl, limit time.Duration) bool {
	return tpmdd.Poll(limit, t.dev.Done(), func() bool { return ctrl(t.regs.Read32(reg))&bit == 0 })
}

// End lets the TPM sleep and gives the locality back.
func (t *transport) End() {
	_ = t.request("going idle", reqIdle) // a TPM that does not is still not ours any more
	t.regs.Write32(regLOCCTRL, locRelinquish)
}

// Send puts a command into the buffer and starts it.
func (t *transport) Send(cmd []byte) error {
	t.canceled.Store(false)
	if t.aborting && !t.cleared(regSTART, startInvoke, t.timeouts.B) {
		return tpmdd.Late(t.dev, "waiting for the end of a command that was cancelled", t.timeouts.B, "CTRL_START", startInvoke, unix.ETIME)
	}
	t.aborting = false
	t.regs.Write32(regCANCEL, 0)
	t.write(cmd)
	t.regs.Write32(regSTART, uint32(startInvoke))
	return nil
}

// write fills the command buffer, with zeros after the end of the last word.
func (t *transport) write(p []byte) {
	for off := t.cmd.off; len(p) > 0; off += 8 {
		var b [8]byte
		n := copy(b[:], p)
		p = p[n:]
		if int(off-t.cmd.off)+8 <= t.cmd.size {
			t.regs.Write64(off, binary.LittleEndian.Uint64(b[:]))
			continue
		}
		for i := range n {
			t.regs.Write8(off+bus.Off(i), b[i])
		}
	}
}

// read reads the response buffer from a multiple of 8 on, in words as long as those are inside.
func (t *transport) read(p []byte, from int) {
	off := t.rsp.off + bus.Off(from)
	var words [tpmdd.MaxCommand / 8]uint64
	run := words[:min((len(p)+7)/8, (t.rsp.size-from)/8, len(words))]
	bus.ReadRun64(t.regs, off, 8, run)
	for _, w := range run {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], w)
		p = p[copy(p, b[:]):]
	}
	off += bus.Off(8 * len(run))
	for i := range p {
		p[i] = t.regs.Read8(off + bus.Off(i))
	}
}

// Wait waits until the TPM is done.
func (t *transport) Wait(d time.Duration) error {
	begin := time.Now()
	for {
		// In steps, so that a command that is cancelled is waited for no longer than the TPM may take to cancel it.
		step := min(d-time.Since(begin), time.Second)
		if t.cleared(regSTART, startInvoke, max(step, 0)) {
			return nil
		}
		switch left := d - time.Since(begin); {
		case tpmdd.Gone(t.dev) != nil:
			return tpmdd.Gone(t.dev)
		case t.canceled.Load():
			t.aborting = !t.cleared(regSTART, startInvoke, t.timeouts.B)
			return fmt.Errorf("cancelled: %w", unix.ECANCELED)
		case left <= 0:
			t.regs.Write32(regCANCEL, uint32(cancelInvoke))
			t.aborting = true
			return tpmdd.Late(t.dev, "waiting for the answer", d, "CTRL_START", startInvoke, unix.ETIME)
		}
	}
}

// rcCanceled is TPM_RC_CANCELED, the answer to a command that was.
const rcCanceled = 0x909

// Receive reads the answer.
func (t *transport) Receive(p []byte) (int, error) {
	s := ctrl(t.regs.Read32(regCTRLSTS))
	if err := tpmdd.Gone(t.dev); err != nil {
		return 0, err
	}
	if s&stsError != 0 {
		return 0, fmt.Errorf("the TPM has failed, and takes a reset to work again (CTRL_STS=%s): %w (%w)", stsBits(uint64(s)), unix.EIO, bus.ErrProtocol)
	}
	t.read(p[:8], 0)
	n := int64(binary.BigEndian.Uint32(p[2:]))
	if n < tpmdd.HeaderSize || n > int64(min(len(p), t.rsp.size)) {
		return 0, fmt.Errorf("reading the header: it says %d bytes, want %d to %d: %w (%w)", n, tpmdd.HeaderSize, min(len(p), t.rsp.size), unix.EIO, bus.ErrProtocol)
	}
	t.read(p[8:n], 8)
	if err := tpmdd.Gone(t.dev); err != nil {
		return 0, err // what was read may be all ones
	}
	if h, _ := tpmdd.ParseHeader(p[:n]); h.Code == rcCanceled && t.canceled.Load() {
		return 0, fmt.Errorf("cancelled: %w", unix.ECANCELED)
	}
	return int(n), nil
}

// Cancel asks the TPM to cancel the command in flight; anybody may call it.
func (t *transport) Cancel() {
	t.canceled.Store(true)
	t.regs.Write32(regCANCEL, uint32(cancelInvoke))
}
