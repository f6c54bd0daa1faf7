package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/node"
)

// liar is a worker that answers what the test says.
type liar struct {
	answer func(ctx context.Context, m link.Method, id uint64, body []byte) ([]byte, error)
}

func (l *liar) Call(ctx context.Context, m link.Method, body []byte, files []*os.File, part func([]byte) error) ([]byte, []*os.File, error) {
	closeAll(files)
	null, err := os.Open("/dev/null")
	if err != nil {
		return nil, nil, err
	}
	_ = part(make([]byte, 1000)) // never asked for
	reply, err := l.answer(ctx, m, wire.Uint64(body), body[8:])
	return reply, []*os.File{null}, err // nor these
}

func (l *liar) Event(link.Method, []byte, []*os.File) error { return nil }

// lie attaches a liar to part, with what it tells.
func lie(t testing.TB, p *Part, l *liar, records ...record) (ours, theirs *link.Conn) {
	t.Helper()
	a, b := sockets(t)
	ours = link.New(a, link.Mux{Class: p}, link.Options{Name: "worker"})
	theirs = link.New(b, link.Mux{Class: l}, link.Options{Name: "supervisor"})
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	var out []byte
	for _, r := range records {
		out = r.append(out)
	}
	if err := theirs.Send(eventRecords, out); err != nil {
		t.Fatal(err)
	}
	if err := theirs.Send(eventWhole, nil); err != nil {
		t.Fatal(err)
	}
	p.Attach(ours)
	return ours, theirs
}

func put(id, parent uint64, name string, k kindInfo) record {
	return record{id: id, parent: parent, name: name, kindInfo: k}
}

var (
	aDir  = kindInfo{kind: kindDir, mode: 0o555}
	aFile = kindInfo{kind: kindFile, mode: 0o644, flags: hasShow | hasStore}
	aBin  = kindInfo{kind: kindFile, mode: 0o644, flags: hasReadAt | hasWriteAt, size: 100}
	aDev  = kindInfo{kind: kindFile, mode: 0o600, flags: hasOpen}
)

