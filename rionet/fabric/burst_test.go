package fabric

import (
	"testing"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// bursts is a node that takes several messages at once, as many as it has room for.
type bursts struct {
	Sink
	room int
	got  []string
	src  rapidio.DestID
}

func (b *bursts) Messages(src rapidio.DestID, _ uint8, data [][]byte) (int, rapidio.Status) {
	n := min(len(data), b.room)
	if n == 0 {
		return 1, rapidio.Retry
	}
	b.room -= n
	b.src = src
	for _, d := range data[:n] {
		b.got = append(b.got, string(d))
	}
	return n, rapidio.Done
}

func (b *bursts) Flush()    {}
func (b *bursts) Link(bool) {}

// TestBurst sends several messages at once: to a node that takes them so, to one that does not, to nobody, and over links with delays.
func TestBurst(t *testing.T) {
	f, ports := starred(t, 3, "")
	ports[2].Close()
	sink := &bursts{room: 3}
	p, err := f.Attach("pe2", sink)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Detach)
	id := Maint{Local: true, Off: rapidio.RegBaseDeviceID, Width: 4, Write: true, Value: uint32(2) << 16}
	if _, st := p.Maint(&id); st != rapidio.Done {
		t.Fatalf("writing the ID: %v", st)
	}
	p.SetMailbox(1, true, false)
	in := ports[1].inbox(2)
	msgs := [][]byte{[]byte("one"), []byte("two"), []byte("three"), []byte("four")}
	tags := make([]uint32, len(msgs))
	from := ports[0].port
	for _, c := range []struct {
		dest rapidio.DestID
		mbox uint8
		data [][]byte
		n    int
		want rapidio.Status
	}{
		{2, 1, msgs, 3, rapidio.Done},
		{2, 1, msgs[3:], 1, rapidio.Retry},
		{2, 0, msgs, 1, rapidio.Error},
		{2, 9, msgs, 1, rapidio.Error},
		{2, 1, [][]byte{nil, msgs[0]}, 1, rapidio.Error},
		{7, 1, msgs, 1, rapidio.Error},
		{1, 0, msgs, 1, rapidio.Done},
	} {
		n, st := from.Messages(tags[:len(c.data)], c.dest, c.mbox, rapidio.Alone, c.data)
		if n != c.n || st != c.want {
			t.Errorf("Messages(%d, %d, %q) = %d, %v, want %d, %v", c.dest, c.mbox, c.data, n, st, c.n, c.want)
		}
	}
	from.Flush()
	if len(sink.got) != 3 || sink.got[2] != "three" || sink.src != 0 {
		t.Errorf("received %q from %d, want the first three from 0", sink.got, sink.src)
	}
	if src, data := receive(t, in); src != 0 || string(data) != "one" {
		t.Errorf("received %q from %d, want one from 0", data, src)
	}
	if c := f.Nodes()[0].Counts; c.TxPackets < 6 || c.Retries != 1 {
		t.Errorf("counted %+v, want at least 6 sent, 1 of them with retry", c)
	}
}

// TestBurstDelayed has each message of a burst on its way by itself.
func TestBurstDelayed(t *testing.T) {
	_, ports := starred(t, 2, ", delay: 100us")
	in := ports[1].inbox(4)
	msgs := [][]byte{[]byte("one"), []byte("two")}
	for i := 0; i < len(msgs); {
		n, st := ports[0].port.Messages([]uint32{1, 2}[i:], 1, 0, rapidio.Alone, msgs[i:])
		if n != 1 || st != rapidio.Pending {
			t.Fatalf("Messages = %d, %v, want 1, pending", n, st)
		}
		i += n
	}
	for _, want := range msgs {
		if src, data := receive(t, in); src != 0 || string(data) != string(want) {
			t.Errorf("received %q from %d, want %q from 0", data, src, want)
		}
	}
}
