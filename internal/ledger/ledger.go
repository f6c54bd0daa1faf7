package ledger

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/mmio"
	"github.com/ring3dev/ring3/internal/ioctl"
)

// Limits.
const (
	Size     = 64 << 20 // bytes
	MaxNames = 2048
	MaxName  = 8 * (slotWords - slotName) // bytes
)

// Layout, in words: a header, slots in a hash table, areas.
const (
	magic = 0x33676e69720a01ed // and the version, in the last byte

	wordMagic  = 0
	wordNext   = 1 // where the next area begins
	headWords  = 8
	slotKey    = 0 // what the name hashes to; 0: free
	slotValue  = 1 // of an area: where it begins, and its length
	slotLen    = 2 // of the name
	slotName   = 3
	slotWords  = 16
	slotsAt    = headWords
	areasAt    = slotsAt + MaxNames*slotWords
	totalWords = Size / 8
	maxProbes  = 64
	lenBits    = 32
)

// Errors of a ledger.
var (
	ErrFull   = errors.New("no room in the ledger")
	ErrClosed = bus.ErrClosed
)

// mapping is the memory of one process's view. It stays mapped, though it is nobody else's any more, until nothing refers to it.
type mapping struct{ words mmio.Shared }

// Ledger is a view of the table. It is safe for concurrent use.
type Ledger struct {
	mu     sync.Mutex
	m      *mapping // nil: closed
	mem    []byte
	counts map[string]*Counter
	areas  bool // some were handed out
}

// Create makes an empty table; name is what it is called in lists of descriptors. The file is the caller's, to be passed to workers
// and closed.
func Create(name string) (*Ledger, *os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, fmt.Errorf("making a ledger: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	err = f.Truncate(Size)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	var l *Ledger
	if err == nil {
		l, err = view(f)
	}
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("making a ledger: %w", err)
	}
	l.m.words.Store(wordMagic, magic)
	l.m.words.Store(wordNext, areasAt)
	return l, f, nil
}

// Open maps the table of another process. The file stays the caller's. It fails with bus.ErrProtocol where the file is none that
// Create made, or of another version.
func Open(f *os.File) (*Ledger, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("opening a ledger: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != Size {
		return nil, fmt.Errorf("opening a ledger: a file of %d bytes (mode %#o), want a memfd of %d: %w", st.Size, st.Mode, Size, bus.ErrProtocol)
	}
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return nil, fmt.Errorf("opening a ledger: the file may shrink, want it sealed against that (F_SEAL_SHRINK): %w", bus.ErrProtocol)
	}
	l, err := view(f)
	if err != nil {
		return nil, fmt.Errorf("opening a ledger: %w", err)
	}
	if v := l.m.words.Load(wordMagic); v != magic {
		l.Close()
		return nil, fmt.Errorf("opening a ledger: it begins with %#x, want %#x: %w", v, uint64(magic), bus.ErrProtocol)
	}
	return l, nil
}

func view(f *os.File) (*Ledger, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping %d bytes: %w", Size, err)
	}
	words, err := mmio.NewShared(mem)
	if err != nil {
		_ = unix.Munmap(mem)
		return nil, err
	}
	return &Ledger{m: &mapping{words}, mem: mem, counts: make(map[string]*Counter)}, nil
}

// Close gives the view back. Counters and areas that are still in use then count in memory of their own, which nobody sees; it goes
// when they do. It is idempotent.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		return nil
	}
	m, mem := l.m, l.mem
	l.m, l.mem = nil, nil
	if len(l.counts) == 0 && !l.areas {
		return unix.Munmap(mem)
	}
	l.counts = nil
	// Somebody may be storing at this moment: so there is memory at these addresses all the time.
	if err := ioctl.MapEmpty(mem); err != nil {
		return fmt.Errorf("closing a ledger: %w", err)
	}
	runtime.AddCleanup(m, func(mem []byte) { _ = unix.Munmap(mem) }, mem)
	return nil
}
