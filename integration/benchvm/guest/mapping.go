//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/integration/benchvm/row"
	"github.com/ring3dev/ring3/vfio"
)

// mappingArg is what the child "mapping" is to do.
type mappingArg struct {
	Addr string        `json:"addr"`
	Huge bool          `json:"huge"` // pages of 2 MiB are reserved: use them
	Time time.Duration `json:"time"`
}

// mappingCosts are nanoseconds, and packets a second.
type mappingCosts struct {
	MapPage float64 `json:"mapPage"` // map and unmap 4 KiB
	MapHuge float64 `json:"mapHuge"` // 2 MiB
	Pool    float64 `json:"pool"`    // get and free a buffer
	Near    float64 `json:"near"`    // sending from few pages
	Far     float64 `json:"far"`     // sending from many
}

const (
	pageSize = 4 << 10
	hugeSize = 2 << 20
)

// mappingMain measures what memory costs: mapped for each use, from a pool; in small and large
// pages.
func mappingMain(a mappingArg, _ func(func() uint64) error) (c mappingCosts, err error) {
	o := vfio.Options{Pages: vfio.PagesSmall}
	if a.Huge {
		o.Pages = vfio.PagesAuto
	}
	n, err := openNIC(a.Addr, "eth0", o, map[string]string{"ring": "4096"})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	if !a.Huge {
		if c.MapPage, err = mapCost(n.dev.DMA(), pageSize, a.Time); err != nil {
			return c, err
		}
	} else if c.MapHuge, err = mapCost(n.dev.DMA(), hugeSize, a.Time); err != nil {
		return c, err
	}
	q := n.net.Tx(0)
	small, err := q.NewPool(64)
	if err != nil {
		return c, err
	}
	defer small.Close()
	c.Pool = poolCost(small, a.Time)
	large, err := q.NewPool(4096)
	if err != nil {
		return c, err
	}
	defer large.Close()
	// In turn, so that both see the same machine.
	for range 4 {
		for _, x := range []struct {
			pool *dma.Pool
			pps  *float64
		}{{small, &c.Near}, {large, &c.Far}} {
			pps, err := cycle(n, x.pool, a.Time/4)
			if err != nil {
				return c, err
			}
			*x.pps += pps / 4
		}
	}
	return c, nil
}

// mapCost is how long it takes to map memory for the device and to unmap it, in nanoseconds.
func mapCost(d bus.DMA, size int, t time.Duration) (float64, error) {
	flags := unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_POPULATE
	if size == hugeSize {
		flags |= unix.MAP_HUGETLB
	}
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return 0, fmt.Errorf("%d bytes of memory: %w", size, err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	begin := time.Now()
	n := 0
	for ; time.Since(begin) < t; n += 16 {
		for range 16 {
			m, err := d.Map(mem, bus.DMARequest{Size: size, Dir: bus.ToDevice})
			if err != nil {
				return 0, err
			}
			m.Free()
		}
	}
	return float64(time.Since(begin).Nanoseconds()) / float64(n), nil
}

// poolCost is the same with a buffer from a pool.
func poolCost(p *dma.Pool, t time.Duration) float64 {
	begin := time.Now()
	n := 0
	for ; time.Since(begin) < t; n += 4096 {
		for range 4096 {
			p.Get().Free()
		}
	}
	return float64(time.Since(begin).Nanoseconds()) / float64(n)
}

// cycle sends from all buffers of a pool in turn and returns packets a second.
func cycle(n *nic, p *dma.Pool, t time.Duration) (float64, error) {
	q := n.net.Tx(0)
	var bufs [32]*dma.Buf
	sent := 0
	begin := time.Now()
	for turn := 0; turn%256 != 0 || time.Since(begin) < t; turn++ {
		k := 0
		for ; k < len(bufs); k++ {
			b := p.Get()
			if b == nil {
				break
			}
			b.Data = b.Mem[:smallest]
			bufs[k] = b
		}
		taken := q.Burst(bufs[:k])
		for _, b := range bufs[taken:k] {
			b.Free()
		}
		sent += taken
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := q.Drain(ctx); err != nil {
		return 0, err
	}
	return float64(sent) / time.Since(begin).Seconds(), nil
}

// hugeForRing3 is how many pages of 2 MiB ring3 gets: rings, and pools of sending and receiving.
const hugeForRing3 = 64

// mapping is what memory for the device costs.
func mapping(s *session, emit func(...row.Row) error) (err error) {
	set := s.set("map")
	type result struct {
		name, unit string
		of         func(mappingCosts) float64
	}
	cases := map[bool][]result{
		false: {
			{"map and unmap 4 KiB", "ns", func(c mappingCosts) float64 { return c.MapPage }},
			{"buffer from a pool", "ns", func(c mappingCosts) float64 { return c.Pool }},
			{"send burst=32 pages=4K buffers=64", "pps", func(c mappingCosts) float64 { return c.Near }},
			{"send burst=32 pages=4K buffers=4096", "pps", func(c mappingCosts) float64 { return c.Far }},
		},
		true: {
			{"map and unmap 2 MiB", "ns", func(c mappingCosts) float64 { return c.MapHuge }},
			{"send burst=32 pages=2M buffers=64", "pps", func(c mappingCosts) float64 { return c.Near }},
			{"send burst=32 pages=2M buffers=4096", "pps", func(c mappingCosts) float64 { return c.Far }},
		},
	}
	defer func() { err = errors.Join(err, setHugePages(0)) }()
	for range min(s.Reps, 3) {
		for _, huge := range []bool{false, true} {
			var wanted []result
			for _, r := range cases[huge] {
				if set.Wants(r.name) {
					wanted = append(wanted, r)
				}
			}
			if len(wanted) == 0 {
				continue
			}
			pages := 0
			if huge {
				pages = hugeForRing3
			}
			if err := setHugePages(pages); err != nil {
				return err
			}
			var c mappingCosts
			if err := s.asNobody(row.Sender, "mapping", mappingArg{row.Sender, huge, s.Time}, &c); err != nil {
				return err
			}
			for _, r := range wanted {
				set.Add(r.name, r.unit, r.of(c))
			}
		}
	}
	rows := set.Rows()
	for _, b := range []string{"64", "4096"} {
		if r, ok := set.Compare("send burst=32 pages=2M buffers="+b, "send burst=32 pages=4K buffers="+b, "pps"); ok {
			rows = append(rows, r)
		}
	}
	return emit(rows...)
}
