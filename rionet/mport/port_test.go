package mport

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

func TestConfig(t *testing.T) {
	inEachWay(t, func(t *testing.T, w way) {
		r := newRig(t, topology, w)
		p, ctx := r.p[1], t.Context()
		if i := p.Info(); i != (rapidio.PortInfo{Name: "pe1", Model: "ivshmem", IDs: rapidio.Small}) {
			t.Errorf("Info = %+v", i)
		}
		if v, err := p.LocalRead(ctx, rapidio.RegBaseDeviceID, 4); v != 2<<16 || err != nil {
			t.Errorf("LocalRead of the ID = %#x, %v, want 0x20000 as written", v, err)
		}
		if v, err := p.LocalRead(ctx, rapidio.RegBaseDeviceID+1, 1); v != 2 || err != nil {
			t.Errorf("LocalRead of a byte = %#x, %v, want 2", v, err)
		}
		// The switch is one hop away, and pe2 two.
		if v, err := p.Read(ctx, 3, 0, rapidio.RegPEF, 4); rapidio.PEF(v)&rapidio.PEFSwitch == 0 || err != nil {
			t.Errorf("Read of the switch's PEF = %#x, %v, want a switch", v, err)
		}
		must(t, p.Write(ctx, 3, 1, rapidio.RegComponentTag, 4, 0x1234))
		if v, err := r.p[2].LocalRead(ctx, rapidio.RegComponentTag, 4); v != 0x1234 || err != nil {
			t.Errorf("component tag of pe2 = %#x, %v, want 0x1234 as pe1 wrote", v, err)
		}
		_, err := p.Read(ctx, 99, 1, rapidio.RegDeviceID, 4)
		wantErr(t, "Read of a device that is not there", err, rapidio.ErrResponse)
		for _, x := range []struct {
			off rapidio.Off
			w   rapidio.Width
		}{{1, 4}, {2, 3}, {rapidio.ConfigSize, 4}, {1, 2}, {0, 8}, {0, 0}} {
			_, err := p.LocalRead(ctx, x.off, x.w)
			wantErr(t, fmt.Sprintf("LocalRead of %d bytes at %#x", x.w, x.off), err, rapidio.ErrRange)
		}
		over, cancel := context.WithCancel(ctx)
		cancel()
		_, err = p.LocalRead(over, 0, 4)
		wantErr(t, "LocalRead with a ctx that ended", err, context.Canceled)
		many(t, p)
	})
}

// many callers at a time, more than there are slots for: each gets its own answer.
func many(t *testing.T, p *Port) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range 1200 {
		wg.Go(func() {
			off := rapidio.RegDeviceID
			if i%2 == 1 {
				off = rapidio.RegBaseDeviceID
			}
			v, err := p.LocalRead(t.Context(), off, 4)
			if err != nil || i%2 == 1 && v != 2<<16 || i%2 == 0 && v == 2<<16 {
				t.Errorf("LocalRead(%#x) beside others = %#x, %v", off, v, err)
			}
		})
	}
	wg.Wait()
}

func TestEvents(t *testing.T) {
	inEachWay(t, func(t *testing.T, w way) {
		r := newRig(t, topology, w)
		ctx := t.Context()
		var rec [3]recorder
		// From within an event the port can be used: a doorbell is answered by one.
		rec[1].bell = func(src rapidio.DestID, info uint16) {
			if err := r.p[1].Doorbell(ctx, src, info+1); err != nil {
				t.Errorf("Doorbell within an event = %v", err)
			}
		}
		for i, p := range r.p {
			p.Start(&rec[i])
		}
		wantErr(t, "Doorbell to one whose doorbells are closed", r.p[0].Doorbell(ctx, 2, 5), rapidio.ErrResponse)
		for _, p := range r.p {
			must(t, p.OpenDoorbells(true))
		}
		for i := range uint16(50) {
			must(t, r.p[0].Doorbell(ctx, 2, 0x1000+2*i))
		}
		eventually(t, "50 doorbells answered", rec[0].has(func(r *recorder) bool { return len(r.bells) == 50 }))
		for i, b := range rec[0].bells {
			if want := uint32(2)<<16 | uint32(0x1001+2*i); b != want {
				t.Errorf("doorbell %d = %#x, want %#x: in order", i, b, want)
			}
		}
		wantErr(t, "Doorbell to nobody", r.p[0].Doorbell(ctx, 99, 1), rapidio.ErrResponse)
		must(t, r.p[0].PortWrite(ctx, 3, []byte("0123456789abcdef")))
		eventually(t, "a port-write", rec[2].has(func(r *recorder) bool { return len(r.pw) == 1 && r.pw[0] == "0123456789abcdef" }))
		for _, n := range []int{0, 3, 6, 68} {
			wantErr(t, "PortWrite of a bad length", r.p[0].PortWrite(ctx, 3, make([]byte, n)), rapidio.ErrRange)
		}
		must(t, r.p[0].Write(ctx, 3, 1, rapidio.RegComponentTag, 4, 7))
		eventually(t, "news of registers written", rec[2].has(func(r *recorder) bool { return r.confs > 0 }))
		must(t, r.s.Fabric().SetLink("pe2", "sw0:2", false))
		eventually(t, "the link down", rec[2].has(func(r *recorder) bool { return len(r.links) == 1 && !r.links[0] }))
		must(t, r.s.Fabric().SetLink("pe2", "sw0:2", true))
		eventually(t, "the link up", rec[2].has(func(r *recorder) bool { return len(r.links) == 2 && r.links[1] }))
		must(t, r.p[1].OpenDoorbells(false))
		wantErr(t, "Doorbell to one whose doorbells are closed again", r.p[0].Doorbell(ctx, 2, 5), rapidio.ErrResponse)
	})
}

