package pktgen

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"
)

// recorded are n frames of different sizes, each unlike the others; one of them has a VLAN tag.
func recorded(n int) (frames [][]byte) {
	for i := range n {
		f := bytes.Repeat([]byte{byte(i + 1)}, 20+i*37%1400)
		copy(f, []byte{0x52, 0x54, 0, 0x12, 0x34, 0x57})
		binary.BigEndian.PutUint16(f[12:], 0x88b5)
		frames = append(frames, f)
	}
	tagged := bytes.Repeat([]byte{0xee}, 1518)
	copy(tagged[12:], []byte{0x81, 0, 0, 7})
	return append(frames, tagged)
}

// captureFile writes frames, gap apart from each other, as pcap or pcapng.
func captureFile(t testing.TB, name string, link layers.LinkType, frames [][]byte, gap time.Duration) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var w interface {
		WritePacket(ci gopacket.CaptureInfo, data []byte) error
	}
	flush := func() error { return nil }
	if strings.HasSuffix(name, "ng") {
		ng, err := pcapgo.NewNgWriter(f, link)
		if err != nil {
			t.Fatal(err)
		}
		w, flush = ng, ng.Flush
	} else {
		p := pcapgo.NewWriterNanos(f)
		if err := p.WriteFileHeader(65535, link); err != nil {
			t.Fatal(err)
		}
		w = p
	}
	at := time.Unix(1_700_000_000, 0)
	for _, b := range frames {
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(b), Length: len(b)}, b); err != nil {
			t.Fatal(err)
		}
		at = at.Add(gap)
	}
	if err := flush(); err != nil {
		t.Fatal(err)
	}
	return path
}

func (q *sinkQueue) took() [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	f := q.frames
	q.frames = nil
	return f
}

// The frames of a file are sent as they are, in order, as often as count says.
func TestReplay(t *testing.T) {
	frames := recorded(30)
	var size uint64
	for _, f := range frames {
		size += uint64(len(f))
	}
	for _, name := range []string{"a.pcap", "a.pcapng"} {
		for _, burst := range []int{1, 3, 31, 200} {
			b, s := oneDevice(t)
			s.queues[0].hold, s.ring = true, 64
			path := captureFile(t, name, layers.LinkTypeEthernet, frames, time.Millisecond)
			b.ok("eth0", fmt.Sprintf("burst %d", burst), "pcap "+path+"\n")
			if got, want := b.result("eth0"), fmt.Sprintf("OK: pcap=%s: 31 frames, %d bytes, 30000 us", path, size); got != want {
				t.Fatalf("Result %q, want %q", got, want)
			}
			if text, want := b.read("eth0"), fmt.Sprintf("Params: count 31 %%     pcap: %s  frames: 31  pcap_speed: 0\n", path); !containsAll(text, strings.Split(want, "%")) {
				t.Errorf("the file says\n%swant %q", text, want)
			}
			b.run()
			if got := s.queues[0].took(); !slices.EqualFunc(got, frames, bytes.Equal) {
				t.Fatalf("%s, burst %d: %d frames were sent, which are not the file's %d", name, burst, len(got), len(frames))
			}
			if r := b.result("eth0"); !strings.Contains(r, " 31 (1518byte,0frags)\n") {
				t.Errorf("Result %q", r)
			}
			b.ok("eth0", "count 100")
			b.run()
			got := s.queues[0].took()
			for i, f := range got {
				if !bytes.Equal(f, frames[i%len(frames)]) {
					t.Fatalf("%s, burst %d: frame %d is not the file's %d", name, burst, i, i%len(frames))
				}
			}
			if d := b.dev("eth0"); len(got) != 100 || d.replay.bytes != 3*size+bytesOf(frames[:7]) {
				t.Errorf("%d frames, %d bytes, want 100 and %d", len(got), d.replay.bytes, 3*size+bytesOf(frames[:7]))
			}
			b.ok("eth0", "pcap", "count 5")
			b.run()
			if ps := s.queues[0].got(t); len(ps) != 5 || ps[4].Seq != 5 {
				t.Errorf("%d packets without a capture, want 5", len(ps))
			}
			b.checkPools()
		}
	}
}

