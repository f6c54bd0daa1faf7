package measure

import (
	"bytes"
	"fmt"
	"slices"
	"sync"

	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/sysfs"
)

// Bounds of a log and of what is measured.
const (
	MaxEntries = 1 << 16
	MaxLog     = 8 << 20  // bytes of the binary form
	MaxData    = 64 << 10 // of one configuration
	MaxName    = 4096     // of a name: the kernel's PATH_MAX
)

// Log is a measurement list. It only grows. Its methods are safe for concurrent use.
type Log struct {
	mu         sync.Mutex
	entries    []Entry
	size       int // of the binary form
	violations int
	have       map[string]bool // template data that were logged
	banks      []Bank
}

// NewLog makes an empty list; Files has a pair for each bank.
func NewLog(banks ...Bank) *Log {
	return &Log{banks: slices.Clone(banks), have: make(map[string]bool)}
}

// has says whether the same template was logged before.
func (l *Log) has(e Entry) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !e.Violation() && l.have[key(e)]
}

// key identifies an entry by its content. IMA looks up the template digest.
func key(e Entry) string { return e.Template + string(SHA256.Sum(e.Data)) }

// add appends an entry. A full list is an error: what cannot be listed cannot be verified.
func (l *Log) add(e Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(e.appendBinary(nil, SHA1))
	if len(l.entries) >= MaxEntries || l.size+n > MaxLog {
		return fmt.Errorf("the measurement list is full: %d entries, %d bytes", len(l.entries), l.size)
	}
	l.entries, l.size = append(l.entries, e), l.size+n
	if e.Violation() {
		l.violations++
	} else {
		l.have[key(e)] = true
	}
	return nil
}

// Entries is the list as it is now.
func (l *Log) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.entries)
}

// Violations counts the entries that are violations.
func (l *Log) Violations() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.violations
}

// Binary is the list as binary_runtime_measurements.
func (l *Log) Binary() []byte { return Binary(l.Entries()) }

// ASCII is the list as ascii_runtime_measurements.
func (l *Log) ASCII() []byte { return l.render(SHA1, Entry.appendASCII) }

func (l *Log) render(b Bank, add func(Entry, []byte, Bank) []byte) []byte {
	var p []byte
	for _, e := range l.Entries() {
		p = add(e, p, b)
	}
	return p
}

// Files are the files of /sys/kernel/security/ima (a link to integrity/ima there), by name. They are longer
// than a page, and have no size, like all of securityfs: the flavour is /proc's.
func (l *Log) Files() map[string]*sysfs.File {
	file := func(show func() []byte) *sysfs.File {
		return &sysfs.File{Mode: 0o440, Flavour: node.Proc, Show: func(w *bytes.Buffer) error {
			w.Write(show())
			return nil
		}}
	}
	out := map[string]*sysfs.File{
		"ascii_runtime_measurements":  file(l.ASCII),
		"binary_runtime_measurements": file(l.Binary),
		"runtime_measurements_count":  file(func() []byte { return fmt.Appendf(nil, "%d\n", len(l.Entries())) }),
		"violations":                  file(func() []byte { return fmt.Appendf(nil, "%d\n", l.Violations()) }),
	}
	for _, b := range l.banks {
		if b.newHash() == nil {
			continue
		}
		out["ascii_runtime_measurements_"+b.String()] = file(func() []byte { return l.render(b, Entry.appendASCII) })
		out["binary_runtime_measurements_"+b.String()] = file(func() []byte { return l.render(b, Entry.appendBinary) })
	}
	return out
}
