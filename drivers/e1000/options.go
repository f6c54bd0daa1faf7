package e1000

import (
	"fmt"
	"net"
	"slices"
	"strconv"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/netdev"
)

// options are the options that Probe understands.
var options = map[string]string{
	"bus":    "interrupts: intx, or, 82574L, msi or msix (default: the best there is)",
	"eeprom": "check: refuse a device whose EEPROM has a wrong checksum; ignore: accept it (default check)",
	"flow":   "pause frames: none, rx (obeyed), tx (sent), full, or auto: as agreed with the link's partner (default none)",
	"itr":    "interrupts a second, 100 to 100000; 0: as many as come; 1: as traffic asks; 3 or adaptive: the same, at most 20000 (default 0)",
	"mac":    "station address, for example 52:54:00:12:34:56 (default: the EEPROM's)",
	"mtu":    fmt.Sprintf("largest payload in bytes, from %d to %d, or on the 8254x %d (default %d)", minMTU, maxMTU82574, maxMTU8254x, defaultMTU),
	"queues": fmt.Sprintf("transmit and as many receive queues, 1 or, 82574L, %d (default 1)", maxQueues),
	"ring":   fmt.Sprintf("descriptors in each ring, a power of two from %d to %d (default %d)", minRing, maxRing, defaultRing),
	"weight": fmt.Sprintf("frames taken at a time by a poll, 1 to %d (default %d)", netdev.Budget, netdev.Budget),
}

// settings are the options that something later asks for.
type settings struct {
	mac net.HardwareAddr // nil: the EEPROM's
	irq string           // one of irqNames, or "": the best there is
	itr int              // InterruptThrottleRate

	trustEEPROM bool
}

// irqNames are the values of the option bus, by mode.
var irqNames = []string{bus.INTx: "intx", bus.MSI: "msi", bus.MSIX: "msix"}

// flowModes are the values of the option flow.
var flowModes = map[string]netdev.Pause{
	"none": {}, "rx": {Rx: true}, "tx": {Tx: true}, "full": {Rx: true, Tx: true}, "auto": {Autoneg: true, Rx: true, Tx: true},
}

// optionError is what a wrong value gives.
func (n *nic) optionError(key, value, format string, args ...any) error {
	return n.errorf("option %s=%s: %s: %w", key, value, fmt.Sprintf(format, args...), pci.ErrOption)
}

// options checks the options.
func (n *nic) options(o map[string]string) error {
	var err error
	if s, ok := o["mac"]; ok {
		if n.opt.mac, err = net.ParseMAC(s); err != nil || !validMAC(n.opt.mac) {
			return n.optionError("mac", s, "want a unicast address of 6 bytes, for example 52:54:00:12:34:56")
		}
	}
	if s, ok := o["ring"]; ok {
		if n.ring, err = strconv.Atoi(s); err != nil || !validRing(n.ring) {
			return n.optionError("ring", s, "want a power of two from %d to %d", minRing, maxRing)
		}
	}
	if s, ok := o["queues"]; ok {
		if n.queues, err = strconv.Atoi(s); err != nil || n.queues < 1 || n.queues > n.chip.queues() {
			return n.optionError("queues", s, "the %s has %d transmit and as many receive queues", n.chip.model, n.chip.queues())
		}
	}
	if s, ok := o["mtu"]; ok {
		mtu, err := strconv.Atoi(s)
		if err != nil || mtu < minMTU || mtu > n.chip.maxMTU() {
			return n.optionError("mtu", s, "the %s takes %d to %d", n.chip.model, minMTU, n.chip.maxMTU())
		}
		n.mtu.Store(int32(mtu))
	}
	if s, ok := o["bus"]; ok {
		switch mode := slices.Index(irqNames, s); {
		case mode < 0:
			return n.optionError("bus", s, "want intx, msi or msix")
		case !n.chip.pcie && mode != int(bus.INTx):
			return n.optionError("bus", s, "the %s has intx only", n.chip.model)
		}
		n.opt.irq = s
	}
	if s, ok := o["eeprom"]; ok {
		if n.opt.trustEEPROM = s == "ignore"; !n.opt.trustEEPROM && s != "check" {
			return n.optionError("eeprom", s, "want check or ignore")
		}
	}
	if s, ok := o["flow"]; ok {
		if n.pause, ok = flowModes[s]; !ok {
			return n.optionError("flow", s, "want none, rx, tx, full or auto")
		}
	}
	if s, ok := o["itr"]; ok {
		if n.opt.itr, err = parseITR(s); err != nil {
			return n.optionError("itr", s, "want 0, 1, 3, adaptive, or %d to %d", minRate, maxRate)
		}
	}
	if s, ok := o["weight"]; ok {
		w, err := strconv.Atoi(s)
		if err != nil || w < 1 || n.SetNAPI(netdev.NAPI{Weight: w}) != nil {
			return n.optionError("weight", s, "want 1 to %d", netdev.Budget)
		}
	}
	return nil
}

// validMAC says whether an address can be a station's: 6 bytes, unicast, not zero.
func validMAC(m net.HardwareAddr) bool {
	return len(m) == 6 && m[0]&1 == 0 && [6]byte(m) != [6]byte{}
}
