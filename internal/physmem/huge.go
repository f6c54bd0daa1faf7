package physmem

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/iova"
)

// HugeSize is the size of a huge page: what x86 and arm64 have in common.
const HugeSize = 2 << 20

// HugeFile is a file whose pages are huge ones. They stand in it in the order in which they were
// taken, and are mapped in any other.
type HugeFile interface {
	// Grow takes one more huge page, and says where it is in physical memory. It fails with
	// ENOSPC where there is none left.
	Grow() (phys uint64, err error)
	// MapPages maps these pages, by their numbers in the file, one behind the other, and gives
	// all others back. The file is used up; free gives back the rest.
	MapPages(pages []int) (bytes []byte, free func(), err error)
	// Close gives all pages back that were not mapped.
	Close()
}

// hugePage is a page of a HugeFile.
type hugePage struct {
	number int
	phys   uint64
}

// maxHuge is how many huge pages are looked at for a request: 2 GiB.
const maxHuge = 1024

// huge takes huge pages until some of them are a block that a request has room in. Those that
// are not a part of it go back at the end, not before: the kernel would give the same ones again.
func (m *Memory) huge(q bus.DMARequest) (*Block, error) {
	if q.Size > maxHuge*HugeSize {
		return nil, fmt.Errorf("more than %d huge pages of 2 MiB: %w", maxHuge, unix.ENOMEM)
	}
	f, err := m.src.File()
	if err != nil {
		return nil, err
	}
	var have []hugePage // in the order of addresses
	for n := range maxHuge {
		phys, err := f.Grow()
		if err != nil {
			f.Close()
			if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM) {
				return nil, fmt.Errorf("none among %d free huge pages of 2 MiB: %w", n, unix.ENOMEM)
			}
			return nil, err
		}
		i, _ := slices.BinarySearchFunc(have, phys, func(p hugePage, at uint64) int {
			if p.phys < at {
				return -1
			}
			return 1
		})
		have = slices.Insert(have, i, hugePage{n, phys})
		if want := choose(q, have, i); want != nil {
			return mapBlock(f, want)
		}
	}
	f.Close()
	return nil, fmt.Errorf("none among %d huge pages of 2 MiB: %w", maxHuge, unix.ENOMEM)
}

// choose picks the pages that serve a request among those that touch page i, each the next.
func choose(q bus.DMARequest, have []hugePage, i int) []hugePage {
	lo, hi := i, i+1
	for lo > 0 && have[lo-1].phys+HugeSize == have[lo].phys {
		lo--
	}
	for hi < len(have) && have[hi-1].phys+HugeSize == have[hi].phys {
		hi++
	}
	run := have[lo:hi]
	s, ok := fit(q, iova.Span{Base: run[0].phys, End: run[len(run)-1].phys + HugeSize})
	if !ok {
		return nil
	}
	first, last := (s.Base-run[0].phys)/HugeSize, (s.End-1-run[0].phys)/HugeSize
	return run[first : last+1]
}

func mapBlock(f HugeFile, want []hugePage) (*Block, error) {
	numbers := make([]int, len(want))
	b := &Block{}
	for i, p := range want {
		numbers[i] = p.number
		for off := uint64(0); off < HugeSize; off += uint64(pageSize) {
			b.Phys = append(b.Phys, p.phys+off)
		}
	}
	var err error
	if b.Bytes, b.Free, err = f.MapPages(numbers); err != nil {
		return nil, err
	}
	return b, nil
}
