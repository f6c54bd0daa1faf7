package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/node"
)

// file makes the node of a file that looks like info.
func (e *entry) file(info kindInfo) *node.File {
	f := &node.File{Mode: fs.FileMode(info.mode), Flavour: node.Flavour(info.flavour), Size: int(info.size), OneOpen: info.flags&hasOneOpen != 0}
	if info.flags&hasOpen != 0 {
		f.Open = e.open
		return f
	}
	if info.flags&hasShow != 0 {
		f.ShowContext = e.show
		f.Show = func(w *bytes.Buffer) error { return e.show(context.Background(), w) }
	}
	if info.flags&hasStore != 0 {
		f.Store = e.store
	}
	if info.flags&hasReadAt != 0 {
		f.ReadAt = e.readAt
	}
	if info.flags&hasWriteAt != 0 {
		f.WriteAt = e.writeAt
	}
	return f
}

// How a call is made, and what becomes of it when its worker dies.
const (
	retry   = 1 << iota // harmless: the next worker is asked, maxRetries times
	always              // the next worker is asked, as long as there is one
	bounded             // it ends after Patience
	finish              // what has begun is waited for, though ctx ended
)

// maxRetries bounds how many workers a call may cost, if it is what kills them.
const maxRetries = 2

// call asks one part's worker. body gets the worker's number of the node put before it.
func (e *entry) call(ctx context.Context, p *Part, m link.Method, body []byte, how int) ([]byte, error) {
	for deaths := 0; ; {
		s, c, err := e.await(ctx, p, how&always == 0)
		if err != nil {
			return nil, err
		}
		reply, err := p.ask(ctx, c, m, s.id, body, how)
		if err == nil {
			return reply, nil
		}
		switch {
		case died(err) && ctx.Err() != nil && how&always != 0: // its client had a signal, just before: what lasts goes on, and is no failure
			return nil, context.Cause(ctx)
		case !died(err) || ctx.Err() != nil:
			return nil, outcome(err)
		}
		if !errors.Is(err, link.ErrUnsent) {
			if deaths++; how&always == 0 && (how&retry == 0 || deaths > maxRetries) {
				return nil, outcome(err)
			}
		}
		<-c.Done() // await finds it dead then
	}
}

// ask makes one call of one worker.
func (p *Part) ask(ctx context.Context, c *link.Conn, m link.Method, id uint64, body []byte, how int) ([]byte, error) {
	select {
	case p.calls <- struct{}{}:
	default:
		return nil, fmt.Errorf("%s: %d calls wait for an answer: %w", p.name, maxCalls, syscall.EBUSY)
	}
	defer func() { <-p.calls }()
	if how&bounded != 0 {
		var cancel context.CancelFunc
		ctx, cancel = p.t.patience(ctx)
		defer cancel()
	}
	b := append(wire.AppendUint64(make([]byte, 0, 8+len(body)), id), body...)
	if how&finish != 0 {
		return c.Finish(ctx, m, b)
	}
	reply, files, err := c.Call(ctx, m, b)
	closeAll(files)
	return reply, err
}

// died says whether an error is the end of the link, and not an answer.
func died(err error) bool { return errors.Is(err, link.ErrEnded) }

// outcome is the error that a program sees. A node that the worker does not know is one that went meanwhile.
func outcome(err error) error {
	switch {
	case errors.Is(err, syscall.ESTALE):
		return fmt.Errorf("%w (%w)", err, syscall.ENODEV)
	case died(err):
		return fmt.Errorf("its driver died: %w (%w)", err, syscall.EIO)
	}
	return err
}

// of finds what a part has here, among those that calls go to.
func (e *entry) of(p *Part) *seen {
	for _, s := range *e.users.Load() {
		if s.of.part == p {
			return s
		}
	}
	return nil
}

