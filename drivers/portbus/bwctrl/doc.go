// Package bwctrl is the service of link bandwidth notification: a port says when its link changes speed or width, be it that the link became
// unreliable, that software asked for it, or that the hardware saves power. This driver acknowledges, counts and tells, and sets the
// speed that the link shall have at most.
//
// It serves root and downstream ports whose link tells, with the name ("pcie_bwctrl") and interrupt ("PCIe bwctrl") that kernels since 6.13 have. In
// kernels before, the service is there and nobody serves it: whether the driver is registered is the host's decision. It
// prints nothing, as the kernel's.
//
// # Events
//
// Each change that the port tells of sends a uevent, "change", for the port, with LINK_SPEED ("8.0 GT/s PCIe") and LINK_WIDTH as they are
// then. Changes that follow each other within [pause] send one. The speed that /sys shows (current_link_speed) is read from the hardware.
//
// # Files
//
// They are ring3's own; the kernel offers the same as a cooling device. In the directory of the service:
//
//	target_link_speed            0644  the highest speed wanted, "8.0 GT/s PCIe". What is written is that, or "8.0", or the number
//	                                   that the specification gives the speed: 1 (2.5 GT/s) to 6 (64.0 GT/s)
//	bandwidth_management_events  0444  how often the speed or width was changed on purpose or for reliability
//	autonomous_bandwidth_events  0444  how often the hardware changed it of its own accord
//
// Writing target_link_speed retrains the link, and returns once that is done. EINVAL: it is no speed. ERANGE: the port does not
// support it. EOPNOTSUPP: the port's capability is of version 1, which has no target. EAGAIN: the link trained, and runs at
// another speed, since the card is slower. ETIMEDOUT: it trained for more than a second. In the last two cases the target stays as it was
// written.
//
// Without an interrupt the events are not counted; the target can be set all the same.
//
// Sources: PCI Express Base 5.0, 6.11, 7.5.3.6 to 7.5.3.8, 7.5.3.18 to 7.5.3.20; Linux, drivers/pci/pcie.
package bwctrl
