package rm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
)

// work is a space while it has the chip: its tables, and what is loaded of them.
type work struct {
	ctx context.Context // never cancelled
	x   tpmdd.Exchanger
	log *slog.Logger
	tables
}

// command loads the space, sends cmd, and saves the space again. After an error things may be left
// loaded; flushAll removes them.
func (w *work) command(attrs tpmaCC, cmd []byte) ([]byte, error) {
	if err := w.load(); err != nil {
		return nil, err
	}
	if err := mapCommand(cmd, attrs.handles(), w.real); err != nil {
		return nil, err
	}
	rsp, err := w.x.Transmit(w.ctx, cmd)
	if err != nil {
		return nil, err
	}
	rsp = append([]byte(nil), rsp...) // it is patched, and more commands follow
	h, err := answerHeader(rsp)
	if err != nil {
		return nil, fmt.Errorf("tpmrm: command 0x%x: %w", attrs.code(), err)
	}
	if h.Code == 0 && attrs.rHandle() {
		if err := w.mapAnswer(rsp); err != nil {
			return nil, err
		}
	}
	if h.Code == 0 && attrs.code() == tpmdd.CCGetCapability {
		if rsp, err = filterHandles(rsp, w.virtual); err != nil {
			return nil, err
		}
	}
	if err := w.save(); err != nil {
		return nil, err
	}
	return rsp, nil
}

// real is the handle in the TPM of an object that the program knows as v.
func (w *work) real(v uint32) (uint32, bool) {
	i := lastVirtual - v
	if i >= slots || w.objects[i].free() {
		return 0, false
	}
	return w.objects[i].handle, true
}

// virtual is the program's handle for the object that is loaded as h.
func (w *work) virtual(h uint32) (uint32, bool) {
	for i, o := range w.objects {
		if o.handle == h {
			return virtual(i), true
		}
	}
	return 0, false
}

// mapAnswer gives what a command made a slot, and puts the virtual handle into its answer.
func (w *work) mapAnswer(rsp []byte) error {
	h, err := answerHandle(rsp)
	if err != nil {
		return fmt.Errorf("tpmrm: reading an answer: %w: %w: %w", err, unix.EFAULT, bus.ErrProtocol)
	}
	switch h & kindMask {
	case kindTransient:
		i := put(&w.objects, h)
		if i < 0 {
			return w.noSlot(h)
		}
		be.PutUint32(rsp[tpmdd.HeaderSize:], virtual(i))
	case kindHMAC, kindPolicy:
		if put(&w.sessions, h) < 0 {
			return w.noSlot(h)
		}
	default:
		w.log.Error("tpmrm: an answer has a handle of unknown kind", "handle", fmt.Sprintf("0x%08X", h))
	}
	return nil
}

// put takes a free slot for a handle and returns which, or -1.
func put(t *[slots]slot, h uint32) int {
	for i := range t {
		if t[i].free() {
			t[i] = slot{handle: h}
			return i
		}
	}
	return -1
}

func (w *work) noSlot(h uint32) error {
	w.flush(h)
	return fmt.Errorf("tpmrm: out of slots for 0x%08x: %w", h, unix.ENOMEM)
}

// load brings what is saved into the TPM. A session that is not there any more is forgotten.
func (w *work) load() error {
	for i := range w.objects {
		o := &w.objects[i]
		if o.free() {
			continue
		}
		h, err := w.contextLoad(o.saved)
		if err != nil {
			return err
		}
		if h&kindMask != kindTransient {
			return fmt.Errorf("tpmrm: an object was loaded as 0x%08x: %w: %w", h, unix.EFAULT, bus.ErrProtocol)
		}
		o.handle = h
	}
	for i := range w.sessions {
		s := &w.sessions[i]
		if s.free() {
			continue
		}
		h, err := w.contextLoad(s.saved)
		switch {
		case errors.Is(err, errUnknown):
			*s = slot{}
		case err != nil:
			return err
		case h != s.handle:
			return fmt.Errorf("tpmrm: session 0x%08x was loaded as 0x%08x: %w: %w", s.handle, h, unix.EFAULT, bus.ErrProtocol)
		}
	}
	return nil
}

// save takes objects and sessions out of the TPM. What is not there any more is forgotten: the command flushed it, or
// was the last of its session.
func (w *work) save() error {
	for i, total := 0, 0; i < slots; i++ {
		o := &w.objects[i]
		if o.free() {
			continue
		}
		if err := w.contextSave(o, &total); err != nil {
			return err
		}
		if o.handle != 0 {
			w.flush(o.handle)
			o.handle = 0
		}
	}
	for i, total := 0, 0; i < slots; i++ {
		if s := &w.sessions[i]; !s.free() {
			if err := w.contextSave(s, &total); err != nil {
				return err
			}
		}
	}
	return nil
}

// flushAll removes everything of the space from the TPM. Sessions are flushed also where they are saved.
func (w *work) flushAll() {
	for _, t := range [...]*[slots]slot{&w.objects, &w.sessions} {
		for i := range t {
			if t[i].handle != 0 {
				w.flush(t[i].handle)
			}
		}
	}
}

// end flushes the sessions, all of which are saved. One that somebody flushed may have left its handle to another's
// session, so each is loaded first.
func (w *work) end() {
	for i := range w.sessions {
		s := &w.sessions[i]
		if s.free() {
			continue
		}
		if _, err := w.contextLoad(s.saved); errors.Is(err, errUnknown) {
			continue
		}
		w.flush(s.handle)
	}
}
