// Package vc is the service of virtual channels: what a port has of them is shown, and can be set. The kernel has no such service (the paper of
// 2005 does, and its service bit went to containment since), so names and files are ring3's: the driver is "pcie_vc", its service's
// number 0x20.
//
// # Virtual channels
//
// A packet carries a traffic class, TC 0 to 7. A port has one to eight channels (VC resources), each with queues and flow control of its own;
// a map at either end of the link says which classes take which channel. VC 0 is always on, and carries TC 0. A channel that is enabled at one end only
// is being negotiated, and carries nothing.
//
// Two arbiters choose who sends: the VC arbiter among the channels of the low-priority group, and the port arbiter of each channel among the ports of
// a switch (or root complex) that want to send through this one. Each is fixed in hardware, or goes around a table, whose entries ("phases") say whose turn it is.
//
// # Files
//
// In the service's directory:
//
//	low_priority_vcs      0444  how many channels are in the low-priority group, from vc0 on
//	vc_arbitration        0644  "hardware [wrr32] wrr64 wrr128": what there is, and what is chosen
//	vc_arbitration_table  0644  VC IDs, one for each phase, with blanks between; only where there is a table
//	vcN/id                0644  VC ID
//	vcN/enabled           0644  0 or 1
//	vcN/tc_map            0644  0x%02x: a bit for each traffic class
//	vcN/arbitration       0644  as vc_arbitration, and twrr128, wrr256
//	vcN/slots             0644  the port arbitration table: port numbers, one for each phase; only where there is a table
//	vcN/max_time_slots    0444  the most time slots of time-based arbitration (twrr128)
//	vcN/negotiation_pending 0444  0 or 1
//
// A table has as many phases as the arbitration that is chosen, or, where that is the hardware's, as the largest that there is. It is
// written as a whole, and loaded: the write returns when the port uses it.
//
// # Rules
//
// What the specification forbids is refused, and then nothing has changed:
//
//	EINVAL      no number, no such arbitration, a table of another length, an ID that no channel has in the VC table; VC 0 without TC 0, or TC 0 elsewhere;
//	            VC 0 with another ID or disabled; ID 0 for another channel
//	ERANGE      a number that does not fit
//	EOPNOTSUPP  an arbitration, or a table, that the port does not have
//	EBUSY       a class that another channel has: take it away there first; the ID of a channel that is enabled; the VC arbitration while more than one
//	            channel of the low-priority group is enabled
//	EEXIST      an ID that an enabled channel has
//	EIO         the port did not take the value, or is gone
//	ETIMEDOUT   the port did not load the table within a second; the old one was written back
//
// That nothing is under way in a class that is taken away is for the user to see to (7.9.1.7), as is the other end of the link.
//
// What was set survives a reset of the port and sleep. It stays when the driver goes.
//
// Sources: PCI Express Base 5.0, 2.5, 6.3, 7.9.1.
package vc
