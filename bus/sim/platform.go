package sim

import (
	"fmt"
	"slices"
)

// HardwareIDs are what firmware calls a platform device, none for a function; bus.Platform.
func (d *device) HardwareIDs() []string { return slices.Clone(d.hdr.platform) }

// isPlatform says whether the device is no PCI function. It has no config space then, nobody enumerates it,
// and its regions are where they are for good.
func (d *device) isPlatform() bool { return len(d.hdr.platform) > 0 }

// standing finds out which of its name it is, and where its regions are.
func (d *device) standing() {
	d.nth = d.spec.Number
	for _, x := range d.m.devices {
		if x.isPlatform() && x.hdr.platform[0] == d.hdr.platform[0] {
			d.nth = max(d.nth, x.nth+1)
		}
	}
	d.bars = slices.Clone(d.hdr.regions)
}

// platformLine is the input of the interrupt controller that platform devices share, for messages.
const platformLine = 5

// lineOf is the line that the device's pin is wired to, and its number for messages. Slots are swizzled, as on
// package qemu's machine.
func (d *device) lineOf() (l *line, number int) {
	if d.isPlatform() {
		return &d.m.lines[pciLines], platformLine
	}
	i := d.input
	return &d.m.lines[i], firstLine + i
}

// Address is where the device stands: what a platform device is called on the kernel's bus.
func (d *device) Address() string {
	if d.isPlatform() {
		return fmt.Sprintf("%s:%02x", d.hdr.platform[0], d.nth)
	}
	return d.addr.String()
}
