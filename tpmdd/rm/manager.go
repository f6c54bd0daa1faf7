package rm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
)

// Chip is the TPM; a *tpmdd.Chip is one.
type Chip interface {
	tpmdd.Exchanger // one command, alone
	// Do keeps the chip for what f sends through x; nobody else's command comes in between.
	Do(ctx context.Context, f func(x tpmdd.Exchanger) error) error
	Family() tpmdd.Family
}

// Manager is what all spaces of a chip have in common. It is safe for concurrent use.
type Manager struct {
	chip     Chip
	log      *slog.Logger
	commands map[uint32]tpmaCC
}

// New asks a TPM 2.0 for its commands. A nil log discards. It fails with ENODEV for another family and
// where the TPM refuses, with ENODATA where it has no commands (its firmware is being upgraded), with EFAULT where it
// answers nonsense.
func New(ctx context.Context, chip Chip, log *slog.Logger) (*Manager, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if f := chip.Family(); f != tpmdd.TPM20 {
		return nil, fmt.Errorf("tpmrm: a TPM %s has no resource manager: %w: %w", f, unix.ENODEV, bus.ErrNotSupported)
	}
	commands, err := readCommands(ctx, chip)
	if err != nil {
		return nil, fmt.Errorf("tpmrm: reading the list of commands: %w", err)
	}
	return &Manager{chip: chip, log: log, commands: commands}, nil
}

// Open makes a space, with nothing in it.
func (m *Manager) Open() *Space {
	return &Space{m: m, turn: make(chan struct{}, 1)}
}

// tpmaCC is what a TPM says of one command: TPMA_CC (part 2, 8.9).
type tpmaCC uint32

const (
	ccIndex    tpmaCC = 0xffff      // commandIndex
	ccCHandles tpmaCC = 0b111 << 25 // handles in the command
	ccRHandle  tpmaCC = 1 << 28     // the answer has a handle
	ccVendor   tpmaCC = 1 << 29     // V: the vendor's own
)

// code is the command's code: its index, and the bit that says whose it is.
func (a tpmaCC) code() uint32  { return uint32(a & (ccIndex | ccVendor)) }
func (a tpmaCC) handles() int  { return int(a & ccCHandles >> 25) }
func (a tpmaCC) rHandle() bool { return a&ccRHandle != 0 }

// Result codes (part 2, 6.6.3).
const (
	rcHandle      = 0x08b
	rcIntegrity   = 0x09f
	rcReferenceH0 = 0x910
)

// value is a result code without what says which parameter, handle or session is meant.
func value(rc uint32) uint32 {
	if rc&0x80 != 0 {
		return rc & 0xbf
	}
	return rc
}

// pageSize is how many commands are asked for at once. A TPM gives what fits in 1 KiB, which is fewer.
const pageSize = 256

// maxPages is far above what 16 bits of index, at one command a page, make sensible.
const maxPages = 1024

// readCommands asks for the attributes of all commands, page by page.
func readCommands(ctx context.Context, x tpmdd.Exchanger) (map[uint32]tpmaCC, error) {
	all := map[uint32]tpmaCC{}
	next := uint32(tpmdd.CCFirst)
	for range maxPages {
		rsp, err := x.Transmit(ctx, tpmdd.GetCapability(tpmdd.CapCommands, next, pageSize))
		if err != nil {
			return nil, err
		}
		page, more, err := parseCommands(rsp)
		if err != nil {
			return nil, err
		}
		from := next
		for _, a := range page {
			all[a.code()] = fixed(a)
			next = max(next, a.code()+1)
		}
		switch {
		case len(all) == 0:
			return nil, fmt.Errorf("the TPM has none: %w: %w", unix.ENODATA, bus.ErrNotSupported)
		case !more:
			return all, nil
		case next == from:
			return nil, fmt.Errorf("more follow 0x%08x, it says, and gives none: %w: %w", from, unix.EFAULT, bus.ErrProtocol)
		}
	}
	return nil, fmt.Errorf("no end after %d pages: %w: %w", maxPages, unix.EFAULT, bus.ErrProtocol)
}

// fixed corrects the attributes of the commands whose handle is a parameter, for which the TPM says that
// they have none.
func fixed(a tpmaCC) tpmaCC {
	if c := a.code(); c == tpmdd.CCContextSave || c == tpmdd.CCFlushContext {
		return a&^ccCHandles | 1<<25
	}
	return a
}

// parseCommands reads one page of TPM_CAP_COMMANDS.
func parseCommands(rsp []byte) (page []tpmaCC, more bool, err error) {
	h, err := answerHeader(rsp)
	if err != nil {
		return nil, false, err
	}
	if h.Code != 0 {
		return nil, false, fmt.Errorf("the TPM says 0x%x: %w", h.Code, unix.ENODEV)
	}
	more, capability, list, err := parseCapability(rsp)
	if err == nil && capability != tpmdd.CapCommands {
		err = errors.New("another capability than asked for")
	}
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w: %w", err, unix.EFAULT, bus.ErrProtocol)
	}
	for ; len(list) > 0; list = list[4:] {
		page = append(page, tpmaCC(binary.BigEndian.Uint32(list)))
	}
	return page, more, nil
}

// answerHeader checks that what the TPM said is one answer, whole.
func answerHeader(rsp []byte) (tpmdd.Header, error) {
	h, ok := tpmdd.ParseHeader(rsp)
	if !ok || h.Length != uint32(len(rsp)) {
		return h, fmt.Errorf("an answer of %d bytes says that it has %d: %w: %w", len(rsp), h.Length, unix.EIO, bus.ErrProtocol)
	}
	return h, nil
}
