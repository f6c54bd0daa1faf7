package e1000

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/netdev"
)

var (
	_ netdev.Device = (*nic)(nil)
	_ pci.IRQUser   = (*nic)(nil)
)

// chips names them for subtests.
var chips = map[string]uint16{"82574L": device82574, "82540EM": device82540, "82545EM": device82545}

func env(options map[string]string) pci.Env {
	return pci.Env{Name: "eth0", Log: slog.New(slog.DiscardHandler), Options: options}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct{ key, value, want string }{
		{"ring", "64", ""}, {"ring", "4096", ""},
		{"ring", "63", "want a power of two from 64 to 4096"}, {"ring", "96", "want a power of two"}, {"ring", "8192", "want a power of two"},
		{"ring", "", "want a power of two"}, {"ring", "-64", "want a power of two"}, {"ring", "64k", "want a power of two"},
		{"mac", "02:00:00:00:00:01", ""},
		{"mac", "03:00:00:00:00:01", "want a unicast address"}, {"mac", "00:00:00:00:00:00", "want a unicast"}, {"mac", "ff:ff:ff:ff:ff:ff", "want a unicast"},
		{"mac", "02:00:00:00:00", "want a unicast"}, {"mac", "02:00:00:00:00:01:02:03", "want a unicast"}, {"mac", "eth1", "want a unicast"},
	} {
		inst, err := Driver.Probe(context.Background(), newModel(device82574), env(map[string]string{c.key: c.value}))
		if c.want == "" {
			if err != nil {
				t.Errorf("Probe with %s=%s = %v", c.key, c.value, err)
				continue
			}
			if got := inst.(*nic).MAC().String(); c.key == "mac" && got != c.value {
				t.Errorf("MAC with %s=%s = %s", c.key, c.value, got)
			}
			inst.Close()
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.key+"="+c.value) || !strings.HasPrefix(err.Error(), "1000:00:03.0 e1000: ") {
			t.Errorf("Probe with %s=%s = %v, want an error with %q", c.key, c.value, err, c.want)
		}
	}
}

func TestBringUp(t *testing.T) {
	for name, id := range chips {
		t.Run(name, func(t *testing.T) {
			m := newModel(id)
			n := probeModel(t, m, nil)
			if got := n.MAC().String(); got != "52:54:00:12:34:56" {
				t.Errorf("MAC = %s, want 52:54:00:12:34:56", got)
			}
			if got := n.Link(); !got.Up || got.Speed != 1000 || !got.FullDuplex {
				t.Errorf("Link = %+v, want 1000 Mb/s, full duplex", got)
			}
			info := n.Info()
			if info.Model != name || info.TxRing != defaultRing || info.RxQueues != 1 || n.MTU() != 1500 || n.Tx(1) != nil || n.Rx(-1) != nil {
				t.Errorf("Info = %+v", info)
			}
			want := 1
			if id == device82574 {
				want = 3
			}
			if got := len(n.IRQHandlers()); got != want {
				t.Errorf("%d interrupt handlers, want %d", got, want)
			}
			m.mu.Lock()
			if got := rctl(m.reg[regRCTL/4]); got != rctlEN|rctlBAM|rctlSECRC {
				t.Errorf("RCTL = %s, want EN|BAM|SECRC", got)
			}
			if got := m.reg[regRDT(0)/4]; got != defaultRing-1 {
				t.Errorf("RDT = %d, want %d", got, defaultRing-1)
			}
			m.mu.Unlock()
			if got := n.rx[0].Free(); got != defaultRing-1 {
				t.Errorf("Free = %d, want %d", got, defaultRing-1)
			}
			if err := n.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
			if err := n.Err(); !errors.Is(err, bus.ErrClosed) {
				t.Errorf("Err after Close = %v, want %v", err, bus.ErrClosed)
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.reg[regRCTL/4]&uint32(rctlEN) != 0 || m.reg[regTCTL/4]&uint32(tctlEN) != 0 || m.reg[regIMS/4] != 0 {
				t.Error("Close left the controller running")
			}
			if cmd := m.cfg[4]; cmd&4 != 0 {
				t.Errorf("Close left bus mastering on: Command = %#x", cmd)
			}
		})
	}
}

// TestEEPROM: without a valid receive address the EEPROM has it.
func TestEEPROM(t *testing.T) {
	for name, id := range chips {
		m := newModel(id)
		m.blank = true
		n := probeModel(t, m, nil)
		if got := n.MAC().String(); got != "52:54:00:12:56:78" {
			t.Errorf("%s: MAC = %s, want the EEPROM's 52:54:00:12:56:78", name, got)
		}
		m = newModel(id)
		m.stuck[regRAH(0)] = 0
		m.stuck[regEERD] = 0
		if _, err := Driver.Probe(context.Background(), m, env(nil)); !errors.Is(err, bus.ErrTimeout) || !strings.Contains(err.Error(), "EERD.DONE") {
			t.Errorf("%s: Probe with a dead EEPROM = %v, want a timeout of EERD.DONE", name, err)
		}
	}
}

func TestResetTimeout(t *testing.T) {
	m := newModel(device82574)
	m.stuck[regCTRL] = uint32(ctrlRST | ctrlFD)
	_, err := Driver.Probe(context.Background(), m, env(nil))
	want := "1000:00:03.0 e1000: reset: CTRL.RST still set after 10ms (CTRL=FD|RST): timed out"
	if err == nil || !strings.HasPrefix(err.Error(), want) || !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("Probe = %v, want %s", err, want)
	}
	m = newModel(device82574)
	m.stuck[regSTATUS] = allOnes
	if _, err := Driver.Probe(context.Background(), m, env(nil)); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Probe of nothing = %v, want %v", err, bus.ErrGone)
	}
}

