package bustest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// After a reset config space is as it was, and the device works.
func reset(t *testing.T, s Subject) {
	d := s.Device
	c := d.Config()
	pci.SetCommand(c, pci.CmdMaster, 0)
	var before [64]uint32
	for i := range before {
		before[i] = c.Read32(bus.Off(4 * i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := d.Reset(ctx)
	if err != nil {
		wantErr(t, "Reset", err, bus.ErrNotSupported)
		t.Skipf("no reset here: %v", err)
	}
	for i, want := range before {
		got := c.Read32(bus.Off(4 * i))
		if bus.Off(4*i) == pci.CfgCommand {
			got, want = got&0xffff, want&0xffff // Status tells what happened
		}
		if i < 16 && got != want {
			t.Errorf("config space at %#x after Reset = %#08x, want %#08x as before", 4*i, got, want)
		}
	}
	if s.Scratch != nil {
		scratch(t, s)
	}
	if s.Raise != nil {
		irqFires(t, s)
	}
	done, stop := context.WithCancel(t.Context())
	stop()
	if err := d.Reset(done); err != nil && !errIs(err, context.Canceled) {
		t.Errorf("Reset with a ctx that ended = %v, want nil or Canceled", err)
	}
}

// checkGone checks what a device that is closed or dead answers to everything.
func checkGone(t *testing.T, s Subject, r bus.Region, want error) {
	t.Helper()
	d := s.Device
	select {
	case <-d.Done():
	case <-time.After(patience):
		t.Error("Done is not closed")
	}
	wantErr(t, "Err", d.Err(), want)
	if r != nil {
		for range 3 {
			r.Write8(0, 0)
			r.Write16(0, 0)
			r.Write32(0, 0)
			r.Write64(0, 0)
			if a, b, c, e := r.Read8(0), r.Read16(0), r.Read32(0), r.Read64(0); a != 0xff || b != 0xffff || c != 0xffffffff || e != ^uint64(0) {
				t.Errorf("region reads %#x, %#x, %#x, %#x, want all-ones", a, b, c, e)
			}
		}
	}
	c := d.Config()
	c.Write32(pci.CfgBAR0, 0)
	if a, b, e := c.Read8(0), c.Read16(0), c.Read32(0); a != 0xff || b != 0xffff || e != 0xffffffff {
		t.Errorf("config space reads %#x, %#x, %#x, want all-ones", a, b, e)
	}
	if _, err := d.Region(0); true {
		wantErr(t, "Region", err, want)
	}
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 4096})
	if m != nil {
		t.Error("Alloc gave memory")
	}
	wantErr(t, "Alloc", err, want)
	for _, mode := range allModes {
		q, err := d.EnableIRQs(mode, 1)
		if q != nil {
			t.Errorf("EnableIRQs(%s) gave vectors", mode)
		}
		wantErr(t, "EnableIRQs", err, want, bus.ErrNotSupported)
	}
	wantErr(t, "Reset", d.Reset(t.Context()), want)
}

func closing(t *testing.T, s Subject) {
	d := s.Device
	var r bus.Region
	if len(d.Regions()) > 0 {
		r = firstRegion(t, d)
	}
	ended := make(chan error, 1)
	ended <- bus.ErrClosed
	for _, m := range allModes {
		if d.IRQVectors(m) > 0 {
			<-ended
			q := enable(t, d, m, 1)[0]
			go func() {
				_, err := q.Wait(context.Background())
				ended <- err
			}()
			break
		}
	}
	mem, _ := d.DMA().Alloc(bus.DMARequest{Size: 4096})
	for range 3 {
		if err := d.Close(); err != nil {
			t.Errorf("Close = %v, want nil, however often", err)
		}
	}
	wantErr(t, "Wait after Close", <-ended, bus.ErrClosed)
	checkGone(t, s, r, bus.ErrClosed)
	mem.Free()
}

// Close comes while others use the device: they see all-ones or errors, and end.
func closeUnderLoad(t *testing.T, s Subject) {
	d := s.Device
	var wg sync.WaitGroup
	var once sync.Once
	busy := make(chan struct{})
	wg.Go(func() {
		for {
			c := d.Config()
			v := c.Read32(pci.CfgVendor)
			once.Do(func() { close(busy) })
			if v == 0xffffffff {
				return
			}
		}
	})
	if len(d.Regions()) > 0 && s.Scratch != nil {
		r, err := d.Region(s.Scratch.Region)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for d.Err() == nil {
				r.Write32(s.Scratch.Off, 5)
				r.Read32(s.Scratch.Off)
			}
		})
	}
	wg.Go(func() {
		for {
			m, err := d.DMA().Alloc(bus.DMARequest{Size: 4096})
			if err != nil {
				if !errIs(err, bus.ErrClosed, bus.ErrNoIOMMU, bus.ErrNotSupported) {
					t.Errorf("Alloc while closing = %v, want ErrClosed", err)
				}
				return
			}
			m.Bytes[0] = 1
			m.Free()
		}
	})
	for range 2 { // each replaces what the other enabled
		wg.Go(func() {
			for {
				for _, m := range allModes {
					q, err := d.EnableIRQs(m, 1)
					if err == nil {
						q[0].Signal()
					} else if !errIs(err, bus.ErrClosed, bus.ErrNotSupported) {
						t.Errorf("EnableIRQs while closing = %v, want ErrClosed", err)
					}
				}
				if d.Err() != nil {
					return
				}
			}
		})
	}
	<-busy
	for range 3 {
		wg.Go(func() {
			if err := d.Close(); err != nil {
				t.Errorf("Close under load = %v", err)
			}
		})
	}
	wg.Wait()
}

// The link dies under a waiter.
func dead(t *testing.T, s Subject) {
	if s.Kill == nil {
		t.Skip("the subject's link cannot be made to die")
	}
	d := s.Device
	var r bus.Region
	if len(d.Regions()) > 0 {
		r = firstRegion(t, d)
	}
	s.Kill()
	checkGone(t, s, r, bus.ErrGone)
	for range 2 {
		if err := d.Close(); err != nil {
			t.Errorf("Close of a dead device = %v, want nil", err)
		}
	}
	wantErr(t, "Err after Close", d.Err(), bus.ErrGone, bus.ErrClosed)
}
