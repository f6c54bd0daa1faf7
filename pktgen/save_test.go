package pktgen

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/ledger"
)

// everySetting is each command once, with a value that is not the default, where they go together.
var everySetting = [][]string{
	{
		"count 12345", "min_pkt_size 100", "max_pkt_size 200", "frags 3", "ratep 7000000", "flows 12", "flowlen 5", "queue_map_min 0", "queue_map_max 0",
		"skb_priority 3", "dst_min 10.1.0.1", "dst_max 10.1.0.9", "src_min 10.2.0.1", "src_max 10.2.0.7", "src_mac 02:00:00:00:00:01", "dst_mac 02:00:00:00:00:02",
		"src_mac_count 5", "dst_mac_count 6", "udp_src_min 11", "udp_src_max 22", "udp_dst_min 33", "udp_dst_max 44", "vlan_id 7", "vlan_p 3", "vlan_cfi 1",
		"svlan_id 8", "svlan_p 4", "svlan_cfi 1", "tos 12", "traffic_class 34", "burst 5", "node 0", "spi 9", "flag IPSEC", "flag UDPCSUM", "flag FLOW_SEQ",
	},
	{"dst6 fd00::1", "src6 fd00::2", "dst6_min fd00::10", "dst6_max fd00::ff", "clone_skb 4", "mpls 0001000a,0002000a,0000000a", "delay 1000"},
	{"imix_weights 64,7 576,4 1500,1", "xmit_mode queue_xmit", "flag TXSIZE_RND"},
	{"xmit_mode netif_receive", "burst 8", "count 10"},
	{"burst 0", "count 3", "nonsense 1"},
}

// TestSave takes devices with all kinds of settings to another engine, where their files are the same.
func TestSave(t *testing.T) {
	for _, cmds := range everySetting {
		a := newBench(t, []int{0, 1}, newSink("eth0"), newSink("eth1"))
		a.write("kpktgend_1", "add_device eth0@1")
		a.write("kpktgend_0", "add_device eth1")
		for _, c := range cmds {
			_, _ = a.file("eth0@1").Write(t.Context(), []byte(c+"\n")) // some are refused, which is part of the file
		}
		a.write("eth1", "count 77")
		a.write("pgctrl", "start") // where a device sends at all
		state := a.e.Save()
		b := newBench(t, []int{0, 1}, newSink("eth0"), newSink("eth1"))
		if err := b.e.Restore(state); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"eth0@1", "eth1", "kpktgend_0", "kpktgend_1"} {
			if got, want := b.read(name), a.read(name); got != want {
				t.Errorf("%s of %v:\n%swant\n%s", name, cmds, got, want)
			}
		}
		if got := b.e.Save(); string(got) != string(state) {
			t.Errorf("saved again:\n%s\nwant\n%s", got, state)
		}
		// What it sends next is the same, too.
		for _, x := range []*bench{a, b} {
			x.write("eth0@1", "delay 0")
			x.write("eth0@1", "count 50")
			x.write("pgctrl", "start")
		}
		cut := func(s string) string { // without times
			at, _, _ := strings.Cut(s, "Current:")
			_, to, _ := strings.Cut(s, "seq_num")
			to, _, _ = strings.Cut(to, "     late:")
			to, _, _ = strings.Cut(to, "Result:")
			return at + to
		}
		if got, want := cut(b.read("eth0@1")), cut(a.read("eth0@1")); got != want {
			t.Errorf("after a run, with %v:\n%swant\n%s", cmds, got, want)
		}
	}
}

