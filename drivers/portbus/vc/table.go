package vc

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/sysfs"
)

// words reads a table as it is with an arbitration chosen; nil where there is none.
func (s *service) words(t table, selected int) []uint32 {
	n := t.size(t.phases(selected)) / 4
	if n == 0 {
		return nil
	}
	words := make([]uint32, n)
	for i := range words {
		words[i] = s.cfg.Read32(t.at + bus.Off(4*i))
	}
	return words
}

// write writes a table. Loading it is another step.
func (s *service) write(t table, words []uint32) {
	for i, w := range words {
		s.cfg.Write32(t.at+bus.Off(4*i), w)
	}
}

// loadVC has the VC arbitration table loaded (7.9.1.4, 7.9.1.5), and loadPort that of a resource (7.9.1.7, 7.9.1.8).
func (s *service) loadVC(ctx context.Context) error {
	v, err := s.portControl()
	if err != nil {
		return err
	}
	s.cfg.Write16(s.at+pci.VCCtl, v|pci.VCCtlLoad)
	return s.loaded(ctx, "VC arbitration table", pci.VCSta)
}

func (s *service) loadPort(ctx context.Context, n int) error {
	v, err := s.control(n)
	if err != nil {
		return err
	}
	s.cfg.Write32(s.at+resCtl(n), v|pci.VCResLoad)
	return s.loaded(ctx, fmt.Sprintf("port arbitration table of vc%d", n), resSta(n))
}

// loaded waits until a table is.
func (s *service) loaded(ctx context.Context, what string, status bus.Off) error {
	for waited := time.Duration(0); ; waited += loadStep {
		v := s.cfg.Read16(s.at + status)
		switch {
		case v == 0xffff:
			return s.failf("loading the %s: its status reads all-ones: %w (%w)", what, bus.ErrGone, unix.EIO)
		case v&pci.VCStaLoad == 0:
			return nil
		case waited >= loadTime:
			return s.failf("loading the %s: not within %v: %w (%w)", what, loadTime, bus.ErrTimeout, unix.ETIMEDOUT)
		}
		if err := s.port.Sleep(ctx, loadStep); err != nil {
			return s.failf("loading the %s: %w", what, err)
		}
	}
}

// showTable writes entries with blanks between.
func showTable(w *bytes.Buffer, entries []uint32) {
	for i, e := range entries {
		if i > 0 {
			w.WriteByte(' ')
		}
		w.WriteString(strconv.FormatUint(uint64(e), 10))
	}
	w.WriteByte('\n')
}

// parseTable reads as many entries as there must be, each of so many bits.
func parseTable(p []byte, phases, width int) ([]uint32, error) {
	fields := strings.Fields(string(p))
	if len(fields) != phases {
		return nil, fmt.Errorf("%d entries, want %d: %w", len(fields), phases, unix.EINVAL)
	}
	entries := make([]uint32, phases)
	for i, f := range fields {
		v, err := sysfs.ParseUint(f, 1<<width-1)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
		entries[i] = uint32(v)
	}
	return entries, nil
}

// set writes and loads a table; what fails leaves the old one.
func (s *service) set(ctx context.Context, t table, selected int, entries []uint32, load func(context.Context) error) error {
	old, words := s.words(t, selected), pack(entries, t.bits)
	s.write(t, words)
	if got := s.words(t, selected); !slices.Equal(got, words) {
		s.write(t, old)
		return s.failf("writing a table of %d entries: it reads back otherwise: %w (%w)", len(entries), bus.ErrProtocol, unix.EIO)
	}
	if err := load(ctx); err != nil {
		s.write(t, old)
		return err
	}
	return nil
}

func (s *service) showVCTable(w *bytes.Buffer) error {
	if _, err := s.portControl(); err != nil {
		return err
	}
	showTable(w, unpack(s.words(s.vc, s.vcSelected()), s.vc.bits))
	return nil
}

func (s *service) storeVCTable(ctx context.Context, p []byte) (int, error) {
	err := s.change(ctx, func(ctx context.Context) error {
		selected := s.vcSelected()
		entries, err := parseTable(p, s.vc.phases(selected), 3) // of the four bits one is reserved
		if err != nil {
			return s.failf("setting the VC arbitration table: %w", err)
		}
		ids, err := s.ids(false, -1)
		if err != nil {
			return err
		}
		for i, e := range entries {
			if !slices.Contains(ids, e) {
				return s.failf("setting the VC arbitration table: entry %d: no channel has ID %d: %w", i, e, unix.EINVAL)
			}
		}
		return s.set(ctx, s.vc, selected, entries, s.loadVC)
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *service) showSlots(w *bytes.Buffer, n int) error {
	ctl, err := s.control(n)
	if err != nil {
		return err
	}
	t := s.layout.port[n]
	showTable(w, unpack(s.words(t, selectOf(ctl)), t.bits))
	return nil
}

func (s *service) storeSlots(ctx context.Context, n int, p []byte) error {
	ctl, err := s.control(n)
	if err != nil {
		return err
	}
	t := s.layout.port[n]
	entries, err := parseTable(p, t.phases(selectOf(ctl)), t.bits)
	if err != nil {
		return s.failf("setting the port arbitration table of vc%d: %w", n, err)
	}
	return s.set(ctx, t, selectOf(ctl), entries, func(ctx context.Context) error { return s.loadPort(ctx, n) })
}
