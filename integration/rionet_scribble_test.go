package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/ivshmem"
	"github.com/ring3dev/ring3/rionet/fabricd"
	"github.com/ring3dev/ring3/rionet/shm"
)

// rionetScribbler has one node write at random into what it shares with the fabric, while two others talk; and then the memory of a
// node that does as it should is written to.
func rionetScribbler(t *testing.T) {
	last := 5 * time.Second
	if os.Getenv("RING3_LONG") != "" {
		last = time.Minute
	}
	f := startFabric(t, oneSwitch)
	a := f.node(t, 0, ",host=0")
	b := f.node(t, 1, "")
	a.ping(t, b)
	f.mayComplain()
	s := startStream(t, a, b)
	s.moves(t)
	before := use(t, f.up)
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	w := scribbler{f: f, r: rand.New(rand.NewPCG(seed, 0))}
	ctx, cancel := context.WithTimeout(t.Context(), last)
	defer cancel()
	for ctx.Err() == nil {
		w.asNode(t, ctx, "pe2")
	}
	if w.joined < 2 {
		t.Errorf("the scribbler joined %d times, want that it may join again", w.joined)
	}
	s.moves(t)
	c := f.node(t, 2, "")
	for _, n := range []*node{a, b, c} {
		n.peers(t, 2)
	}
	c.ping(t, a, b)
	b.ping(t, c)
	grown(t, f.up, before)
	t.Logf("a node joined %d times, and wrote %d times", w.joined, w.wrote)

	// The other way: the memory of a ring3 goes bad under it.
	f.mayComplain()
	ctx, cancel = context.WithTimeout(t.Context(), last/2)
	defer cancel()
	w.wrote = 0
	for ctx.Err() == nil {
		if err := w.into(ctx, c.up.cmd.Process.Pid); err != nil {
			t.Logf("memory of another process: %v", err)
			break
		}
	}
	s.moves(t)
	t.Logf("the memory of a node was written to %d times", w.wrote)
	// It may have lost messages, or wait for a signal that was taken from it; but it runs, and the next one has nothing of it.
	kill(t, c.up)
	for _, n := range []*node{a, b} {
		n.peers(t, 1)
	}
	c.start(t)
	f.mayComplain()
	for _, n := range []*node{a, b, c} {
		n.peers(t, 2)
	}
	c.ping(t, a, b)
	b.ping(t, c)
	c.send(t, a, 4<<20)
	grown(t, f.up, before)
	s.end(t)
	f.stop(t)
	if !bytes.Contains(f.up.stderr.Bytes(), []byte("it broke the rules")) {
		t.Errorf("the fabric said %q, want why it ended a node", f.up.stderr)
	}
}

// holding is what a process has of this machine.
type holding struct{ kib, files, threads int }

func use(t *testing.T, r *running) (u holding) {
	t.Helper()
	pid := strconv.Itoa(r.cmd.Process.Pid)
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch v, _ := strconv.Atoi(f[1]); f[0] {
		case "VmRSS:":
			u.kib = v
		case "Threads:":
			u.threads = v
		}
	}
	fds, err := os.ReadDir("/proc/" + pid + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	u.files = len(fds)
	return u
}

// grown wants that a process has little more than before, when one more node is there.
func grown(t *testing.T, r *running, before holding) {
	t.Helper()
	now := use(t, r)
	t.Logf("the fabric had %+v, and has %+v", before, now)
	if now.kib > before.kib+100<<10 || now.files > before.files+30 || now.threads > before.threads+50 {
		t.Errorf("the fabric had %+v, and has %+v", before, now)
	}
}

// scribbler writes where it may, and not what it should.
type scribbler struct {
	f             *fabricUp
	r             *rand.Rand
	joined, wrote int
	block         [4096]byte
}

// asNode joins as a node, and writes until the fabric ends it, or for a while.
func (w *scribbler) asNode(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	conn, info, err := fabricd.Join(t.Context(), w.f.socket, fabricd.Request{Node: name})
	if err != nil {
		t.Fatalf("joining, after %d times: %v", w.joined, err)
	}
	d, err := ivshmem.Open(t.Context(), conn, ivshmem.Options{Vectors: shm.NumVectors})
	if err != nil {
		t.Fatalf("joining, after %d times: %v", w.joined, err)
	}
	defer d.Close()
	w.joined++
	regs, err := d.Region(0)
	if err != nil {
		t.Error(err)
		return
	}
	region, err := d.Region(1)
	if err != nil {
		t.Error(err)
		return
	}
	mem, release := bus.Hold(region)
	defer release()
	if mem == nil {
		return // the fabric was faster
	}
	kick := func() { regs.Write32(12, 0) } // the doorbell of peer 0
	if w.joined%4 != 0 {                   // as a node that begins well
		w.begin(t, ctx, mem, info.Peer, kick)
	}
	places := rings(mapped(mem), int64(len(mem)))
	for start := time.Now(); ctx.Err() == nil && time.Since(start) < time.Second; kick() {
		select {
		case <-d.Done():
			return
		default:
		}
		for range 1 + w.r.IntN(8) {
			w.write(mapped(mem), int64(len(mem)), places)
		}
		if w.r.IntN(20) == 0 {
			time.Sleep(time.Millisecond) // so that the fabric looks at it in between
		}
	}
}

