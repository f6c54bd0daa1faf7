package pktgen

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Names as nobody gives them: what a file can be called is a device, and works; anything else is an errno and leaves nothing.
func TestOddNames(t *testing.T) {
	long := func(n int) string { return "eth0@" + strings.Repeat("x", n-len("eth0@")) }
	for _, c := range []struct {
		name  string
		errno unix.Errno
		file  string // where it is not the name
	}{
		{"eth0@", 0, ""},
		{"eth0@@", 0, ""},
		{"eth0@.", 0, ""},
		{"eth0@..", 0, ""},
		{"eth0@\x01\x1b[31m\x7f", 0, ""},
		{"eth0@\v", 0, ""},
		{"eth0@\u00fc\u2028\u65e5", 0, ""},
		{"eth0@\xff\xfe", 0, ""},
		{"eth0@*?$(x)`;'", 0, ""},
		{"eth0@pgctrl", 0, ""},
		{"eth0@-n", 0, ""},
		{long(31), 0, ""},
		{long(32), 0, long(31)},
		{strings.Repeat("e", 200), unix.ENODEV, ""},
		{"eth0@" + strings.Repeat("\u00fc", 20), 0, "eth0@" + strings.Repeat("\u00fc", 13)}, // 31 bytes end between two
		{"eth0@a\x00b", 0, "eth0@a"},
		{"eth0@a b", 0, "eth0@a"},
		{"eth0@a\tb", 0, "eth0@a"},
		{"eth0@a=b", 0, "eth0@a"},
		{`"eth0@a"`, 0, "eth0@a"},
		{"eth0@a/b", unix.EINVAL, ""},
		{"eth0@/", unix.EINVAL, ""},
		{"eth0@../x", unix.EINVAL, ""},
		{"pgctrl", unix.EINVAL, ""}, // there are network devices of these names
		{"kpktgend_0", unix.EINVAL, ""},
		{"..", unix.EINVAL, ""},
		{".", unix.EINVAL, ""},
		{"a/b", unix.EINVAL, ""},
		{"@", unix.ENODEV, ""},
		{"@eth0", unix.ENODEV, ""},
		{"Eth0", unix.ENODEV, ""},
		{"eth", unix.ENODEV, ""},
		{"", unix.ENODEV, ""},
		{"\x00eth0", unix.ENODEV, ""},
		{"down0@\x01", unix.ENETDOWN, ""},
	} {
		b := newBench(t, []int{0}, newSink("eth0"), newSink("pgctrl"), newSink("kpktgend_0"), newSink(".."), newSink("."), newSink("a/b"))
		if errno := b.write("kpktgend_0", "add_device "+c.name+"\n"); errno != c.errno {
			t.Errorf("add_device %q = %v, want %v", c.name, errno, c.errno)
		}
		b.filesAreDevices([]byte(c.name))
		if c.errno != 0 {
			if got, want := b.read("kpktgend_0"), "Running: \nStopped: \nResult: ERROR: can not add device "; !strings.HasPrefix(got, want) {
				t.Errorf("after add_device %q: %q, want %q", c.name, got, want)
			}
			b.run() // with no device at all
			continue
		}
		name := c.file
		if name == "" {
			name = c.name
		}
		if got, want := b.read("kpktgend_0"), "Running: \nStopped: "+name+" \nResult: OK: add_device="+name+"\n"; got != want {
			t.Errorf("after add_device %q: %q, want %q", c.name, got, want)
		}
		if errno := b.write("kpktgend_0", "add_device "+c.name); errno != unix.EBUSY {
			t.Errorf("add_device %q again = %v, want EBUSY", c.name, errno)
		}
		b.ok(name, "count 3")
		b.run()
		b.ended(name, 3)
		b.ok("kpktgend_0", "rem_device_all")
		b.filesAreDevices([]byte(c.name))
	}
}

// A device is removed while its file is written and read: who has the file open gets EIO from then on, as in the
// kernel, and a device of the same name is another.
func TestRemovedWhileWritten(t *testing.T) {
	b := newBench(t, []int{0, 1}, newSink("eth0"))
	for range 20 {
		b.ok("kpktgend_0", "add_device eth0")
		f := b.file("eth0")
		var wg sync.WaitGroup
		var writes atomic.Int64
		for i := range 3 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for n := 0; ; n++ {
					text := fmt.Sprintf("min_pkt_size %d", 60+n%100)
					if i == 0 {
						text = "imix_weights 60,1 1000,2"
					}
					taken, err := f.Write(context.Background(), []byte(text))
					_, readErr := f.ReadAll()
					switch {
					case errors.Is(err, unix.EIO) && taken == 0:
						if _, err := f.ReadAll(); !errors.Is(err, unix.EIO) {
							t.Errorf("reading after a write was refused: %v, want EIO", err)
						}
						return
					case err != nil || taken != len(text) || readErr != nil && !errors.Is(readErr, unix.EIO):
						t.Errorf("writing %q = %d, %v; reading: %v", text, taken, err, readErr)
						return
					}
					writes.Add(1)
				}
			}()
		}
		wait := b.background(t.Context())
		until(t, "writes", func() bool { return writes.Load() > 5 })
		b.ok("kpktgend_0", "rem_device_all")
		wg.Wait()
		wait()
	}
	b.ok("kpktgend_1", "add_device eth0")
	if text := b.read("eth0"); !strings.Contains(text, "min_pkt_size: 0  ") || strings.Contains(text, "imix") {
		t.Errorf("a device added anew has what another was told:\n%s", text)
	}
}
