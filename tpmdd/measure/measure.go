package measure

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
)

// PCRs that can be measured into.
const (
	DefaultPCR = 10 // IMA's
	LastPCR    = 15
)

// CheckPCR says why a PCR cannot be measured into (PC Client Platform TPM Profile 1.05, 4.6): nobody's list of it would
// prove anything.
func CheckPCR(pcr int) error {
	why := ""
	switch {
	case pcr >= DefaultPCR && pcr <= LastPCR:
		return nil
	case pcr >= 0 && pcr < DefaultPCR:
		why = ": 0 to 9 are the firmware's and the boot loader's"
	case pcr >= 17 && pcr <= 22:
		why = ": 17 to 22 are for a dynamic launch, from other localities"
	case pcr == 16 || pcr == 23:
		why = ": any program can reset 16 and 23 where ring3 does not measure"
	}
	return fmt.Errorf("PCR %d: want %d to %d%s", pcr, DefaultPCR, LastPCR, why)
}

// Options are what New is told.
type Options struct {
	Chip   tpmdd.Exchanger
	Family tpmdd.Family
	Name   string    // of the chip, for errors; "" is tpm0
	PCR    int       // one that CheckPCR takes; 0 is DefaultPCR
	DB     *Database // nil: everything is known
	Policy Policy    // for what is not in DB
	Log    *slog.Logger
}

// Measurer measures what is started. Its methods are safe for concurrent use.
type Measurer struct {
	chip   *chip
	pcr    int
	banks  []Bank
	db     *Database
	policy Policy
	log    *slog.Logger
	list   *Log

	// mu is held over an entry and its extension: the list and the PCR have the same order.
	mu sync.Mutex
	// dead is what everything is answered once the PCR no longer follows the list.
	dead error
}