// begin does what a node does first, and sends something sensible.
func (w *scribbler) begin(t *testing.T, ctx context.Context, mem []byte, peer int, kick func()) {
	n, err := shm.OpenNode(shm.Mapped(mem), peer)
	if err != nil {
		t.Errorf("joined as peer %d: %v", peer, err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := n.Reset(ctx, shm.NumVectors, kick); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// shared is the memory that is written to.
type shared interface {
	io.ReaderAt
	io.WriterAt
}

// mapped is shared memory of this process.
type mapped []byte

func (m mapped) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m[off:]), nil }
func (m mapped) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

// Where the rings of a region are told, and what of a ring both ends use: package shm has it.
const (
	regionPlace = 0x14 // of the only region, in the directory
	ringPlaces  = 0x80 // in the region's page: each 12 bytes
	ringCount   = 7
	ringRecords = 512
)

var ringWords = []int64{0, 128, 256, 260, 384} // indices, and who waits

// rings are where the rings begin, as the memory says.
func rings(m shared, size int64) (at []int64) {
	var b [4]byte
	word := func(off int64) int64 {
		if off < 0 || off > size-4 {
			return -1
		}
		_, _ = m.ReadAt(b[:], off)
		return int64(binary.LittleEndian.Uint32(b[:]))
	}
	region := word(regionPlace)
	for i := range int64(ringCount) {
		if off := word(region + ringPlaces + 12*i); off >= 0 && off < size-64<<10 {
			at = append(at, off&^3)
		}
	}
	return at
}

// write makes one write. What is not there any more refuses it. Most writes are of numbers that almost make sense, where indices and
// records are.
func (w *scribbler) write(m shared, size int64, rings []int64) {
	w.wrote++
	off, p := w.r.Int64N(size), w.block[:1+w.r.IntN(len(w.block))]
	mode := w.r.IntN(10)
	if mode > 3 && len(rings) == 0 {
		mode = 3
	}
	switch mode {
	case 0: // anything anywhere
		for i := 0; i+8 <= len(p); i += 8 {
			binary.LittleEndian.PutUint64(p[i:], w.r.Uint64())
		}
	case 1:
		for i := range p {
			p[i] = 0xff
		}
	case 2:
		clear(p)
	case 3: // a word near the beginning
		p, off = p[:min(len(p), 4)], w.r.Int64N(min(size, 256<<10))
		clear(p)
		p[0] = byte(w.r.Uint32())
	case 4, 5, 6: // an index that goes on, or back, by a little
		p = w.block[:4]
		off = rings[w.r.IntN(len(rings))] + ringWords[w.r.IntN(len(ringWords))]
		_, _ = m.ReadAt(p, off)
		binary.LittleEndian.PutUint32(p, binary.LittleEndian.Uint32(p)+uint32(w.r.IntN(8))-2)
	default: // a word of a record
		p = w.block[:4]
		off = rings[w.r.IntN(len(rings))] + ringRecords + 4*w.r.Int64N(1024)
		binary.LittleEndian.PutUint32(p, uint32(w.r.Uint64()>>(32+w.r.IntN(32))))
	}
	_, _ = m.WriteAt(p[:min(int64(len(p)), size-off)], off)
}

// into writes for a moment into the memory that a process shares with the fabric.
func (w *scribbler) into(ctx context.Context, pid int) error {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	var from, to int64
	for line := range bytes.Lines(maps) {
		if bytes.Contains(line, []byte("/memfd:")) && bytes.Contains(line, []byte(" rw-s ")) && bytes.Contains(line, []byte("pe2")) {
			if _, err := fmt.Sscanf(string(line), "%x-%x", &from, &to); err != nil {
				return fmt.Errorf("maps of process %d: %q: %w", pid, line, err)
			}
			break
		}
	}
	if from == 0 { // it joins again
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
		return nil
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	m := part{mem, from}
	for range 50 {
		w.write(m, to-from, rings(m, to-from))
	}
	return nil
}

// part is another process's memory from an address on.
type part struct {
	mem  *os.File
	from int64
}

func (m part) ReadAt(p []byte, off int64) (int, error)  { return m.mem.ReadAt(p, m.from+off) }
func (m part) WriteAt(p []byte, off int64) (int, error) { return m.mem.WriteAt(p, m.from+off) }
