// Package pktgen is the kernel's packet generator on top of ring3's network devices:
// the files of /proc/net/pktgen with the same commands, the same texts and the same
// error numbers, and a data path that builds frames in place in DMA memory.
//
// # Files
//
// [Engine.Dir] is the content of /proc/net/pktgen, every file of mode 0600:
//
//   - pgctrl: start, stop, reset for all threads.
//   - kpktgend_N, one for each CPU: add_device, rem_device_all, and which devices run.
//   - one file for each added device, named as it was added ("eth0", "eth0@3"): its
//     parameters, its counters, its last result.
//   - NAME.rx beside each of them, and for each network device from the start: what arrived there
//     ([Engine.AddRx], [Rx]). The kernel has no such file.
//
// The interface followed is that of Linux 6.15 (net/core/pktgen.c, version 2.75), or of the kernel that
// Config.Profile names; package internal/profile has the differences. Result texts, errno
// values and the places of blanks are interface: scripts read them.
//
// # Threads
//
// Each CPU has one goroutine locked to a thread that is pinned to the CPU and named
// kpktgend_N. It sleeps on a channel while no device of it runs. A device belongs to
// one thread; the devices of one thread are served round robin. Nothing keeps a process
// of GOMAXPROCS = CPUs responsive while every CPU generates: a host that also serves
// files should allow itself a few more.
//
// With Config.RT they are real-time threads. Such a thread sleeps through every delay of 10 us and more, where an
// ordinary one spins below 100 us, and gives way to others of its priority after each round.
//
// # What is sent
//
// Ethernet, MPLS labels or up to two 802.1Q tags, IPv4 or IPv6, UDP, and pktgen's
// 16-byte header: magic 0xbe9be955, sequence number from 1, seconds and microseconds
// when the packet was built, all big-endian. A template is made once for a
// configuration (package internal/frame); a buffer that comes back from the device and
// still holds the template ([dma.Buf.Tag]) only gets its changing bytes: sequence
// number, time, the IP identification and checksum, and those fields that vary. Where
// none vary a loop runs that does nothing else.
//
// Or a capture is sent as it is, with or without its timing: commands pcap and pcap_speed, in replay.go. The
// kernel has no such thing.
//
// # Where it is sent
//
// xmit_mode says how far down, or up, a packet goes:
//
//   - start_xmit: into the ring of the device. While that has no room the thread waits.
//   - queue_xmit: through a queue discipline in front of the ring, a pfifo of [netdev.TxQueueLen]
//     frames for each transmit queue. One that it refuses, being full, counts as an error and is
//     tried again; a run ends when all that was queued is sent.
//   - netif_receive: to whoever receives from the device (Config.Receiver), as if the device had
//     received it. The device sees and counts nothing. A frame that nobody took counts as an
//     error, and as sent.
//
// A loopback device ([netdev.Loopback]) receives what it is sent in the same call; a packet must not be sent
// twice at a time there, so clone_skb, and burst but for netif_receive, give EOPNOTSUPP.
//
// # Where this differs from the kernel
//
// Some of it is for the better, and is as in the kernel where the profile is strict (6.1): these
// are marked with a star.
//
//   - * burst N with clone_skb 0 or 1: the kernel sends N copies of one packet at a
//     doorbell. Here, with clone_skb 0, each of the N frames is a packet of its own,
//     with its own sequence number (one clock reading serves the burst). clone_skb 1
//     with burst N gives exactly the kernel's copies; with clone_skb C one packet is
//     sent in C bursts of N copies, as in the kernel.
//   - * A run ends at count packets exactly; the kernel finishes its last burst.
//   - * Several devices of one thread take turns; in the kernel, without delay, the second
//     waits for the first to end.
//   - * delay counts from a device's first packet on; the kernel sends the second with the first.
//   - * rate and ratep are exact: the kernel cuts the time between packets to whole nanoseconds.
//   - start, reset and rem_device_all return when what they wait for has happened, not
//     at the next 100 ms poll, and without the 125 ms that the kernel gives its threads.
//   - At most 768 frames (two bursts, if that is more) are in flight, though the ring may
//     hold more: enough to keep a device busy, few enough for the caches.
//   - A packet must fit the device (its MTU and its buffers). A run whose packets do not
//     ends, with a Result that says so, before anything is sent.
//   - A device has no IP addresses here: without src_min the source is 0.0.0.0, on lo 127.0.0.1.
//   - * src_mac_count without src_mac walks from the interface's address; the kernel keeps
//     only its first byte.
//   - frags is counted, shown, and changes nothing else: a frame is one piece of memory.
//   - There is no network stack above a device: what receives netif_receive's frames takes them whatever
//     their address, where the kernel's stack drops those of others, and counts errors.
//   - queue_xmit's queue discipline is always a pfifo of one length. A packet that it refuses is kept for
//     the next try; the kernel builds another with the same sequence number. skb_priority is shown.
//   - IPSEC and spi are accepted and shown; there are no security associations, so packets stay what they are.
//   - IPDST_RND gives up after many tries in a range that holds only addresses it must
//     not use; the kernel tries forever.
//   - * A failed imix_weights or mpls leaves the device's setting as it was; in the kernel, what
//     was read until then.
//   - A command without its value has an empty one; kernels before 6.15 read on behind what
//     was written. For the same reason debug 1 makes most later commands fail there, and not here.
//   - node refuses every number that is none of a node; the kernel looks behind the end of its table.
//
// # What outlives the process
//
// [Engine.Save] is the state of everything, [Engine.Restore] makes it again in another engine. With Config.Ledger, memory that outlives this process,
// a run goes on where it was though the process was killed at whatever instruction: before each burst stands there up to which packet it may be sent.
// What is uncertain counts as sent, so sequence numbers are never sent twice, and `count` is reached. Counters, the time that a run takes, and
// where fields that vary are go on too (the latter from up to 16 turns before; flows begin anew). What receivers have
// accounted for goes on as well ([Rx]), so that after the next frame what was received and what was lost is what was sent.
//
// # Locks
//
// Engine.mu (who has which name) before thread.mu (device list, result) before
// device.mu (configuration and counters) before port.mu (a transmit queue with its queue
// discipline and its pools). A thread holds device.mu and port.mu for one burst (or about 64 packets), never
// while it waits, except that ending a run holds port.mu until the queue has drained.
// Engine.mu also comes before receivers.mu (their files), and that before thread.mu. No other lock is taken
// while Rx.mu is held.
//
// Units: times are nanoseconds of CLOCK_MONOTONIC inside, microseconds in the files;
// sizes are bytes of a frame without its frame check sequence.
package pktgen