// TestRestoreRefused has states that are none: nothing has changed then.
func TestRestoreRefused(t *testing.T) {
	a := newBench(t, []int{0}, newSink("eth0"))
	a.write("kpktgend_0", "add_device eth0")
	good := string(a.e.Save())
	b := newBench(t, []int{0}, newSink("eth0"))
	for _, c := range []struct{ old, to, want string }{
		{`"version":1`, `"version":2`, "the state is of version 2, want 1"},
		{`"version":1`, `"version":1,`, "reading the state"},
		{`"state":[`, `"state":[1,`, "words of state"},
		{`"xmit_mode":0`, `"xmit_mode":3`, "xmit_mode 3"},
		{`"flows":0`, `"flows":65537`, "65537 flows"},
		{`"vlan_id":65535`, `"vlan_id":5000`, "tags 5000"},
		{`"burst":1`, `"burst":0`, "burst 0"},
		{`"flags":262144`, `"flags":4294967295`, "flags 0xffffffff"},
		{`"count":1000`, `"count":1000,"imix_weights":[[64,0]]`, "imix_weights 64,0"},
		{`"count":1000`, `"count":1000,"delay_rem":5,"delay_den":5`, "a delay of 5/5 ns"},
	} {
		bad := strings.Replace(good, c.old, c.to, 1)
		if bad == good {
			t.Fatalf("%q is not in the state:\n%s", c.old, good)
		}
		if err := b.e.Restore(json.RawMessage(bad)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Restore with %s = %v, want %q", c.to, err, c.want)
		}
		if len(b.e.Figures()) != 0 {
			t.Fatalf("Restore with %s made a device", c.to)
		}
	}
	// A network device that is not there does not keep the others from coming.
	c := newBench(t, []int{0}, newSink("eth0"), newSink("eth1"))
	c.write("kpktgend_0", "add_device eth1")
	c.write("kpktgend_0", "add_device eth0")
	if err := b.e.Restore(c.e.Save()); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "restoring eth1") {
		t.Errorf("Restore without eth1 = %v, want ENODEV", err)
	}
	if f := b.e.Figures(); len(f) != 1 || f[0].Name != "eth0" {
		t.Errorf("there are %v, want eth0", f)
	}
}

// TestSaveCapture has a capture that is there again, and one that is not.
func TestSaveCapture(t *testing.T) {
	path := captureFile(t, "a.pcap", layers.LinkTypeEthernet, recorded(3), time.Millisecond)
	a := newBench(t, []int{0}, newSink("eth0"))
	a.write("kpktgend_0", "add_device eth0")
	for _, c := range []string{"pcap " + path, "count 5"} {
		a.write("eth0", c)
	}
	a.write("pgctrl", "start")
	state := a.e.Save()
	b := newBench(t, []int{0}, newSink("eth0"))
	if err := b.e.Restore(state); err != nil {
		t.Fatal(err)
	}
	if got, want := b.read("eth0"), a.read("eth0"); got != want {
		t.Errorf("with a capture:\n%swant\n%s", got, want)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	c := newBench(t, []int{0}, newSink("eth0"))
	if err := c.e.Restore(state); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Restore without the capture = %v", err)
	}
	if !strings.Contains(c.read("eth0"), "Result: ERROR: pcap: ") {
		t.Errorf("a device without its capture:\n%s", c.read("eth0"))
	}
}

func newLedger(t testing.TB) *ledger.Ledger {
	t.Helper()
	l, f, err := ledger.Create("pktgen-test")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	t.Cleanup(func() { l.Close() })
	return l
}

