package bustest

import (
	"bytes"
	"context"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

// DMA to memory that was freed touches nothing, and the device is dead of it.
func dmaStray(t *testing.T, s Subject) {
	if !s.Confined {
		t.Skip("nothing confines the device's DMA here")
	}
	d := needMove(t, s)
	r := firstRegion(t, s.Device)
	src, freed := moveMemory(t, s, d, 4096, 0), moveMemory(t, s, d, 4096, 0)
	defer src.Free()
	// The first time is allowed, and whatever caches translations has this one then.
	move(t, s, freed, 8, src, 8, 100)
	if err := s.Device.Err(); err != nil {
		t.Fatalf("Err after DMA to memory of its own = %v, want nil", err)
	}
	at := freed.IOVA
	freed.Free()
	var others []*bus.Memory // most likely the same pages
	for range 4 {
		m := moveMemory(t, s, d, 4096, 0)
		defer m.Free()
		if m.IOVA != at {
			others = append(others, m)
		}
	}
	if len(others) < 4 {
		t.Skip("the address is in use again already")
	}
	// A device that was cut off does not say that it is done.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-s.Device.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	_ = s.Move(ctx, at, src.IOVA, 100)
	checkGone(t, s, r, bus.ErrDMAFault)
	wantErr(t, "Err", s.Device.Err(), bus.ErrGone)
	<-watched
	for _, m := range others {
		if !bytes.Equal(m.Bytes, make([]byte, 4096)) {
			t.Errorf("memory at %#x was written to through an address that was freed", m.IOVA)
		}
	}
}