// TestHostileRecords has a worker tell what cannot be. The other worker's tree stays what it is.
func TestHostileRecords(t *testing.T) {
	many := make([]record, maxNodes)
	for i := range many {
		many[i] = put(uint64(i+1), 0, fmt.Sprint(i), aDir)
	}
	deep := make([]record, maxDepth+1)
	for i := range deep {
		deep[i] = put(uint64(i+1), uint64(i), "d", aDir)
	}
	var long []record
	for i := range maxBytes/(maxTarget+255) + 1 {
		long = append(long, put(uint64(i+1), 0, fmt.Sprintf("%0255d", i), kindInfo{kind: kindLink, target: strings.Repeat("x", maxTarget)}))
	}
	gone := record{remove: true, id: 1}
	for _, c := range []struct {
		name    string
		records []record
	}{
		{"an entry of the top's number", []record{put(0, 0, "x", aDir)}},
		{"the top goes", []record{{remove: true}}},
		{"one that never came goes", []record{{remove: true, id: 77}}},
		{"one goes twice", []record{put(1, 0, "x", aDir), gone, gone}},
		{"one in a directory that is gone", []record{put(1, 0, "x", aDir), gone, put(2, 1, "y", aFile)}},
		{"a number twice", []record{put(1, 0, "x", aDir), put(1, 0, "y", aDir)}},
		{"a name twice", []record{put(1, 0, "x", aDir), put(2, 0, "x", aDir)}},
		{"an entry below a file", []record{put(1, 0, "x", aFile), put(2, 1, "y", aFile)}},
		{"an entry below nothing", []record{put(2, 99, "y", aFile)}},
		{"an entry below itself", []record{put(2, 2, "y", aDir)}},
		{"a path for a name", []record{put(1, 0, "x/y", aDir)}},
		{"the directory above", []record{put(1, 0, "..", aDir)}},
		{"no name", []record{put(1, 0, "", aDir)}},
		{"a name with an end in it", []record{put(1, 0, "a\x00b", aDir)}},
		{"a target that does", []record{put(1, 0, "x", kindInfo{kind: kindLink, target: "\x1b[2J"})}},
		{"a kind that there is not", []record{put(1, 0, "x", kindInfo{kind: 9})}},
		{"a set-uid file", []record{put(1, 0, "x", kindInfo{kind: kindFile, mode: 0o4755})}},
		{"functions that there are not", []record{put(1, 0, "x", kindInfo{kind: kindFile, flags: 0x80})}},
		{"a size that is too much", []record{put(1, 0, "x", kindInfo{kind: kindFile, size: 1<<32 - 1})}},
		{"a link to nowhere", []record{put(1, 0, "x", kindInfo{kind: kindLink})}},
		{"too many", many},
		{"too deep", deep},
		{"too long", long},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := NewTree(TreeOptions{})
			good := sample()
			run(t, tr.Part("good"), good)
			ours, theirs := linked(t, tr.Part("bad"))
			tr.Part("bad").Attach(ours)
			var out []byte
			for _, r := range c.records {
				if out = r.append(out); len(out) > 1<<20 {
					_ = theirs.Send(eventRecords, out)
					out = nil
				}
			}
			_ = theirs.Send(eventRecords, out)
			_ = theirs.Send(eventWhole, nil)
			if err := tr.Part("bad").Sync(patient(t)); err == nil {
				t.Fatal("Sync() = nil, want an error")
			}
			if err := ours.Err(); !errors.Is(err, bus.ErrProtocol) {
				t.Errorf("the link's end = %v, want a protocol error", err)
			}
			good.Remove("ns")
			if got, want := dump(tr.Root(), ""), dump(good, ""); got != want {
				t.Errorf("the tree is\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestHostileEvents has a worker tell what is no record.
func TestHostileEvents(t *testing.T) {
	for _, c := range []struct {
		m    link.Method
		body []byte
	}{
		{eventRecords, []byte{1}},
		{eventRecords, bytes.Repeat([]byte{0xff}, 100)},
		{eventChanged, []byte{1, 2, 3}},
		{Class<<8 | 0x7f, nil},
		{methodShow, make([]byte, 8)},
	} {
		p := NewTree(TreeOptions{}).Part("a")
		ours, theirs := linked(t, p)
		p.Attach(ours)
		_ = theirs.Send(eventChanged, make([]byte, 8)) // of a stream that nobody opened: nothing
		_ = theirs.Send(c.m, c.body)
		<-ours.Done()
		if err := ours.Err(); !errors.Is(err, bus.ErrProtocol) {
			t.Errorf("event %#x of %x: %v, want a protocol error", c.m, c.body, err)
		}
	}
	p := NewTree(TreeOptions{}).Part("a")
	ours, theirs := linked(t, p)
	if _, _, err := theirs.Call(patient(t), methodShow, make([]byte, 8)); !errors.Is(err, syscall.ENOSYS) {
		t.Errorf("a call of the supervisor: %v, want ENOSYS", err)
	}
	_ = theirs.Send(eventWhole, nil)
	_ = theirs.Send(eventWhole, nil)
	<-ours.Done()
	if err := ours.Err(); !errors.Is(err, bus.ErrProtocol) {
		t.Errorf("a tree that is whole twice: %v, want a protocol error", err)
	}
}

// TestHostileAnswers has a worker answer what cannot be.
func TestHostileAnswers(t *testing.T) {
	tr := NewTree(TreeOptions{Patience: 200 * time.Millisecond})
	p := tr.Part("bad")
	var lies atomic.Value
	l := &liar{answer: func(context.Context, link.Method, uint64, []byte) ([]byte, error) { return lies.Load().([]byte), nil }}
	lie(t, p, l, put(1, 0, "f", aFile), put(2, 0, "b", aBin), put(3, 0, "d", aDev))
	if err := p.Sync(patient(t)); err != nil {
		t.Fatal(err)
	}
	f, b, d := find(t, tr, "f"), find(t, tr, "b"), find(t, tr, "d")
	page := make([]byte, 10)
	for _, reply := range [][]byte{nil, {1, 2, 3}, bytes.Repeat([]byte{0xff}, 4), bytes.Repeat([]byte{0xff}, 9), make([]byte, maxText+1)} {
		lies.Store(reply)
		if n, err := f.Write(context.Background(), []byte("x")); err == nil || n != 0 {
			t.Errorf("Write() with an answer of %d bytes = %d, %v, want an error", len(reply), n, err)
		}
		if n, err := b.WriteAt([]byte("x"), 0); err == nil || n != 0 {
			t.Errorf("WriteAt() with an answer of %d bytes = %d, %v, want an error", len(reply), n, err)
		}
		if n, err := b.ReadAt(page, 0); len(reply) > len(page) && err == nil || n > len(page) {
			t.Errorf("ReadAt() with an answer of %d bytes = %d, %v", len(reply), n, err)
		}
		if s, err := d.Open(0); (err == nil) != (len(reply) == 9) || (err == nil) != (s != nil) {
			t.Errorf("Open() with an answer of %d bytes = %v, %v", len(reply), s, err)
		}
		if text, err := f.ReadAll(); len(text) > maxText || (err == nil) != (len(reply) <= maxText) {
			t.Errorf("ReadAll() with an answer of %d bytes = %d bytes, %v", len(reply), len(text), err)
		}
	}
	lies.Store(make([]byte, 9))
	s, err := d.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Open(0); err == nil {
		t.Error("a worker's stream is open twice")
	}
	lies.Store(make([]byte, 100))
	if n, err := s.Read(context.Background(), page, 0); n != 0 || err == nil {
		t.Errorf("Read() of 10 bytes with an answer of 100 = %d, %v, want an error", n, err)
	}
	lies.Store([]byte{100, 0, 0, 0})
	if n, err := s.Write(context.Background(), page, 0); n != 0 || err == nil {
		t.Errorf("Write() of 10 bytes of which 100 were taken = %d, %v, want an error", n, err)
	}
}

// TestSilence has a worker that answers nothing, and never will.
func TestSilence(t *testing.T) {
	tr := NewTree(TreeOptions{Patience: 100 * time.Millisecond})
	p := tr.Part("bad")
	var calls atomic.Int64
	l := &liar{answer: func(_ context.Context, m link.Method, _ uint64, _ []byte) ([]byte, error) {
		if m == methodOpen {
			return make([]byte, 9), nil
		}
		calls.Add(1)
		select {}
	}}
	a, raw := sockets(t)
	ours := link.New(a, link.Mux{Class: p}, link.Options{Name: "worker"})
	theirs := link.New(raw, link.Mux{Class: l}, link.Options{Name: "supervisor", MaxCalls: 2 * maxCalls})
	t.Cleanup(func() { ours.Close(); theirs.End(io.EOF) }) // its handlers do not return
	var out []byte
	for _, r := range []record{put(1, 0, "f", aFile), put(2, 0, "b", aBin), put(3, 0, "d", aDev)} {
		out = r.append(out)
	}
	_ = theirs.Send(eventRecords, out)
	_ = theirs.Send(eventWhole, nil)
	p.Attach(ours)
	if err := p.Sync(patient(t)); err != nil {
		t.Fatal(err)
	}
	f, b := find(t, tr, "f"), find(t, tr, "b")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	s, err := find(t, tr, "d").Open(0)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, c := range []struct {
		name string
		call func() (int, error)
		want error
	}{
		{"ReadAll", func() (int, error) { b, err := f.ReadAll(); return len(b), err }, syscall.EIO},
		{"ReadAt", func() (int, error) { return b.ReadAt(make([]byte, 1), 0) }, syscall.EIO},
		{"WriteAt", func() (int, error) { return b.WriteAt(make([]byte, 1), 0) }, syscall.EIO},
		{"Write", func() (int, error) { return f.Write(ctx, []byte("x")) }, context.DeadlineExceeded},
		{"Read of a stream", func() (int, error) { return s.Read(ctx, make([]byte, 1), 0) }, context.DeadlineExceeded},
	} {
		wg.Go(func() {
			if n, err := c.call(); n != 0 || !errors.Is(err, c.want) {
				t.Errorf("%s = %d, %v, want %v", c.name, n, err, c.want)
			}
		})
	}
	wg.Wait()
	// More calls than are open at a time are refused; each ends with the worker.
	before := calls.Load()
	results := make(chan error, maxCalls+50)
	for range maxCalls + 50 {
		go func() {
			_, err := f.Write(context.Background(), []byte("x"))
			results <- err
		}()
	}
	for range 50 {
		if err := <-results; !errors.Is(err, syscall.EBUSY) {
			t.Fatalf("one call too many: %v, want EBUSY", err)
		}
	}
	await(t, func() bool { return calls.Load() >= before+maxCalls })
	if err := ours.Err(); err != nil {
		t.Errorf("the link ended: %v", err)
	}
	p.Detach(errors.New("hung"))
	for range maxCalls {
		if err := <-results; !errors.Is(err, syscall.EIO) {
			t.Fatalf("a write at its worker's end: %v, want EIO", err)
		}
	}
}

// TestLateWorker has workers that are not attached, and one that was, tell things.
func TestLateWorker(t *testing.T) {
	tr := NewTree(TreeOptions{})
	p := tr.Part("a")
	old := start(t, p, sample())
	p.Attach(old.c)
	if err := p.Sync(patient(t)); err != nil {
		t.Fatal(err)
	}
	spare := &node.Dir{}
	spare.Put("spare", &node.File{Mode: 0o444, Show: text("spare")})
	w := start(t, p, spare)
	w.settled(t)
	spare.Put("late", &node.File{Mode: 0o444})
	w.settled(t)
	before := dump(tr.Root(), "")
	if strings.Contains(before, "spare") {
		t.Error("what a worker told that is not attached is shown")
	}
	p.Attach(w.c) // without a word to the old one
	if err := p.Sync(patient(t)); err != nil {
		t.Fatal(err)
	}
	<-old.c.Done()
	if got, want := dump(tr.Root(), ""), dump(spare, ""); got != want {
		t.Errorf("with the other worker there is\n%s\nwant\n%s", got, want)
	}
	// More links than a part has.
	for range maxSessions + 2 {
		ours, theirs := linked(t, p)
		_ = theirs.Send(eventWhole, nil)
		_, _, _ = theirs.Call(patient(t), methodShow, nil)
		if err := ours.Err(); err != nil {
			if !errors.Is(err, bus.ErrBusy) {
				t.Errorf("a link too many ended with %v, want ErrBusy", err)
			}
			return
		}
	}
	t.Error("a part takes any number of links")
}

// TestNothingStays has workers live and die, and looks for what they leave.
func TestNothingStays(t *testing.T) {
	tr := NewTree(TreeOptions{})
	p := tr.Part("a")
	cycle := func() {
		root := &node.Dir{}
		fill(root, "1")
		w := run(t, p, root)
		s, err := find(t, tr, "dev/echo").Open(0)
		if err != nil {
			t.Fatal(err)
		}
		s.(node.Poller).Poll()
		if _, err := find(t, tr, "proc/net/dev").ReadAll(); err != nil {
			t.Fatal(err)
		}
		w.kill()
		p.Detach(errors.New("killed"))
		w.c.Close()
		w.w.Close()
		_ = s.Close()
	}
	cycle()
	count := func() (n int) {
		for last := -1; n != last; time.Sleep(20 * time.Millisecond) {
			last, n = n, runtime.NumGoroutine()
		}
		return n
	}
	before := count()
	for range 50 {
		cycle()
	}
	await(t, func() bool { return count() <= before })
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if n := len(p.sessions); n != 0 {
		t.Errorf("%d sessions are left, want 0", n)
	}
}

// FuzzRecords reads records as a worker may send them.
func FuzzRecords(f *testing.F) {
	var all []byte
	for _, r := range []record{put(1, 0, "dir", aDir), put(2, 1, "file", aFile), put(3, 0, "dev", aDev),
		put(4, 1, "l", kindInfo{kind: kindLink, target: "../x"}), {remove: true, id: 2}} {
		f.Add(r.append(nil))
		all = r.append(all)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, p []byte) {
		tr := NewTree(TreeOptions{})
		s := &session{part: newPart(tr, "a", 1), nodes: map[uint64]*seen{}, opens: map[uint64]*stream{}}
		top := &seen{of: s, at: tr.top, kindInfo: kindInfo{kind: kindDir}, kids: map[string]*seen{}}
		s.nodes[0] = top
		for len(p) > 0 {
			r, rest, err := parseRecord(p)
			if err != nil {
				break
			}
			if b := r.append(nil); !bytes.Equal(b, p[:len(p)-len(rest)]) {
				t.Fatalf("%x is read as %+v, which is written as %x", p[:len(p)-len(rest)], r, b)
			}
			p = rest
			if s.take(&r) != nil {
				break
			}
		}
		shown := entries(tr.Root())
		want := len(s.nodes) - 1
		for _, n := range s.nodes {
			if n.kind == kindLink && n.at == nil { // it leads out of the tree
				want--
			}
		}
		if shown != want {
			t.Fatalf("%d entries are shown, the session has %d", shown, want)
		}
		s.hide(top)
		if left := dump(tr.Root(), ""); left != "" || len(tr.top.kids) != 0 {
			t.Fatalf("when all is hidden there is %q", left)
		}
	})
}

// FuzzAnswer has an export get calls as nobody makes them.
func FuzzAnswer(f *testing.F) {
	f.Add(uint16(methodShow), []byte{1, 0, 0, 0, 0, 0, 0, 0})
	f.Add(uint16(methodReadAt), []byte{1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0})
	f.Add(uint16(methodOpen), []byte{5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(uint16(methodWrite), []byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'x'})
	f.Add(uint16(methodRead), []byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 8, 0, 0, 0})
	f.Fuzz(func(t *testing.T, m uint16, body []byte) {
		e := NewExport(&node.Dir{})
		root := sample()
		i := uint64(0)
		for _, d := range []string{"proc/net", "sys"} {
			for _, n := range root.MkdirAll(d).OwnEntries() {
				if file, ok := n.(*node.File); ok {
					i++
					e.files[i] = file
				}
			}
		}
		e.files[5] = &node.File{Open: openEcho("1")}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, _, err := e.Call(ctx, methodOpen, []byte{5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, nil, nil); err != nil {
			t.Fatal(err)
		}
		reply, files, err := e.Call(ctx, link.Method(m), body, nil, nil)
		if err != nil && reply != nil || len(files) > 0 {
			t.Errorf("Call(%#x, %x) = %x, %v, %v", m, body, reply, files, err)
		}
		e.streams.closeAll()
	})
}

// TestFlood has a worker change its tree without end, beside one whose changes must be told at once.
func TestFlood(t *testing.T) {
	tr := NewTree(TreeOptions{})
	ours, theirs := linked(t, tr.Part("bad"))
	tr.Part("bad").Attach(ours)
	var out []byte
	for i := range 10_000 {
		r, gone := put(uint64(i+1), 0, "x", aDir), record{remove: true, id: uint64(i + 1)}
		out = gone.append(r.append(out))
	}
	ended := make(chan int)
	go func() {
		n := 0
		for theirs.Send(eventRecords, out) == nil {
			n++
		}
		ended <- n
	}()
	from := time.Now()
	root := &node.Dir{}
	fill(root, "1")
	run(t, tr.Part("good"), root)
	mk, rm := find(t, tr, "proc/net/make"), find(t, tr, "proc/net/remove")
	for range 200 {
		for _, f := range []*node.File{mk, rm} {
			if _, err := f.Write(context.Background(), []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
	ours.End(io.EOF)
	took := time.Since(from)
	// 2.5 a second are read, after the first second's; the socket and the buffers hold a few.
	if n := <-ended; n > 3*int(took.Seconds()+1)+10 {
		t.Errorf("in %v %d events of 20,000 records were taken", took, n)
	}
	t.Logf("in %v, %v a change of the other worker's", took, took/400)
}

// entries counts what is below a directory.
func entries(d *node.Dir) (n int) {
	for _, k := range d.OwnEntries() {
		n++
		if sub, ok := k.(*node.Dir); ok {
			n += entries(sub)
		}
	}
	return n
}
