package qemu

import (
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/iova"
)

func TestParseReply(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want message
		ok   bool
	}{
		{"OK", message{}, true},
		{"OK 0x0", message{}, true},
		{"OK 0xFFFFFFFFFFFFFFFF", message{value: ^uint64(0)}, true},
		{"OK 0x00000000deadbeef", message{value: 0xdeadbeef}, true},
		{"OK 0x10000000000000000", message{}, false},
		{"OK 0x", message{}, false},
		{"OK 12", message{}, false},
		{"OKAY", message{}, false},
		{"", message{}, false},
		{"FAIL Unknown command 'x'", message{}, false},
		{"IRQ raise 20", message{irq: true, line: 20, high: true}, true},
		{"IRQ lower 0", message{irq: true}, true},
		{"IRQ raise ", message{}, false},
		{"IRQ raise 240", message{}, false},
		{"IRQ raise 99999999999999999999", message{}, false},
		{"IRQ raise -1", message{}, false},
	} {
		m, err := parseReply([]byte(tc.in))
		if (err == nil) != tc.ok || m != tc.want {
			t.Errorf("parseReply(%q) = %+v, %v, want %+v, ok %v", tc.in, m, err, tc.want, tc.ok)
		}
	}
}

func TestParseBytes(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want []byte // nil: refused
	}{
		{"OK 0x00ff1A", []byte{0, 0xff, 0x1a}},
		{"OK 0x00ff1", nil},
		{"OK 0x00ff1a2b", nil},
		{"OK 0x00fg1a", nil},
		{"OK 0x+1-2+3", nil},
		{"OK", nil},
		{"", nil},
		{"FAIL 123456", nil},
	} {
		p := make([]byte, 3)
		if ok := parseBytes([]byte(tc.in), p); ok != (tc.want != nil) || ok && string(p) != string(tc.want) {
			t.Errorf("parseBytes(%q) = %v, % x, want % x", tc.in, ok, p, tc.want)
		}
	}
}

func FuzzParseReply(f *testing.F) {
	for _, s := range []string{"OK", "OK 0x12", "IRQ raise 3", "IRQ lower 23", "FAIL x", "OK 0x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseReply(b); err != nil && m != (message{}) {
			t.Errorf("parseReply(%q) = %+v and %v: want a value or an error", b, m, err)
		}
	})
}

// FuzzStream feeds a client what a mad QEMU might send after a read.
func FuzzStream(f *testing.F) {
	for _, s := range []string{"OK 0x12\n", "IRQ raise 20\nOK 0x1\n", "OK\nOK\n", "\n", "FAIL\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var died error
		q := newQtest(p[0], func(int, bool) {}, func(err error) { died = err })
		_, _ = unix.Write(p[1], b)
		_ = unix.Shutdown(p[1], unix.SHUT_WR)
		if _, ok := q.ask(cmdRead[4], 0); ok == (died != nil) {
			t.Errorf("ask() after %q: ok %v, died of %v", b, ok, died)
		}
		q.post(cmdWrite[4], 0, 0)
		q.close()
		unix.Close(p[1])
	})
}

// TestPostAllocates nothing: it is the doorbell.
func TestPostAllocates(t *testing.T) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // answers every line
		defer close(done)
		b, ok := make([]byte, 4096), []byte("OK\n") // once: what is allocated here counts too
		for {
			n, err := unix.Read(p[1], b)
			if n <= 0 || err != nil {
				return
			}
			for _, c := range b[:n] {
				if c == '\n' {
					_, _ = unix.Write(p[1], ok)
				}
			}
		}
	}()
	q := newQtest(p[0], nil, func(err error) { t.Error(err) })
	if n := testing.AllocsPerRun(1000, func() { q.post(cmdWrite[4], 0xfeb03818, 0x123) }); n >= 0.5 {
		t.Errorf("post allocates %v times a write, want 0", n)
	}
	q.close()
	<-done
	unix.Close(p[1])
}

