package fabricd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

const starTopology = `
switches: [{name: sw0, ports: 4}]
endpoints: [{name: pe0}, {name: pe1}, {name: pe2}, {name: pe3}]
links: [[pe0, "sw0:0"], [pe1, "sw0:1"], [pe2, "sw0:2"], [pe3, "sw0:3"]]
`

// eventually waits for something to become true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// descriptors counts the process's.
func descriptors(t testing.TB) int {
	t.Helper()
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(ents)
}

// leakless fails a test that leaves descriptors or goroutines behind.
func leakless(t testing.TB) {
	t.Helper()
	fds, gos := descriptors(t), runtime.NumGoroutine()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		eventually(t, fmt.Sprintf("all of %d descriptors and %d goroutines but these to be given back", fds, gos), func() bool {
			return descriptors(t) <= fds && runtime.NumGoroutine() <= gos
		})
	})
}

// start serves a topology in a folder of the test's own.
func start(t testing.TB, topology string) (*Server, *Client) {
	t.Helper()
	return startAt(t, topology, filepath.Join(t.TempDir(), "fabric.sock"))
}

func startAt(t testing.TB, topology, path string) (*Server, *Client) {
	t.Helper()
	topo, err := fabric.Parse("test.yaml", []byte(topology))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(Config{Topology: topo, Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		if ents, _ := os.ReadDir(filepath.Dir(path)); len(ents) != 0 {
			t.Errorf("after Close there is still %v", ents)
		}
	})
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

// peer is a node that knows the ivshmem protocol and no more than that of what is above it.
type peer struct {
	t     testing.TB
	conn  *net.UnixConn
	id    int
	mem   []byte
	kicks int           // the daemon's eventfd
	own   []int         // eventfds
	peers map[int][]int // of others, by ivshmem ID
	fds   []int         // all descriptors
	node  *shm.Node
	tag   uint32
}

// joinAs makes a node.
func joinAs(t testing.TB, path, name string, sizes ...int64) *peer {
	t.Helper()
	conn, info, err := Join(t.Context(), path, Request{Node: name, Windows: sizes})
	if err != nil {
		t.Fatal(err)
	}
	p := handshake(t, conn)
	if p.id != info.Peer {
		t.Errorf("%s: ivshmem ID %d, want %d", name, p.id, info.Peer)
	}
	return p
}

// recv receives one message of the ivshmem protocol.
func (p *peer) recv() (v int64, fd int, err error) {
	var b [8]byte
	var oob [64]byte
	_ = p.conn.SetReadDeadline(time.Now().Add(patience))
	n, oobn, _, _, err := p.conn.ReadMsgUnix(b[:], oob[:])
	if err != nil {
		return 0, -1, err
	}
	if n != 8 {
		return 0, -1, fmt.Errorf("a message of %d bytes", n)
	}
	fd = -1
	if oobn > 0 {
		cs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return 0, -1, err
		}
		fds, err := unix.ParseUnixRights(&cs[0])
		if err != nil || len(fds) != 1 {
			return 0, -1, fmt.Errorf("descriptors %v, %v", fds, err)
		}
		fd = fds[0]
		p.fds = append(p.fds, fd)
	}
	return int64(binary.LittleEndian.Uint64(b[:])), fd, nil
}

