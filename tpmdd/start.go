package tpmdd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// TPMError is an answer that is an error code, to a command that ring3 sent for itself.
type TPMError struct {
	Code uint32
	What string // was attempted
}

func (e *TPMError) Error() string {
	return fmt.Sprintf("A TPM error (%d) occurred %s", e.Code, e.What)
}

// Ask sends a command of ring3's own and returns the parameters of the answer. An error code in it is a *TPMError, which
// says what was attempted.
func Ask(ctx context.Context, x Exchanger, what string, cmd []byte) ([]byte, error) {
	answer, err := x.Transmit(ctx, cmd)
	if err != nil {
		return nil, err
	}
	h, ok := ParseHeader(answer)
	if !ok {
		return nil, fmt.Errorf("%s: an answer of %d bytes: %w (%w)", what, len(answer), unix.EFAULT, bus.ErrProtocol)
	}
	if h.Code != 0 {
		return nil, &TPMError{Code: h.Code, What: what}
	}
	return answer[HeaderSize:], nil
}

// Complain logs that a TPM refused a command of ring3's own, where the kernel does: that it is switched off, or tests
// itself, is no news.
func (c *Chip) Complain(err error) {
	var e *TPMError
	if errors.As(err, &e) && e.Code != RCDisabled && e.Code != RCDeactivated && e.Code != RCTesting {
		c.log.Error(fmt.Sprintf("tpm %s: %v", c.o.Name, e))
	}
}

// codeOf is the TPM's error code in err; 0 where there is none.
func codeOf(err error) uint32 {
	if e, ok := err.(*TPMError); ok {
		return e.Code
	}
	return 0
}

// start finds out the family, and brings the TPM into operation.
func (c *Chip) start(x Exchanger) error {
	ctx := context.Background()
	// A command that changes nothing: TPM 1.2 refuses it, with its own tag.
	answer, err := x.Transmit(ctx, GetCapability(CapProperties, ptTotal, 1))
	if err != nil {
		return err
	}
	switch h, _ := ParseHeader(answer); h.Tag {
	case TagNoSessions:
		c.found(TPM20)
		return c.start20(ctx, x)
	case TagResponse12:
		c.found(TPM12)
		return c.start12(ctx, x)
	default:
		return c.errorf("asking for the family: an answer with tag %#x, want %#x or %#x: %w (%w)", h.Tag, TagNoSessions, TagResponse12, unix.EIO, bus.ErrProtocol)
	}
}

// found sets the family.
func (c *Chip) found(f Family) {
	c.identity.Family = f
	if c.o.Found != nil {
		c.o.Found(f)
	}
}

// GetCapability is TPM2_GetCapability (part 3, 30.2).
func GetCapability(capability, property, count uint32) []byte {
	return Command(TagNoSessions, CCGetCapability, be32(capability, property, count)...)
}

// be32 puts numbers one after the other.
func be32(v ...uint32) (p []byte) {
	for _, x := range v {
		p = binary.BigEndian.AppendUint32(p, x)
	}
	return p
}

// be16 puts a number.
func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

// start20 tests a TPM 2.0, and starts it where the firmware has not.
func (c *Chip) start20(ctx context.Context, x Exchanger) error {
	c.t.SetTimeouts(timeouts20)
	c.identity = Identity{Family: TPM20, Timeouts: timeouts20, Durations: durations20}
	err := c.selfTest20(ctx, x)
	if codeOf(err) == RCInitialize {
		c.log.Info(fmt.Sprintf("tpm %s: starting up the TPM manually", c.o.Name))
		if _, err := Ask(ctx, x, "attempting to start the TPM", Command(TagNoSessions, CCStartup, be16(suClear)...)); err != nil && codeOf(err) != RCInitialize {
			return err
		}
		err = c.selfTest20(ctx, x)
	}
	if err != nil {
		return err
	}
	c.identity.PCRs = PCRs
	c.identity.Banks, err = banks(ctx, x)
	return err
}

// selfTest20 asks for the test of what is untested yet, and where that fails of everything.
func (c *Chip) selfTest20(ctx context.Context, x Exchanger) (err error) {
	for full := range byte(2) {
		_, err = Ask(ctx, x, "attempting the self test", Command(TagNoSessions, CCSelfTest, full))
		if e := codeOf(err); err == nil || e == RCTesting {
			return nil
		} else if e == RCInitialize || e == 0 {
			return err
		}
	}
	c.log.Error(fmt.Sprintf("tpm %s: %v", c.o.Name, err))
	return err
}

// hashes are the algorithms of PCR banks (TCG Algorithm Registry 1.32, table 3). The kernel shows nothing of those without a name.
var hashes = []Bank{
	{0x0004, "sha1", 20}, {0x000b, "sha256", 32}, {0x000c, "sha384", 48}, {0x000d, "sha512", 64}, {0x0012, "sm3", 32},
	{0x0027, "", 32}, {0x0028, "", 48}, {0x0029, "", 64}, // SHA-3
}

