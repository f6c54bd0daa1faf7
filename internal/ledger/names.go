package ledger

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/mmio"
)

// Counter is a word with a name. Safe for concurrent use.
type Counter struct {
	m *mapping
	i int
}

// Load is its value.
func (c *Counter) Load() uint64 {
	v := c.m.words.Load(c.i)
	runtime.KeepAlive(c)
	return v
}

// Store sets it.
func (c *Counter) Store(v uint64) {
	c.m.words.Store(c.i, v)
	runtime.KeepAlive(c)
}

// Add adds to it, in one step for all who do, and returns the sum.
func (c *Counter) Add(n uint64) uint64 {
	v := c.m.words.Add(c.i, n)
	runtime.KeepAlive(c)
	return v
}

// Counter finds the counter of a name, or makes it, with the value 0. It fails with EINVAL where the name is none (1 to MaxName bytes of
// printable ASCII), with ErrFull where there are too many, and with ErrClosed.
func (l *Ledger) Counter(name string) (*Counter, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		return nil, fmt.Errorf("ledger: counter %q: %w", name, ErrClosed)
	}
	if c := l.counts[name]; c != nil {
		return c, nil
	}
	slot, err := l.slot(name, counterKind)
	if err != nil {
		return nil, fmt.Errorf("ledger: counter %q: %w", name, err)
	}
	c := &Counter{m: l.m, i: slot + slotValue}
	l.counts[name] = c
	return c, nil
}

// Kinds of names: a counter and an area may have the same.
const (
	counterKind = 'c'
	areaKind    = 'a'
)

// hash is FNV-1a's of kind and name, and never 0.
func hash(name string, kind byte) uint64 {
	h := uint64(0xcbf29ce484222325)
	for _, c := range append([]byte{kind}, name...) {
		h = (h ^ uint64(c)) * 0x100000001b3
	}
	return max(h, 1)
}

func valid(name string) bool {
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return false
		}
	}
	return name != "" && len(name) <= MaxName
}

// slot finds the slot of a name, or takes one. Two processes that take one for the same name at once write the same into the same;
// and one that died meanwhile is completed by who asks next.
func (l *Ledger) slot(name string, kind byte) (int, error) {
	if !valid(name) {
		return 0, unix.EINVAL
	}
	w, h := l.m.words, hash(name, kind)
	for i := range maxProbes {
		at := slotsAt + int((h+uint64(i))%MaxNames)*slotWords
		key := w.Load(at + slotKey)
		if key == 0 && (w.CompareAndSwap(at+slotKey, 0, h) || w.Load(at+slotKey) == h) {
			key = h
		}
		if key != h {
			continue
		}
		if got, ok := readName(w, at, kind); !ok || got != name {
			for k := range slotWords - slotName {
				w.Store(at+slotName+k, nameWord(name, k))
			}
			w.Store(at+slotLen, uint64(len(name)))
		}
		return at, nil
	}
	return 0, ErrFull
}

// nameWord is word k of a name, padded with zeros.
func nameWord(name string, k int) (v uint64) {
	for i := 8 * k; i < min(8*k+8, len(name)); i++ {
		v |= uint64(name[i]) << (8 * (i - 8*k))
	}
	return v
}

// readName reads the name of a slot; it is one of that kind if it hashes to the slot's key.
func readName(w mmio.Shared, at int, kind byte) (string, bool) {
	n := w.Load(at + slotLen)
	if n == 0 || n > MaxName {
		return "", false
	}
	var b [MaxName]byte
	for i := range int(n) {
		b[i] = byte(w.Load(at+slotName+i/8) >> (i % 8 * 8))
	}
	name := string(b[:n])
	return name, valid(name) && hash(name, kind) == w.Load(at+slotKey)
}

// Snapshot is the value of every counter. Names that make no sense are left out. Nil once closed.
func (l *Ledger) Snapshot() map[string]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		return nil
	}
	all := make(map[string]uint64)
	w := l.m.words
	for at := slotsAt; at < areasAt; at += slotWords {
		if w.Load(at+slotKey) == 0 {
			continue
		}
		if name, ok := readName(w, at, counterKind); ok {
			all[name] = w.Load(at + slotValue)
		}
	}
	return all
}

