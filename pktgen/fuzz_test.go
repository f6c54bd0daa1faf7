package pktgen

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// snapshot is what a command may change: configuration and counters, with nothing shared.
type snapshot struct {
	params
	state
}

func (d *device) snapshot() snapshot {
	s := snapshot{d.params, d.state}
	s.labels, s.imix = slices.Clone(s.labels), slices.Clone(s.imix)
	s.flows = nil // no command touches them
	return s
}

// Several commands, a line each, to a device: each is taken or gives an errno, and then has changed nothing; the file
// can always be read; and a run of a few packets after them ends with a result.
func FuzzDeviceCommand(f *testing.F) {
	for _, c := range deviceCommands {
		f.Add([]byte(c.text), false)
		f.Add([]byte(c.text), true)
	}
	for _, c := range []string{
		"clone_skb 3\nburst 2\nflag !SHARED\nimix_weights 100,1\nxmit_mode queue_xmit",
		"xmit_mode queue_xmit\nburst 2", "xmit_mode netif_receive\nclone_skb 1",
		"vlan_id 1\nsvlan_id 2\nflag VID_RND\nflag SVID_RND\nmin_pkt_size 1\nmax_pkt_size 99",
		"mpls 00010100,00020000\nmpls 1,2,", "flows 3\nflowlen 1\ndst_min 1.1.1.1\ndst_max 1.1.1.9\nflag FLOW_SEQ",
		"imix_weights 60,1 70,2\nimix_weights 60,", "dst6 ::1\ndst6_min ::1\ndst6_max ::ffff\nflag UDPCSUM",
		"pkt_size " + strings.Repeat("9", 100), "rate 5\nrate 0\nratep x", "delay 2147483647", "count 0\ndelay 5",
		"queue_map_max 9\nflag QUEUE_MAP_RND\nqueue_map_min 12", "src_mac_count 4294967295\nflag MACSRC_RND\ndst_mac_count 2",
	} {
		f.Add([]byte(c), false)
		f.Add([]byte(c), true)
	}
	s := newSink("eth0")
	e, old := newBench(f, []int{0}, s).e, newBenchOf(f, Config{Profile: "6.1", CPUs: []int{0}}, s).e
	f.Fuzz(func(t *testing.T, p []byte, strict bool) {
		d := newDevice("eth0", "eth0", s, &thread{eng: e})
		if strict {
			d.thr.eng = old
		}
		for line := range bytes.Lines(p) {
			fuzzStore(t, d, line)
		}
		d.fuzzRun(t)
	})
}

// fuzzStore is one command.
func fuzzStore(t *testing.T, d *device, p []byte) {
	d.thr.eng.debug.Store(false)
	before := d.snapshot()
	n, err := d.store(t.Context(), p)
	switch {
	case err != nil && n != 0, err == nil && (n <= 0 || n > len(p)), err == nil && n < len(p) && !d.prof().ShortRate:
		t.Errorf("store(%q) = %d, %v", p, n, err)
	case (err != nil || n < len(p)) && !d.keepsHalf(p) && !reflect.DeepEqual(before, d.snapshot()):
		t.Errorf("store(%q) = %d, %v, and changed\n%+v to\n%+v", p, n, err, before, d.snapshot())
	}
	if len(d.result) > 512 {
		t.Errorf("store(%q): a result of %d bytes", p, len(d.result))
	}
	d.fuzzShow(t, "Result: ")
}

// keepsHalf tells whether a command is one that keeps what it read before its mistake, as in the kernel.
func (d *device) keepsHalf(p []byte) bool {
	return d.prof().Strict && (bytes.Contains(p, []byte("imix_weights")) || bytes.Contains(p, []byte("mpls")))
}

func (d *device) fuzzShow(t *testing.T, want string) {
	var b bytes.Buffer
	if err := d.show(&b); err != nil || !bytes.HasPrefix(b.Bytes(), []byte("Params: count ")) || !bytes.Contains(b.Bytes(), []byte("\n"+want)) {
		t.Errorf("show = %v, and\n%s\nwant %q", err, &b, want)
	}
}

// fuzzRun is a run as a thread does it, of so many turns.
func (d *device) fuzzRun(t *testing.T) {
	if d.count > 20 {
		d.count = 20
	}
	d.begin()
	for range 20 {
		if p, _ := d.turn(); p == finished {
			break
		}
	}
	if len(d.tmpl.bytes) > 1518 {
		t.Errorf("a template of %d bytes for an MTU of 1500", len(d.tmpl.bytes))
	}
	d.end()
	d.fuzzShow(t, "Result: ")
	if !strings.HasPrefix(d.result, "OK: ") && !strings.HasPrefix(d.result, "ERROR: ") || d.running.Load() {
		t.Errorf("after a run: Result %q, running %v", d.result, d.running.Load())
	}
	if len(d.pending) != 0 || d.master != nil {
		t.Errorf("after a run: %d packets are pending, master %v", len(d.pending), d.master)
	}
}

// Whatever is written to the other files gives a result or an errno, and the files there are, are those of the devices that the thread names.
func FuzzOtherCommands(f *testing.F) {
	for _, s := range []string{"add_device eth0", "add_device eth0@1", "add_device eth0@", "rem_device_all", "max_before_softirq 1", "start", "stop", "stop\n", "reset",
		"add_device a/b", "add_device eth0@a/b", "add_device ..", "add_device eth0@..", "add_device .", "add_device @", "add_device pgctrl", "add_device kpktgend_0",
		"add_device eth0@\x01\x7f\xff", "add_device eth0@" + strings.Repeat("x", 40), "add_device eth0\x00@1", "add_device eth0@\u00e9"} {
		f.Add([]byte(s))
	}
	s := newSink("eth0")
	b := newBench(f, []int{0}, s, newSink("pgctrl"), newSink("kpktgend_0"), newSink(".."), newSink("."))
	f.Fuzz(func(t *testing.T, p []byte) {
		b := &bench{t: t, e: b.e}
		for _, name := range []string{"kpktgend_0", "pgctrl"} {
			n, err := b.file(name).Write(t.Context(), p)
			if (err == nil) != (n == len(p) && n > 0) || err != nil && n != 0 {
				t.Errorf("writing %q to %s = %d, %v", p, name, n, err)
			}
			if text, err := b.file(name).ReadAll(); err != nil || len(text) == 0 {
				t.Errorf("reading %s after %q = %q, %v", name, p, text, err)
			}
			b.filesAreDevices(p)
		}
		if len(b.e.Dir().Names()) > 20 {
			b.ok("pgctrl", "reset")
		}
	})
}

// filesAreDevices fails where a device has no file of its own, or a file no device.
func (b *bench) filesAreDevices(after []byte) {
	b.t.Helper()
	want := []string{"pgctrl"}
	for _, t := range b.e.threads {
		want = append(want, t.name)
		t.mu.Lock()
		for _, d := range t.devs {
			want = append(want, d.name)
			f, isFile := b.e.Dir().Lookup(d.name).(*fileNode)
			if !isFile {
				b.t.Errorf("after %q device %q has no file", after, d.name)
				continue
			}
			if text, err := f.ReadAll(); err != nil || !strings.Contains(string(text), "  ifname: "+d.name+"\n") {
				b.t.Errorf("after %q the file of device %q says %v, %s", after, d.name, err, text)
			}
		}
		t.mu.Unlock()
	}
	slices.Sort(want)
	if got := b.e.Dir().Names(); !slices.Equal(got, want) {
		b.t.Errorf("after %q there are files %q, want %q", after, got, want)
	}
}
