package pktgen_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/netdev"
)

// recoverable is a network device that takes part in recovery and suspend.
type recoverable interface {
	netdev.Device
	bus.ErrorHandler
	bus.PowerHandler
}

// background starts a run and returns what waits for its end.
func (p *pair) background() (wait func()) {
	done := make(chan error, 1)
	f := file(p.t, p.e, "pgctrl")
	go func() {
		_, err := f.Write(context.Background(), []byte("start\n"))
		done <- err
	}()
	return func() {
		p.t.Helper()
		select {
		case err := <-done:
			if err != nil {
				p.t.Error(err)
			}
		case <-time.After(20 * time.Second):
			p.t.Fatal("start did not return within 20 s")
		}
	}
}

// flows waits until n more frames have come.
func (p *pair) flows(n uint64) {
	p.t.Helper()
	want := p.took.Load() + n
	for end := time.Now().Add(20 * time.Second); p.took.Load() < want; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			text, _ := file(p.t, p.e, "eth0").ReadAll()
			p.t.Fatalf("no more frames:\n%s", text)
		}
	}
}

// sofar is how many packets eth0 says it has sent.
func (p *pair) sofar() uint64 {
	p.t.Helper()
	text, err := file(p.t, p.e, "eth0").ReadAll()
	m := regexp.MustCompile(`pkts-sofar: ([0-9]+)`).FindSubmatch(text)
	if err != nil || m == nil {
		p.t.Fatalf("no pkts-sofar: %v\n%s", err, text)
	}
	v, err := strconv.ParseUint(string(m[1]), 10, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// disturb resets a device after an error, or suspends it for a while.
func (p *pair) disturb(name string, suspend bool) {
	p.t.Helper()
	n := p.nds[name].(recoverable)
	reset := func() {
		p.t.Helper()
		if err := p.m.Reset(p.t.Context(), name); err != nil {
			p.t.Fatal(err)
		}
	}
	if suspend {
		err := n.Suspend(p.t.Context())
		reset()
		if err := errors.Join(err, n.Resume(p.t.Context())); err != nil {
			p.t.Fatal(err)
		}
		return
	}
	n.ErrorDetected(true)
	reset()
	if v := n.SlotReset(p.t.Context()); v != bus.Recovered {
		p.t.Fatalf("SlotReset of %s = %s: %v", name, v, n.Err())
	}
	n.ErrorResume()
}

// TestRunGoesOn: a run waits while the sender, or the receiver, recovers or is suspended, and goes on; what was lost is what its
// receiver says.
func TestRunGoesOn(t *testing.T) {
	for _, mode := range []string{"start_xmit", "queue_xmit"} {
		bustest.NoLeaks(t)
		p := newPair(t, map[string]string{"bus": "intx", "ring": "128"}, nil)
		p.write("eth0", "count 0", "burst 8", "pkt_size 60", "dst_mac "+p.nds["eth1"].MAC().String())
		if mode == "queue_xmit" {
			p.write("eth0", "burst 1", "xmit_mode "+mode)
		}
		wait := p.background()
		for i := range 24 {
			p.flows(200)
			p.disturb(fmt.Sprint("eth", i%2), i%3 == 0)
		}
		p.flows(200)
		p.write("pgctrl", "stop")
		wait()
		text, err := file(t, p.e, "eth0").ReadAll()
		if err != nil || !strings.Contains(string(text), "Result: OK: ") {
			t.Errorf("%s: %v\n%s\nwant a result", mode, err, text)
		}
		sent := p.sofar()
		lost := func() int64 { return int64(sent - p.took.Load()) }
		for end := time.Now().Add(5 * time.Second); lost() != int64(p.value("lost")) && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		if n, says := lost(), int64(p.value("lost")); n != says || n < 0 {
			t.Errorf("%s: %d of %d frames did not come, the receiver says %d\n%s", mode, n, sent, says, p.read())
		}
		p.wants(mode, "duplicated 0 reordered 0")
		dropped := p.nds["eth0"].Stats().TxDropped + p.nds["eth1"].Stats().RxDropped
		t.Logf("%s: %d sent, %d lost, %d of them dropped by the NICs", mode, sent, lost(), dropped)
	}
}

// TestRemoveDevices: what is made of one network device goes, running, configured and on another thread; who has a file open gets
// EIO, and the others run on.
func TestRemoveDevices(t *testing.T) {
	for _, dies := range []bool{false, true} {
		p := newPark(t, 3, nil)
		for _, d := range []string{"0 eth0", "0 eth1", "0 eth0@1", "1 eth0@2", "1 eth2", "1 eth1@0"} {
			cpu, name, _ := strings.Cut(d, " ")
			p.write("kpktgend_"+cpu, "add_device "+name)
			p.write(name, "count 0", "pkt_size 60", "burst 16")
		}
		wait := p.start()
		p.until("kpktgend_0", "Running: eth0@1 eth1 eth0 \n")
		p.until("kpktgend_1", "Running: eth1@0 eth2 eth0@2 \n")
		p.write("kpktgend_1", "add_device eth0@3") // does not run
		open := file(t, p.engine, "eth0@2")
		if dies {
			if err := p.machine.Unplug("eth0"); err != nil {
				t.Fatal(err)
			}
		}
		delete(p.nics, "eth0")
		p.engine.RemoveDevice("eth0")
		want := []string{"eth1", "eth1@0", "eth2", "kpktgend_0", "kpktgend_1", "pgctrl"}
		if got := p.engine.Dir().Names(); !slices.Equal(got, want) {
			t.Errorf("files = %q, want %q", got, want)
		}
		if text, err := open.ReadAll(); err == nil {
			t.Errorf("a file of a removed device that was open shows %q, want EIO", text)
		}
		if got, want := p.read("kpktgend_0"), "Running: eth1 \nStopped: \nResult: OK: add_device=eth0@1\n"; got != want {
			t.Errorf("kpktgend_0 shows %q, want %q", got, want)
		}
		if got, want := p.read("kpktgend_1"), "Running: eth1@0 eth2 \nStopped: \nResult: OK: add_device=eth0@3\n"; got != want {
			t.Errorf("kpktgend_1 shows %q, want %q", got, want)
		}
		if _, err := file(t, p.engine, "kpktgend_0").Write(t.Context(), []byte("add_device eth0\n")); err == nil {
			t.Error("eth0 could be added again")
		}
		for _, name := range []string{"eth1", "eth2"} {
			before := p.nics[name].Stats().TxPackets
			for end := time.Now().Add(20 * time.Second); p.nics[name].Stats().TxPackets < before+100; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s sends no more", name)
				}
			}
		}
		p.write("pgctrl", "stop")
		wait()
	}
}
