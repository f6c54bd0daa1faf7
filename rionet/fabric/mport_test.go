package fabric

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

func TestMailboxErrors(t *testing.T) {
	f := newFabric(t, "endpoints: [{name: a}, {name: b, mailboxes: false}]\nlinks: [[a, b]]")
	a, b := attach(t, f, "a"), attach(t, f, "b")
	open := func(p testPort, mbox, entries int) [2]error {
		_, in := p.OpenInbox(mbox, entries)
		_, out := p.OpenOutbox(mbox, entries)
		return [2]error{in, out}
	}
	for _, c := range []struct {
		p             testPort
		mbox, entries int
	}{{a, -1, 2}, {a, 4, 2}, {a, 0, 0}, {a, 0, 1}, {a, 0, 3}, {a, 0, 2048}, {b, 0, 2}} {
		for _, err := range open(c.p, c.mbox, c.entries) {
			if !errors.Is(err, rapidio.ErrRange) {
				t.Errorf("%s: opening mailbox %d with %d entries: %v, want %v", c.p.name, c.mbox, c.entries, err, rapidio.ErrRange)
			}
		}
	}
	if err := open(a, 3, 1024); err != [2]error{} {
		t.Errorf("opening mailbox 3 with 1024 entries: %v", err)
	}
	for _, err := range open(a, 3, 2) {
		if !errors.Is(err, rapidio.ErrClaimed) || !errors.Is(err, bus.ErrBusy) {
			t.Errorf("opening twice: %v, want %v", err, rapidio.ErrClaimed)
		}
	}
	out := a.outbox(8)
	for _, m := range []rapidio.Message{{}, {Data: make([]byte, 4097)}, {Mbox: 4, Data: []byte{1}}, {Peer: 0x100, Data: []byte{1}}, {Data: []byte{1}}} {
		out.Add([]rapidio.Message{m})
		if st := result1(t, out); st != rapidio.Error {
			t.Errorf("message to %d, mailbox %d, of %d bytes: %v, want error", m.Peer, m.Mbox, len(m.Data), st)
		}
	}
}

func TestBoxes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ports := starred(t, 2, "")
		out, in := ports[0].outbox(2), ports[1].inbox(4)
		msg := func(n int) []rapidio.Message {
			return slices.Repeat([]rapidio.Message{{Peer: 1, Data: make([]byte, 100)}}, n)
		}
		if n := out.Add(msg(3)); n != 2 {
			t.Errorf("Add of 3 to an outbox of 2 = %d", n)
		}
		if n := out.Add(msg(1)); n != 0 || out.InFlight() != 2 {
			t.Errorf("Add to a full outbox = %d, in flight %d", n, out.InFlight())
		}
		var st [4]rapidio.Status
		if n := out.Results(st[:]); n != 2 || st[0] != rapidio.Done || st[1] != rapidio.Done {
			t.Errorf("Results = %d, %v", n, st)
		}
		if in.Free() != 2 {
			t.Errorf("Free = %d, want 2", in.Free())
		}
		small := []rapidio.Message{{Data: make([]byte, 10)}, {Data: make([]byte, 100)}, {Data: make([]byte, 100)}}
		if n := in.Get(small); n != 2 || len(small[0].Data) != 10 || len(small[1].Data) != 100 || in.Cut() != 1 {
			t.Errorf("Get = %d of %d and %d bytes, Cut = %d", n, len(small[0].Data), len(small[1].Data), in.Cut())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := in.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait at an empty inbox: %v, want %v", err, context.DeadlineExceeded)
		}
		go func() {
			time.Sleep(time.Second)
			out.Add(msg(1))
		}()
		if err := in.Wait(t.Context()); err != nil || in.Free() != 3 {
			t.Errorf("Wait until a message comes: %v, Free = %d", err, in.Free())
		}
		go func() {
			time.Sleep(time.Second)
			ports[1].Close()
		}()
		in.Get(small)
		if err := in.Wait(t.Context()); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("Wait until the port closes: %v, want %v", err, bus.ErrClosed)
		}
		select {
		case <-ports[1].Done():
		default:
			t.Error("Done of a closed port is open")
		}
		if err := ports[1].Err(); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("Err of a closed port: %v, want %v", err, bus.ErrClosed)
		}
		out.Close()
		if err := out.Wait(t.Context()); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("Wait at a closed outbox: %v, want %v", err, bus.ErrClosed)
		}
	})
}

