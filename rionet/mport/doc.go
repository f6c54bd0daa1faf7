// Package mport is the driver of a master port over shared memory: QEMU's ivshmem-doorbell with a fabric's daemon behind it (package
// fabricd), or the same device without QEMU (bus/ivshmem). It makes of a bus.Device a [rapidio.Ops].
//
// # The device
//
// PCI 1af4:1110, or the platform device "IVSHMEM": registers (IVPosition says who we are, Doorbell signals others), the shared memory
// (BAR 2; region 1 of the platform device) with what package shm describes, and MSI-X: vector 0 for events, 1 to 4 for the inbound
// mailboxes, 5 for answers. With fewer vectors vector 0 stands for those that are not there. A device whose memory is not a
// fabric's is skipped (pci.ErrSkip).
//
// Memory that the process maps and cannot lose (bus.Holder) is used in place. Any other, as a BAR of VFIO's or QEMU's, is reached by
// the region's accesses and copies: what is published together is written together, so that a burst costs two
// accesses and one for each message.
//
// # How it works
//
// What a node sends goes into one ring, in the order in which it is sent. The daemon is signalled only if it sleeps. Answers are
// taken by whoever looks for one: Results, a call that waits, or the interrupt's goroutine where somebody sleeps. So a busy port takes
// no interrupts. Who waits looks a few times, and offers the processor to others each time, before it sleeps; how often depends on whether
// that helped the last time.
//
// Messages to a node with a direct link (trust: true) go into that node's ring at once: its results are there when Add returns, and
// the daemon has nothing to do with it. As long as the node at the other end has the mailbox closed they go through the
// fabric, which says Error. When a direct link comes into use, messages may overtake earlier ones that are in the fabric still. Peers signal
// each other by themselves; a signal that is lost, as of a peer that was killed before it gave it, costs 50 ms. Who is refused
// for want of room offers the processor to others once: the receiver may be waiting for it.
//
// Events are told by a goroutine that does nothing else; they may wait for Ops. They must not Close the port.
//
// # Ends
//
// The port is gone for good (Done) when the device is: the daemon ended, or what it wrote makes no sense. Everything fails with bus.ErrGone
// then, and messages without a result have Error. Coming back is another device and another port. In a virtual machine the end
// of a daemon cannot be seen: there everything fails with rapidio.ErrNoReply, after the option "timeout".
//
// # Limits
//
// 1024 calls (config accesses, doorbells) may be under way at a time, more wait. Entries of mailboxes are limited by the
// fabric's layout, of direct links to 256.
package mport
