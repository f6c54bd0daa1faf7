package rm

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
)

// slots is how many objects a space has at most, and how many sessions.
const slots = 3

// bufferSize bounds the saved contexts of a space's objects together, and those of its sessions.
const bufferSize = 16 << 10

// slot holds one object or one session; the zero value is a free one.
type slot struct {
	handle uint32 // the real one; of an object 0 while it is not in the TPM
	saved  []byte // its context (TPMS_CONTEXT); nil before it was saved once
}

func (s *slot) free() bool { return s.handle == 0 && s.saved == nil }

// tables are what a space holds.
type tables struct{ objects, sessions [slots]slot }

// Space is one program's view of the TPM. It is safe for concurrent use.
type Space struct {
	m    *Manager
	turn chan struct{} // full while somebody has what is below

	tables
	closed bool
}

// lock waits for the space's turn.
func (s *Space) lock(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("tpmrm: waiting for the space: %w: %w", unix.EINTR, ctx.Err())
	}
}

func (s *Space) unlock() { <-s.turn }

// Transmit sends a command of the program and returns its answer. Bytes after the length that the command's header gives are
// not part of it. ctx ends the wait for the turn, and nothing that was begun.
func (s *Space) Transmit(ctx context.Context, cmd []byte) ([]byte, error) {
	h, ok := tpmdd.ParseHeader(cmd)
	if !ok || h.Length > uint32(len(cmd)) || h.Length < tpmdd.HeaderSize {
		return nil, fmt.Errorf("tpmrm: a command of %d bytes says that it has %d: %w", len(cmd), h.Length, unix.EINVAL)
	}
	attrs, ok := s.m.commands[h.Code]
	if !ok {
		return tpmdd.Answer(tpmdd.TagNoSessions, tpmdd.RCLayerRM|tpmdd.RCCommandCode), nil
	}
	if err := s.lock(ctx); err != nil {
		return nil, err
	}
	defer s.unlock()
	if s.closed {
		return nil, fmt.Errorf("tpmrm: %w: %w", unix.EBADF, bus.ErrClosed)
	}
	var rsp []byte
	err := s.m.chip.Do(ctx, func(x tpmdd.Exchanger) (err error) {
		rsp, err = s.run(context.WithoutCancel(ctx), x, attrs, slices.Clone(cmd[:h.Length]))
		return err
	})
	if err != nil {
		return nil, err
	}
	return rsp, nil
}

// run has one command executed with the space loaded. It works on a copy of the tables, which are
// the space's when all went well.
func (s *Space) run(ctx context.Context, x tpmdd.Exchanger, attrs tpmaCC, cmd []byte) ([]byte, error) {
	w := &work{ctx: ctx, x: x, log: s.m.log, tables: s.tables}
	rsp, err := w.command(attrs, cmd)
	if err != nil {
		w.flushAll()
		s.sessions = [slots]slot{}
		return nil, err
	}
	s.tables = w.tables
	return rsp, nil
}

// Close flushes the space's sessions; of its objects nothing is in the TPM. It waits for a command in
// flight. Where the chip is gone there is nothing to flush, and no error.
func (s *Space) Close() error {
	s.turn <- struct{}{} // a command ends
	defer s.unlock()
	if s.closed {
		return fmt.Errorf("tpmrm: %w: %w", unix.EBADF, bus.ErrClosed)
	}
	s.closed = true
	held := s.tables
	s.tables = tables{}
	if !slices.ContainsFunc(held.sessions[:], func(e slot) bool { return !e.free() }) {
		return nil
	}
	ctx := context.Background()
	err := s.m.chip.Do(ctx, func(x tpmdd.Exchanger) error {
		w := &work{ctx: ctx, x: x, log: s.m.log, tables: tables{sessions: held.sessions}}
		w.end()
		return nil
	})
	if err != nil {
		s.m.log.Debug("tpmrm: sessions were not flushed", "err", err)
	}
	return nil
}