// handshake receives what a server sends first.
func handshake(t testing.TB, conn *net.UnixConn) *peer {
	t.Helper()
	p := &peer{t: t, conn: conn, kicks: -1, peers: make(map[int][]int)}
	t.Cleanup(p.close)
	if v, _, err := p.recv(); err != nil || v != 0 {
		t.Fatalf("version %d, %v", v, err)
	}
	id, _, err := p.recv()
	if err != nil {
		t.Fatal(err)
	}
	p.id = int(id)
	v, fd, err := p.recv()
	if err != nil || v != -1 || fd < 0 {
		t.Fatalf("shared memory: %d, %d, %v", v, fd, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, 4096); err == nil {
		t.Error("a node could shrink the shared memory")
	}
	if p.mem, err = unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	for len(p.own) < shm.NumVectors {
		v, fd, err := p.recv()
		switch {
		case err != nil:
			t.Fatal(err)
		case fd < 0:
			t.Fatalf("peer %d without an eventfd", v)
		case v == 0:
			p.kicks = fd
		case int(v) == p.id:
			p.own = append(p.own, fd)
		default:
			p.peers[int(v)] = append(p.peers[int(v)], fd)
		}
	}
	return p
}

func (p *peer) kick() { signal(p.kicks) }

// open makes its view of the region.
func (p *peer) open() *peer {
	p.t.Helper()
	n, err := shm.OpenNode(shm.Mapped(p.mem), p.id)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	if err := n.Reset(ctx, shm.NumVectors, p.kick); err != nil {
		p.t.Fatal(err)
	}
	p.node = n
	return p
}

func (p *peer) close() {
	p.conn.Close()
	for _, fd := range p.fds {
		unix.Close(fd)
	}
	p.fds = nil
	if p.mem != nil {
		_ = unix.Munmap(p.mem)
		p.mem = nil
	}
}

// send sends a record.
func (p *peer) send(h shm.Header, data []byte) uint32 {
	p.t.Helper()
	p.tag++
	h.Tag = p.tag
	eventually(p.t, "room to send", func() bool { return p.node.Tx.Put(&h, data) })
	if p.node.Tx.Publish() {
		p.kick()
	}
	return p.tag
}

// call sends a record and waits for its answer.
func (p *peer) call(h shm.Header, data []byte) (uint32, rapidio.Status) {
	p.t.Helper()
	tag := p.send(h, data)
	var a shm.Header
	eventually(p.t, fmt.Sprintf("an answer to a %v", h.Kind), func() bool {
		_, ok := p.node.Answers.Next(&a)
		return ok
	})
	p.node.Answers.Release()
	if a.Tag != tag {
		p.t.Fatalf("answer to %d, want %d", a.Tag, tag)
	}
	return a.Value, a.Status
}

func (p *peer) mustCall(h shm.Header) uint32 {
	p.t.Helper()
	v, st := p.call(h, nil)
	if st != rapidio.Done {
		p.t.Fatalf("%v: %v, want done", h.Kind, st)
	}
	return v
}

func (p *peer) read(off rapidio.Off) uint32 {
	p.t.Helper()
	return p.mustCall(shm.Header{Kind: shm.KindLocal, Off: uint32(off), Width: 4})
}

// setID numbers the endpoint, and has a star's switch route that.
func (p *peer) setID(id rapidio.DestID) {
	p.t.Helper()
	p.mustCall(shm.Header{Kind: shm.KindLocal, Off: uint32(rapidio.RegBaseDeviceID), Width: 4, Write: true, Value: rapidio.Small.Reg(id)})
}

func (p *peer) route(dest rapidio.DestID, port uint8) {
	p.t.Helper()
	for _, w := range [][2]uint32{{uint32(rapidio.RegRouteDestID), uint32(dest)}, {uint32(rapidio.RegRoutePort), uint32(port)}} {
		p.mustCall(shm.Header{Kind: shm.KindMaint, Peer: 0xff, Hop: 0, Off: w[0], Width: 4, Write: true, Value: w[1]})
	}
}

// next takes a record of a ring.
func next(t testing.TB, c *shm.Consumer) (h shm.Header, data string) {
	t.Helper()
	eventually(t, "a record", func() bool {
		p, ok := c.Next(&h)
		data = string(p)
		return ok
	})
	c.Release()
	return h, data
}

// oneLine checks an error's text.
func oneLine(t testing.TB, what string, err error, want string, is error) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") || is != nil && !errors.Is(err, is) {
		t.Errorf("%s: %v, want a line with %q that is %v", what, err, want, is)
	}
}
