package measure

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
)

// Command codes that are refused to others, beside those of package tpmdd (TPM 2.0 part 2, 6.5.2).
const (
	ccPCRSetAuthPolicy      = 0x0000012c
	ccPCREvent              = 0x0000013c
	ccPCRSetAuthValue       = 0x00000183
	ccEventSequenceComplete = 0x00000185
)

// Ordinals of TPM 1.2, likewise (part 2, 17).
const (
	ordSHA1CompleteExtend = 0x000000a3
	ordPCRReset           = 0x000000c8
	ordExecuteTransport   = 0x000000e6
)

// handlePW is TPM_RS_PW, a password session.
const handlePW = 0x40000009

// chip is the TPM as this package uses it: its few commands, in both languages.
type chip struct {
	x      tpmdd.Exchanger
	family tpmdd.Family
	name   string
}

// run sends a command and gives the parameters of its answer.
func (c *chip) run(ctx context.Context, what string, cmd []byte) ([]byte, error) {
	p, err := tpmdd.Ask(ctx, c.x, what, cmd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	return p, nil
}

// short is the error for an answer that does not have what it should.
func (c *chip) short(what string, p []byte) error {
	return fmt.Errorf("%s: %s: parameters %x: %w", c.name, what, p, bus.ErrProtocol)
}

// banks lists the banks that have a PCR (TPM2_GetCapability, part 3, 30.2).
func (c *chip) banks(ctx context.Context, pcr int) ([]Bank, error) {
	if c.family == tpmdd.TPM12 {
		return []Bank{SHA1}, nil
	}
	const what = "attempting to list the banks"
	var params []byte
	for _, v := range []uint32{tpmdd.CapPCRs, 0, 1} {
		params = binary.BigEndian.AppendUint32(params, v)
	}
	p, err := c.run(ctx, what, tpmdd.Command(tpmdd.TagNoSessions, tpmdd.CCGetCapability, params...))
	if err != nil {
		return nil, err
	}
	if len(p) < 9 || binary.BigEndian.Uint32(p[1:]) != tpmdd.CapPCRs {
		return nil, c.short(what, p)
	}
	var out []Bank
	n, rest := binary.BigEndian.Uint32(p[5:]), p[9:]
	for ; n > 0; n-- {
		if len(rest) < 3 || len(rest) < 3+int(rest[2]) {
			return nil, c.short(what, p)
		}
		b, sel := Bank(binary.BigEndian.Uint16(rest)), rest[3:3+int(rest[2])]
		rest = rest[3+len(sel):]
		if pcr/8 >= len(sel) || sel[pcr/8]&(1<<(pcr%8)) == 0 {
			continue // not allocated
		}
		if b.Size() == 0 {
			return nil, fmt.Errorf("%s: PCR %d has a bank of the algorithm %#04x, which cannot be extended as its size is not known: %w", c.name, pcr, uint16(b), bus.ErrNotSupported)
		}
		out = append(out, b)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no bank has PCR %d: %w", c.name, pcr, bus.ErrNotSupported)
	}
	return out, nil
}

// read reads a PCR.
func (c *chip) read(ctx context.Context, b Bank, pcr int) ([]byte, error) {
	v, err := tpmdd.ReadPCR(ctx, c.x, c.family, tpmdd.Bank{Alg: uint16(b), Name: b.String(), Size: b.Size()}, uint32(pcr))
	if err != nil {
		return nil, fmt.Errorf("%s: PCR %s:%d: %w", c.name, b, pcr, err)
	}
	return v, nil
}

// extend adds one digest for each bank to a PCR (TPM2_PCR_Extend, part 3, 22.2; TPM_Extend, 1.2 part 3, 16.1).
func (c *chip) extend(ctx context.Context, pcr int, banks []Bank, digest func(Bank) []byte) error {
	what := fmt.Sprintf("attempting to extend PCR %d", pcr)
	params := binary.BigEndian.AppendUint32(nil, uint32(pcr))
	if c.family == tpmdd.TPM12 {
		_, err := c.run(ctx, what, tpmdd.Command(tpmdd.TagRequest12, tpmdd.OrdExtend, append(params, digest(SHA1)...)...))
		return err
	}
	// A PCR's authorization is the empty password (its session has no nonce, no attributes, no secret).
	params = binary.BigEndian.AppendUint32(params, 9)
	params = binary.BigEndian.AppendUint32(params, handlePW)
	params = append(params, 0, 0, 0, 0, 0)
	params = binary.BigEndian.AppendUint32(params, uint32(len(banks)))
	for _, b := range banks {
		params = binary.BigEndian.AppendUint16(params, uint16(b))
		params = append(params, digest(b)...)
	}
	_, err := c.run(ctx, what, tpmdd.Command(tpmdd.TagSessions, tpmdd.CCPCRExtend, params...))
	return err
}
