package rapidio_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// node is an endpoint of a fabric with a bus of its own, as a process has it.
type node struct {
	bus  *rapidio.Bus
	ops  *fabric.Mport
	port *rapidio.Mport
}

func join(t *testing.T, f *fabric.Fabric, name string, id rapidio.DestID) *node {
	t.Helper()
	ops, err := f.Mport(name)
	if err != nil {
		t.Fatal(err)
	}
	b := rapidio.NewBus(rapidio.BusOptions{})
	m, err := b.AddMport(t.Context(), ops, rapidio.MportOptions{Host: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Close()
		if err := ops.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := m.LocalWrite32(t.Context(), rapidio.RegBaseDeviceID, m.IDs().Reg(id)); err != nil {
		t.Fatal(err)
	}
	return &node{b, ops, m}
}

// pair is two endpoints that are linked, one of which knows the other as a device.
func pair(t *testing.T) (f *fabric.Fabric, a, b *node, d *rapidio.Device) {
	t.Helper()
	topo, err := fabric.Parse("pair.yaml", []byte("endpoints: [{name: pe0}, {name: pe1}]\nlinks: [[pe0, pe1]]\n"))
	if err != nil {
		t.Fatal(err)
	}
	f = fabric.New(topo, fabric.Options{})
	a, b = join(t, f, "pe0", 0), join(t, f, "pe1", 1)
	d, err = rapidio.ReadDevice(t.Context(), rapidio.Remote{Mport: a.port, Dest: 1})
	if err != nil {
		t.Fatal(err)
	}
	d.DestID, d.Tag = 1, 1
	if err := a.bus.AddNet(a.port).AddDevice(d); err != nil {
		t.Fatal(err)
	}
	return f, a, b, d
}

func soon(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: it did not come to that", what)
		}
	}
}

func TestOverFabric(t *testing.T) {
	_, _, b, d := pair(t)
	ctx := t.Context()
	if d.IsSwitch() || d.PHY == 0 || d.SrcOps&rapidio.OpMessage == 0 || d.PEF&rapidio.PEFDoorbell == 0 {
		t.Errorf("ReadDevice() = %+v", d)
	}
	if err := d.SendDoorbell(ctx, 7); !errors.Is(err, rapidio.ErrResponse) {
		t.Errorf("SendDoorbell to closed doorbells = %v, want an error response", err)
	}
	rung := make(chan string, 1)
	release, err := b.port.RequestInbDoorbell("test", 7, 7, func(src rapidio.DestID, info uint16) { rung <- fmt.Sprint(src, info) })
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SendDoorbell(ctx, 7); err != nil {
		t.Errorf("SendDoorbell = %v", err)
	}
	if got := <-rung; got != "0 7" {
		t.Errorf("doorbell from and with %s, want 0 7", got)
	}
	release()
	if err := d.SendDoorbell(ctx, 7); !errors.Is(err, rapidio.ErrResponse) {
		t.Errorf("SendDoorbell after the release = %v, want an error response", err)
	}
	if err := d.Write32(ctx, rapidio.RegComponentTag, 0x1234); err != nil {
		t.Error(err)
	}
	if v, err := b.port.LocalRead(ctx, rapidio.RegComponentTag+2, 1); v != 0x12 || err != nil {
		t.Errorf("LocalRead = %#x, %v, want 0x12", v, err)
	}
	if err := b.ops.Close(); err != nil {
		t.Error(err)
	}
	<-b.port.Done()
	if _, err := d.Read32(ctx, 0); err == nil {
		t.Error("Read32 of an endpoint that left succeeded")
	}
	if _, err := b.port.LocalRead32(ctx, 0); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("LocalRead32 of a closed port = %v, want ErrClosed", err)
	}
}

// Messages by callbacks, more of them than there is room for at either end.
func TestMailboxFuncsOverFabric(t *testing.T) {
	_, a, b, _ := pair(t)
	const n = 2000
	var mu sync.Mutex
	var got, sent, done int
	room := make([]byte, rapidio.MaxMessage)
	stop, err := b.port.RequestInbMboxFunc("receiver", 1, 16, func(i rapidio.Inbox) {
		for {
			msgs := [1]rapidio.Message{{Data: room}}
			if i.Get(msgs[:]) == 0 {
				return
			}
			mu.Lock()
			if want := fmt.Sprint(got); string(msgs[0].Data) != want || msgs[0].Peer != 0 {
				t.Errorf("message %q from %d, want %s from 0", msgs[0].Data, msgs[0].Peer, want)
			}
			got++
			mu.Unlock()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	kick, end, err := a.port.RequestOutbMboxFunc("sender", 1, 8, func(o rapidio.Outbox) {
		mu.Lock()
		defer mu.Unlock()
		var st [8]rapidio.Status
		retry := 0
		for _, s := range st[:o.Results(st[:])] {
			if s == rapidio.Retry {
				retry++
			} else {
				done++
			}
		}
		// What found no room is sent again; since only one is under way there is no order to keep.
		sent -= retry
		if o.InFlight() == 0 && sent < n {
			sent += o.Add([]rapidio.Message{{Peer: 1, Mbox: 1, Data: []byte(fmt.Sprint(sent))}})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	soon(t, "all messages arrived", func() bool {
		kick()
		mu.Lock()
		defer mu.Unlock()
		return got == n && done == n
	})
}