func bytesOf(frames [][]byte) (n uint64) {
	for _, f := range frames {
		n += uint64(len(f))
	}
	return n
}

func containsAll(text string, parts []string) bool {
	return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(text, p) })
}

// Frames come no sooner than they were captured, and each round after the one before.
func TestReplaySpeed(t *testing.T) {
	frames := recorded(10)
	const gap = 3 * time.Millisecond
	path := captureFile(t, "a.pcap", layers.LinkTypeEthernet, frames, gap)
	for _, c := range []struct {
		speed string
		count int
		least time.Duration
	}{{"original", 11, 10 * gap}, {"2", 11, 5 * gap}, {"0.5", 4, 6 * gap}, {"original", 23, 22 * gap}, {"1000000", 1000, 0}} {
		for _, burst := range []int{1, 64} {
			b, s := oneDevice(t)
			b.ok("eth0", "pcap "+path, "pcap_speed "+c.speed, fmt.Sprintf("count %d", c.count), fmt.Sprintf("burst %d", burst))
			begin := time.Now()
			b.run()
			if took := time.Since(begin); took < c.least {
				t.Errorf("%d frames at speed %s, burst %d, took %v, want at least %v", c.count, c.speed, burst, took, c.least)
			}
			if got := s.queues[0].took(); len(got) != c.count || !bytes.Equal(got[c.count-1], frames[(c.count-1)%len(frames)]) {
				t.Errorf("speed %s, burst %d: %d frames, want %d", c.speed, burst, len(got), c.count)
			}
			if text := b.read("eth0"); c.speed == "original" && !strings.Contains(text, "pcap_speed: original\n") {
				t.Errorf("the file says\n%s", text)
			}
		}
	}
}

// What was captured at the same moment is sent with one doorbell.
func TestReplayBursts(t *testing.T) {
	b, s := oneDevice(t)
	path := captureFile(t, "a.pcap", layers.LinkTypeEthernet, recorded(39), 0)
	b.ok("eth0", "pcap "+path, "pcap_speed original", "burst 16")
	b.run()
	if got := s.queues[0].bursts; !slices.Equal(got, []int{16, 16, 8}) {
		t.Errorf("bursts of %v, want 16, 16 and 8", got)
	}
}

