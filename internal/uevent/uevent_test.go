package uevent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

const port = "/devices/pci1000:00/1000:00:03.0"

func fixed(size int) *Ring {
	r := New(size)
	var t int64 = 1_234_567_890_999
	r.events.Now = func() int64 { t += 1e6; return t }
	return r
}

// The texts are those of udevadm 252 for the same message.
func TestText(t *testing.T) {
	r := fixed(0)
	r.Publish(Add, port, "pci", "PCI_CLASS=60400", "PCI_ID=1B36:000C")
	r.Publish(Offline, "/devices/x\n", "pci\x1b")
	var b bytes.Buffer
	events, _ := r.Read(0)
	for _, e := range events {
		if err := e.WriteProperties(&b); err != nil {
			t.Fatal(err)
		}
	}
	const want = `KERNEL[1234.568890] add      /devices/pci1000:00/1000:00:03.0 (pci)
ACTION=add
DEVPATH=/devices/pci1000:00/1000:00:03.0
SUBSYSTEM=pci
PCI_CLASS=60400
PCI_ID=1B36:000C
SEQNUM=1

KERNEL[1234.569890] offline  /devices/x? (pci?)
ACTION=offline
DEVPATH=/devices/x?
SUBSYSTEM=pci?
SEQNUM=2

`
	if got := b.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	j, err := json.Marshal(events[0])
	if want := `{"seq":1,"ns":1234568890999,"action":"add","devpath":"` + port + `","subsystem":"pci","env":["PCI_CLASS=60400","PCI_ID=1B36:000C"]}`; err != nil || string(j) != want {
		t.Errorf("JSON = %s, %v, want %s", j, err, want)
	}
}

func TestBounded(t *testing.T) {
	const size, n = 8192, 1000
	r := New(size)
	env := []string{"A=1"}
	for i := range n {
		if got := r.Publish(Change, port, "pci", env...); got != uint64(i+1) {
			t.Fatalf("Publish = %d, want %d", got, i+1)
		}
	}
	env[0] = "B=2"
	events, lost := r.Read(0)
	sum := 0
	for i, e := range events {
		sum += e.size()
		if e.Seq != lost+1+uint64(i) || e.Env[0] != "A=1" || e.Time <= 0 {
			t.Fatalf("event %d is %+v, %d lost", i, e, lost)
		}
	}
	if sum > size || sum < size/2 || lost+uint64(len(events)) != n {
		t.Errorf("%d bytes in %d events, %d lost, want at most %d and %d in all", sum, len(events), lost, size, n)
	}
	for _, seq := range []uint64{n, n + 1, ^uint64(0)} {
		if events, lost := r.Read(seq); len(events) != 0 || lost != 0 {
			t.Errorf("Read(%d) = %d events, %d lost, want none", seq, len(events), lost)
		}
	}
	r = New(1) // one that alone is more stays
	r.Publish(Add, strings.Repeat("/x", 5000), "pci")
	if events, lost := r.Read(0); len(events) != 1 || lost != 0 {
		t.Errorf("Read of a small ring = %d events, %d lost, want 1", len(events), lost)
	}
}

func TestNil(t *testing.T) {
	var r *Ring
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n := r.Publish(Add, port, "pci"); n != 0 {
		t.Errorf("Publish = %d, want 0", n)
	}
	if events, lost := r.Read(0); events != nil || lost != 0 {
		t.Errorf("Read = %v, %d, want nothing", events, lost)
	}
	if err := r.Follow(ctx, 0, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Follow = %v, want it to end with the context", err)
	}
}

func TestFollow(t *testing.T) {
	r := New(1 << 20)
	const writers, each, readers = 4, 250, 3
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stop := errors.New("enough")
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			var seq uint64
			err := r.Follow(ctx, 0, func(events []Event, lost uint64) error {
				for _, e := range events {
					if e.Seq != seq+1 || lost != 0 {
						t.Errorf("number %d after %d, %d lost", e.Seq, seq, lost)
					}
					seq = e.Seq
				}
				if seq == writers*each {
					return stop
				}
				return nil
			})
			if !errors.Is(err, stop) {
				t.Errorf("Follow = %v after %d", err, seq)
			}
		})
	}
	for range writers {
		wg.Go(func() {
			for range each {
				r.Publish(Bind, port, "pci", "DRIVER=e1000")
			}
		})
	}
	wg.Wait()
	cancel()
	if err := r.Follow(ctx, writers*each, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Follow with an ended context = %v", err)
	}
}

// A reader that does not keep up is told what it missed.
func TestFollowSlow(t *testing.T) {
	one := Event{Action: Add, Devpath: port, Subsystem: "pci"}
	r := New(10 * one.size())
	r.Publish(Add, port, "pci")
	var got []string
	err := r.Follow(t.Context(), 0, func(events []Event, lost uint64) error {
		got = append(got, fmt.Sprintf("%d+%d", lost, len(events)))
		if len(got) == 2 {
			return context.Canceled
		}
		for range 50 {
			r.Publish(Add, port, "pci")
		}
		return nil
	})
	if s := strings.Join(got, " "); s != "0+1 40+10" || !errors.Is(err, context.Canceled) {
		t.Errorf("Follow gave %s, %v, want 0+1 40+10", s, err)
	}
}
