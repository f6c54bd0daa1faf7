// Package physmemtest is a model of physical memory, for tests of what takes it.
package physmemtest

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/physmem"
)

var pageSize = os.Getpagesize()

// RAM is a machine's physical memory, as a source: a model. Its huge pages are at these
// addresses, and are given in this order.
type RAM struct {
	T     *testing.T
	Huge  []uint64 // free huge pages, the next first
	Small []uint64 // where the next blocks of small pages are: each is cut into runs of 1, 2, 4... pages
	Taken int      // blocks and files that are not given back
	Ended bool     // it was closed
}

// Close ends taking.
func (r *RAM) Close() { r.Ended = true }

// Check fails the test where something is left behind: huge pages are how many there were.
func (r *RAM) Check(t *testing.T, huge int) {
	t.Helper()
	if r.Taken != 0 || len(r.Huge) != huge {
		t.Errorf("%d blocks are still taken, and %d huge pages free, want 0 and %d", r.Taken, len(r.Huge), huge)
	}
}

func (r *RAM) mmap(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		r.T.Fatal(err)
	}
	r.Taken++
	return b
}

// Pages is a block of small pages.
func (r *RAM) Pages() (*physmem.Block, error) {
	if len(r.Small) == 0 {
		return nil, unix.EPERM
	}
	at := r.Small[0]
	r.Small = r.Small[1:]
	b := r.mmap(physmem.HugeSize)
	k := &physmem.Block{Bytes: b, Free: func() {
		r.Taken--
		if err := unix.Munmap(b); err != nil {
			r.T.Error(err)
		}
	}}
	for n := 1; len(k.Phys) < physmem.HugeSize/pageSize; n *= 2 {
		for range n {
			if len(k.Phys) < physmem.HugeSize/pageSize {
				k.Phys = append(k.Phys, at)
			}
			at += uint64(pageSize)
		}
		at += uint64(pageSize) // a hole
	}
	return k, nil
}

// File begins to take huge pages.
func (r *RAM) File() (physmem.HugeFile, error) {
	r.Taken++
	return &ramFile{RAM: r}, nil
}

type ramFile struct {
	*RAM
	pages []uint64
}

func (f *ramFile) Grow() (uint64, error) {
	if len(f.Huge) == 0 {
		return 0, fmt.Errorf("taking a huge page: %w", unix.ENOSPC)
	}
	at := f.Huge[0]
	f.Huge = f.Huge[1:]
	f.pages = append(f.pages, at)
	return at, nil
}

func (f *ramFile) MapPages(want []int) ([]byte, func(), error) {
	f.Taken--
	var kept []uint64
	for i, at := range f.pages {
		if slices.Contains(want, i) {
			kept = append(kept, at)
		} else {
			f.Huge = append(f.Huge, at)
		}
	}
	b := f.mmap(len(want) * physmem.HugeSize)
	return b, func() {
		f.Taken--
		f.Huge = append(f.Huge, kept...)
		if err := unix.Munmap(b); err != nil {
			f.T.Error(err)
		}
	}, nil
}

func (f *ramFile) Close() {
	f.Taken--
	f.Huge = append(f.Huge, f.pages...)
}

// HugeAt are n huge pages from the one with this number on, each second one before the others.
func HugeAt(first, n uint64) []uint64 {
	var out []uint64
	for odd := range uint64(2) {
		for i := odd; i < n; i += 2 {
			out = append(out, (first+i)*physmem.HugeSize)
		}
	}
	return out
}