// TestRAM checks every property of the allocator over random requests.
func TestRAM(t *testing.T) {
	f, err := memfd("test", 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := newRAM(int(f.Fd()), 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	live := map[*bus.Memory]byte{}
	for i := range 5000 {
		if len(live) > 40 || rnd.IntN(3) == 0 {
			for m, tag := range live {
				for _, at := range []int{0, len(m.Bytes) / 2, len(m.Bytes) - 1} {
					if m.Bytes[at] != tag {
						t.Fatalf("byte %d of memory at %#x = %d, want %d: somebody else has it too", at, m.IOVA, m.Bytes[at], tag)
					}
				}
				m.Free()
				delete(live, m)
				break
			}
			continue
		}
		q := bus.DMARequest{Size: 1 + rnd.IntN(300_000), Align: 1 << rnd.IntN(17), Mask: 1<<(20+rnd.IntN(7)) - 1}
		if rnd.IntN(2) == 0 {
			q.Boundary = 1 << (19 + rnd.IntN(4))
		}
		m, err := r.alloc("test", q)
		if err != nil {
			continue
		}
		a, last := uint64(m.IOVA), uint64(m.IOVA)+uint64(q.Size)-1
		if len(m.Bytes) != q.Size || a%q.Align != 0 || a%pageSize != 0 || last > q.Mask || a < lowRAM ||
			q.Boundary != 0 && a/q.Boundary != last/q.Boundary {
			t.Fatalf("alloc(%+v) = %#x, %d bytes", q, a, len(m.Bytes))
		}
		for j, b := range m.Bytes {
			if b != 0 {
				t.Fatalf("alloc(%+v): byte %d = %d, want 0", q, j, b)
			}
		}
		tag := byte(1 + i%255)
		for j := range m.Bytes {
			m.Bytes[j] = tag
		}
		live[m] = tag
	}
	for m := range live {
		m.Free()
	}
	if len(r.free) != 1 || r.free[0] != (iova.Span{Base: lowRAM, End: 64 << 20}) {
		t.Errorf("free list after freeing all = %v, want one span", r.free)
	}
	for _, q := range []bus.DMARequest{{}, {Size: -1}, {Size: 1, Align: 3}, {Size: 1, Boundary: 5}, {Size: 8192, Boundary: 4096}, {Size: 1 << 40}} {
		if _, err := r.alloc("test", q); err == nil {
			t.Errorf("alloc(%+v) succeeded", q)
		}
	}
	m, _ := r.alloc("test", bus.DMARequest{Size: 1})
	if n := r.close(); n != 1 {
		t.Errorf("close() = %d, want 1", n)
	}
	m.Bytes[0] = 1 // still mapped
	m.Free()
	if _, err := r.alloc("test", bus.DMARequest{Size: 1}); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("alloc after close: %v, want ErrClosed", err)
	}
}

func TestServer(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var inherit files
	c := Config{Devices: []DeviceSpec{{Name: "edu0", Model: "edu"}, {Name: "rio0", Model: ivshmemModel, Server: f}}}
	if err := c.check(); err != nil {
		t.Fatalf("check() = %v", err)
	}
	got := strings.Join(c.deviceArgs(&inherit).args, " ")
	want := "-device edu,id=dev0,addr=0x3,romfile= -chardev socket,id=server1,fd=3 -device ivshmem-doorbell,id=dev1,addr=0x4,chardev=server1,vectors=8,romfile="
	if got != want {
		t.Errorf("deviceArgs() = %s, want %s", got, want)
	}
	for _, d := range []DeviceSpec{{Name: "a", Model: ivshmemModel}, {Name: "a", Model: "edu", Server: f},
		{Name: "a", Model: ivshmemModel, Server: f, Props: []string{"vectors=1"}}} {
		if err := d.check(); err == nil {
			t.Errorf("check of %+v = nil, want an error", d)
		}
	}
}
