package tpmdd

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

const stState = 2 // TPM_ST_STATE

// GetCapability12 is TPM_GetCapability (TPM 1.2 part 3, 7.1) with a subcapability of 4 bytes, or none.
func GetCapability12(area uint32, sub ...uint32) []byte {
	return Command(TagRequest12, OrdGetCapability, append(be32(area, uint32(4*len(sub))), be32(sub...)...)...)
}

// Capability12 asks for a capability that has at least n bytes.
func Capability12(ctx context.Context, x Exchanger, what string, n int, cmd []byte) ([]byte, error) {
	p, err := Ask(ctx, x, what, cmd)
	if err != nil {
		return nil, err
	}
	if len(p) < 4+n || int64(binary.BigEndian.Uint32(p)) > int64(len(p)-4) || int(binary.BigEndian.Uint32(p)) < n {
		return nil, fmt.Errorf("%s: %d bytes, want a list of %d: %w (%w)", what, len(p), n, unix.EFAULT, bus.ErrProtocol)
	}
	return p[4 : 4+binary.BigEndian.Uint32(p)], nil
}

// start12 starts a TPM 1.2 where the firmware has not, asks for its times and has it test itself.
func (c *Chip) start12(ctx context.Context, x Exchanger) error {
	c.identity = Identity{Family: TPM12, Timeouts: timeouts12, Durations: durationsEarly, PCRs: PCRs, Banks: hashes[:1]}
	if err := c.times12(ctx, x); err != nil {
		return err
	}
	if err := c.selfTest12(ctx, x); err != nil {
		return err
	}
	if p, err := Capability12(ctx, x, "attempting to determine the number of PCRs", 4, GetCapability12(Cap12Prop, propPCR)); err == nil {
		if n := binary.BigEndian.Uint32(p); n > 0 && n <= 256 {
			c.identity.PCRs = int(n)
		}
	}
	return nil
}

// times12 reads timeouts and durations, in microseconds (TPM 1.2 part 2, 21.2), and mends what some chips get wrong: zeros,
// and milliseconds.
func (c *Chip) times12(ctx context.Context, x Exchanger) error {
	const what = "attempting to determine the timeouts"
	ask := func() ([]byte, error) {
		return Capability12(ctx, x, what, 16, GetCapability12(Cap12Prop, propTimeout))
	}
	p, err := ask()
	if codeOf(err) == RCPostInit {
		c.log.Info(fmt.Sprintf("tpm %s: starting up the TPM manually", c.o.Name))
		if _, err := Ask(ctx, x, "attempting to start the TPM", Command(TagRequest12, OrdStartup, be16(startClear)...)); err != nil {
			return err
		}
		p, err = ask()
	}
	if err != nil {
		return err
	}
	us := func(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }
	id := &c.identity
	said := [4]uint64{}
	for i := range said {
		said[i] = uint64(binary.BigEndian.Uint32(p[4*i:]))
	}
	t := said
	for i, def := range []time.Duration{timeouts12.A, timeouts12.B, timeouts12.C, timeouts12.D} {
		if t[i] == 0 {
			t[i], id.TimeoutsAdjusted = uint64(def.Microseconds()), true
		}
	}
	if t[0] < 1000 {
		for i := range t {
			t[i] *= 1000
		}
		id.TimeoutsAdjusted = true
	}
	if id.TimeoutsAdjusted {
		c.log.Info(fmt.Sprintf("tpm %s: [Hardware Error]: Adjusting reported timeouts: A %d->%dus B %d->%dus C %d->%dus D %d->%dus", c.o.Name,
			said[0], t[0], said[1], t[1], said[2], t[2], said[3], t[3]))
	}
	for i := range t {
		if us(t[i]) > longestTimeout {
			t[i], id.TimeoutsAdjusted = uint64(longestTimeout.Microseconds()), true
		}
	}
	id.Timeouts = Timeouts{A: us(t[0]), B: us(t[1]), C: us(t[2]), D: us(t[3])}
	c.t.SetTimeouts(id.Timeouts)

	if p, err = Capability12(ctx, x, "attempting to determine the durations", 12, GetCapability12(Cap12Prop, propDuration)); err != nil {
		return err
	}
	d := Durations{Short: us(uint64(binary.BigEndian.Uint32(p))), Medium: us(uint64(binary.BigEndian.Uint32(p[4:]))), Long: us(uint64(binary.BigEndian.Uint32(p[8:])))}
	if d.Short < 10*time.Millisecond {
		d = Durations{Short: time.Second, Medium: d.Medium * 1000, Long: d.Long * 1000}
		id.DurationsAdjusted = true
		c.log.Info(fmt.Sprintf("tpm %s: Adjusting TPM timeout parameters.", c.o.Name))
	}
	for _, v := range []*time.Duration{&d.Short, &d.Medium, &d.Long} {
		if *v > longestDuration {
			*v, id.DurationsAdjusted = longestDuration, true
		}
	}
	id.Durations = d
	return nil
}

// selfTest12 lets the TPM finish its test, and waits until it takes commands.
func (c *Chip) selfTest12(ctx context.Context, x Exchanger) error {
	if _, err := Ask(ctx, x, "continue selftest", Command(TagRequest12, OrdContinueSelfTest)); err != nil {
		return err
	}
	var err error
	for end := time.Now().Add(c.Duration(OrdContinueSelfTest)); ; {
		_, err = Ask(ctx, x, "attempting to read a pcr value", pcrRead12(0))
		if codeOf(err) != RCDoingSelfTest || time.Now().After(end) {
			break
		}
		time.Sleep(selfTestPoll)
	}
	return c.tolerate(err)
}

// saveState12 saves the state of a TPM 1.2, again while that is busy with something of its own.
func saveState12(ctx context.Context, x Exchanger) (err error) {
	const tries = 50
	for range tries {
		if _, err = Ask(ctx, x, "suspend", Command(TagRequest12, OrdSaveState)); codeOf(err) != RCRetry12 {
			return err
		}
		time.Sleep(selfTestPoll)
	}
	return err
}

// tolerate lets a TPM 1.2 pass that is switched off: it takes the commands that switch it on.
func (c *Chip) tolerate(err error) error {
	if e := codeOf(err); e == RCDisabled || e == RCDeactivated {
		c.log.Info(fmt.Sprintf("tpm %s: TPM is disabled/deactivated (0x%X)", c.o.Name, e))
		return nil
	}
	return err
}

// CreateEK makes the endorsement key of a TPM 1.2 that has none, as its maker does before it is sold: RSA of 2048 bits
// (TPM 1.2 part 3, 14.1). It says false where there was one.
func CreateEK(ctx context.Context, x Exchanger) (made bool, err error) {
	var nonce [20]byte
	_, err = Ask(ctx, x, "reading the endorsement key", Command(TagRequest12, OrdReadPubek, nonce[:]...))
	if codeOf(err) != RCNoEndorsement {
		return false, err
	}
	p := append(nonce[:], be32(1)...)      // TPM_ALG_RSA
	p = append(p, be16(3)...)              // TPM_ES_RSAESOAEP_SHA1_MGF1
	p = append(p, be16(1)...)              // TPM_SS_NONE
	p = append(p, be32(12, 2048, 2, 0)...) // TPM_RSA_KEY_PARMS: bits, primes, the default exponent
	_, err = Ask(ctx, x, "making the endorsement key", Command(TagRequest12, OrdCreateEK, p...))
	return err == nil, err
}