// Check says what no writer that keeps to this package leaves behind, at whatever instruction it was killed: bus.ErrProtocol. What it finds nothing wrong with may still lie.
func (l *Ledger) Check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		return nil
	}
	w := l.m.words
	if v := w.Load(wordMagic); v != magic {
		return fmt.Errorf("ledger: it begins with %#x, want %#x: %w", v, uint64(magic), bus.ErrProtocol)
	}
	next := w.Load(wordNext)
	if next < areasAt || next > 2*totalWords { // one that found no room has counted on
		return fmt.Errorf("ledger: the next area begins at word %d, want %d to %d: %w", next, areasAt, totalWords, bus.ErrProtocol)
	}
	for at := slotsAt; at < areasAt; at += slotWords {
		if w.Load(at+slotKey) == 0 || w.Load(at+slotLen) == 0 { // free, or not named yet
			continue
		}
		if _, ok := readName(w, at, counterKind); ok {
			continue
		}
		name, ok := readName(w, at, areaKind)
		if !ok {
			return fmt.Errorf("ledger: the name at word %d is none: %w", at, bus.ErrProtocol)
		}
		v := w.Load(at + slotValue)
		if start, n := v>>lenBits, v&(1<<lenBits-1); v != 0 && (start < areasAt || n == 0 || n > totalWords || start > totalWords-n) {
			return fmt.Errorf("ledger: area %q has %d words at %d: %w", name, n, start, bus.ErrProtocol)
		}
	}
	return nil
}

// Area finds the words of a name, or makes them, all 0. fresh: they were made. It fails with EINVAL where the name or the number is
// none, with ErrFull where there is no room, with bus.ErrProtocol where there is an area of the name and another length, and
// with ErrClosed.
func (l *Ledger) Area(name string, words int) (a *Area, fresh bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		return nil, false, fmt.Errorf("ledger: area %q: %w", name, ErrClosed)
	}
	at, fresh, err := l.area(name, words)
	if err != nil {
		return nil, false, fmt.Errorf("ledger: area %q of %d words: %w", name, words, err)
	}
	l.areas = true
	return &Area{m: l.m, words: l.m.words.Part(at, words)}, fresh, nil
}

func (l *Ledger) area(name string, words int) (at int, fresh bool, err error) {
	if words <= 0 || words > totalWords-areasAt {
		return 0, false, unix.EINVAL
	}
	slot, err := l.slot(name, areaKind)
	if err != nil {
		return 0, false, err
	}
	w := l.m.words
	v := w.Load(slot + slotValue)
	if v == 0 {
		n := uint64(words+7) &^ 7 // whole lines of the cache
		if w.Load(wordNext) > totalWords {
			return 0, false, ErrFull // and so it stays: the sum cannot wrap
		}
		end := w.Add(wordNext, n)
		if end < n || end > totalWords || end-n < areasAt {
			return 0, false, ErrFull
		}
		if fresh = w.CompareAndSwap(slot+slotValue, 0, (end-n)<<lenBits|uint64(words)); fresh {
			return int(end - n), true, nil
		}
		v = w.Load(slot + slotValue)
	}
	start, n := v>>lenBits, v&(1<<lenBits-1)
	if n != uint64(words) || start < areasAt || start > totalWords-n {
		return 0, false, fmt.Errorf("it has %d words at %d: %w", n, start, bus.ErrProtocol)
	}
	return int(start), false, nil
}

// Area is a run of words with a name.
type Area struct {
	m     *mapping // keeps the memory where it is
	words mmio.Shared
}

// Len is how many words there are.
func (a *Area) Len() int { return a.words.Len() }

// Load is word i. It panics, as indexing does, outside; so does Store.
func (a *Area) Load(i int) uint64 {
	v := a.words.Load(i)
	runtime.KeepAlive(a)
	return v
}

// Store sets word i.
func (a *Area) Store(i int, v uint64) {
	a.words.Store(i, v)
	runtime.KeepAlive(a)
}
