package rm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
)

// contextHead is what precedes the blob in a TPMS_CONTEXT: sequence, savedHandle, hierarchy, size.
const contextHead = 8 + 4 + 4 + 2

// errUnknown: a context is none of the TPM's any more. An errno would not do, a transport may give the same.
var errUnknown = errors.New("the TPM does not know it")

// send sends a command of the manager's own.
func (w *work) send(code uint32, params ...byte) (uint32, []byte, error) {
	rsp, err := w.x.Transmit(w.ctx, tpmdd.Command(tpmdd.TagNoSessions, code, params...))
	if err != nil {
		return 0, nil, err
	}
	h, err := answerHeader(rsp)
	if err != nil {
		return 0, nil, err
	}
	return h.Code, rsp, nil
}

// failed makes the error of a step that the chip did not carry out: EFAULT, as nothing is wrong with the program's
// command, but EPIPE where there is no chip any more.
func failed(step string, err error) error {
	if errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("tpmrm: %s: %w", step, err)
	}
	return fmt.Errorf("tpmrm: %s: %w: %w", step, unix.EFAULT, err)
}

// contextLoad loads a saved context and returns the handle. It fails with ENOENT where the TPM does not know it.
func (w *work) contextLoad(saved []byte) (uint32, error) {
	const step = "loading a context"
	rc, rsp, err := w.send(tpmdd.CCContextLoad, saved...)
	switch {
	case err != nil:
		return 0, failed(step, err)
	case value(rc) == rcHandle, rc == rcReferenceH0:
		// Its sequence number is not the one expected, so it was loaded or saved elsewhere since; or it was flushed.
		return 0, fmt.Errorf("tpmrm: %s: %w (0x%x): %w", step, errUnknown, rc, unix.ENOENT)
	case value(rc) == rcIntegrity:
		return 0, fmt.Errorf("tpmrm: %s: the TPM did not save it (0x%x): %w", step, rc, unix.EINVAL)
	case rc != 0:
		return 0, fmt.Errorf("tpmrm: %s: the TPM says 0x%x: %w", step, rc, unix.EFAULT)
	}
	h, err := answerHandle(rsp)
	if err != nil {
		return 0, fmt.Errorf("tpmrm: %s: %w: %w: %w", step, err, unix.EFAULT, bus.ErrProtocol)
	}
	return h, nil
}

// contextSave saves what is loaded in a slot, or makes the slot free where the TPM does not know it any more. total is
// the length of what was saved before it.
func (w *work) contextSave(s *slot, total *int) error {
	const step = "saving a context"
	rc, rsp, err := w.send(tpmdd.CCContextSave, be.AppendUint32(nil, s.handle)...)
	switch {
	case err != nil:
		return failed(step, err)
	case value(rc) == rcReferenceH0:
		*s = slot{}
		return nil
	case rc != 0:
		return fmt.Errorf("tpmrm: %s of 0x%08x: the TPM says 0x%x: %w", step, s.handle, rc, unix.EFAULT)
	}
	body := rsp[tpmdd.HeaderSize:]
	if len(body) < contextHead || int(be.Uint16(body[contextHead-2:])) != len(body)-contextHead {
		return fmt.Errorf("tpmrm: %s of 0x%08x: %d bytes are none: %w: %w", step, s.handle, len(body), unix.EFAULT, bus.ErrProtocol)
	}
	if *total += len(body); *total > bufferSize {
		return fmt.Errorf("tpmrm: %s of 0x%08x: more than %d bytes in all: %w", step, s.handle, bufferSize, unix.ENOMEM)
	}
	s.saved = append([]byte(nil), body...)
	return nil
}

// flush removes an object or a session from the TPM. Where the command could not be sent it is sent once more: what stays
// takes the place of somebody else's. What the TPM says does not matter, there may be nothing to flush.
func (w *work) flush(h uint32) {
	for range 2 {
		_, _, err := w.send(tpmdd.CCFlushContext, be.AppendUint32(nil, h)...)
		if err == nil {
			return
		}
		w.log.Warn("tpmrm: flushing", "handle", fmt.Sprintf("0x%08x", h), "err", err)
	}
}
