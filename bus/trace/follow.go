package trace

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"
)

// How a follower reads: in pieces, and no more often than each nap.
const (
	followChunk = 1024
	followNap   = 500 * time.Microsecond
)

// Snapshot is the last n entries of each of these devices, in the order of their time.
func Snapshot(devices []*Device, n int) []Entry {
	var all []Entry
	for _, d := range devices {
		last := int64(0)
		for _, r := range d.Last(n) {
			all = d.entries(all, &r, &last)
		}
	}
	byTime(all)
	return all
}

// entries is Entries with the time since the record before, which was at last, 0 for none.
func (d *Device) entries(es []Entry, r *Record, last *int64) []Entry {
	n := len(es)
	es = d.Entries(es, r)
	if *last != 0 {
		es[n].DT = r.Time - *last
	}
	*last = r.Time
	return es
}

func byTime(all []Entry) {
	slices.SortStableFunc(all, func(a, b Entry) int { return cmp.Compare(a.Time, b.Time) })
}

// follower reads one device for Follow.
type follower struct {
	d    *Device
	r    *Reader
	last int64 // time of the record before; 0: none yet
	held []Entry
	end  bool
}

// Follow gives each the entries of these devices, in the order of their time, as they come. It
// begins up to back records before the present, and returns nil when all devices are closed and
// read, or ctx has ended; or what each returned. What was recorded until then is still given.
func Follow(ctx context.Context, devices []*Device, back int, each func([]Entry) error) error {
	fs := make([]*follower, len(devices))
	for i, d := range devices {
		fs[i] = &follower{d: d, r: d.NewReader(back)}
	}
	word := make(chan struct{}, 1)
	buf := make([]Record, followChunk)
	var batch []Entry
	for {
		ended := ctx.Err() != nil
		// All records up to now can be read, so these are complete, and can be put in order.
		now := int64(time.Since(epoch))
		if ended {
			now = math.MaxInt64
		}
		busy, open := false, false
		batch = batch[:0]
		for _, f := range fs {
			busy = f.read(buf) || busy
			batch = f.take(batch, now)
			open = open || !f.end || len(f.held) > 0
		}
		if len(fs) > 1 {
			byTime(batch)
		}
		if len(batch) > 0 {
			if err := each(batch); err != nil {
				return err
			}
		}
		if ended || !open {
			return nil
		}
		if err := wait(ctx, fs, word, busy); err != nil {
			continue // ctx has ended: one last look
		}
	}
}

// read names what there is; busy says that there was something.
func (f *follower) read(buf []Record) (busy bool) {
	for range 8 {
		n, lost, end := f.r.Read(buf)
		f.end = end
		if lost > 0 {
			r := Record{Kind: Lost, Region: NoRegion, Value: lost, Time: f.last}
			if n > 0 {
				r.Seq, r.Time = buf[0].Seq, buf[0].Time
			}
			f.held = append(f.held, f.d.names.entry(&r))
		}
		for i := range n {
			f.held = f.d.entries(f.held, &buf[i], &f.last)
		}
		busy = busy || n > 0
		if n < len(buf) {
			break
		}
	}
	return busy
}

// take moves what is not younger than now to batch.
func (f *follower) take(batch []Entry, now int64) []Entry {
	n := 0
	for n < len(f.held) && f.held[n].Time <= now {
		n++
	}
	batch = append(batch, f.held[:n]...)
	f.held = slices.Delete(f.held, 0, n)
	return batch
}

// wait returns after a nap where there is more to expect, else when there is more.
func wait(ctx context.Context, fs []*follower, word chan struct{}, busy bool) error {
	if !busy {
		for _, f := range fs {
			busy = busy || len(f.held) > 0 || !f.end && !f.d.rec.sleep(word, f.r.pos)
		}
	}
	if !busy {
		select {
		case <-word:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case <-time.After(followNap):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
