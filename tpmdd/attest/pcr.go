package attest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/measure"
)

// ParsePCRs reads a list such as 0-9,16.
func ParsePCRs(s string) ([]int, error) {
	var out []int
	for _, part := range strings.Split(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(from)
		b := a
		if isRange && err == nil {
			b, err = strconv.Atoi(to)
		}
		if err != nil || a < 0 || b < a || b >= tpmdd.PCRs {
			return nil, fmt.Errorf("PCRs %q: %q: want numbers from 0 to %d, such as 0-9,16", s, part, tpmdd.PCRs-1)
		}
		for ; a <= b; a++ {
			out = append(out, a)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// selection is a TPM's form of some PCRs of one bank.
func selection(bank measure.Bank, pcrs []int) tpm2.TPMLPCRSelection {
	bits := make([]byte, tpmdd.PCRs/8)
	for _, n := range pcrs {
		bits[n/8] |= 1 << (n % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMIAlgHash(bank), PCRSelect: bits}}}
}

// selected is the reverse. A quote of several banks is none that we asked for.
func selected(l tpm2.TPMLPCRSelection) (measure.Bank, []int, error) {
	if len(l.PCRSelections) != 1 {
		return 0, nil, fmt.Errorf("PCRs of %d banks: want one", len(l.PCRSelections))
	}
	s := l.PCRSelections[0]
	var out []int
	for i, b := range s.PCRSelect {
		for bit := range 8 {
			if b&(1<<bit) != 0 {
				out = append(out, 8*i+bit)
			}
		}
	}
	return measure.Bank(s.Hash), out, nil
}

// digest is the SHA-256 over the values in the order of their numbers, as quotes and policies have it.
func digest(values map[int]Hex) []byte {
	h := sha256.New()
	for _, n := range slices.Sorted(maps.Keys(values)) {
		h.Write(values[n])
	}
	return h.Sum(nil)
}

// ReadPCRs reads PCRs of a bank.
func (t *TPM) ReadPCRs(bank measure.Bank, pcrs []int) (map[int]Hex, error) {
	out := make(map[int]Hex)
	for _, n := range pcrs {
		step := fmt.Sprintf("reading PCR %s:%d", bank, n)
		if n < 0 || n >= tpmdd.PCRs {
			return nil, t.failed(step, fmt.Errorf("want 0 to %d", tpmdd.PCRs-1))
		}
		rsp, err := tpm2.PCRRead{PCRSelectionIn: selection(bank, []int{n})}.Execute(t)
		if err != nil {
			return nil, t.failed(step, err)
		}
		if len(rsp.PCRValues.Digests) == 0 {
			return nil, t.failed(step, fmt.Errorf("no value: the bank does not have it: %w", bus.ErrNotSupported))
		}
		if v := rsp.PCRValues.Digests[0].Buffer; len(v) != bank.Size() {
			return nil, t.failed(step, fmt.Errorf("value %x: want %d bytes: %w", v, bank.Size(), bus.ErrProtocol))
		}
		out[n] = rsp.PCRValues.Digests[0].Buffer
	}
	if len(out) == 0 {
		return nil, t.failed("reading PCRs", errors.New("none selected"))
	}
	return out, nil
}
