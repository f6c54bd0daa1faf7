package sim

import (
	"fmt"
	"strconv"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// TPM is what stands behind a TPM's registers: a command processor. The machine calls it under its lock, one call
// at a time.
type TPM interface {
	// PowerOn is the start of the machine, or power-on reset: Startup must come first again.
	PowerOn()
	// Command executes a command that came from a locality, and gives its answer. The command is what the driver
	// wrote, whole or not, up to 4096 bytes, and remains the caller's; the answer is at most 4096.
	Command(locality int, cmd []byte) []byte
}

// Where a TPM stands (TIS 1.3, 5.2.2; PTP, 6.2). Those after the first are further up, since two cannot be at one
// place.
const (
	tpmBase   = 0xfed40000
	tpmStride = 0x8000
	// tpmMax is the longest command and the longest answer.
	tpmMax = 4096
	// tpmDelay is how long a command takes if nothing is said, and tpmCancelTime one that was cancelled.
	tpmDelay      = time.Millisecond
	tpmCancelTime = 100 * time.Microsecond
	maxTPMDelay   = time.Hour
)

// What firmware calls a TPM (TCG ACPI Specification 1.3, 8).
const (
	tpm12ID = "PNP0C31"
	tpm20ID = "MSFT0101"
)

// tpmOptions are what properties say of both interfaces.
type tpmOptions struct {
	tpm12 bool
	base  uint64
	delay time.Duration
	burst int // 0: as much as there is room
	noIRQ bool
	tpm   TPM
	bad   misbehaviour
}

const (
	delayAbout = "how long a command takes: 5ms (default 1ms)"
	badAbout   = "KIND, KIND:N, KIND:N-M or KIND:N-, several joined by +: what goes wrong, with command N only (from 1), N to M, N and all after; see the package's documentation"
)

// tpmOptionsOf takes the properties apart.
func tpmOptionsOf(o options, kinds map[string]bool) (tpmOptions, error) {
	t := tpmOptions{base: tpmBase + tpmStride*uint64(o.nth), delay: tpmDelay, tpm: o.tpm}
	switch v := o.props["family"]; v {
	case "", "2.0":
	case "1.2":
		t.tpm12 = true
	default:
		return t, fmt.Errorf("property family=%s: want 1.2 or 2.0", v)
	}
	var err error
	if v, ok := o.props["delay"]; ok {
		if t.delay, err = time.ParseDuration(v); err != nil || t.delay < 0 || t.delay > maxTPMDelay {
			return t, fmt.Errorf("property delay=%s: want a duration from 0s to %s, for example 5ms", v, maxTPMDelay)
		}
	}
	if v, ok := o.props["burst"]; ok {
		if t.burst, err = strconv.Atoi(v); err != nil || t.burst < 1 || t.burst > tpmMax {
			return t, fmt.Errorf("property burst=%s: want 1 to %d bytes", v, tpmMax)
		}
	}
	if t.noIRQ, err = isOff(o.props, "irq"); err != nil {
		return t, err
	}
	noEK, err := isOff(o.props, "ek")
	if err != nil {
		return t, err
	}
	if t.bad, err = parseMisbehaviour(o.props["misbehave"], kinds); err != nil {
		return t, err
	}
	if t.tpm == nil {
		t.tpm = newEngine(t.tpm12, noEK)
	}
	return t, nil
}

// isOff reads a property that is on if nothing is said.
func isOff(props map[string]string, name string) (bool, error) {
	switch v := props[name]; v {
	case "", "on":
		return false, nil
	case "off":
		return true, nil
	default:
		return false, fmt.Errorf("property %s=%s: want on or off", name, v)
	}
}

// header is the platform device.
func (t *tpmOptions) header(size uint64, widths int) header {
	h := header{
		platform: []string{tpm20ID},
		regions:  []bus.RegionInfo{{Index: 0, Size: size, Addr: t.base}},
		widths:   map[int]int{0: widths},
	}
	if t.tpm12 {
		h.platform = []string{tpm12ID}
	}
	return h
}

// tpmRun is the command that runs, in virtual time.
type tpmRun struct {
	s    slot
	o    *tpmOptions
	done func(answer []byte)

	timer     *timer
	busy      bool
	locality  int
	cmd       []byte
	number    int // of the command since power-on, from 1
	cancelled bool
}

// reset is power-on.
func (r *tpmRun) reset() {
	r.timer.stop()
	r.busy, r.cancelled, r.number = false, false, 0
	r.o.tpm.PowerOn()
}

// start runs a command. Its effects come when it is done, so a command that is cancelled has none.
func (r *tpmRun) start(locality int, cmd []byte) {
	r.locality, r.cmd = locality, append(r.cmd[:0], cmd...)
	r.busy, r.cancelled = true, false
	switch {
	case r.is("hang"), r.is("wedge"):
	case r.o.delay == 0:
		r.finish()
	default:
		again(&r.timer, r.s, r.o.delay, r.finish)
	}
}

// cancel has a command that runs end soon.
func (r *tpmRun) cancel() {
	if r.busy && !r.cancelled && !r.is("wedge") {
		r.cancelled = true
		again(&r.timer, r.s, min(tpmCancelTime, r.o.delay), r.finish)
	}
}

// is says whether the command that is under way is to go wrong so.
func (r *tpmRun) is(kind string) bool { return r.o.bad.is(kind, r.number) }

func (r *tpmRun) finish() {
	r.busy = false
	r.done(r.answer())
}

// code is an answer that is a result code of the family's.
func (r *tpmRun) code(tpm12, tpm20 uint32) []byte {
	if r.o.tpm12 {
		return tpmAnswer(tagAnswer12, tpm12)
	}
	return tpmAnswer(tagNoSessions, tpm20)
}

func (r *tpmRun) answer() []byte {
	switch {
	case r.cancelled:
		return tpmAnswer(tagNoSessions, rcCanceled)
	case r.is("retry"):
		return r.code(rc12Retry, rcRetry)
	case r.is("testing"):
		return r.code(rc12DoingSelfTest, rcTesting)
	case r.is("fail"):
		return tpmAnswer(tagAnswer12, tpmFail12) // what QEMU answers when it lost its TPM, whatever the family
	}
	return r.mangle(r.o.tpm.Command(r.locality, r.cmd))
}
