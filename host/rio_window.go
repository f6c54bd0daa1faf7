package host

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ring3dev/ring3/rionet/fabricd"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// windows are the memory of other nodes, by links from sysfs. The fabric tells when they come, go, or have another ID; then they are read
// and the links made anew. So nobody who shows a device waits for the fabric.
type windows struct {
	mu   sync.Mutex // guards what follows
	list []fabricd.Window
}

// windowPause is the least between two times that the list is read: when a fabric is enumerated, each node tells of its ID.
const windowPause = 20 * time.Millisecond

// Of lists the windows of a node; rapidio.Windows.
func (w *windows) Of(node rapidio.DestID) (out []rapidio.WindowInfo) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, i := range w.list {
		if i.DestID == node {
			out = append(out, rapidio.WindowInfo{Index: i.Index, Size: i.Size, Path: i.Path})
		}
	}
	return out
}

// set takes the list of all, and says whether it is another than before.
func (w *windows) set(list []fabricd.Window) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.Equal(w.list, list) {
		return false
	}
	w.list = list
	return true
}

// watchWindows keeps the links as the windows come and go with their nodes.
func (p *rioPort) watchWindows() {
	set := func(list []fabricd.Window) {
		if p.windows.set(list) {
			p.port.WindowsChanged()
		}
	}
	if p.s.outside != nil {
		askWindows(p.ctx, p.s.outside, p.name, set)
		return
	}
	windowWatch{p.fabric.path, p.owners, set}.run(p.ctx)
}

// windowWatch watches which windows the nodes of a fabric have.
type windowWatch struct {
	path   string
	owners []int
	set    func([]fabricd.Window) // told of all of them, each time that they may be others; nil: the fabric is gone
}

// run does it until ctx ends.
func (w windowWatch) run(ctx context.Context) {
	for ctx.Err() == nil {
		if c, err := fabricd.Dial(ctx, w.path, w.owners...); err == nil {
			w.at(ctx, c)
		}
		if ctx.Err() == nil {
			w.set(nil)
		}
		select {
		case <-ctx.Done():
		case <-time.After(rejoinFirst):
		}
	}
}

// at does it as long as the fabric is there.
func (w windowWatch) at(ctx context.Context, c *fabricd.Client) {
	ctx, cancel := context.WithCancel(ctx)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel()
	news := make(chan struct{}, 1)
	tell := func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	reading.Go(func() { w.read(ctx, c, news) })
	_ = c.Watch(ctx, tell, func(e fabricd.Event) error {
		switch e.What {
		case fabricd.EventJoined, fabricd.EventLeft, fabricd.EventNumbered:
			tell()
		}
		return nil
	}) // it ends with the fabric
}

// read reads the list whenever there is news, until ctx ends.
func (w windowWatch) read(ctx context.Context, c *fabricd.Client, news <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-news:
		}
		for {
			list, err := c.Windows(ctx)
			if err == nil {
				w.set(list)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(windowPause):
			}
			if err == nil {
				break
			}
		}
	}
}
