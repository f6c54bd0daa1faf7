package measure

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
)

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

// banks lists the banks that have a PCR.
func (c *chip) banks(ctx context.Context, pcr int) ([]Bank, error) {
	if c.family == tpmdd.TPM12 {
		return []Bank{SHA1}, nil
	}
	all, err := tpmdd.Allocations(ctx, c.x)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	var out []Bank
	for _, a := range all {
		if !a.Has(pcr) {
			continue
		}
		if a.Bank.Size == 0 {
			return nil, fmt.Errorf("%s: PCR %d has a bank of the algorithm %#04x, which cannot be extended as its size is not known: %w", c.name, pcr, a.Bank.Alg, bus.ErrNotSupported)
		}
		out = append(out, Bank(a.Bank.Alg))
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no bank has PCR %d: %w", c.name, pcr, bus.ErrNotSupported)
	}
	return out, nil
}

// read reads a PCR.
func (c *chip) read(ctx context.Context, b Bank, pcr int) ([]byte, error) {
	bank, _ := tpmdd.FindBank(uint16(b))
	v, err := tpmdd.ReadPCR(ctx, c.x, c.family, bank, uint32(pcr))
	if err != nil {
		return nil, fmt.Errorf("%s: PCR %s:%d: %w", c.name, b, pcr, err)
	}
	return v, nil
}

// extend adds one digest for each bank to a PCR (TPM2_PCR_Extend, part 3, 22.2; TPM_Extend, 1.2 part 3, 16.1).
func (c *chip) extend(ctx context.Context, pcr int, banks []Bank, digest func(Bank) []byte) error {
	what := fmt.Sprintf("attempting to extend PCR %d", pcr)
	if c.family == tpmdd.TPM12 {
		params := append(binary.BigEndian.AppendUint32(nil, uint32(pcr)), digest(SHA1)...)
		_, err := c.run(ctx, what, tpmdd.Command(tpmdd.TagRequest12, tpmdd.OrdExtend, params...))
		return err
	}
	var digests []tpmdd.Digest
	for _, b := range banks {
		digests = append(digests, tpmdd.Digest{Alg: uint16(b), Sum: digest(b)})
	}
	_, err := c.run(ctx, what, tpmdd.PCRExtend(uint32(pcr), digests...))
	return err
}
