package e1000

import (
	"context"
	"encoding/binary"

	"github.com/ring3dev/ring3/bus"
)

// The first words of the EEPROM, up to the checksum, add up to this, 5.6.35.
const (
	eepromSum   = 0xbaba
	eepromWords = 64
)

// eecdSize8254x is set where the EEPROM has 256 words, 13.4.3; eecdSize82574 is the logarithm of
// the size less 6, 82574L 10.2.2.
const (
	eecdSize8254x eecd = 1 << 9
	eecdSize82574 eecd = 0b1111 << 11
)

// eepromSize is the size of the EEPROM in words.
func (c chip) eepromSize(v eecd) int {
	switch {
	case c.pcie:
		return eepromWords << min(get(v, eecdSize82574), 8)
	case v&eecdSize8254x != 0:
		return 256
	}
	return eepromWords
}

// readEEPROM reads a word, 13.4.4. Called with nvmMu held, or before anybody knows the device.
func (n *nic) readEEPROM(ctx context.Context, word uint32) (uint16, error) {
	l := n.chip.eerd
	n.regs.Write32(regEERD, l.start|put(l.addr, word))
	var v uint32
	if err := n.poll(ctx, eepromTime, func() bool { v = n.regs.Read32(regEERD); return v&l.done != 0 }); err != nil {
		return 0, n.errorf("reading EEPROM word %d: EERD.DONE still clear after %s (EERD=%#x): %w", word, eepromTime, v, err)
	}
	if v == allOnes {
		return 0, n.lost("reading EEPROM word %d: EERD reads all-ones", word)
	}
	return uint16(get(v, l.data)), nil
}

// checkEEPROM adds the words up. Like the kernel's drivers this one refuses a device whose EEPROM is not
// what was programmed, unless it is told not to.
func (n *nic) checkEEPROM(ctx context.Context) error {
	if n.opt.trustEEPROM {
		return nil
	}
	var sum uint16
	for i := range uint32(eepromWords) {
		w, err := n.readEEPROM(ctx, i)
		if err != nil {
			return err
		}
		sum += w
	}
	if sum != eepromSum {
		return n.errorf("EEPROM: the checksum of %d words is %#04x, want %#04x (option eeprom=ignore accepts it): %w", eepromWords, sum, eepromSum, bus.ErrProtocol)
	}
	return nil
}

// EEPROM reads the whole EEPROM; netdev.Ethtooler.
func (n *nic) EEPROM(ctx context.Context) ([]byte, error) {
	n.nvmMu.Lock()
	defer n.nvmMu.Unlock()
	if err := n.alive("EEPROM"); err != nil {
		return nil, err
	}
	v := n.regs.Read32(regEECD)
	if v == allOnes {
		return nil, n.lost("EEPROM: EECD reads all-ones")
	}
	b := make([]byte, 2*n.chip.eepromSize(eecd(v)))
	for i := range len(b) / 2 {
		w, err := n.readEEPROM(ctx, uint32(i))
		if err != nil {
			return nil, err
		}
		binary.LittleEndian.PutUint16(b[2*i:], w)
	}
	return b, nil
}
