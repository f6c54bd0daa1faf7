package tis

import (
	"errors"
	"fmt"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// interrupts is what a transport knows of its interrupt. All but wake belongs to whoever has the chip.
type interrupts struct {
	irq     *bus.IRQ // nil: it polls
	handler *bus.Handler
	wake    chan struct{} // it fired
	tested  bool          // it was seen to come
	missed  int           // answers in a row that came without
	ahead   int           // bytes of the answer that may be read without looking
}

// Bounds of waiting with interrupts.
const (
	lookAfter  = 5 * time.Millisecond   // the first look without an interrupt, each later one after twice the time,
	lookMax    = 500 * time.Millisecond // at most this
	testWait   = 100 * time.Millisecond // for the interrupt of the command at probe
	maxMissed  = 3                      // lost in a row, and it is given up
	maxUseless = 100                    // interrupts for one command that say nothing: a storm
)

// enable asks for the interrupt. A device without one, or a backend that cannot give it, is polled.
func (t *transport) enable(name string) error {
	if t.caps&capDataAvail == 0 || t.dev.IRQVectors(bus.INTx) == 0 {
		return nil
	}
	irqs, err := t.dev.EnableIRQs(bus.INTx, 1)
	if errors.Is(err, bus.ErrNotSupported) {
		return nil
	}
	if err != nil {
		return t.errorf("enabling the interrupt: %w", err)
	}
	t.irq = irqs[0]
	t.handler = bus.Handle(t.irq, name, func(uint64) { t.signal() })
	t.rearm()
	return nil
}

// rearm claims the locality and tells the TPM which interrupt is wanted.
func (t *transport) rearm() {
	t.regs.Write8(regACCESS, uint8(accRequestUse))
	t.Resumed()
	t.End()
}

// Resumed tells the TPM which interrupt is wanted: one that lost its power forgot. INT_ENABLE takes that from the active
// locality only.
func (t *transport) Resumed() {
	if t.irq == nil {
		return
	}
	polarity := t.regs.Read32(regINTEN) & intPolarity
	t.regs.Write32(regINTSTS, intAll)
	t.regs.Write32(regINTEN, intGlobal|polarity|intDataAvail)
}

// signal wakes who waits.
func (t *transport) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// expectInterrupt forgets interrupts of earlier commands.
func (t *transport) expectInterrupt() {
	t.ahead = 0
	select {
	case <-t.wake:
	default:
	}
}

// acknowledge lets the next interrupt come. Whatever its cause, the TPM is looked at now, so INT_STATUS need not be
// read; all causes are cleared, since QEMU's model sets some that were not enabled and holds the line for them.
func (t *transport) acknowledge() {
	t.regs.Write32(regINTSTS, intAll)
	t.irq.Unmask()
}

// waitAnswer waits until done, d at most, by interrupt if there is one.
func (t *transport) waitAnswer(d time.Duration, done func() bool) bool {
	if t.irq == nil {
		return t.poll(d, done)
	}
	if !t.tested {
		return t.test(d, done)
	}
	end := time.NewTimer(d)
	defer end.Stop()
	useless := 0
	for look := lookAfter; ; {
		came := true
		select {
		case <-t.wake:
			t.acknowledge()
		case <-time.After(look):
			came, look = false, min(2*look, lookMax)
		case <-end.C:
			return done()
		case <-t.dev.Done():
			return false
		}
		switch ok := done(); {
		case ok && came:
			t.missed = 0
			return true
		case ok:
			t.lost()
			return true
		case came && !t.canceled.Load():
			if useless++; useless > maxUseless {
				t.giveUp("TPM interrupt storm detected, polling instead")
				return t.poll(d, done)
			}
		}
	}
}

// test polls for the answer, and then looks whether its interrupt came.
func (t *transport) test(d time.Duration, done func() bool) bool {
	ok := t.poll(d, done)
	if !ok {
		return false
	}
	t.tested = true
	select {
	case <-t.wake:
		t.acknowledge()
	case <-time.After(testWait):
		t.giveUp("[Firmware Bug]: TPM interrupt not working, polling instead")
	}
	return true
}

// lost counts an answer whose interrupt did not come, or comes too late to be of use.
func (t *transport) lost() {
	t.missed++
	select {
	case <-t.wake: // it came just now
		t.acknowledge()
		t.missed = 0
		return
	case <-time.After(time.Millisecond):
	}
	// The line may be masked by one that was never seen.
	t.acknowledge()
	if t.missed >= maxMissed {
		t.giveUp("[Firmware Bug]: TPM interrupt not working, polling instead")
	}
}

// giveUp turns the interrupt off for good. The locality is active.
func (t *transport) giveUp(why string) {
	t.log.Error(fmt.Sprintf("tpm_tis %s: %s", t.dev.Address(), why))
	_ = t.mask()
}

// mask turns the interrupt off, at the TPM first. The locality is active.
func (t *transport) mask() error {
	t.irq = nil
	t.regs.Write32(regINTEN, t.regs.Read32(regINTEN)&^intGlobal)
	return t.cut()
}

// cut takes the interrupt away from whoever waits for it.
func (t *transport) cut() error {
	if t.handler == nil {
		return nil
	}
	if err := errors.Join(t.handler.Close(), t.dev.DisableIRQs()); err != nil {
		return t.errorf("disabling the interrupt: %w", err)
	}
	return nil
}

// disable is mask for who has not the locality.
func (t *transport) disable() error {
	if t.irq == nil {
		return nil
	}
	t.regs.Write8(regACCESS, uint8(accRequestUse))
	defer t.End()
	return t.mask()
}
