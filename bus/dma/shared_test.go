package dma

import (
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

// TestShare has buffers of a pool freed, and one of them retained, by other goroutines than its own.
func TestShare(t *testing.T) {
	p, err := NewPool(&heap{}, 64, 64, bus.ToDevice)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Share()
	var wg sync.WaitGroup
	for range 200 {
		bufs := make([]*Buf, 32)
		n := p.GetAll(bufs)
		if b := p.Get(); b != nil {
			b.Retain(1)
			wg.Go(b.Free)
			wg.Go(b.Free)
		}
		wg.Go(func() { FreeAll(bufs[:n]) })
	}
	wg.Wait()
	if n := p.Free(); n != p.Len() {
		t.Errorf("%d of %d buffers came back", n, p.Len())
	}
	b := p.Get()
	b.Free()
	if n := p.Free(); n != p.Len() {
		t.Errorf("after one more %d of %d buffers are there", n, p.Len())
	}
	b = p.Get()
	p.Close()
	b.Free()
	if p.Get() != nil {
		t.Error("a closed pool has a buffer")
	}
}