// The daemon ends: all that waits ends, and all fails.
func TestDaemonEnds(t *testing.T) {
	inEachWay(t, func(t *testing.T, w way) {
		r := newRig(t, topology, w)
		p := r.p[0]
		p.Start(&recorder{})
		in, err := p.OpenInbox(0, 8)
		must(t, err)
		out, err := p.OpenOutbox(0, 8)
		must(t, err)
		waits := make(chan error, 1)
		go func() { waits <- in.Wait(context.Background()) }()
		time.Sleep(5 * time.Millisecond) // so that it sleeps, most of the time
		must(t, r.s.Close())
		wantErr(t, "Wait while the daemon ends", <-waits, bus.ErrGone)
		<-p.Done()
		wantErr(t, "Err", p.Err(), bus.ErrGone)
		_, err = p.LocalRead(t.Context(), 0, 4)
		wantErr(t, "LocalRead", err, bus.ErrGone)
		wantErr(t, "Doorbell", p.Doorbell(t.Context(), 2, 1), bus.ErrGone)
		wantErr(t, "PortWrite", p.PortWrite(t.Context(), 2, make([]byte, 4)), bus.ErrGone)
		wantErr(t, "OpenDoorbells", p.OpenDoorbells(true), bus.ErrGone)
		_, err = p.OpenInbox(1, 8)
		wantErr(t, "OpenInbox", err, bus.ErrGone)
		if n := out.Add(make([]rapidio.Message, 1)); n != 0 {
			t.Errorf("Add = %d, want 0", n)
		}
		if n := in.Get(make([]rapidio.Message, 1)); n != 0 {
			t.Errorf("Get = %d, want 0", n)
		}
		wantErr(t, "Wait of an outbox", out.Wait(t.Context()), bus.ErrGone)
		must(t, errors.Join(in.Close(), out.Close(), p.Close()))
		wantErr(t, "Err after Close", p.Err(), bus.ErrGone)
	})
}

// A port is closed under load; another takes the device over and finds nothing of it.
func TestCloseUnderLoad(t *testing.T) {
	inEachWay(t, func(t *testing.T, w way) {
		path, _ := serve(t, topology)
		d := w.wrap(device(t, path, "pe0"))
		for range 5 {
			p := bind(t, d, nil)
			p.Start(&recorder{})
			must(t, p.OpenDoorbells(true))
			must(t, p.LocalWrite(t.Context(), rapidio.RegBaseDeviceID, 4, rapidio.Small.Reg(1)))
			in, err := p.OpenInbox(0, 16)
			must(t, err)
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					for p.Err() == nil {
						if _, err := p.LocalRead(context.Background(), 0, 4); err != nil && !errors.Is(err, bus.ErrClosed) {
							t.Errorf("LocalRead under Close = %v", err)
						}
						_ = p.Doorbell(context.Background(), 1, 1)
					}
				})
			}
			wg.Go(func() {
				out, err := p.OpenOutbox(0, 16)
				if err != nil {
					return
				}
				msgs, st := []rapidio.Message{{Peer: 1, Data: make([]byte, 100)}, {Peer: 9, Data: make([]byte, 3000)}}, make([]rapidio.Status, 8)
				for p.Err() == nil {
					out.Add(msgs)
					out.Results(st)
					_ = out.Wait(context.Background())
				}
			})
			wg.Go(func() {
				msgs := []rapidio.Message{{Data: make([]byte, 100)}}
				for in.Wait(context.Background()) == nil {
					msgs[0].Data = msgs[0].Data[:cap(msgs[0].Data)]
					in.Get(msgs)
				}
			})
			time.Sleep(10 * time.Millisecond)
			must(t, p.Close())
			wg.Wait()
			wantErr(t, "Err", p.Err(), bus.ErrClosed)
		}
	})
}

func TestProbeRefuses(t *testing.T) {
	bustest.NoLeaks(t)
	path, _ := serve(t, topology)
	d := device(t, path, "pe0")
	r := pci.Bind(t.Context(), d, pci.Env{Name: "rio0", Options: map[string]string{"timeout": "1ms"}}, []*pci.Driver{Driver})
	if r.Outcome != pci.Failed || !errors.Is(r.Err, pci.ErrOption) {
		t.Errorf("Bind with a time-out of 1 ms = %v, %v, want ErrOption", r.Outcome, r.Err)
	}
	m, err := d.Region(1)
	must(t, err)
	m.Write32(0, 0)
	r = pci.Bind(t.Context(), d, pci.Env{Name: "rio0"}, []*pci.Driver{Driver})
	if r.Outcome != pci.Skipped || !strings.Contains(r.Err.Error(), "no fabric behind it") {
		t.Errorf("Bind of memory that is no fabric's = %v, %v, want it skipped", r.Outcome, r.Err)
	}
	_ = d.Close()
}
