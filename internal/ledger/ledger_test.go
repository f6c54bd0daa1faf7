package ledger

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
)

// TestMain is also the worker that is killed.
func TestMain(m *testing.M) {
	if os.Getenv("LEDGER_WORKER") != "" {
		worker()
	}
	os.Exit(m.Run())
}

func create(t testing.TB) (*Ledger, *os.File) {
	t.Helper()
	l, f, err := Create("ledger")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		f.Close()
	})
	return l, f
}

func counter(t testing.TB, l *Ledger, name string) *Counter {
	t.Helper()
	c, err := l.Counter(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCounters(t *testing.T) {
	bustest.NoLeaks(t)
	l, f := create(t)
	other, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	a := counter(t, l, "pktgen/eth0/sofar")
	a.Store(7)
	b := counter(t, other, "pktgen/eth0/sofar")
	if got := b.Add(3); got != 10 || a.Load() != 10 {
		t.Errorf("7 and 3 more = %d, %d to the other, want 10", got, a.Load())
	}
	if again := counter(t, l, "pktgen/eth0/sofar"); again != a {
		t.Error("a name gave two counters")
	}
	counter(t, other, "beat").Store(1)
	if got := fmt.Sprint(l.Snapshot()); got != "map[beat:1 pktgen/eth0/sofar:10]" {
		t.Errorf("Snapshot() = %s", got)
	}
	for _, name := range []string{"", "a b", "ä", strings.Repeat("x", MaxName+1), "a\x00"} {
		if _, err := l.Counter(name); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Counter(%q) = %v, want EINVAL", name, err)
		}
	}
	long := strings.Repeat("x", MaxName)
	counter(t, l, long).Store(5)
	if got := other.Snapshot()[long]; got != 5 {
		t.Errorf("the counter with the longest name is %d to the other, want 5", got)
	}
}

// TestRace has two processes' worth of views make the same names at once.
func TestRace(t *testing.T) {
	l, f := create(t)
	var wg sync.WaitGroup
	for range 4 {
		o, err := Open(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { o.Close() })
		wg.Go(func() {
			for i := range 1000 {
				if c, err := o.Counter(fmt.Sprintf("c%d", i)); err != nil {
					t.Error(err)
				} else {
					c.Add(1)
				}
			}
		})
	}
	wg.Wait()
	all := l.Snapshot()
	for name, v := range all {
		if v != 4 {
			t.Errorf("%s = %d, want 4", name, v)
		}
	}
	if len(all) != 1000 {
		t.Errorf("there are %d names, want 1000", len(all))
	}
}

func TestFull(t *testing.T) {
	l, _ := create(t)
	var err error
	n := 0
	for ; err == nil && n <= MaxNames; n++ {
		_, err = l.Counter(fmt.Sprintf("c%d", n))
	}
	if !errors.Is(err, ErrFull) || n < MaxNames/2 {
		t.Errorf("counter %d: %v, want ErrFull, and not before %d", n, err, MaxNames/2)
	}
	m, _ := create(t)
	n = 0
	for err = nil; err == nil && n < 100; n++ {
		_, _, err = m.Area(fmt.Sprintf("a%d", n), Size/8/10)
	}
	if !errors.Is(err, ErrFull) || n != 10 {
		t.Errorf("area %d of a tenth: %v, want ErrFull for the tenth", n, err)
	}
	if _, _, err := m.Area("a0", 5); !errors.Is(err, bus.ErrProtocol) {
		t.Errorf("an area of another length = %v, want ErrProtocol", err)
	}
	if _, _, err := m.Area("a0", -1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an area of -1 = %v, want EINVAL", err)
	}
	if _, fresh, err := m.Area("a0", Size/8/10); err != nil || fresh {
		t.Errorf("the area again: fresh %v, %v, want the old one", fresh, err)
	}
}

func TestClosed(t *testing.T) {
	l, _ := create(t)
	c := counter(t, l, "a")
	a, _, err := l.Area("a", 10)
	if err != nil {
		t.Fatal(err)
	}
	c.Store(5)
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	c.Add(1)
	a.Store(3, 1)
	if c.Load() != 1 || l.Snapshot() != nil {
		t.Errorf("after Close the counter is %d, want one of its own; the snapshot %v", c.Load(), l.Snapshot())
	}
	if _, err := l.Counter("b"); !errors.Is(err, ErrClosed) {
		t.Errorf("Counter after Close = %v", err)
	}
	if _, _, err := l.Area("b", 1); !errors.Is(err, ErrClosed) {
		t.Errorf("Area after Close = %v", err)
	}
}

func TestRefused(t *testing.T) {
	bustest.NoLeaks(t)
	fd, err := unix.MemfdCreate("none", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "none")
	defer f.Close()
	refused := func(why string) {
		t.Helper()
		if _, err := Open(f); !errors.Is(err, bus.ErrProtocol) || !strings.Contains(err.Error(), why) {
			t.Errorf("Open = %v, want %q", err, why)
		}
	}
	refused("a file of 0 bytes")
	if err := f.Truncate(Size); err != nil {
		t.Fatal(err)
	}
	refused("may shrink")
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		t.Fatal(err)
	}
	refused("begins with 0x0")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := Open(r); !errors.Is(err, bus.ErrProtocol) {
		t.Errorf("Open of a pipe = %v", err)
	}
}

