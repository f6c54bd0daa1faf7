package e1000_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
)

// TestSimPause sends to a slow receiver that nobody counts descriptors for: pause frames alone keep
// the sender back, and nothing is lost; without them much is.
func TestSimPause(t *testing.T) {
	for _, model := range []string{"e1000", "e1000e"} {
		for _, flow := range []string{"full", "none"} {
			t.Run(model+"/flow="+flow, func(t *testing.T) {
				m := simMachine(t, model)
				o := map[string]string{"ring": "64", "flow": flow}
				a, b := simBind(t, m, "eth0", o).(netdev.Device), simBind(t, m, "eth1", o).(netdev.Device)
				const frames, size = 20_000, 200
				var got, wrong int
				var wg sync.WaitGroup
				done := make(chan struct{})
				take := func() { got, wrong = slowly(b, done) }
				if flow == "full" {
					wg.Go(take)
				}
				sendUnpaced(t, a, b, frames, size)
				if flow == "none" { // more than ring and packet buffer hold were sent by now
					wg.Go(take)
				}
				// Nothing is on its way any more when nothing has arrived for a while.
				for n := uint64(0); ; {
					time.Sleep(50 * time.Millisecond)
					s := b.Stats()
					if s.RxPackets+s.RxMissedErrors == n {
						break
					}
					n = s.RxPackets + s.RxMissedErrors
				}
				close(done)
				wg.Wait()
				missed := b.Stats().RxMissedErrors
				if wrong != 0 || got+int(missed) != frames {
					t.Errorf("%d frames arrived, %d of them in the wrong order, %d were missed; want %d in all", got, wrong, missed, frames)
				}
				if flow == "full" && missed != 0 {
					t.Errorf("%d frames were missed in spite of flow control", missed)
				}
				if flow == "none" && missed == 0 {
					t.Error("no frame was missed without flow control")
				}
			})
		}
	}
}

// slowly takes frames until done, a few at a time, and counts those that are older than one
// before.
func slowly(b netdev.Device, done chan struct{}) (got, wrong int) {
	bufs := make([]*dma.Buf, 16)
	last := -1
	for {
		n := b.Rx(0).Burst(bufs)
		for _, x := range bufs[:n] {
			if seq := int(binary.BigEndian.Uint32(x.Data[14:])); seq <= last {
				wrong++
			} else {
				last = seq
			}
			x.Free()
		}
		got += n
		if n > 0 {
			time.Sleep(20 * time.Microsecond)
			continue
		}
		select {
		case <-done:
			b.Rx(0).Burst(nil)
			return got, wrong
		case <-time.After(100 * time.Microsecond):
		}
	}
}

// sendUnpaced sends as fast as the ring takes it.
func sendUnpaced(t *testing.T, a, b netdev.Device, frames, size int) {
	t.Helper()
	pool, err := a.Tx(0).NewPool(128)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for i := 0; i < frames; {
		x := pool.Get()
		if x == nil {
			if ctx.Err() != nil {
				t.Fatal(fmt.Errorf("after %d frames: %w", i, ctx.Err()))
			}
			a.Tx(0).Reap()
			time.Sleep(10 * time.Microsecond)
			continue
		}
		x.Data = x.Mem[:size]
		copy(x.Data, b.MAC())
		copy(x.Data[6:], a.MAC())
		x.Data[12], x.Data[13] = 0x88, 0xb5
		binary.BigEndian.PutUint32(x.Data[14:], uint32(i))
		for a.Tx(0).Burst([]*dma.Buf{x}) == 0 {
			if ctx.Err() != nil {
				x.Free()
				t.Fatal(fmt.Errorf("after %d frames: %w", i, ctx.Err()))
			}
			time.Sleep(10 * time.Microsecond)
		}
		i++
	}
	if err := a.Tx(0).Drain(ctx); err != nil {
		t.Error(err)
	}
}