// TestEveryAccessFails: the link dies at access k, for each k of a whole life. It ends
// in an error or a dead device, with nothing left, never in a panic or a hang.
func TestEveryAccessFails(t *testing.T) {
	for name, id := range chips {
		t.Run(name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			for k := 1; ; k++ {
				m := newModel(id)
				m.accesses = k
				inst, err := Driver.Probe(context.Background(), m, env(map[string]string{"ring": "64"}))
				if err != nil {
					if !errors.Is(err, bus.ErrGone) && !errors.Is(err, bus.ErrTimeout) && !errors.Is(err, bus.ErrProtocol) {
						t.Errorf("access %d: Probe = %v, want a sentinel of bus", k, err)
					}
				} else {
					n := inst.(*nic)
					life(t, m, n)
					if err := n.Close(); err != nil {
						t.Errorf("access %d: Close = %v", k, err)
					}
				}
				m.mu.Lock()
				left, alive := len(m.mem), m.accesses > 0
				m.mu.Unlock()
				if left != 0 {
					t.Fatalf("access %d: %d pieces of DMA memory left", k, left)
				}
				if alive {
					t.Logf("%d accesses", k)
					break
				}
			}
			for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; {
				if time.Now().After(end) {
					t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

// life sends, receives, waits and counts.
func life(t *testing.T, m *model, n *nic) {
	t.Helper()
	pool, err := n.tx[0].NewPool(4)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	b := pool.Get()
	b.Data = b.Mem[:60]
	n.tx[0].Burst([]*dma.Buf{b})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_ = n.tx[0].Drain(ctx)
	m.receive(make([]byte, 60))
	var got [4]*dma.Buf
	if err := n.rx[0].Wait(ctx); err == nil {
		for _, b := range got[:n.rx[0].Burst(got[:])] {
			b.Free()
		}
	}
	n.rx[0].Burst(nil)
	n.rx[0].Free()
	n.Stats()
}

// TestTransmit sends frames of each awkward kind.
func TestTransmit(t *testing.T) {
	m := newModel(device82574)
	n := probeModel(t, m, map[string]string{"ring": "64"})
	pool, err := n.tx[0].NewPool(100)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	make1 := func(off, length int) *dma.Buf {
		b := pool.Get()
		for i := range b.Mem {
			b.Mem[i] = 0xee
		}
		b.Data = b.Mem[off : off+length]
		for i := range b.Data {
			b.Data[i] = byte(i + 1)
		}
		return b
	}
	foreign := pool.Get()
	foreign.Data = make([]byte, 4096)
	bufs := []*dma.Buf{
		make1(0, 60), make1(0, 0), make1(0, 13), make1(0, 14), make1(100, 16), make1(7, 17), make1(0, 1518), make1(0, 1519), make1(2000, 14), foreign, make1(0, 61),
	}
	want := []int{60, 60, 60, 60, 1518, 61}
	if k := n.tx[0].Burst(bufs); k != len(bufs) {
		t.Fatalf("Burst = %d, want %d", k, len(bufs))
	}
	if err := n.tx[0].Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	if pool.Free() != pool.Len() {
		t.Errorf("%d of %d buffers came back", pool.Free(), pool.Len())
	}
	if len(m.wire) != len(want) {
		t.Fatalf("%d frames sent, want %d", len(m.wire), len(want))
	}
	asked := []int{60, 14, 16, 17, 1518, 61}
	for i, f := range m.wire {
		w := make([]byte, max(60, want[i]))
		for j := range asked[i] {
			w[j] = byte(j + 1)
		}
		if !bytes.Equal(f, w) {
			t.Errorf("frame %d: % x, want % x", i, f, w)
		}
	}
	if st := n.Stats(); st.TxPackets != 6 || st.TxErrors != 5 {
		t.Errorf("Stats: sent %d, errors %d, want 6, 5", st.TxPackets, st.TxErrors)
	}
}

// TestTransmitWraps sends bursts of every size through a small ring, one buffer many times over.
func TestTransmitWraps(t *testing.T) {
	m := newModel(device82540)
	n := probeModel(t, m, map[string]string{"ring": "64"})
	pool, err := n.tx[0].NewPool(1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for size := 1; size <= 100; size++ {
		b := pool.Get()
		if b == nil {
			t.Fatalf("burst %d: the buffer is not back", size)
		}
		b.Data = b.Mem[:60]
		b.Retain(size - 1)
		bufs := make([]*dma.Buf, size)
		for i := range bufs {
			bufs[i] = b
		}
		if k, want := n.tx[0].Burst(bufs), min(size, 63); k != want {
			t.Fatalf("Burst of %d = %d, want %d", size, k, want)
		} else if k < size {
			if k2 := n.tx[0].Burst(bufs[k:]); k2 != size-k {
				t.Fatalf("Burst of the other %d = %d", size-k, k2)
			}
		}
		if left := n.tx[0].Reap(); left != 0 {
			t.Fatalf("Reap = %d, want 0", left)
		}
	}
	if len(m.wire) != 100*101/2 {
		t.Errorf("%d frames sent, want %d", len(m.wire), 100*101/2)
	}
	if got := n.Stats().TxBusies; got != 100-63 {
		t.Errorf("TxBusies = %d, want %d", got, 100-63)
	}
}

// TestGarbage: the device writes every kind of nonsense into receive descriptors.
func TestGarbage(t *testing.T) {
	m := newModel(device82574)
	n := probeModel(t, m, map[string]string{"ring": "64"})
	words := []uint64{
		^uint64(0), uint64(rxDD), uint64(rxDD | rxEOP), uint64(rxDD|rxEOP) | 0xffff, uint64(rxDD|rxEOP) | 2049, uint64(rxDD|rxEOP|rxCE) | 60,
		uint64(rxDD|rxEOP|rxRXE) | 60, uint64(rxDD) | 60,
	}
	i := 0
	m.onStatus = func(w uint64) uint64 {
		i++
		if i%2 == 0 {
			return w
		}
		return words[i/2%len(words)]
	}
	var bufs [16]*dma.Buf
	good := 0
	for range 1000 {
		if !m.receive(make([]byte, 60)) {
			t.Fatal("the receive ring is empty")
		}
		k := n.rx[0].Burst(bufs[:])
		for _, b := range bufs[:k] {
			if len(b.Data) != 60 {
				t.Errorf("a frame of %d bytes, want 60", len(b.Data))
			}
			b.Free()
		}
		good += k
	}
	if good != 500 {
		t.Errorf("%d good frames, want 500", good)
	}
	if st := n.Stats(); st.RxErrors != 500 || st.RxCRCErrors != 62 || st.RxFrameErrors != 62 {
		t.Errorf("Stats: %d errors, %d CRC, %d frame, want 500, 62, 62", st.RxErrors, st.RxCRCErrors, st.RxFrameErrors)
	}
	n.rx[0].Burst(nil)
	m.mu.Lock()
	m.stuck[regRDH(0)] = 64
	m.mu.Unlock()
	if got := n.rx[0].Free(); got != 0 || !errors.Is(n.Err(), bus.ErrProtocol) {
		t.Errorf("Free with RDH=64 = %d, then %v, want 0, %v", got, n.Err(), bus.ErrProtocol)
	}
}

// TestHeldFrames: a program that keeps frames gets no new buffers posted, loses nothing it
// holds, and can free them after Close.
func TestHeldFrames(t *testing.T) {
	m := newModel(device82574)
	n := probeModel(t, m, map[string]string{"ring": "64"})
	var held []*dma.Buf
	var bufs [8]*dma.Buf
	f := make([]byte, 60)
	for i := 0; ; i++ {
		f[14] = byte(i)
		if !m.receive(f) {
			break
		}
		held = append(held, bufs[:n.rx[0].Burst(bufs[:])]...)
	}
	if want := n.rx[0].pool.Len(); len(held) != want {
		t.Errorf("%d frames held, want all %d buffers", len(held), want)
	}
	for i, b := range held {
		if b.Data[14] != byte(i) {
			t.Errorf("frame %d holds %d", i, b.Data[14])
		}
	}
	if n.Stats().RxAllocFailed == 0 {
		t.Error("RxAllocFailed = 0")
	}
	for _, b := range held[8:] {
		b.Free()
	}
	n.rx[0].Burst(nil)
	if !m.receive(f) {
		t.Error("freed buffers were not posted again")
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if held[3].Data[14] != 3 {
		t.Error("a held frame changed in Close")
	}
	for _, b := range held[:8] {
		b.Free()
	}
	if k := n.rx[0].Burst(bufs[:]); k != 0 {
		t.Errorf("Burst after Close = %d, want 0", k)
	}
	if k := n.tx[0].Burst(nil); k != 0 {
		t.Errorf("Burst after Close = %d, want 0", k)
	}
}

// TestInFlightAtClose: what was in flight is freed by its owner's next call.
func TestInFlightAtClose(t *testing.T) {
	m := newModel(device82574)
	n := probeModel(t, m, map[string]string{"ring": "64"})
	pool, err := n.tx[0].NewPool(10)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	m.mu.Lock()
	m.reg[regTCTL/4] = 0 // stuck
	m.mu.Unlock()
	for range 10 {
		b := pool.Get()
		b.Data = b.Mem[:60]
		n.tx[0].Burst([]*dma.Buf{b})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	if err := n.tx[0].Drain(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "10 frames in flight") {
		t.Errorf("Drain = %v, want 10 frames in flight", err)
	}
	done := make(chan error, 1)
	go func() { done <- n.Close() }()
	if err := n.tx[0].Drain(context.Background()); err != nil && !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Drain during Close = %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if left := n.tx[0].Reap(); left != 0 || pool.Free() != 10 {
		t.Errorf("after Close: %d in flight, %d of 10 buffers back", left, pool.Free())
	}
}

// TestWait holds the arming to its promise: a frame at any moment wakes the waiter.
func TestWait(t *testing.T) {
	for name, id := range chips {
		t.Run(name, func(t *testing.T) {
			m := newModel(id)
			n := probeModel(t, m, map[string]string{"ring": "64"})
			const frames = 3000
			go func() {
				for i := 0; i < frames; {
					if m.receive(make([]byte, 60)) {
						i++
					}
					if i%7 == 0 {
						runtime.Gosched()
					}
				}
			}()
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			var bufs [4]*dma.Buf
			for got := 0; got < frames; {
				k := n.rx[0].Burst(bufs[:])
				for _, b := range bufs[:k] {
					b.Free()
				}
				if got += k; k == 0 {
					if err := n.rx[0].Wait(ctx); err != nil {
						t.Fatalf("Wait after %d frames = %v", got, err)
					}
				}
			}
			err := n.rx[0].Wait(canceled())
			for range 100 { // a signal may be left, and select chooses
				if err == nil {
					err = n.rx[0].Wait(canceled())
				}
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Wait with an ended context = %v", err)
			}
			m.mu.Lock()
			m.die()
			m.mu.Unlock()
			<-n.Done()
			if err := n.rx[0].Wait(context.Background()); !errors.Is(err, bus.ErrGone) {
				t.Errorf("Wait on a dead device = %v, want %v", err, bus.ErrGone)
			}
			if k := n.rx[0].Burst(bufs[:]); k != 0 {
				t.Errorf("Burst on a dead device = %d, want 0", k)
			}
		})
	}
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// TestLinkChange: the interrupt tells, whatever the mode.
func TestLinkChange(t *testing.T) {
	for name, id := range chips {
		m := newModel(id)
		n := probeModel(t, m, nil)
		for _, up := range []bool{false, true} {
			m.mu.Lock()
			m.reg[regSTATUS/4] ^= uint32(statusLU)
			m.raise(causeLSC)
			m.mu.Unlock()
			for end := time.Now().Add(20 * time.Second); n.Link().Up != up; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s: Link().Up = %v, want %v", name, !up, up)
				}
			}
		}
	}
}

// TestQuirk: QEMU's 82540EM does not listen for a second, and does not clear MPC.
func TestQuirk(t *testing.T) {
	m := newModel(device82540)
	copy(m.cfg[0x2c:], []byte{0xf4, 0x1a, 0x00, 0x11})
	n := probeModel(t, m, map[string]string{"ring": "64"})
	if got := n.rx[0].Free(); got != 0 {
		t.Errorf("Free before the receiver listens = %d, want 0", got)
	}
	n.deafUntil.Store(time.Now().Add(-time.Millisecond).UnixNano())
	if got := n.rx[0].Free(); got != 63 {
		t.Errorf("Free = %d, want 63", got)
	}
	for _, v := range []uint32{5, 5, 9} {
		m.mu.Lock()
		m.reg[regMPC/4] = v
		m.mu.Unlock()
		if got := n.Stats().RxMissedErrors; got != uint64(v) {
			t.Errorf("RxMissedErrors with MPC at %d = %d", v, got)
		}
	}
}

func TestNotMine(t *testing.T) {
	if _, err := Driver.Probe(context.Background(), newModel(0x1521), env(nil)); !errors.Is(err, pci.ErrSkip) {
		t.Errorf("Probe of another device = %v, want %v", err, pci.ErrSkip)
	}
	for _, d := range chips {
		if !Driver.Serves(pci.FunctionID{Vendor: vendorIntel, Device: d}) {
			t.Errorf("%04x is not served", d)
		}
	}
}

func TestValidMAC(t *testing.T) {
	for m, want := range map[string]bool{
		"": false, "\x02\x00\x00\x00\x00": false, "\x02\x00\x00\x00\x00\x01": true, "\x01\x00\x5e\x00\x00\x01": false, "\x00\x00\x00\x00\x00\x00": false,
	} {
		if got := validMAC(net.HardwareAddr(m)); got != want {
			t.Errorf("validMAC(%x) = %v, want %v", m, got, want)
		}
	}
}

// TestStatsAddUp: registers that clear when read are added, beyond 32 bits too.
func TestStatsAddUp(t *testing.T) {
	m := newModel(device82574)
	n := probeModel(t, m, nil)
	for i := uint64(1); i <= 3; i++ {
		m.mu.Lock()
		m.reg[regGPRC/4], m.reg[regGORCL/4], m.reg[regGORCH/4] = 0xfffffff0, 0, 4
		m.reg[regMPRC/4], m.reg[regCRCERRS/4] = 7, 1
		m.mu.Unlock()
		st := n.Stats()
		if st.RxPackets != i*0xfffffff0 || st.RxBytes != i*(4<<32)-4*i*0xfffffff0 || st.Multicast != 7*i || st.RxErrors != i || st.RxCRCErrors != i {
			t.Errorf("after %d: %+v", i, st)
		}
	}
	if got := fmt.Sprint(less(3, 5), less(5, 3)); got != "0 2" {
		t.Errorf("less = %s, want 0 2", got)
	}
}

// TestQueuesOption: only the 82574L has a second queue.
func TestQueuesOption(t *testing.T) {
	for _, c := range []struct {
		id    uint16
		value string
		want  int
	}{
		{device82574, "1", 1}, {device82574, "2", 2}, {device82540, "1", 1},
		{device82574, "0", 0}, {device82574, "3", 0}, {device82574, "two", 0}, {device82574, "", 0}, {device82540, "2", 0},
	} {
		inst, err := Driver.Probe(context.Background(), newModel(c.id), env(map[string]string{"queues": c.value}))
		if c.want == 0 {
			if !errors.Is(err, pci.ErrOption) || !strings.Contains(err.Error(), "queues="+c.value) {
				t.Errorf("Probe of %04x with queues=%s = %v, want %v", c.id, c.value, err, pci.ErrOption)
			}
			continue
		}
		if err != nil {
			t.Errorf("Probe of %04x with queues=%s = %v", c.id, c.value, err)
			continue
		}
		n := inst.(*nic)
		if i := n.Info(); i.TxQueues != c.want || i.RxQueues != c.want || n.Tx(c.want-1) == nil || n.Tx(c.want) != nil {
			t.Errorf("Info of %04x with queues=%s = %+v, want %d", c.id, c.value, i, c.want)
		}
		inst.Close()
	}
}