// await waits for a worker that takes calls: at most Patience if that is bounded, or else until there is one, or the part has failed.
func (e *entry) await(ctx context.Context, p *Part, bounded bool) (*seen, *link.Conn, error) {
	var late <-chan time.Time
	for {
		s := e.of(p)
		if s == nil {
			return nil, nil, fmt.Errorf("%s: gone: %w", p.name, syscall.ENODEV)
		}
		gone := e.gone.Load()
		c, changed, err := p.ready(s.of, gone)
		if err != nil || c != nil {
			return s, c, err
		}
		if s != e.of(p) || gone != e.gone.Load() { // the next one's tree was shown while we looked
			continue
		}
		if bounded && late == nil {
			timer := time.NewTimer(p.t.o.Patience)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-changed:
		case <-late:
			return nil, nil, fmt.Errorf("%s: its driver is not back after %v: %w", p.name, p.t.o.Patience, syscall.EIO)
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

// each asks several parts at once, and waits for all.
func (e *entry) each(ctx context.Context, parts []*seen, m link.Method, body []byte, how int) (replies [][]byte, errs []error) {
	replies, errs = make([][]byte, len(parts)), make([]error, len(parts))
	ask := func(i int) { replies[i], errs[i] = e.call(ctx, parts[i].of.part, m, body, how) }
	var wg sync.WaitGroup
	for i := range len(parts) - 1 {
		wg.Go(func() { ask(i) })
	}
	ask(len(parts) - 1)
	wg.Wait()
	return replies, errs
}

// errLong is the answer of a text that nobody reads to its end.
var errLong = fmt.Errorf("its driver shows more than %d bytes: %w", maxText, syscall.EFBIG)

func names(parts []*seen) []string {
	all := make([]string, len(parts))
	for i, s := range parts {
		all[i] = s.of.part.name
	}
	return all
}

// errLate is said for a part that a joined file is shown without. Nobody sees it.
var errLate = errors.New("it is late")

// shows asks several parts for their texts. Once one has answered, the others have a fifth of Patience: what one driver shows is not held up by another that hangs, or
// that comes back only now. A part that was late is not waited for again, until it has answered.
func (e *entry) shows(ctx context.Context, parts []*seen) (replies [][]byte, errs []error) {
	type answer struct {
		i    int
		text []byte
		err  error
	}
	replies, errs = make([][]byte, len(parts)), make([]error, len(parts))
	answers := make(chan answer, len(parts))
	asking, cancel := context.WithCancel(context.WithoutCancel(ctx))
	left, late := map[int]*Part{}, 0
	for _, s := range parts {
		if s.of.part.late.Load() > 0 {
			late++
		}
	}
	for i, s := range parts {
		p := s.of.part
		if late < len(parts) && p.late.Load() > 0 {
			errs[i] = errLate
			continue
		}
		left[i] = p
		go func() {
			text, err := e.call(asking, p, methodShow, nil, retry|bounded)
			answers <- answer{i, text, err}
		}()
	}
	limit := time.NewTimer(e.lateTime(parts))
	defer limit.Stop()
	some, over := false, false
	gone := ctx.Done()
	for len(left) > 0 && !(some && over) {
		select {
		case a := <-answers:
			replies[a.i], errs[a.i] = a.text, a.err
			delete(left, a.i)
			some = some || a.err == nil
		case <-limit.C:
			over = true
		case <-gone:
			cancel()
			gone = nil
		}
	}
	if len(left) == 0 {
		cancel()
		return replies, errs
	}
	for i, p := range left {
		errs[i] = errLate
		p.late.Add(1)
	}
	go func() { // each call ends: it is bounded
		defer cancel()
		for range len(left) {
			left[(<-answers).i].late.Add(-1)
		}
	}()
	return replies, errs
}

// lateTime is how long a part may take when others have answered.
func (e *entry) lateTime(parts []*seen) time.Duration { return parts[0].of.part.t.o.Patience / 5 }

// show is File.ShowContext. A joined file shows what there is: one that all parts fail to show has the first one's error.
func (e *entry) show(ctx context.Context, w *bytes.Buffer) error {
	parts := *e.users.Load()
	if len(parts) > 1 && e.rule != nil && e.rule.One { // one that lives
		i := slices.IndexFunc(parts, func(s *seen) bool { return !s.of.part.hasFailed() })
		parts = parts[max(i, 0):][:1]
	}
	if len(parts) == 1 {
		text, err := e.call(ctx, parts[0].of.part, methodShow, nil, retry|bounded)
		if err == nil && len(text) > maxText {
			err = errLong
		}
		if err != nil {
			return err
		}
		w.Write(text)
		return nil
	}
	replies, errs := e.shows(ctx, parts)
	var from []string
	var texts [][]byte
	var first error
	for i, err := range errs {
		switch {
		case err == nil && len(replies[i]) <= maxText:
			from, texts = append(from, parts[i].of.part.name), append(texts, replies[i])
		case first == nil:
			first = err
		}
	}
	switch {
	case len(texts) == 0 && first == nil:
		return errLong
	case len(texts) == 0:
		return first
	case e.rule != nil && e.rule.Show != nil:
		w.Write(e.rule.Show(from, texts))
	default:
		w.Write(bytes.Join(texts, nil))
	}
	return nil
}

// store is File.Store. What several parts get has been taken when all that live took it.
func (e *entry) store(ctx context.Context, p []byte) (int, error) {
	if len(p) > maxIO {
		p = p[:maxIO]
	}
	how := 0
	if e.rule != nil && e.rule.Again {
		if how = retry; e.rule.Lasts != nil && e.rule.Lasts(p) {
			how = always
		}
	}
	parts := e.choose(p)
	if len(parts) == 0 {
		return 0, fmt.Errorf("gone: %w", syscall.ENODEV)
	}
	replies, errs := [][]byte{nil}, []error{nil}
	if len(parts) == 1 {
		replies[0], errs[0] = e.call(ctx, parts[0].of.part, methodStore, p, how)
	} else {
		replies, errs = e.each(ctx, parts, methodStore, p, how)
	}
	n, took := len(p), false
	var first error
	for i, err := range errs {
		got := 0
		if err == nil {
			got, err = taken(replies[i], len(p))
		}
		switch {
		case err == nil:
			n, took = min(n, got), true
		case first == nil && (len(parts) == 1 || !parts[i].of.part.hasFailed()):
			first = err
		}
	}
	if first == nil && !took {
		first = errs[0]
	}
	if first != nil {
		return 0, first
	}
	return n, nil
}

// choose is whom a write goes to.
func (e *entry) choose(p []byte) []*seen {
	parts := *e.users.Load()
	if len(parts) == 0 || e.rule == nil || e.rule.Store == nil {
		return parts
	}
	chosen := e.rule.Store(names(parts), p)
	if len(parts) == 1 { // whom else
		return parts
	}
	var some []*seen
	for _, s := range parts {
		if slices.Contains(chosen, s.of.part.name) {
			some = append(some, s)
		}
	}
	if some == nil {
		return parts[:1]
	}
	return some
}

// hasFailed says whether the part was given up.
func (p *Part) hasFailed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed != nil || p.removed
}

// taken reads the answer to a write of n bytes.
func taken(reply []byte, n int) (int, error) {
	if len(reply) != 4 || wire.Uint32(reply) > uint32(n) {
		return 0, fmt.Errorf("its driver took %x of %d bytes: %w", reply[:min(len(reply), 8)], n, syscall.EIO)
	}
	return int(wire.Uint32(reply)), nil
}

// only is the first part's: what follows is of one device.
func (e *entry) only() (*Part, error) {
	parts := *e.users.Load()
	if len(parts) == 0 {
		return nil, fmt.Errorf("gone: %w", syscall.ENODEV)
	}
	return parts[0].of.part, nil
}

// readAt is File.ReadAt.
func (e *entry) readAt(p []byte, off int64) (int, error) {
	part, err := e.only()
	if err != nil {
		return 0, err
	}
	n := min(len(p), maxIO)
	reply, err := e.call(context.Background(), part, methodReadAt, wire.AppendUint32(wire.AppendUint64(nil, uint64(off)), uint32(n)), retry|bounded)
	if err != nil {
		return 0, err
	}
	if len(reply) > n {
		return 0, fmt.Errorf("its driver gave %d bytes of %d: %w", len(reply), n, syscall.EIO)
	}
	return copy(p, reply), nil
}

// writeAt is File.WriteAt.
func (e *entry) writeAt(p []byte, off int64) (int, error) {
	part, err := e.only()
	if err != nil {
		return 0, err
	}
	p = p[:min(len(p), maxIO)]
	reply, err := e.call(context.Background(), part, methodWriteAt, append(wire.AppendUint64(nil, uint64(off)), p...), bounded)
	if err != nil {
		return 0, err
	}
	return taken(reply, len(p))
}
