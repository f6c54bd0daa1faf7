package kernfs

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/node"
)

// box is the device behind a test's stream: what is written can be read, by any open.
type box struct {
	single bool          // one open at a time
	slow   time.Duration // how long Close takes, and Read and Write go on after their context ended
	hold   bool          // Close waits until there is data

	mu                    sync.Mutex
	data                  []byte
	changed               chan struct{} // closed when data changed
	opens, closes, writes int
	last                  int // length of the last write
	flags                 int // of the last call
}

// boxes are the devices of the server's tree.
var boxes = map[string]*box{
	"one": {single: true}, "many": {}, "slow": {single: true, slow: 800 * time.Millisecond}, "plain": {},
	"held": {hold: true}, "held-many": {hold: true},
}

// putStreams makes dev/.
func putStreams(dev *node.Dir) {
	for name, b := range boxes {
		b.changed = make(chan struct{})
		dev.Put(name, &node.File{Mode: 0o600, OneOpen: b.single || name == "held", Open: func(flags int) (node.Stream, error) {
			s, err := b.open(flags)
			if err != nil {
				return nil, err
			}
			if name == "plain" {
				return struct{ node.Stream }{s}, nil // no Poller
			}
			return s, nil
		}})
	}
	dev.Put("refused", &node.File{Mode: 0o600, Open: func(int) (node.Stream, error) { return nil, syscall.EPERM }})
	dev.Put("panic", &node.File{Mode: 0o600, Open: func(int) (node.Stream, error) { panic("open is broken") }})
	dev.Put("ro", &node.File{Mode: 0o444, Open: func(flags int) (node.Stream, error) { return boxes["many"].open(flags) }})
}

func (b *box) open(flags int) (*boxStream, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.single && b.opens > b.closes {
		return nil, fmt.Errorf("box: %w", syscall.EBUSY)
	}
	b.opens++
	b.flags = flags
	return &boxStream{b}, nil
}

// add is data that comes in.
func (b *box) add(p string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p...)
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *box) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	nonblock := b.flags&unix.O_NONBLOCK != 0
	return fmt.Sprintf("open=%d opens=%d writes=%d last=%d nonblock=%v left=%d", b.opens-b.closes, b.opens, b.writes, b.last, nonblock, len(b.data))
}

// boxVerb obeys "box NAME" and "add NAME TEXT".
func boxVerb(verb, arg string) {
	name, text, _ := strings.Cut(arg, " ")
	if verb == "put" {
		boxes[name].add(text)
	}
	fmt.Println(boxes[name])
}

type boxStream struct{ *box }

func (s *boxStream) Read(ctx context.Context, p []byte, flags int) (int, error) {
	for {
		s.mu.Lock()
		s.flags = flags
		n := copy(p, s.data)
		s.data = s.data[n:]
		changed := s.changed
		s.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		if flags&unix.O_NONBLOCK != 0 {
			return 0, syscall.EAGAIN
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if s.slow > 0 {
				time.Sleep(s.slow)
				return copy(p, "late"), nil
			}
			return 0, fmt.Errorf("reading: %w", ctx.Err())
		}
	}
}

func (s *boxStream) Write(ctx context.Context, p []byte, flags int) (int, error) {
	s.mu.Lock()
	s.writes, s.last, s.flags = s.writes+1, len(p), flags
	s.mu.Unlock()
	if s.slow > 0 {
		<-ctx.Done()
		time.Sleep(s.slow)
	}
	s.add(string(p))
	return len(p), nil
}

func (s *boxStream) Poll() (uint32, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	events := uint32(unix.POLLOUT)
	if len(s.data) > 0 {
		events |= unix.POLLIN
	}
	return events, s.changed
}

func (s *boxStream) Close() error {
	time.Sleep(s.slow)
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.hold && len(s.data) == 0 {
		changed := s.changed
		s.mu.Unlock()
		<-changed
		s.mu.Lock()
	}
	s.closes++
	return nil
}

// lent is a stream that shows which buffers it is lent.
type lent struct {
	read, write func(p []byte) (int, error)
	close       func() // nil: it does nothing
}

func (s *lent) Read(_ context.Context, p []byte, _ int) (int, error)  { return s.read(p) }
func (s *lent) Write(_ context.Context, p []byte, _ int) (int, error) { return s.write(p) }
func (s *lent) Close() error {
	if s.close != nil {
		s.close()
	}
	return nil
}