// TestGoOn has runs that were under way in an engine that is not there any more: one in the middle, one at its end, and one that had not
// begun; `start` goes on with the first and begins with the last. Whoever waits for changes is told.
func TestGoOn(t *testing.T) {
	bustest.NoLeaks(t)
	for _, kept := range []bool{true, false} {
		var l *ledger.Ledger
		if kept {
			l = newLedger(t)
		}
		a := newBenchOf(t, Config{CPUs: []int{0}, Ledger: l}, newSink("eth0"), newSink("eth1"), newSink("eth2"))
		for _, n := range []string{"eth0", "eth1", "eth2"} {
			a.write("kpktgend_0", "add_device "+n)
			a.write(n, "count 100")
		}
		a.write("eth0", "delay 2147483647") // it waits
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = a.file("pgctrl").Write(t.Context(), []byte("start\n"))
		}()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			f := a.e.Figures()
			if f[0].Running && !f[1].Running && !f[2].Running && f[2].Packets == 100 && f[1].Packets == 100 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("eth1 and eth2 do not end: %+v", f)
			}
		}
		a.write("eth0", "delay 0")
		<-done
		// As if it had been killed when eth0 had sent 40, its burst of 8 under way, and before eth2 had begun.
		d := a.dev("eth0")
		d.mu.Lock()
		d.sofar, d.seq = 40, 41
		d.running.Store(true)
		d.keepAll()
		d.intend(8)
		d.mu.Unlock()
		x := a.dev("eth2")
		x.mu.Lock()
		x.epoch--
		x.keepAll()
		x.mu.Unlock()
		a.e.keepStart(startOpen, a.e.epoch.Load())
		state := a.e.Save()
		d.running.Store(false) // for its end

		changed := 0
		s0, s1, s2 := newSink("eth0"), newSink("eth1"), newSink("eth2")
		b := newBenchOf(t, Config{CPUs: []int{0}, Ledger: l, Changed: func() { changed++ }}, s0, s1, s2)
		if err := b.e.Restore(state); err != nil {
			t.Fatal(err)
		}
		if !b.e.Running() {
			t.Error("nothing is to go on")
		}
		b.write("pgctrl", "start")
		want0 := uint64(60)
		if kept {
			want0 = 52
		}
		if n0, n1, n2 := s0.queues[0].n.Load(), s1.queues[0].n.Load(), s2.queues[0].n.Load(); n0 != want0 || n1 != 0 || n2 != 100 {
			t.Errorf("kept %v: sent %d, %d and %d packets, want %d, 0 and 100", kept, n0, n1, n2, want0)
		}
		for _, f := range b.e.Figures() {
			if f.Packets != 100 || f.Running || !strings.HasPrefix(f.Result, "OK: ") {
				t.Errorf("kept %v: %+v", kept, f)
			}
		}
		if seq := b.dev("eth0").seq; seq != 101 {
			t.Errorf("kept %v: the next number is %d, want 101", kept, seq)
		}
		if changed == 0 {
			t.Error("nobody was told of changes")
		}
		b.write("pgctrl", "start") // an ordinary one
		if n1 := s1.queues[0].n.Load(); n1 != 100 {
			t.Errorf("a second start sent %d packets of eth1, want 100", n1)
		}
		a.e.Close()
		b.e.Close()
	}
}

// TestLeave exchanges the engine under a run: whoever waits for its end waits on, the next one sends the rest, and no more.
func TestLeave(t *testing.T) {
	bustest.NoLeaks(t)
	const count = 3_000_000
	for _, kept := range []bool{true, false} {
		var l *ledger.Ledger
		if kept {
			l = newLedger(t)
		}
		s := newSink("eth0")
		a := newBenchOf(t, Config{CPUs: []int{0}, Ledger: l}, s)
		a.ok("kpktgend_0", "add_device eth0")
		a.ok("eth0", "count 3000000", "burst 8")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = a.file("pgctrl").Write(ctx, []byte("start"))
		}()
		for end := time.Now().Add(10 * time.Second); s.queues[0].n.Load() < 1000; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("nothing is sent")
			}
		}
		a.e.Leave()
		state := a.e.Save()
		first := s.queues[0].n.Load()
		a.e.Close()
		if f := a.e.Figures()[0]; first < count {
			select {
			case <-done:
				t.Error("start returned when its engine was left")
			default:
			}
			if !f.Running || f.Packets != first {
				t.Errorf("left behind after %d packets: %+v", first, f)
			}
		}
		b := newBenchOf(t, Config{CPUs: []int{0}, Ledger: l}, s)
		if err := b.e.Restore(state); err != nil {
			t.Fatal(err)
		}
		b.e.Resume()
		if first < count { // else the machine was too slow to leave in time, and this would be another run
			b.ok("pgctrl", "start")
		}
		cancel()
		<-done
		if n := s.queues[0].n.Load(); n != count {
			t.Errorf("kept %v: %d packets in all, want %d", kept, n, count)
		}
		if f := b.e.Figures()[0]; f.Running || f.Packets != count || !strings.HasPrefix(f.Result, "OK: ") {
			t.Errorf("kept %v: %+v", kept, f)
		}
		b.e.Close()
	}
}

// TestGoOnStopped has a run that was to go on, and is stopped instead.
func TestGoOnStopped(t *testing.T) {
	l := newLedger(t)
	a := newBenchOf(t, Config{CPUs: []int{0}, Ledger: l}, newSink("eth0"))
	a.write("kpktgend_0", "add_device eth0")
	d := a.dev("eth0")
	d.begin()
	d.mu.Lock()
	d.sofar, d.seq = 10, 11
	d.keepAll()
	d.mu.Unlock()
	a.e.keepStart(startOpen, 1)
	state := a.e.Save()
	d.running.Store(false)
	s := newSink("eth0")
	b := newBenchOf(t, Config{CPUs: []int{0}, Ledger: l}, s)
	if err := b.e.Restore(state); err != nil {
		t.Fatal(err)
	}
	b.write("pgctrl", "stop")
	if b.e.Running() || !strings.Contains(b.read("eth0"), "Result: OK: ") || !strings.Contains(b.read("eth0"), " 10 (") {
		t.Errorf("a run that was stopped before it went on:\n%s", b.read("eth0"))
	}
	b.write("pgctrl", "start")
	if n := s.queues[0].n.Load(); n != defaultCount {
		t.Errorf("start sent %d packets, want %d", n, defaultCount)
	}
}

