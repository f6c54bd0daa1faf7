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
// 82574L). The chips are driven in the same way where they agree, which is nearly all of the
// data path: legacy descriptors of 16 bytes, context and data descriptors for frames that want
// something of the device; extended receive descriptors only with two queues.
//
// # Options
//
//	bus=intx                interrupts: intx, or, 82574L, msi or msix; the best there is by default
//	eeprom=check            check refuses a device whose EEPROM has a wrong checksum, ignore accepts it
//	flow=none               pause frames: none, rx, tx, full, or auto, as agreed with the link's partner
//	itr=0                   interrupts a second, see Interrupts
//	mac=52:54:00:12:34:56   station address instead of the EEPROM's
//	mtu=1500                largest payload: 68 to 9000, or on the 8254x 16110
//	queues=1                transmit and as many receive queues: 1, or 2 on the 82574L
//	ring=1024               descriptors in each ring: a power of two from 64 to 4096
//	weight=64               frames taken at a time by a poll, 1 to 64
//
// In service the parameters of the kernel's drivers stand under their names in
// /sys/module/e1000/parameters (Params), and what ethtool(8) shows and sets comes from netdev's
// optional interfaces.
//
// # Frames
//
// The MTU is 1500 bytes unless mtu= or SetMTU says otherwise; frames of 14 bytes to 18 more than
// the MTU (one VLAN tag) without frame check sequence are sent, padded with zeros to 60 bytes in
// their buffer; the hardware adds the sequence.
// Received frames are those to the station address and broadcasts, and what the address filters
// (SetRxMode) let pass besides. Each takes one descriptor, with a buffer of the smallest of 2048,
// 4096, 8192 and 16384 bytes that fits. A longer frame is one length error.
//
// SetMTU may be called while the queues are in use. Where the buffers' size changes the receiver is
// stopped for 10 ms and begins anew with other buffers: frames received and not taken are lost,
// frames that the program holds stay what they are until it frees them. The packet buffer is divided as
// the EEPROM has it.
//
// # Offloads
//
// What a frame wants of the device, or had done to it, stands in its dma.Meta. On at first: checksums
// both ways, segmentation, and with two queues the hash.
//
//   - TxCsum: TCP and UDP over anything; one context descriptor, which is not written again while it
//     stays the same (with two queues the 82574L does not remember it). Frames that are padded, and sums
//     that are neither TCP's nor UDP's, the driver makes itself.
//   - TxTSO4, and on the 82574L TxTSO6: frames of up to 65535 bytes of IP in one buffer, at most two VLAN
//     tags in them, no extension headers, segments of at least 48 bytes. The driver clears lengths and
//     checksum in the headers and puts the pseudo header's sum without the length in, in the
//     sender's buffer. Data descriptors have up to 8 KiB; on the 8254x not more than
//     four segments. The statistics count such a frame as the device does, the bytes as they are on the wire.
//   - TxVLAN and RxVLAN are one bit, CTRL.VME: switching one switches both.
//   - RxCsum: dma.CsumGood where the device has found the TCP or UDP checksum right and IPv4's too. A frame
//     with a wrong one is received without it.
//   - RxHash, with queues=2: TCP by addresses and ports, other IP by addresses, with the key of Microsoft's
//     examples; odd hashes go to queue 1, and what is not IP to queue 0.
//
// A frame that asks for what is off, or whose Meta does not fit its bytes, is a transmit error and
// freed; no descriptor is written for it.
//
// # Transmit
//
// A burst is written to the ring, then the tail register once. Every 32nd descriptor (or the end of the
// frame that passes it) and the last of a burst ask for a status report (RS); the driver looks only at those, and
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
// 82574L: MSI-X with a vector for each queue, NAME-rx-0, NAME-tx-0 and so on, and NAME (link, overrun); one MSI
// or INTx where there is no MSI-X. 82540EM and 82545EM: INTx. A queue's cause is armed by the
// goroutine that waits, masked when it fires, and every masking is followed by a signal to
// the waiter, so a frame that arrives between the last look and the arming is never
// slept over: the cause stays pending in ICR and fires when it is armed.
//
// Moderation (itr=, InterruptThrottleRate, SetCoalesce) is ITR, or EITR of each queue's vector: a
// fixed number of interrupts a second, or adaptive. Then what a queue carried since its last interrupt
// makes it one of three classes, which are interrupted 70000, 20000 and 4000 times a second at most: a few
// small frames that somebody waits for, a mixture, and bulk. 3 leaves the first class out, as the
// kernel's default does. It is off by default: a queue is masked until its owner has polled it empty,
// which throttles enough where polling is cheap. The link's vector is never limited. The
// unit is 256 ns; QEMU's models make at least 128 us of any interval, also of none.
//
// How a queue is polled (netdev.Poll) is set by weight and by the files napi_defer_hard_irqs and
// gro_flush_timeout.
//
// # Address filters
//
// Receive address 0 is the station's. The first 15 multicast groups have the others, further ones a
// bit each in the multicast table, which lets groups pass that share the bit. Only what differs is
// written, what lets more pass first, so that reception of what stays is not disturbed.
//
// # Link and flow control
//
// The PHY negotiates by itself after reset, and the driver does not restart that: a change of the link interrupts,
// and speed and duplex are read from STATUS. Flow control is off by default, since a wire between two
// devices here has credit (netdev.Wire). It is forced, or, with auto-negotiation, agreed: the
// advertisement in the PHY is changed, negotiation restarted, and the link is away meanwhile. It is
// programmed anew whenever the link comes up.
//
// # Stopped: error recovery and suspend
//
// A device is in service, stopped, or dead, and only a dead one stays so. It is stopped by ErrorDetected (bus.ErrorHandler) and by Suspend
// (bus.PowerHandler). Then the queues take and give nothing, without an error; Wait and Drain wait; the link is down
// (netdev.Link.Stopped), and on a wire with credit the far end has none. Changing a setting gives bus.ErrBusy. A register that reads
// all-ones means nothing: only the bus's own word (bus.Device.Err), or a reset that does not work, ends the device. In service it means
// that the device is gone, if nothing is heard of an error within 50 ms.
//
// An error always wants a reset: what is in the rings stays there until SlotReset finds the device reset, since one whose registers are out of
// reach cannot be told to leave memory alone. SlotReset programs everything that was set before, the PHY's advertisement
// included, but does not restart auto-negotiation; a device that does not answer is dead then, and the vote is Disconnect. ErrorResume, or Resume after Suspend,
// enables both directions. On QEMU's 82574L all of that takes some 10 ms. An instance that was stopped and is not to
// be recovered is closed, as any other.
//
// The queues stay the same objects. A receive ring begins anew with the buffers that it had, a transmit ring with none: the
// owner's next call frees what was in it. Frames that had come and were not taken are rx_dropped; frames that were not known to be sent
// are tx_dropped. A group of frames of which only the last reports counts as not sent as a whole. Statistics go on: what the
// registers had counted since they were read last is made up for by what the driver has counted itself.
//
// # Locks
//
// txQueue.mu and rxQueue.mu are held for the length of a burst, so that Close can end
// a queue that somebody uses; nic.statsMu before either. A queue still belongs to one
// goroutine at a time. nic.confMu, before all of these, is held by whoever changes settings, and by
// the link's handler, which has nic.irqMu before it. nic.mod.mu and nic.nvmMu are taken last.
//
// nic.recMu comes before all others and is held for the length of each step of recovery and suspend; nobody else takes it. Who stops the device makes
// nic.stops odd and then takes and leaves every other lock once: afterwards nobody is left who found it in service.
// Close does not take recMu: it makes the device dead and then waits for confMu.
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
//     as seldom as possible (promiscuous modes, jumbo frames), and the queue's Free says 0 until that time is over. CTRL.RST does not reset
//     the registers (nor those of the 82574L up to QEMU 7.2). MPC is not cleared by reading. Interrupts are 128 us apart at
//     least. All are tied to QEMU's subsystem ID 1af4:1100 where they change anything.
//   - 82574L: ICR is not cleared by reading while anything is unmasked (nor is it in
//     the chip), so everything is masked first. Overrun frames are not counted. A frame whose Ethernet
//     type is IPv4 and whose header length is wrong is dropped without a count.
//   - 82540EM and 82545EM: look at no checksum of received frames; send an empty segment after a
//     last one that is full.
//   - 82574L, before QEMU 8.1: makes IPv4 fragments of a frame that is to be segmented, and of IPv6 nothing that
//     anybody understands. So segmentation is off at first on a device with QEMU's subsystem ID 8086:0000,
//     and credit on a wire counts fragments. It sums the padding of short frames with their data.
//   - 82574L: MSI-X fires at the end of a throttled interval without beginning a new one, so up to
//     twice as often as EITR says. QEMU 7.2 ends itself when MSI-X is switched on or off while such
//     an interval runs, and CTRL.RST resets nothing but the station address there: Close waits for the end
//     of the longest interval.
//   - The multicast table lets unicast frames pass too, whose address has its bit set.
//   - Link is up after reset, and restarting auto-negotiation takes it down for 0.5 s, without an
//     interrupt. When it ends the 82574L switches flow control on by itself; the driver sets what was
//     asked for. The partner that the PHY reports can do no pause frames, and none are sent or obeyed.
package e1000
