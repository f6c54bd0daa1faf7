package vfiouser

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// watched is a device that tells of writes to region 0.
type watched struct {
	*fake
	saw func(v uint32)
}

func (d *watched) Region(i int) (bus.Region, error) {
	r, err := d.fake.Region(i)
	if err == nil && i == 0 {
		r = watchedRegion{r, d.saw}
	}
	return r, err
}

type watchedRegion struct {
	bus.Region
	saw func(v uint32)
}

func (r watchedRegion) Write32(_ bus.Off, v uint32) { r.saw(v) }

// What is written to devices of one group reaches them in the order in which it was written, whichever device it is for.
func TestGroupOrder(t *testing.T) {
	const devices, writes = 3, 20_000
	var mu sync.Mutex
	var seen []uint32
	group := new(Group)
	var regions []bus.Region
	for range devices {
		o := fakeServer(t)
		o.Group = group
		d := serve(t, &watched{newFake(t, false), func(v uint32) {
			mu.Lock()
			seen = append(seen, v)
			mu.Unlock()
		}}, o, Options{})
		regions = append(regions, regionOf(t, d, 0))
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	// One goroutine goes on where another left off: that is an order, too.
	turn := make(chan uint32)
	go func() {
		for v := range turn {
			regions[rnd.IntN(devices)].Write32(0, v)
			turn <- v + 1
		}
	}()
	for v := uint32(0); v < writes; {
		for range rnd.IntN(5) {
			regions[rnd.IntN(devices)].Write32(0, v)
			v++
		}
		if rnd.IntN(1000) == 0 {
			time.Sleep(time.Millisecond) // so that the servers sleep
		}
		turn <- v
		v = <-turn
	}
	close(turn)
	for _, r := range regions {
		r.Read32(4)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) < writes {
		t.Fatalf("%d writes arrived, want %d", len(seen), writes)
	}
	for i, v := range seen {
		if int(v) != i {
			t.Fatalf("write %d came in place %d", v, i)
		}
	}
}

// A client whose times are nonsense, or that never stops writing, holds up nobody.
func TestGroupLiar(t *testing.T) {
	group := new(Group)
	o := fakeServer(t)
	o.Group = group
	liar, honest := serve(t, newFake(t, false), o, Options{}), serve(t, newFake(t, false), o, Options{})
	l, h := regionOf(t, liar, 0), regionOf(t, honest, 0)
	liar.queue.timed = false // it says 0: before everybody
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				l.Write32(0, 1)
			}
		}
	})
	for i := range uint32(200) {
		h.Write32(8, i)
		if v := h.Read32(8); v != i {
			t.Fatalf("read %d after writing %d", v, i)
		}
	}
	close(stop)
	wg.Wait()
}