// A file that cannot be sent is refused, in one line that says why, and the device stays as it was.
func TestReplayBad(t *testing.T) {
	frames := recorded(3)
	good := captureFile(t, "good.pcap", layers.LinkTypeEthernet, frames, time.Millisecond)
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	content, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	part := bytes.Clone(content)
	binary.LittleEndian.PutUint32(part[24+12:], 9000) // the first was longer on the wire
	ng, err := os.ReadFile(captureFile(t, "x.pcapng", layers.LinkTypeEthernet, frames, time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	// pcapgo sees the lower 8 bits of the link type.
	wide := bytes.Clone(content)
	binary.LittleEndian.PutUint32(wide[20:], 257)
	fcs := bytes.Clone(content)
	binary.LittleEndian.PutUint32(fcs[20:], 4<<28|1<<26|1)
	wideNG := bytes.Clone(ng)
	at := bytes.Index(wideNG, []byte{1, 0, 0, 0}) // the interface's block, after the section's
	for wideNG[at+4] == 0 || at%4 != 0 || at < 28 {
		at += 1 + bytes.Index(wideNG[at+1:], []byte{1, 0, 0, 0})
	}
	binary.LittleEndian.PutUint16(wideNG[at+8:], 257)
	big := captureFile(t, "big.pcap", layers.LinkTypeEthernet, [][]byte{make([]byte, 1514), make([]byte, 1515)}, 0)
	for _, c := range []struct{ path, want string }{
		{"a.pcap", "want an absolute path"},
		{dir + "/none.pcap", "no such file"},
		{dir, "want a regular file"},
		{fifo, "want a regular file"},
		{file("empty", nil), "unexpected EOF"},
		{file("text", []byte("this is no capture, but text of some length\n")), "magic"},
		{file("no frame", content[:24]), "there is no frame in it"},
		{file("cut", content[:len(content)-1]), "frame 4: reading a capture's record: unexpected EOF"},
		{file("cut header", content[:24+7]), "frame 1"},
		{file("part", part), "frame 1: the capture has 20 bytes of its 9000"},
		{file("cut ng", ng[:len(ng)-40]), "unexpected EOF"},
		{file("wide", wide), "link type 257, want 1 (Ethernet)"},
		{file("fcs", fcs), "frame check sequences"},
		{file("wide ng", wideNG), "link type 257, want 1 (Ethernet)"},
		{captureFile(t, "wifi.pcap", layers.LinkTypeIEEE802_11, frames, 0), "link type 105, want 1 (Ethernet)"},
		{captureFile(t, "wifi.pcapng", layers.LinkTypeIEEE802_11, frames, 0), "link type 105, want 1 (Ethernet)"},
		{captureFile(t, "short.pcap", layers.LinkTypeEthernet, [][]byte{make([]byte, 13)}, 0), "frame 1 has 13 bytes"},
		{big, "frame 2 has 1515 bytes, and the device an MTU of 1500"},
	} {
		b, _ := oneDevice(t)
		b.ok("eth0", "count 7")
		if errno := b.write("eth0", "pcap "+c.path); errno != unix.EINVAL {
			t.Errorf("pcap %s: %v, want EINVAL", c.path, errno)
		}
		r := b.result("eth0")
		if !strings.HasPrefix(r, "ERROR: pcap: ") || !strings.Contains(r, c.want) || strings.Contains(r, "\n") {
			t.Errorf("pcap %s: Result %q, want one line with %q", c.path, r, c.want)
		}
		if d := b.dev("eth0"); d.capture != nil || d.count != 7 {
			t.Errorf("pcap %s changed the device: count %d", c.path, d.count)
		}
	}
}

// Settings that exclude each other, and a device in use.
func TestReplayRefuses(t *testing.T) {
	path := captureFile(t, "a.pcap", layers.LinkTypeEthernet, recorded(3), time.Hour)
	b, s := oneDevice(t)
	b.ok("eth0", "clone_skb 4")
	if errno := b.write("eth0", "pcap "+path); errno != unix.EINVAL || !strings.Contains(b.result("eth0"), "not with clone_skb") {
		t.Errorf("pcap with clone_skb: %v, %q", errno, b.result("eth0"))
	}
	b.ok("eth0", "clone_skb 0", "pcap "+path)
	if errno := b.write("eth0", "clone_skb 1"); errno != unix.EINVAL {
		t.Errorf("clone_skb with pcap: %v", errno)
	}
	for _, v := range []string{"", "fast", "-1", "nan", "inf", "1e7"} {
		if errno := b.write("eth0", "pcap_speed "+v); errno != unix.EINVAL || !strings.HasPrefix(b.result("eth0"), "ERROR: pcap_speed must be original") {
			t.Errorf("pcap_speed %q: %v, %q", v, errno, b.result("eth0"))
		}
	}
	b.ok("eth0", "pcap_speed -0")
	if r := b.result("eth0"); r != "OK: pcap_speed=0" {
		t.Errorf("pcap_speed -0: %q", r)
	}
	b.ok("eth0", "pcap_speed original")
	wait := b.background(t.Context())
	until(t, "the first frame", func() bool { return s.queues[0].n.Load() == 1 })
	for _, cmd := range []string{"pcap " + path, "pcap", "pcap_speed 0"} {
		if errno := b.write("eth0", cmd); errno != unix.EBUSY {
			t.Errorf("%s while it runs: %v, want EBUSY", cmd, errno)
		}
	}
	b.ok("pgctrl", "stop")
	wait()
	b.checkPools()

	// The device takes less than when the file was read.
	s.mtu = 100
	b.run()
	if r := b.result("eth0"); !strings.HasPrefix(r, "ERROR: "+path+" has frames for an MTU of 1500, and eth0 one of 100") {
		t.Errorf("Result %q", r)
	}
}

// A frame of a capture costs no allocation.
func TestReplayAllocates(t *testing.T) {
	d, p := quiet(t, "burst 32", "pcap "+captureFile(t, "a.pcap", layers.LinkTypeEthernet, recorded(50), 0))
	if n := testing.AllocsPerRun(200, func() { d.send(p) }); n != 0 {
		t.Errorf("a turn allocates %v times, want 0", n)
	}
}
