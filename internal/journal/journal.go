// Package journal keeps numbered entries in bounded memory, for any number of readers: what messages (internal/klog) and events
// (internal/uevent) have in common. Whoever adds never waits for who reads; a reader that does not keep up is told how many it lost. Order is
// that of Add.
//
// All types are safe for concurrent use.
package journal

import (
	"context"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Journal keeps entries. The oldest go when there are too many.
type Journal[T any] struct {
	// Now is the clock, CLOCK_MONOTONIC in nanoseconds. It may be changed before the first entry.
	Now func() int64

	limit int
	size  func(T) int

	mu    sync.Mutex
	kept  []T           // guarded by mu; the last one has number next-1
	bytes int           // guarded by mu; of kept
	next  uint64        // guarded by mu; number of the next entry, from 1
	wake  chan struct{} // guarded by mu; closed at the next entry
}

// New makes an empty journal that keeps so many bytes of entries, each of which has as many as size says, and the latest always.
func New[T any](limit int, size func(T) int) *Journal[T] {
	return &Journal[T]{Now: Monotonic, limit: limit, size: size, next: 1, wake: make(chan struct{})}
}

// Monotonic reads CLOCK_MONOTONIC, which package time keeps to itself.
func Monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // the clock always exists
	}
	return ts.Nano()
}

// Add appends the entry that entry returns, which is told its number and the time, and must not wait. It gives the number.
func (j *Journal[T]) Add(entry func(seq uint64, now int64) T) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	seq := j.next
	e := entry(seq, j.Now())
	j.next++
	j.kept = append(j.kept, e)
	j.bytes += j.size(e)
	drop := 0
	for j.bytes > j.limit && drop < len(j.kept)-1 { // the latest always stays
		j.bytes -= j.size(j.kept[drop])
		var none T
		j.kept[drop] = none // its text goes with it
		drop++
	}
	j.kept = j.kept[drop:] // append moves what is left when the array is full
	close(j.wake)
	j.wake = make(chan struct{})
	return seq
}

// Room is how many entries memory is held for.
func (j *Journal[T]) Room() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return cap(j.kept)
}

// Read returns the entries after number seq (0 for all that are kept), oldest first, and how many of those wanted are lost
// because newer ones took their room. What they refer to is not to be changed.
func (j *Journal[T]) Read(seq uint64) (entries []T, lost uint64) {
	entries, _, lost, _ = j.read(seq)
	return entries, lost
}

// read also gives the number of the last entry, and what is closed at the next one.
func (j *Journal[T]) read(seq uint64) (entries []T, last, lost uint64, wake <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	last = j.next - 1
	if seq >= last {
		return nil, last, 0, j.wake
	}
	first := j.next - uint64(len(j.kept))
	if seq+1 < first {
		lost = first - seq - 1
		seq = first - 1
	}
	return slices.Clone(j.kept[seq+1-first:]), last, lost, j.wake
}

// Follow gives fn the entries after number seq, those kept and then each new batch as it comes, until ctx ends or fn
// returns an error, which is returned. fn runs without a lock: a slow one loses entries, and lost says how many, and
// delays nobody.
func (j *Journal[T]) Follow(ctx context.Context, seq uint64, fn func(entries []T, lost uint64) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, last, lost, wake := j.read(seq)
		if len(entries) > 0 {
			seq = last
			if err := fn(entries, lost); err != nil {
				return err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		}
	}
}
