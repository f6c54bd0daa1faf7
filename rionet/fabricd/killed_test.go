package fabricd

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// TestDaemonKilled: nodes see that a daemon was killed, clients are told so, and the next one takes over what it left.
func TestDaemonKilled(t *testing.T) {
	leakless(t)
	path := filepath.Join(t.TempDir(), "sock")
	daemon := child(t, "serve", path, "-")
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	p := joinAs(t, path, "pe0", 4096).open()
	file := must(c.Windows(t.Context()))(t)[0].Path
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the node's connection: %v, want its end", err)
	}
	_ = daemon.Wait() // it is dead for good
	_, err = c.Show(t.Context())
	oneLine(t, "Show", err, "no fabric answers at "+path+" (its process is gone)", bus.ErrGone)
	s, _ := startAt(t, starTopology, path)
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a window of the daemon that was killed: %v", err)
	}
	q := joinAs(t, s.path, "pe0", 4096).open()
	if v := q.read(rapidio.RegBaseDeviceID); rapidio.Small.Of(v) != 0xff {
		t.Errorf("Base Device ID after the daemon is new = %#x, want none", v)
	}
}

// FuzzRecords: whatever records a node sends, the daemon answers them or ends the node, and goes on.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{1, 6, 0, 4, 0, 0, 0, 1}, []byte("data"))
	f.Add([]byte{6, 0, 0, 0, 0, 0, 64, 0, 1, 5, 0, 0, 0, 0, 0, 0}, []byte{})
	f.Add([]byte{5, 255, 0, 4, 0x60, 0, 1, 1, 4, 0, 0, 4, 0x60, 0, 0, 1}, []byte{1, 2, 3, 4})
	s, _ := start(f, trustTopology)
	f.Fuzz(func(t *testing.T, records, data []byte) {
		p := joinAs(t, s.path, "pe0").open()
		defer p.close()
		for k := 0; len(records) >= 8 && k < 200; k++ {
			r := records[:8]
			records = records[8:]
			h := shm.Header{Kind: shm.Kind(r[0]), Peer: rapidio.DestID(r[1]), Mbox: r[2], Width: rapidio.Width(r[3]), Off: uint32(r[4]) << (r[5] & 31),
				Value: uint32(r[6]), Hop: r[5], Info: uint16(r[6]), Write: r[7]&1 != 0, Tag: uint32(k)}
			if !p.node.Tx.Put(&h, data[:min(len(data), rapidio.MaxMessage)]) {
				break
			}
		}
		if p.node.Tx.Publish() {
			p.kick()
		}
		q := joinAs(t, s.path, "pe3").open()
		defer q.close()
		q.read(rapidio.RegDeviceID)
	})
}