// TestCloseWithMessagesOnTheWay: what waits for responses gets an end.
func TestCloseWithMessagesOnTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ports := starred(t, 2, ", delay: 1s")
		ports[1].inbox(2)
		out := ports[0].outbox(2)
		out.Add([]rapidio.Message{{Peer: 1, Data: []byte{1}}})
		ch := make(chan error)
		go func() { ch <- ports[0].Doorbell(context.Background(), 1, 1) }()
		synctest.Wait()
		ports[0].Close()
		if err := <-ch; !errors.Is(err, bus.ErrClosed) {
			t.Errorf("doorbell when the port closes: %v, want %v", err, bus.ErrClosed)
		}
		var st [1]rapidio.Status
		if n := out.Results(st[:]); n != 1 || st[0] != rapidio.Error {
			t.Errorf("Results after closing = %d, %v, want one error", n, st)
		}
		time.Sleep(10 * time.Second)
	})
}

func TestStats(t *testing.T) {
	var told []string
	topo, err := Parse("t.yaml", []byte(star(2, ", width: 4, rate: 10G")))
	if err != nil {
		t.Fatal(err)
	}
	f := New(topo, Options{LinkChanged: func(ends [2]string, up bool) { told = append(told, fmt.Sprint(ends, up)) }})
	attach(t, f, "pe1")
	f.SetLink("pe1", "sw0:1", false)
	if want := []string{"[pe1 sw0:1] true", "[pe1 sw0:1] false"}; !slices.Equal(told, want) {
		t.Errorf("told of links: %q, want %q", told, want)
	}
	for _, c := range []struct {
		v    any
		want string
	}{
		{f.Links()[1], `{"ends":["pe1","sw0:1"],"up":false,"failed":true,"width":4,"rate":10000000000,"counts":[` + zero + `,` + zero + `]}`},
		{f.Nodes()[1], `{"name":"pe1","index":1,"attached":true,"up":false,"peer":"sw0:1","destid":255,"tag":0,"mailboxes":[false,false,false,false],` +
			`"doorbells":false,"wrong_id":0,"counts":` + zero + `}`},
		{f.Switches()[0], `{"name":"sw0","kind":"standard","tag":0,"unrouted":0,"looped":0,"ports":[{"port":0,"peer":"pe0","up":false,"counts":` + zero +
			`},{"port":1,"peer":"pe1","up":false,"counts":` + zero + `}],"routes":[]}`},
	} {
		if got, err := json.Marshal(c.v); string(got) != c.want {
			t.Errorf("%T = %s, %v\nwant %s", c.v, got, err, c.want)
		}
	}
}

// TestStatsOfGone: an endpoint without a node has no ID, though its registers are not reset before the next one comes.
func TestStatsOfGone(t *testing.T) {
	f := newFabric(t, star(2, ""))
	p := attach(t, f, "pe0")
	p.setLocal(rapidio.RegBaseDeviceID, rapidio.Small.Reg(7))
	p.setLocal(rapidio.RegComponentTag, 9)
	if n := f.Nodes()[0]; n.DestID != 7 || n.Tag != 9 {
		t.Errorf("Nodes of one with a node = %+v, want the ID 7 and the tag 9", n)
	}
	p.Close()
	if n := f.Nodes()[0]; n.DestID != 0xff || n.Tag != 0 {
		t.Errorf("Nodes of one whose node went = %+v, want no ID and no tag", n)
	}
}

const zero = `{"tx_packets":0,"tx_bytes":0,"rx_packets":0,"rx_bytes":0,"lost":0,"errors":0,"retries":0}`