// New begins a measurement list, of which the first entry is boot_aggregate.
func New(ctx context.Context, o Options) (*Measurer, error) {
	if o.PCR == 0 {
		o.PCR = DefaultPCR
	}
	if o.Name == "" {
		o.Name = "tpm0"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := CheckPCR(o.PCR); err != nil {
		return nil, fmt.Errorf("%s: measuring into %w", o.Name, err)
	}
	m := &Measurer{chip: &chip{x: o.Chip, family: o.Family, name: o.Name}, pcr: o.PCR, db: o.DB, policy: o.Policy, log: o.Log}
	var err error
	if m.banks, err = m.chip.banks(ctx, m.pcr); err != nil {
		return nil, err
	}
	// A verifier looks at the SHA-256 bank. Whoever could take that away at the last start could choose a weaker one so.
	if !slices.Contains(m.banks, m.bank()) {
		return nil, fmt.Errorf("%s: PCR %d has the banks %v: want %s among them, which tpm2_pcrallocate gives back, from the next start of the TPM on: %w",
			o.Name, m.pcr, m.banks, m.bank(), bus.ErrNotSupported)
	}
	m.list = NewLog(m.banks...)
	for _, b := range m.banks {
		v, err := m.chip.read(ctx, b, m.pcr)
		if err != nil {
			return nil, err
		}
		if want := resetValue(m.pcr, b); !bytes.Equal(v, want) {
			return nil, fmt.Errorf("%s: PCR %s:%d is %x: want %x: it was extended before, and a list that starts here could not be replayed: %w",
				o.Name, b, m.pcr, v, want, bus.ErrBusy)
		}
	}
	return m, m.begin(ctx)
}

// begin makes the first entry.
func (m *Measurer) begin(ctx context.Context) error {
	bank := m.bank()
	d, err := bootAggregate(bank, func(pcr int) ([]byte, error) { return m.chip.read(ctx, bank, pcr) })
	if err != nil {
		return fmt.Errorf("boot_aggregate: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.add(ctx, newEntry(m.pcr, TemplateFile, Event{Alg: bank.String(), Digest: d, Name: BootAggregate}))
}

// bank is the one that boot_aggregate is made of, and that is quoted.
func (m *Measurer) bank() Bank {
	if m.chip.family == tpmdd.TPM12 {
		return SHA1
	}
	return SHA256
}

// PCR is the PCR that is extended.
func (m *Measurer) PCR() int { return m.pcr }

// Log is the list.
func (m *Measurer) Log() *Log { return m.list }

// Self measures the binary of this process: the drivers that are linked in.
func (m *Measurer) Self(ctx context.Context) error {
	const exe = "/proc/self/exe"
	f, err := os.Open(exe)
	if err != nil {
		return fmt.Errorf("%s: measuring: %w", m.chip.name, err)
	}
	defer f.Close()
	name, err := os.Readlink(exe)
	if err != nil {
		return fmt.Errorf("%s: measuring: %w", m.chip.name, err)
	}
	return m.File(ctx, name, f)
}

// File measures a regular file through a descriptor, whose position does not change. What is used afterwards must come
// from the same descriptor.
func (m *Measurer) File(ctx context.Context, name string, f *os.File) error {
	before, err := f.Stat()
	if err != nil {
		return fmt.Errorf("%s: measuring %s: %w", m.chip.name, name, err)
	}
	if !before.Mode().IsRegular() {
		return fmt.Errorf("%s: measuring %s: it is %s: want a regular file", m.chip.name, name, before.Mode().Type())
	}
	h := sha256.New()
	if _, err := io.Copy(h, &ctxReader{ctx, io.NewSectionReader(f, 0, 1<<63-1)}); err != nil {
		return fmt.Errorf("%s: measuring %s: %w", m.chip.name, name, err)
	}
	after, err := f.Stat()
	if err != nil {
		return fmt.Errorf("%s: measuring %s: %w", m.chip.name, name, err)
	}
	if before.Size() != after.Size() || !before.ModTime().Equal(after.ModTime()) {
		return fmt.Errorf("%s: measuring %s: it was written meanwhile: %w", m.chip.name, name, bus.ErrBusy)
	}
	return m.measure(ctx, TemplateFile, Event{Digest: h.Sum(nil), Name: name})
}

// ctxReader ends reading with its context: a file may be large, or on a slow disk.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// MaxReadFile bounds ReadFile.
const MaxReadFile = 64 << 20

// ReadFile reads a file, once, measures what it read and returns that: for a driver of one's own that needs a file, such as
// firmware. None of ring3's does.
func (m *Measurer) ReadFile(ctx context.Context, path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO would wait for a writer
	if err != nil {
		return nil, fmt.Errorf("%s: measuring: %w", m.chip.name, err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Size() > MaxReadFile {
		return nil, fmt.Errorf("%s: measuring %s: want a regular file of at most %d bytes", m.chip.name, path, MaxReadFile)
	}
	p, err := io.ReadAll(&ctxReader{ctx, io.LimitReader(f, MaxReadFile+1)})
	if err == nil && len(p) > MaxReadFile {
		err = fmt.Errorf("it grew: want at most %d bytes", MaxReadFile)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: measuring %s: %w", m.chip.name, path, err)
	}
	d := sha256.Sum256(p)
	if err := m.measure(ctx, TemplateFile, Event{Digest: d[:], Name: path}); err != nil {
		return nil, err
	}
	return p, nil
}

// Data measures a configuration, of which the list keeps the bytes: MaxData at most, and never a secret.
func (m *Measurer) Data(ctx context.Context, name string, data []byte) error {
	if len(data) > MaxData {
		return fmt.Errorf("%s: measuring %s: %d bytes: want at most %d", m.chip.name, name, len(data), MaxData)
	}
	d := sha256.Sum256(data)
	return m.measure(ctx, TemplateData, Event{Digest: d[:], Name: name, Buf: slices.Clone(data)})
}

// measure lists and extends, then asks the database. What is denied was measured too.
func (m *Measurer) measure(ctx context.Context, template string, ev Event) error {
	if len(ev.Name) == 0 || len(ev.Name) > MaxName {
		return fmt.Errorf("%s: measuring %.40q: a name of %d bytes: want 1 to %d", m.chip.name, ev.Name, len(ev.Name), MaxName)
	}
	ev.Alg, ev.Name = SHA256.String(), cleanName(ev.Name)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := errors.Join(m.dead, ctx.Err()); err != nil {
		return fmt.Errorf("%s: measuring %s: %w", m.chip.name, ev.Name, err)
	}
	if err := m.add(ctx, newEntry(m.pcr, template, ev)); err != nil {
		return fmt.Errorf("measuring %s: %w", ev.Name, err)
	}
	if m.db == nil {
		return nil
	}
	if _, ok := m.db.Lookup(ev.Digest); ok {
		return nil
	}
	if m.policy == PolicyLog {
		m.log.Warn("measured, and not in the database: it is started all the same", "device", m.chip.name, "name", ev.Name,
			"digest", fmt.Sprintf("sha256:%x", ev.Digest), "database", m.db.String())
		return nil
	}
	locked := ""
	if m.policy == PolicyLock {
		if err := m.lock(ctx, ev.Name); err != nil {
			locked = fmt.Sprintf(", and locking PCR %d: %v", m.pcr, err)
		} else {
			locked = fmt.Sprintf(", PCR %d is locked and nothing is started any more", m.pcr)
		}
	}
	return fmt.Errorf("%s: measuring %s: sha256:%x is not in the database %s%s: %w", m.chip.name, ev.Name, ev.Digest, m.db, locked, unix.EPERM)
}

// add lists an entry and extends the PCR, as IMA in that order: what is listed and not extended is seen, the other
// way round could not be explained. mu is held.
func (m *Measurer) add(ctx context.Context, e Entry) error {
	if m.list.has(e) {
		return nil
	}
	if err := m.list.add(e); err != nil {
		return fmt.Errorf("%s: %w", m.chip.name, err)
	}
	// Not interrupted: whether it happened would not be known.
	err := m.chip.extend(context.WithoutCancel(ctx), m.pcr, m.banks, func(b Bank) []byte {
		d, _ := e.Digest(b)
		return d
	})
	if err != nil {
		m.dead = fmt.Errorf("PCR %d no longer follows the list: %w", m.pcr, err)
	}
	return err
}

// lock makes the PCR something that no list leads to. mu is held.
func (m *Measurer) lock(ctx context.Context, culprit string) error {
	m.dead = fmt.Errorf("PCR %d is locked, because of %s: %w", m.pcr, culprit, unix.EPERM)
	// A full list does not keep the PCR from being locked: this entry only explains it.
	_ = m.list.add(newViolation(m.pcr, "locked:"+culprit))
	return m.chip.extend(context.WithoutCancel(ctx), m.pcr, m.banks, func(b Bank) []byte {
		d := make([]byte, b.Size())
		_, _ = rand.Read(d) // never fails: crypto/rand
		return d
	})
}
