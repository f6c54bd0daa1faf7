// Package e1000 drives Intel's gigabit Ethernet controllers of the e1000 family:
//
//	8086:10d3  82574L   PCI Express; QEMU's "e1000e"
//	8086:100e  82540EM  PCI; QEMU's "e1000"
//	8086:100f  82545EM  PCI-X; QEMU's "e1000-82545em"
//
// # Sources
//
// "PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual",
// Intel 317453, revision 4.0 (the SDM; section numbers without a name are from it), and
// "Intel 82574 GbE Controller Family Datasheet", Intel 317694, revision 3.4 (quoted as
// 82574L). The chips are driven in the same way where they agree, which is all of the
// data path: legacy descriptors of 16 bytes, one transmit and one receive queue.
//
// # Options
//
//	bus=intx                interrupts: intx, or, 82574L, msi or msix; the best there is by default
//	mac=52:54:00:12:34:56   station address instead of the EEPROM's
//	ring=1024               descriptors in each ring: a power of two from 64 to 4096
//
// # Frames
//
// The MTU is 1500 bytes; frames of 14 to 1518 bytes (one VLAN tag) without frame check
// sequence are sent, padded with zeros to 60 bytes in their buffer; the hardware adds the
// sequence.
// Received frames are those to the station address, broadcasts, and nothing else: no
// promiscuous mode, no multicast. Each takes one descriptor with a buffer of 2048
// bytes. No offload is used.
//
// # Transmit
//
// A burst is written to the ring, then the tail register once. Every 32nd descriptor
// and the last of a burst ask for a status report (RS); the driver looks only at those, and
// never at a register, so that a burst costs the device one write-back per 32 frames.
//
// # Receive
//
// The ring is refilled while it is emptied, in chunks of an eighth of the ring and at
// most 32, each with one tail write. A buffer that the program still holds is not
// replaced until it is freed or another one is free.
//
// # Interrupts
//
// 82574L: MSI-X with three vectors, NAME-rx-0, NAME-tx-0 and NAME (link, overrun); one MSI
// or INTx where there is no MSI-X. 82540EM and 82545EM: INTx. A queue's cause is armed by the
// goroutine that waits, masked when it fires, and every masking is followed by a signal to
// the waiter, so a frame that arrives between the last look and the arming is never
// slept over: the cause stays pending in ICR and fires when it is armed.
//
// # Locks
//
// txQueue.mu and rxQueue.mu are held for the length of a burst, so that Close can end
// a queue that somebody uses; nic.statsMu before either. A queue still belongs to one
// goroutine at a time.
//
// # Counters
//
// From the statistics registers, which clear when read and are added up in 64 bits, and
// the driver's own. Bytes are reported without frame check sequences: the hardware's
// receive count less 4 for each frame, and what the driver gave the device to send.
//
// # Known quirks of QEMU's models
//
//   - 82540EM and 82545EM: receive nothing for 1.0 s after each write to RCTL, so RCTL is written
//     once, and the queue's Free says 0 until that time is over. CTRL.RST does not reset
//     the registers. MPC is not cleared by reading. Interrupts are 128 us apart at
//     least. All are tied to QEMU's subsystem ID 1af4:1100 where they change anything.
//   - 82574L: ICR is not cleared by reading while anything is unmasked (nor is it in
//     the chip), so everything is masked first. Overrun frames are not counted. A frame whose Ethernet
//     type is IPv4 and whose header length is wrong is dropped without a count.
//   - Link is up after reset, and restarting auto-negotiation takes it down for
//     0.5 s: it is not restarted.
package e1000