// TestRxKept takes what a receiver has accounted for from one engine to the next, and the next.
func TestRxKept(t *testing.T) {
	l := newLedger(t)
	seq := uint32(0)
	base := uint64(time.Now().Add(-time.Second).UnixMicro())
	other := spec()
	other.DstPort = 77
	for life := range 3 {
		b := newBenchOf(t, Config{CPUs: []int{0}, Ledger: l}, newSink("eth1"))
		r, err := b.e.AddRx("eth1")
		if err != nil {
			t.Fatal(err)
		}
		x := &rxBench{bench: b, r: r}
		for range 100 {
			seq++
			x.feed(packet(t, spec(), seq, base+uint64(seq), 18))
			x.feed(packet(t, other, seq, base+uint64(seq), 18))
		}
		seq += 7 // lost in the restart
		f := r.Figures()
		n := uint64(life + 1)
		if f.Received != 200*n || f.Lost != 14*(n-1) || f.Duplicated != 0 || f.Runs != 2 || f.Flows != 2 || f.Restarts != n-1 || f.LostInRestarts != 14*(n-1) || f.Latency.Samples != 200*n {
			t.Fatalf("life %d: %+v", life, f)
		}
		if text := b.read("eth1.rx"); strings.Count(text, "received: "+utoa(100*n)+"  bytes: ") != 2 {
			t.Errorf("life %d: flows:\n%s", life, text)
		}
		if life < 2 {
			r.close()
		}
		if life == 2 {
			b.write("eth1.rx", "clear_counters")
			if f := r.Figures(); f.Received+f.Lost+f.Restarts+f.LostInRestarts != 0 {
				t.Errorf("cleared: %+v", f)
			}
		}
	}
}

// TestRxKeptNothing: what was sent by a process that was killed before any of it was received was lost in that restart; also where runs before are known, and where the first
// burst has one frame, which tells nothing of those before it.
func TestRxKeptNothing(t *testing.T) {
	l := newLedger(t)
	base := uint64(time.Now().Add(-time.Second).UnixMicro())
	life := func() (*rxBench, *Rx) {
		b := newBenchOf(t, Config{CPUs: []int{0}, Ledger: l}, newSink("eth1"))
		r, err := b.e.AddRx("eth1")
		if err != nil {
			t.Fatal(err)
		}
		return &rxBench{bench: b, r: r}, r
	}
	want := func(r *Rx, restarts, lost uint64) {
		t.Helper()
		if f := r.Figures(); f.Restarts != restarts || f.LostInRestarts != lost || f.Lost != lost {
			t.Errorf("%d restarts, %d lost, of these %d in restarts; want %d, %d", f.Restarts, f.Lost, f.LostInRestarts, restarts, lost)
		}
	}
	_, r := life()
	r.close()
	x, r := life()
	x.feed(make([]byte, 60)) // somebody else's
	x.feed(packet(t, spec(), 8, base, 18))
	want(r, 0, 0)
	x.feed(packet(t, spec(), 9, base+1, 18))
	want(r, 1, 7)
	r.close()
	x, r = life()
	x.feed(make([]byte, 60))
	other := spec()
	other.DstPort = 77
	x.feed(packet(t, other, 6, base+2, 18))
	x.feed(packet(t, other, 7, base+3, 18))
	x.feed(packet(t, spec(), 11, base+4, 18))
	want(r, 2, 7+5+1)
	r.close()
	x, r = life()
	x.write("eth1.rx", "clear_counters") // before anything comes
	x.feed(packet(t, spec(), 15, base+5, 18))
	want(r, 1, 3)
}

func utoa(n uint64) string { b, _ := json.Marshal(n); return string(b) }

