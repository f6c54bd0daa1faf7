package netdev

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/node"
)

func TestLoopback(t *testing.T) {
	l := NewLoopback("lo")
	var seen []string
	l.Sink().SetTap(func(f []byte) { seen = append(seen, string(f)) })
	pool, err := NewTxPool(l.Tx(0), 8, 64)
	if err != nil {
		t.Fatal(err)
	}
	send := func(frames ...string) {
		t.Helper()
		var bufs []*dma.Buf
		for _, f := range frames {
			b := pool.Get()
			b.Data = b.Mem[:copy(b.Mem, f)]
			bufs = append(bufs, b)
		}
		if n := l.Tx(0).Burst(bufs); n != len(bufs) {
			t.Errorf("Burst of %d = %d", len(bufs), n)
		}
		if pool.Free() != pool.Len() {
			t.Errorf("%d of %d buffers are back", pool.Free(), pool.Len())
		}
	}
	const header = "0123456789abcd"
	send(header+"one", header+"two")
	send(header+"three", "short", header, "", header+"four") // no frame without a header
	if got := strings.ReplaceAll(strings.Join(seen, " "), header, ""); got != "one two three  four" {
		t.Errorf("received %q", got)
	}
	want := Stats{RxPackets: 5, TxPackets: 5, RxBytes: 15, TxBytes: 15, TxErrors: 2} // bytes without headers, as the kernel's lo
	if got := l.Stats(); got != want {
		t.Errorf("Stats() = %+v, want %+v", got, want)
	}
	if n := l.Sink().Frames(); n != 5 {
		t.Errorf("its sink has %d frames, want 5", n)
	}
	if l.Tx(1) != nil || l.Rx(0) != nil || l.Err() != nil {
		t.Errorf("Tx(1) %v, Rx(0) %v, Err() %v, want nothing", l.Tx(1), l.Rx(0), l.Err())
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := l.Tx(0).Burst([]*dma.Buf{pool.Get()}); n != 0 || l.Link().Up || l.Err() == nil {
		t.Errorf("closed: Burst = %d, link up %v, Err() %v", n, l.Link().Up, l.Err())
	}
}

// TestLoopbackFiles holds the attributes of lo against those of this machine's.
func TestLoopbackFiles(t *testing.T) {
	dir := ClassDir(NewLoopback("lo"), ClassOptions{Subsystem: "../../../../class/net", IfIndex: 1})
	const machine = "/sys/class/net/lo/"
	if b, err := os.ReadFile(machine + "flags"); err != nil || string(b) != "0x9\n" {
		t.Skipf("lo of this machine is down, or of another kind: flags %q, %v", b, err)
	}
	for _, f := range dir.Names() {
		if _, ok := dir.Lookup(f).(*node.File); !ok {
			continue
		}
		got, err := cat(t, dir, f)
		b, want := os.ReadFile(machine + f)
		switch {
		case want != nil && node.Errno(want) == syscall.EINVAL && node.Errno(err) == syscall.EINVAL:
		case f == "mtu", f == "tx_queue_len": // may have been changed
		case got != string(b) || (err == nil) != (want == nil):
			t.Errorf("%s = %q, %v; the machine's is %q, %v", f, got, err, b, want)
		}
	}
	for _, q := range []string{"rx-0", "tx-0"} {
		if dir.MkdirAll("queues").Lookup(q) == nil {
			t.Errorf("queues/%s is missing", q)
		}
	}
}
