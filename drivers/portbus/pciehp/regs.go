package pciehp

import (
	"fmt"
	"strings"

	"github.com/ring3dev/ring3/bus/pci"
)

// events are what a slot's worker acts on: events of Slot Status, where they stand there, and what others ask for.
type events uint32

const (
	evButton   = events(pci.SltStaButton)
	evFault    = events(pci.SltStaFault)
	evPresence = events(pci.SltStaPresence)
	evCommand  = events(pci.SltStaCmd)
	evLink     = events(pci.SltStaLink)
	evDisable  = events(1 << 16) // somebody wants the slot off
)

// watched are the events that are taken in and acknowledged. The latch is looked at when a card is to be switched on, and its
// event, which nobody enables, is left alone, as the kernel does.
const watched = uint16(evButton | evFault | evPresence | evCommand | evLink)

// notification are the bits of Slot Control that let the slot interrupt.
const notification = pci.SltCtlButton | pci.SltCtlFault | pci.SltCtlPresence | pci.SltCtlCmd | pci.SltCtlHP | pci.SltCtlLink

func (e events) String() string {
	var names []string
	for _, n := range []struct {
		bit  events
		name string
	}{{evButton, "button"}, {evFault, "fault"}, {evPresence, "presence"}, {evCommand, "command"}, {evLink, "link"}, {evDisable, "disable"}} {
		if e&n.bit != 0 {
			names, e = append(names, n.name), e&^n.bit
		}
	}
	if e != 0 || len(names) == 0 {
		names = append(names, fmt.Sprintf("%#x", uint32(e)))
	}
	return strings.Join(names, "|")
}

// state is what a slot is in.
type state uint8

// States. The numbers are the kernel's, which its messages show.
const (
	off         state = iota
	blinkingOn        // the button was pressed: on in a moment
	blinkingOff       // off in a moment
	poweringOn
	poweringOff
	on
)

func (s state) String() string {
	names := [...]string{"off", "blinking on", "blinking off", "powering on", "powering off", "on"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %#x", uint8(s))
}

// hex is how the kernel's "%#06x" writes a register: without 0x where it is 0.
func hex(v uint16) string {
	if v == 0 {
		return "000000"
	}
	return fmt.Sprintf("%#04x", v)
}

// keep is, for an indicator, to leave it as it is.
const keep = 0
