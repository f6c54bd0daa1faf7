package campaign

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// bystander is another group's driver, which must see nothing of all this: two controllers on a machine of their own, whose frames are
// counted and compared all the time.
type bystander struct {
	stop   context.CancelFunc
	done   sync.WaitGroup
	round  sync.Mutex // held in a round, and by who wants none
	mu     sync.Mutex // guards what follows
	rounds int
	err    error
}

func startBystander(ctx context.Context) (*bystander, error) {
	s, err := Find("e1000e")
	if err != nil {
		return nil, err
	}
	r, err := s.open(ctx, Backend{Name: "sim"})
	if err != nil {
		return nil, fmt.Errorf("the driver beside: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	b := &bystander{stop: stop}
	b.done.Go(func() {
		defer func() {
			if err := r.close(); err != nil {
				b.saw(err)
			}
		}()
		for ctx.Err() == nil {
			// A life that ends because all ends is no failure.
			b.round.Lock()
			err := r.live(context.WithoutCancel(ctx), r.dev)
			b.round.Unlock()
			if err != nil {
				b.saw(err)
				return
			}
			b.saw(nil)
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	return b, nil
}

// pause has it do nothing, between two rounds, until resume is called.
func (b *bystander) pause() (resume func()) {
	b.round.Lock()
	return b.round.Unlock
}

func (b *bystander) saw(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rounds++; err != nil && b.err == nil {
		b.err = fmt.Errorf("the driver beside, in round %d: %w", b.rounds, err)
	}
}

// state is how many rounds it made, and what it saw.
func (b *bystander) state() (rounds int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rounds, b.err
}

// close ends it, and says what it saw.
func (b *bystander) close() (rounds int, err error) {
	b.stop()
	b.done.Wait()
	return b.state()
}