// Words of what the worker keeps: a pair whose words are equal, and a journal that moves 1 from one word to another.
const (
	pairLen    = 20
	accounts   = 50
	changes    = 8
	startMoney = 1000
)

func open(l *Ledger) (Pair, *Journal) {
	a, _, err := l.Area("pair", PairWords(pairLen))
	if err != nil {
		panic(err)
	}
	b, _, err := l.Area("bank", JournalWords(accounts, changes))
	if err != nil {
		panic(err)
	}
	return NewPair(a, 0, pairLen), NewJournal(b, accounts, changes)
}

func worker() {
	l, err := Open(os.NewFile(3, "ledger"))
	if err != nil {
		panic(err)
	}
	pair, bank := open(l)
	steps, _ := l.Counter("steps")
	v := make([]uint64, pairLen)
	pair.Load(v)
	os.Stdout.WriteString("up\n")
	for n := v[0]; ; {
		n++
		for i := range v {
			v[i] = n
		}
		pair.Store(v)
		from, to := int(n%accounts), int(n*7%accounts)
		if from != to && bank.Load(from) > 0 {
			bank.Set(from, bank.Load(from)-1)
			bank.Set(to, bank.Load(to)+1)
			bank.Commit()
		}
		steps.Add(1)
	}
}

// TestKilled kills a worker over and over at whatever it does, and finds everything whole each time.
func TestKilled(t *testing.T) {
	bustest.NoLeaks(t)
	l, f := create(t)
	_, bank := open(l)
	for i := range accounts {
		bank.a.Store(i, startMoney)
	}
	steps := counter(t, l, "steps")
	last := uint64(0)
	for round := range 30 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "LEDGER_WORKER=1")
		cmd.ExtraFiles = []*os.File{f}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
			t.Fatalf("round %d: the worker says nothing: %v", round, err)
		}
		for from := steps.Load(); steps.Load() < from+uint64(100+977*round); {
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		pair, bank := open(l)
		v := make([]uint64, pairLen)
		if !pair.Load(v) {
			t.Fatal("nothing was stored")
		}
		for _, x := range v {
			if x != v[0] {
				t.Fatalf("round %d: words that belong together: %v", round, v)
			}
		}
		if n := steps.Load(); v[0] < last || v[0] != n && v[0] != n+1 {
			t.Fatalf("round %d: %d steps were counted and %d stored", round, n, v[0])
		}
		last = v[0]
		sum := uint64(0)
		for i := range accounts {
			sum += bank.Load(i)
		}
		if sum != accounts*startMoney {
			t.Fatalf("round %d: %d in all accounts, want %d", round, sum, accounts*startMoney)
		}
		steps.Store(last)
	}
}

