package measure

import (
	"bytes"
	"fmt"
)

// Replay computes what a PCR of a bank holds after the entries that are for it, from its value after a reset. Template
// digests are computed from the entries' data; those that the list states are not asked. A bank of an algorithm
// that is not computed here cannot be replayed.
func Replay(entries []Entry, pcr int, bank Bank) ([]byte, error) {
	if bank.newHash() == nil {
		return nil, fmt.Errorf("replaying PCR %d: bank %s: want sha1, sha256, sha384 or sha512", pcr, bank)
	}
	v := resetValue(pcr, bank)
	for _, e := range entries {
		if e.PCR != pcr {
			continue
		}
		d, _ := e.Digest(bank)
		v = bank.Sum(v, d)
	}
	return v, nil
}

// resetValue is what a PCR holds after a reset: those of the dynamic root of trust ones, all others zeros (PC Client
// Platform TPM Profile 1.05, 4.6).
func resetValue(pcr int, bank Bank) []byte {
	v := make([]byte, bank.Size())
	if pcr >= 17 && pcr <= 22 {
		v = bytes.Repeat([]byte{0xff}, len(v))
	}
	return v
}

// bootAggregate is the digest that ties a list to a boot, over the PCRs from 0 on: ten of the SHA-256 bank (PCRs 8 and 9
// have the kernel and its command line), eight of the SHA-1 bank.
func bootAggregate(bank Bank, read func(pcr int) ([]byte, error)) ([]byte, error) {
	var parts [][]byte
	for pcr := range bootPCRs(bank) {
		v, err := read(pcr)
		if err != nil {
			return nil, err
		}
		parts = append(parts, v)
	}
	return bank.Sum(parts...), nil
}

func bootPCRs(bank Bank) int {
	if bank == SHA1 {
		return 8
	}
	return 10
}

// CheckBootAggregate compares the first entry of a list with the PCRs of the bank that it was made of. pcr gives a
// PCR's value, nil where it is not known.
func CheckBootAggregate(entries []Entry, pcr func(bank Bank, n int) []byte) error {
	if len(entries) == 0 {
		return fmt.Errorf("boot_aggregate: the list is empty")
	}
	ev, err := entries[0].Event()
	if err != nil {
		return fmt.Errorf("boot_aggregate: the first entry: %w", err)
	}
	if ev.Name != BootAggregate || entries[0].Template != TemplateFile {
		return fmt.Errorf("boot_aggregate: the first entry is %q %q: want %s %s", entries[0].Template, ev.Name, TemplateFile, BootAggregate)
	}
	bank, err := ParseBank(ev.Alg)
	if err != nil {
		return fmt.Errorf("boot_aggregate: %w", err)
	}
	want, err := bootAggregate(bank, func(n int) ([]byte, error) {
		if v := pcr(bank, n); v != nil {
			return v, nil
		}
		return nil, fmt.Errorf("boot_aggregate: it is over PCRs 0 to %d of the bank %s: the value of PCR %d is not known", bootPCRs(bank)-1, bank, n)
	})
	if err != nil {
		return err
	}
	if !bytes.Equal(want, ev.Digest) {
		return fmt.Errorf("boot_aggregate: the list says %s:%x: PCRs 0 to %d make %x", bank, ev.Digest, bootPCRs(bank)-1, want)
	}
	return nil
}
