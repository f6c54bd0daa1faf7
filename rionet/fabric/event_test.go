package fabric

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// recorder is rapidio.Events that keeps what it is told.
type recorder struct {
	mu   sync.Mutex
	told []string
}

func (r *recorder) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, fmt.Sprintf(format, args...))
}

func (r *recorder) take() []string {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	told := r.told
	r.told = nil
	return told
}

func (r *recorder) Doorbell(src rapidio.DestID, info uint16) { r.add("doorbell %d %#x", src, info) }
func (r *recorder) PortWrite(p []byte)                       { r.add("portwrite %x", p) }
func (r *recorder) ConfigWritten()                           { r.add("config") }
func (r *recorder) Link(up bool)                             { r.add("link %v", up) }

func (r *recorder) expect(t *testing.T, what string, want ...string) {
	t.Helper()
	if got := r.take(); !slices.Equal(got, want) {
		t.Errorf("%s: told %q, want %q", what, got, want)
	}
}

// eventText is what a recorder keeps of a port-write of a switch.
func eventText(tag, detect, port, log uint32) string {
	var b bytes.Buffer
	for _, v := range []uint32{tag, detect, port, log} {
		binary.Write(&b, binary.BigEndian, v)
	}
	return fmt.Sprintf("portwrite %x", b.Bytes())
}

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, ports := starred(t, 3, "")
		var rec [3]recorder
		for i := range rec {
			ports[i].Start(&rec[i])
		}
		a, b := ports[0], ports[1]
		for i := range rec {
			rec[i].expect(t, "start", "link true")
		}
		ctx := context.Background()

		if err := a.Doorbell(ctx, 1, 5); err == nil {
			t.Error("doorbell to closed ones: no error")
		}
		b.OpenDoorbells(true)
		for i := range uint16(3) {
			if err := a.Doorbell(ctx, 1, 0x1000+i); err != nil {
				t.Error(err)
			}
		}
		rec[1].expect(t, "doorbells", "doorbell 0 0x1000", "doorbell 0 0x1001", "doorbell 0 0x1002")

		b.setLocal(rapidio.RegComponentTag, 1)
		rec[1].expect(t, "local write")
		a.write(1, 1, rapidio.RegComponentTag, 1)
		rec[1].expect(t, "remote write", "config")
		rec[0].expect(t, "remote write, the writer")

		if err := a.PortWrite(ctx, 2, []byte{1, 2, 3, 4}); err != nil {
			t.Error(err)
		}
		rec[2].expect(t, "port-write", "portwrite 01020304")
		if err := a.PortWrite(ctx, 2, []byte{1, 2, 3}); err == nil {
			t.Error("port-write of 3 bytes: no error")
		}

		// Nobody is the target yet.
		f.SetLink("pe2", "sw0:2", false)
		f.SetLink("pe2", "sw0:2", true)
		rec[0].expect(t, "link without a target")
		rec[2].expect(t, "link", "link false", "link true")
		detect := em + 2*rapidio.EMPortStride + rapidio.EMPortDetect
		if got := a.read(0, 0, detect); got != detectLink {
			t.Errorf("port detect: %#x, want %#x", got, detectLink)
		}
		a.write(0, 0, detect, 0)

		a.write(0, 0, rapidio.RegComponentTag, 0x77)
		a.write(0, 0, em+rapidio.EMPortWriteTgt, 0)
		f.SetLink("pe2", "sw0:2", false)
		rec[0].expect(t, "link down", eventText(0x77, detectLink, 2, 0))
		stat := phy + 2*rapidio.PHYPortStride + rapidio.PHYPortErrStat
		if got, want := a.read(0, 0, stat), rapidio.PortUninit|rapidio.PortWritePend; got != want {
			t.Errorf("ERR_STAT of a port whose link is down: %#x, want %#x", got, want)
		}
		a.write(0, 0, stat, rapidio.PortWritePend)
		a.write(0, 0, detect, 0)
		f.SetLink("pe2", "sw0:2", true)
		f.SetLink("pe2", "sw0:2", true)
		rec[0].expect(t, "link up", eventText(0x77, detectLink, 2, 0))
		a.write(0, 0, em+2*rapidio.EMPortStride+rapidio.EMPortRateEn, 0)
		ports[2].Close()
		rec[0].expect(t, "link down, not enabled")
		if got, want := a.read(0, 0, stat), rapidio.PortUninit|rapidio.PortWritePend; got != want {
			t.Errorf("ERR_STAT of a port whose node left: %#x, want %#x", got, want)
		}
	})
}

func TestUnroutedEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, ports := starred(t, 2, "")
		a, ctx := ports[0], context.Background()
		var rec recorder
		a.Start(&rec)
		rec.expect(t, "start", "link true")
		a.write(0, 0, em+rapidio.EMPortDetect, 0) // the link came up
		a.write(0, 0, em+rapidio.EMPortWriteTgt, 0)
		a.Doorbell(ctx, 9, 1)
		rec.expect(t, "the first lost one", eventText(0, 0, 0, logTarget))
		if got := a.read(0, 0, em+emCapDeviceID); got != 9<<16 {
			t.Errorf("captured IDs: %#x, want 0x90000", got)
		}
		if got := a.read(0, 0, em+emCapControl); got != ftypeDoorbell<<28 {
			t.Errorf("captured control: %#x, want %#x", got, uint32(ftypeDoorbell)<<28)
		}
		a.Doorbell(ctx, 9, 1)
		rec.expect(t, "the second")
		a.write(0, 0, em+rapidio.EMLogDetect, 0)
		a.Doorbell(ctx, 9, 1)
		rec.expect(t, "the third, told again", eventText(0, 0, 0, logTarget))
		a.write(0, 0, em+rapidio.EMLogDetect, 0)
		a.write(0, 0, em+rapidio.EMLogEnable, 0)
		a.Doorbell(ctx, 9, 1)
		rec.expect(t, "the fourth, not enabled")
		// A port-write whose target has no route makes no more of its kind.
		a.write(0, 0, em+rapidio.EMLogEnable, logAll)
		a.write(0, 0, em+rapidio.EMPortWriteTgt, 8<<16)
		a.Doorbell(ctx, 9, 1)
		rec.expect(t, "the fifth, to nobody")
		if got := f.Switches()[0].Unrouted; got != 6 {
			t.Errorf("unrouted = %d, want 6", got)
		}
	})
}

// TestEventsUseOps has Events call the port that tells it, as enumeration does.
func TestEventsUseOps(t *testing.T) {
	_, ports := starred(t, 2, "")
	done := make(chan uint32)
	ports[1].Start(opsInEvents{ports[1], done})
	ports[0].write(1, 1, rapidio.RegComponentTag, 42)
	if got := <-done; got != 42 {
		t.Errorf("tag read by Events: %d, want 42", got)
	}
}

type opsInEvents struct {
	p    testPort
	done chan uint32
}

func (e opsInEvents) Doorbell(rapidio.DestID, uint16) {}
func (e opsInEvents) PortWrite([]byte)                {}
func (e opsInEvents) Link(bool)                       {}
func (e opsInEvents) ConfigWritten()                  { e.done <- e.p.local(rapidio.RegComponentTag) }

func TestDoorbellsFull(t *testing.T) {
	_, ports := starred(t, 2, "") // nobody started, so nobody takes them
	ports[1].OpenDoorbells(true)
	for i := range maxDoorbells {
		if err := ports[0].Doorbell(context.Background(), 1, uint16(i)); err != nil {
			t.Fatal(err)
		}
	}
	err := ports[0].Doorbell(context.Background(), 1, 0)
	if want := "pe0: doorbell 0x0 to device 0x1: retry response"; err == nil || err.Error() != want {
		t.Errorf("doorbell to a full queue: %v, want %s", err, want)
	}
}