// FuzzOpen has anything in the memory.
func FuzzOpen(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint64(0))
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00"), uint16(8), ^uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, at uint16, next uint64) {
		l, file, err := Create("fuzz")
		if err != nil {
			t.Skip(err)
		}
		defer l.Close()
		defer file.Close()
		if _, err := l.Counter("a"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := l.Area("j", JournalWords(4, 4)); err != nil {
			t.Fatal(err)
		}
		l.m.words.Store(wordNext, next)
		if _, err := file.WriteAt(b, int64(at)*8); err != nil {
			t.Skip(err)
		}
		o, err := Open(file)
		if err != nil {
			return
		}
		defer o.Close()
		for name := range o.Snapshot() {
			if !valid(name) {
				t.Errorf("Snapshot has the name %q", name)
			}
		}
		c, err := o.Counter("a")
		if err == nil {
			c.Add(1)
		}
		for _, name := range []string{"j", "k"} {
			a, _, err := o.Area(name, JournalWords(4, 4))
			if err != nil {
				continue
			}
			for i := range a.Len() {
				a.Store(i, a.Load(i))
			}
			NewJournal(a, 4, 4)
			var v [2]uint64
			NewPair(a, 0, 2).Load(v[:])
		}
	})
}

func BenchmarkStore(b *testing.B) {
	l, _ := create(b)
	c := counter(b, l, "a")
	for i := range b.N {
		c.Store(uint64(i))
	}
}

func BenchmarkPair(b *testing.B) {
	l, _ := create(b)
	a, _, err := l.Area("a", PairWords(8))
	if err != nil {
		b.Fatal(err)
	}
	p, v := NewPair(a, 0, 8), make([]uint64, 8)
	for b.Loop() {
		p.Store(v)
	}
}

// TestCheck: what writers leave behind that keep to the rules is right at each moment, and nonsense in any part of it is found.
func TestCheck(t *testing.T) {
	l, f, err := Create("check")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer f.Close()
	right := func(when string) {
		t.Helper()
		if err := l.Check(); err != nil {
			t.Errorf("Check %s = %v", when, err)
		}
	}
	right("of an empty one")
	if _, err := l.Counter("beat"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Area("flight/eth0", 100); err != nil {
		t.Fatal(err)
	}
	right("of one that is used")
	for i := 0; ; i++ { // until there is no room: that is no lie
		if _, _, err := l.Area(fmt.Sprint("a", i), totalWords/8); err != nil {
			break
		}
	}
	right("of one that is full")
	slot, err := l.slot("half", counterKind)
	if err != nil {
		t.Fatal(err)
	}
	l.m.words.Store(slot+slotLen, 0)
	right("of one whose writer died in the middle of a name")
	area, err := l.slot("flight/eth0", areaKind)
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string]struct {
		at int
		v  uint64
	}{
		"no magic": {wordMagic, 1}, "next areas before the first": {wordNext, 3}, "next areas far behind the last": {wordNext, 1 << 60}, "a name of another hash": {area + slotKey, 5},
		"a long name": {area + slotLen, 1 << 40}, "an area elsewhere": {area + slotValue, 1<<lenBits | 5}, "an area without end": {area + slotValue, areasAt<<lenBits | 1<<31},
	} {
		was := l.m.words.Load(bad.at)
		l.m.words.Store(bad.at, bad.v)
		if err := l.Check(); !errors.Is(err, bus.ErrProtocol) {
			t.Errorf("Check of %s = %v, want ErrProtocol", what, err)
		}
		l.m.words.Store(bad.at, was)
	}
	right("of one that is right again")
}