// FindBank is the bank of an algorithm (TPM_ALG_ID). It says false where the algorithm is not known here.
func FindBank(alg uint16) (Bank, bool) {
	if i := slices.IndexFunc(hashes, func(b Bank) bool { return b.Alg == alg }); i >= 0 {
		return hashes[i], true
	}
	return Bank{Alg: alg}, false
}

// maxBanks is TPM_ALG's: a TPM that says more lies.
const maxBanks = 16

// Allocation are the registers that one bank has.
type Allocation struct {
	Bank Bank   // its Size is 0 where the algorithm is not known here
	PCRs []byte // a bit for each, PCR 0 the first byte's lowest
}

// Has says whether the bank has a register.
func (a Allocation) Has(pcr int) bool {
	return pcr/8 < len(a.PCRs) && a.PCRs[pcr/8]&(1<<(pcr%8)) != 0
}

// Allocations lists the banks of a TPM 2.0, those without registers too (part 2, 10.9.7).
func Allocations(ctx context.Context, x Exchanger) ([]Allocation, error) {
	const what = "get tpm pcr allocation"
	p, err := Ask(ctx, x, what, GetCapability(CapPCRs, 0, 1))
	if err != nil {
		return nil, err
	}
	bad := fmt.Errorf("%s: %d bytes that make no sense: %w (%w)", what, len(p), unix.EFAULT, bus.ErrProtocol)
	if len(p) < 9 || binary.BigEndian.Uint32(p[1:]) != CapPCRs {
		return nil, bad
	}
	n := binary.BigEndian.Uint32(p[5:])
	if n > maxBanks {
		return nil, bad
	}
	var out []Allocation
	for p = p[9:]; n > 0; n-- {
		if len(p) < 3 || len(p) < 3+int(p[2]) {
			return nil, bad
		}
		bank, _ := FindBank(binary.BigEndian.Uint16(p))
		out = append(out, Allocation{bank, p[3 : 3+int(p[2])]})
		p = p[3+int(p[2]):]
	}
	return out, nil
}

// banks are those of a TPM 2.0 in which some register is allocated.
func banks(ctx context.Context, x Exchanger) ([]Bank, error) {
	all, err := Allocations(ctx, x)
	if err != nil {
		return nil, err
	}
	var out []Bank
	for _, a := range all {
		// Of an algorithm that is not known nothing can be shown, nor extended.
		if a.Bank.Size > 0 && slices.ContainsFunc(a.PCRs, func(b byte) bool { return b != 0 }) {
			out = append(out, a.Bank)
		}
	}
	return out, nil
}

// stop shuts the TPM down in order (part 3, 9.4; TPM 1.2 part 3, 3.3).
func (c *Chip) stop(x Exchanger) error {
	cmd := Command(TagNoSessions, CCShutdown, be16(suClear)...)
	if c.Family() == TPM12 {
		cmd = Command(TagRequest12, OrdSaveState)
	}
	_, err := Ask(context.Background(), x, "stopping the TPM", cmd)
	if codeOf(err) != 0 {
		return nil // it may have been disabled, or be failing; it will be off soon
	}
	return err
}

// Suspend saves the TPM's state and lets nobody use it until Resume; bus.PowerHandler's words for a chip. The command
// in flight ends first.
func (c *Chip) Suspend(ctx context.Context) error {
	if err := c.take(ctx); err != nil {
		return err
	}
	defer c.release()
	if err := c.gone(); err != nil {
		return err
	}
	err := c.hold(ctx, 0, func(x Exchanger) error {
		if c.Family() == TPM12 {
			return saveState12(ctx, x)
		}
		_, err := Ask(ctx, x, "suspend", Command(TagNoSessions, CCShutdown, be16(suState)...))
		return err
	})
	if err == nil {
		c.asleep.Store(true)
	}
	return err
}

// Resume lets the TPM be used again. Where it lost its power meanwhile, and the firmware did not start it, it is started
// with the state that was saved.
func (c *Chip) Resume(ctx context.Context) error {
	if !c.asleep.Load() {
		return nil
	}
	if err := c.take(ctx); err != nil {
		return err
	}
	defer c.release()
	c.asleep.Store(false)
	if err := c.gone(); err != nil {
		return err
	}
	return c.hold(ctx, 0, func(x Exchanger) error {
		if r, ok := c.t.(Resumer); ok {
			r.Resumed()
		}
		if c.Family() == TPM12 {
			_, err := Ask(ctx, x, "continue selftest", Command(TagRequest12, OrdContinueSelfTest))
			if codeOf(err) == RCPostInit {
				_, err = Ask(ctx, x, "attempting to start the TPM", Command(TagRequest12, OrdStartup, be16(stState)...))
			}
			return c.tolerate(err)
		}
		err := c.selfTest20(ctx, x)
		if codeOf(err) == RCInitialize {
			if _, err = Ask(ctx, x, "attempting to start the TPM", Command(TagNoSessions, CCStartup, be16(suState)...)); err == nil {
				err = c.selfTest20(ctx, x)
			}
		}
		return err
	})
}

// selfTestPoll is how often a TPM 1.2 that tests itself is asked.
const selfTestPoll = 100 * time.Millisecond