// FuzzRxKept has anything in the memory that a receiver goes on with.
func FuzzRxKept(f *testing.F) {
	f.Add([]byte{1}, uint16(0))
	f.Add(binary.LittleEndian.AppendUint64(nil, 1<<63), uint16(14))
	f.Fuzz(func(t *testing.T, p []byte, at uint16) {
		l, file, err := ledger.Create("fuzz")
		if err != nil {
			t.Skip(err)
		}
		defer l.Close()
		file.Close()
		a, _, err := l.Area("pktgen/eth0.rx", ledger.JournalWords(rxWords, rxChanges))
		if err != nil {
			t.Fatal(err)
		}
		r := newRx(&Engine{prof: profile612(t)}, "eth0")
		if err := r.keepIn(l); err != nil {
			t.Fatal(err)
		}
		frame := packet(t, spec(), 5, uint64(time.Now().UnixMicro()), 18)
		bufs := []*dma.Buf{{Data: frame}}
		r.Take(bufs)
		r.close()
		for i := 0; i+8 <= len(p); i += 8 {
			a.Store((int(at)+i/8)%a.Len(), binary.LittleEndian.Uint64(p[i:]))
		}
		x := newRx(&Engine{prof: profile612(t)}, "eth0")
		if err := x.keepIn(l); err != nil {
			t.Fatal(err)
		}
		x.Take(bufs)
		x.Figures()
		x.view()
		x.close()
	})
}

// FuzzRestore has anything as a state.
func FuzzRestore(f *testing.F) {
	a := newBench(f, []int{0}, newSink("eth0"))
	a.write("kpktgend_0", "add_device eth0")
	for _, c := range []string{"imix_weights 64,7 576,4", "flows 3", "mpls 0001000a"} {
		a.write("eth0", c)
	}
	f.Add([]byte(a.e.Save()))
	f.Add([]byte(`{"version":1,"threads":[{"name":"kpktgend_0","devices":[{"name":"eth0"}]}]}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		b := newBench(t, []int{0}, newSink("eth0"))
		if err := b.e.Restore(p); err != nil {
			return
		}
		b.e.Save()
		for _, x := range b.e.Figures() {
			_ = b.read(x.Name)
			b.write(x.Name, "count 100")
			b.write(x.Name, "delay 0")
		}
		b.write("pgctrl", "start")
	})
}

// BenchmarkSendKept is BenchmarkSend with and without a ledger.
func BenchmarkSendKept(b *testing.B) {
	for _, cmds := range []string{"burst 1", "burst 32", "burst 32,dst_min 10.0.0.1,dst_max 10.0.1.9"} {
		for _, kept := range []string{"not", "kept"} {
			b.Run(cmds+"/"+kept, func(b *testing.B) {
				d, p := quiet(b, strings.Split(cmds, ",")...)
				if kept == "kept" {
					d.thr.eng.ledger = newLedger(b)
					var err error
					if d.keep, err = d.thr.eng.keeper("eth0"); err != nil {
						b.Fatal(err)
					}
				}
				for b.ResetTimer(); d.sofar < uint64(b.N); {
					d.transmit(p)
				}
			})
		}
	}
}

// BenchmarkTakeKept is BenchmarkTake with and without a ledger.
func BenchmarkTakeKept(b *testing.B) {
	for _, flows := range []int{1, 64, 4096} {
		for _, kept := range []string{"not", "kept"} {
			b.Run("flows="+utoa(uint64(flows))+"/"+kept, func(b *testing.B) {
				r := newRx(&Engine{prof: profile612(b)}, "eth0")
				if kept == "kept" {
					if err := r.keepIn(newLedger(b)); err != nil {
						b.Fatal(err)
					}
					defer r.close()
				}
				f := packet(b, spec(), 1, uint64(time.Now().UnixMicro()), 18)
				at := len(f) - 18
				bufs := make([]*dma.Buf, 64)
				for i := range bufs {
					bufs[i] = &dma.Buf{Data: slices.Clone(f)}
				}
				seq := uint32(0)
				for b.Loop() {
					for _, x := range bufs {
						seq++
						binary.BigEndian.PutUint32(x.Data[at+4:], seq)
						binary.BigEndian.PutUint16(x.Data[at-8:], uint16(int(seq)%flows))
					}
					r.Take(bufs)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/frame")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
