package measure

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
)

// Command codes that are sent, or refused to others (TPM 2.0 part 2, 6.5.2).
const (
	ccPCRSetAuthPolicy      = 0x0000012c
	ccEventSequenceComplete = 0x00000185
	ccPCREvent              = 0x0000013c
	ccPCRReset              = 0x0000013d
	ccGetCapability         = 0x0000017a
	ccPCRRead               = 0x0000017e
	ccPCRExtend             = 0x00000182
	ccPCRSetAuthValue       = 0x00000183
)

// Ordinals of TPM 1.2 (part 2, 17).
const (
	ordExtend             = 0x00000014
	ordPCRRead            = 0x00000015
	ordSHA1CompleteExtend = 0x000000a3
	ordPCRReset           = 0x000000c8
	ordExecuteTransport   = 0x000000e6
)

const (
	capPCRs   = 5          // TPM_CAP_PCRS
	handlePW  = 0x40000009 // TPM_RS_PW, a password session
	selectLen = 3          // bytes of a selection: 24 PCRs
)

// chip is the TPM as this package uses it: its few commands, in both languages.
type chip struct {
	x      tpmdd.Exchanger
	family tpmdd.Family
	name   string
}

// run sends a command and gives the parameters of its answer. An answer with an error code is an error here.
func (c *chip) run(ctx context.Context, what string, cmd []byte) ([]byte, error) {
	ans, err := c.x.Transmit(ctx, cmd)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", c.name, what, err)
	}
	h, ok := tpmdd.ParseHeader(ans)
	if !ok || int64(h.Length) != int64(len(ans)) {
		return nil, fmt.Errorf("%s: %s: answer of %d bytes: want a header with its length: %w", c.name, what, len(ans), bus.ErrProtocol)
	}
	if h.Code != 0 {
		return nil, fmt.Errorf("%s: %s: TPM %s answers %#x: want 0", c.name, what, c.family, h.Code)
	}
	return ans[tpmdd.HeaderSize:], nil
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
	what := "listing the banks"
	var params []byte
	for _, v := range []uint32{capPCRs, 0, 1} {
		params = binary.BigEndian.AppendUint32(params, v)
	}
	p, err := c.run(ctx, what, tpmdd.Command(tpmdd.TagNoSessions, ccGetCapability, params...))
	if err != nil {
		return nil, err
	}
	if len(p) < 9 || binary.BigEndian.Uint32(p[1:]) != capPCRs {
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

// read reads a PCR (TPM2_PCR_Read, part 3, 22.4; TPM_PCRRead, 1.2 part 3, 16.2).
func (c *chip) read(ctx context.Context, b Bank, pcr int) ([]byte, error) {
	what := fmt.Sprintf("reading PCR %s:%d", b, pcr)
	if c.family == tpmdd.TPM12 {
		p, err := c.run(ctx, what, tpmdd.Command(tpmdd.TagRequest12, ordPCRRead, binary.BigEndian.AppendUint32(nil, uint32(pcr))...))
		if err == nil && len(p) != SHA1.Size() {
			err = c.short(what, p)
		}
		return p, err
	}
	params := []byte{0, 0, 0, 1, byte(b >> 8), byte(b), selectLen, 0, 0, 0}
	params[7+pcr/8] = 1 << (pcr % 8)
	p, err := c.run(ctx, what, tpmdd.Command(tpmdd.TagNoSessions, ccPCRRead, params...))
	if err != nil {
		return nil, err
	}
	// update counter, the selection again, a list of one digest
	head := 4 + len(params)
	if len(p) != head+4+2+b.Size() || binary.BigEndian.Uint32(p[head:]) != 1 {
		return nil, c.short(what, p)
	}
	return p[head+6:], nil
}

// extend adds one digest for each bank to a PCR (TPM2_PCR_Extend, part 3, 22.2; TPM_Extend, 1.2 part 3, 16.1).
func (c *chip) extend(ctx context.Context, pcr int, banks []Bank, digest func(Bank) []byte) error {
	what := fmt.Sprintf("extending PCR %d", pcr)
	params := binary.BigEndian.AppendUint32(nil, uint32(pcr))
	if c.family == tpmdd.TPM12 {
		_, err := c.run(ctx, what, tpmdd.Command(tpmdd.TagRequest12, ordExtend, append(params, digest(SHA1)...)...))
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
	_, err := c.run(ctx, what, tpmdd.Command(tpmdd.TagSessions, ccPCRExtend, params...))
	return err
}
