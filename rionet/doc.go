// Package rionet is Ethernet over RapidIO messages: a [netdev.Device] on a master port, which talks to the kernel's rionet driver (version
// 0.3, kernels 2.6.15 to 6.12) and to itself. A frame is one message to mailbox 0.
//
//	v := rionet.NewDriver()
//	bus.Register(v.Rapidio())                                     // finds peers, on all ports of the bus
//	d, err := rionet.New(port, rionet.Options{Name: "rio0", Driver: v})
//
// The order of these, and of the bus's scan, does not matter.
//
// # Addresses
//
// A node's address is 00:01:00:01 and its 16-bit device ID, high byte first: destid 3 is 00:01:00:01:00:03. So no table maps addresses to
// nodes. A node without a device ID yet has no link; one whose ID changed, because the net was enumerated anew, has another address, and
// joins again.
//
//   - A frame to 00:01:00:01:hi:lo goes to that node, if it is an active peer. If it is none, the frame counts as sent and goes nowhere, as
//     the kernel has it (tx_peer_inactive tells how many).
//   - A frame to another unicast address is dropped and counted (tx_dropped, tx_foreign_address).
//   - A frame to a multicast address or to all goes to all active peers, a message for each, and counts as that many packets.
//
// There are no receive filters: everything that comes into the mailbox is received.
//
// # Peers
//
// A peer is an endpoint, found by the bus's scan, that has messages and doorbells in both its source and its destination operations. It is
// active from when it says JOIN until it says LEAVE or proves to be gone.
//
//	doorbell  name   meaning
//	0x1000    JOIN   I am here. Who did not know me answers with the same.
//	0x1001    LEAVE  I go.
//	0x1002    EXACT  ours, sent before each JOIN: my messages have the lengths of their frames
//	0x1003    ALIVE  ours, to a peer that said EXACT: I know. Sent at once, and when it is silent, as its response matters.
//	                 Who sends it has exact lengths, too
//
// JOIN is sent to each peer when it is found, then after 100 ms, 200 ms and so on up to every 2 s, until the peer is active: a peer whose
// doorbells are not open yet refuses it. A JOIN of an endpoint that the scan has not found yet is remembered, and answered once it is. A JOIN
// of a peer that is active already is answered too, at most once a second: the peer may have begun anew without a LEAVE.
// No JOIN answers within 100 ms of the last one that the peer took, so one that comes and goes takes little of the keeper's time.
//
// Nobody tells of a node that was killed. A peer is taken to be gone, and JOIN is sent to it again, once
//
//   - 8 messages in a row came back as errors,
//   - or it was silent for a second (it neither sent a message nor took one), and three questions in a row, 100 ms apart, were refused or
//     lost,
//   - or the scan took the endpoint away.
//
// ALIVE goes to peers that said EXACT; the others are asked by EXACT and JOIN, which the kernel's driver ignores of an active peer.
//
// A JOIN is remembered for a minute of an endpoint that is not found, and for 1024 of these. What is logged of a peer's coming and going is
// ten lines at once, and then one in 10 s; the next one says how many were left out (untold).
//
// # Lengths
//
// The kernel's driver receives 4096 bytes whatever was sent, since hardware does not keep a message's length exactly; the headers inside say
// what counts. Between two ring3 nodes frames keep their length, down to 14 bytes: there is no padding to 60. They find out by EXACT, which the
// kernel's driver neither sends nor knows. A peer that is just opening its doorbells may refuse EXACT and take the JOIN behind it, so to who did
// both go again, up to four times in all; an EXACT or ALIVE of an active peer counts at once.
//
// A peer that joined may not have taken our EXACT yet. So frames to it wait in the ring, like those to a peer without room: until it says
// ALIVE, or, if it never said EXACT itself, until it took our JOIN. They wait for 1 s at most; a peer that let them wait so long is not waited
// for any more until it says ALIVE after all.
//
// Frames of a peer that did not send EXACT are received as 4096 bytes, zeros behind what came.
// [Options].Classic makes this end play the kernel's: it sends no EXACT, claims only the doorbells 0x1000 and 0x1001, and all that it
// receives has 4096 bytes. A message shorter than 14 bytes is no frame (rx_length_errors).
//
// # Limits
//
// MTU 68 to 4082 (a message of 4096 bytes, less 14), at first 4082. It bounds what is sent. One transmit and one receive queue of 128 messages
// each (Options.Ring: 2 to 1024). No offloads.
//
// # Sending
//
// [netdev.TxQueue].Burst gives up to 64 messages to the port at a time, with one doorbell. A message has a result:
//
//	done   tx_packets
//	error  tx_errors; 8 in a row take the peer away
//	retry  The peer has no room. The port refuses all that is under way behind that message to the same peer as well (rapidio.Order), and
//	       once it all has come back it is sent again, every 50 us at most: frames to one peer arrive in order. Others to that peer wait
//	       behind it. There are few under way to a peer that refused some lately, at first 16, half as many after each refusal, one more
//	       after each message that it takes. Those that wait take room of the ring, so a sender that has nothing
//	       for others is slowed down to what its peer takes. A peer that takes nothing for 1 s is congested: what waits for it is
//	       tx_dropped (tx_congested), and its next messages have one attempt each, until it takes one; those that come while an attempt has no
//	       result are dropped. So a peer that does not receive holds the others up for 1 s at most, once.
//
// A frame is in flight until it has its results, so Reap and Drain tell the truth. Its buffer stays with the queue as long.
//
// # Concurrency
//
// A queue belongs to one goroutine; all else is safe for concurrent use. One goroutine of the device, the keeper, sends doorbells and reads the
// port's state once a second, and at once when the port says that its link changed; a timer sends again what was refused while the owner of
// the transmit queue does nothing. Locks, in the order in which they nest: Driver.mu or txQueue.mu, then Device.mu; rxQueue.waitMu and rxQueue.mu stand alone.
//
// # Errors
//
// "rio0 rionet: step: seen, wanted", with bus.ErrClosed after Close and bus.ErrGone where the port went. A fabric that is gone for a
// while is a link that is down: the peers are lost, and join again when it is back.
//
// Sources: drivers/net/rionet.c's behaviour (kernel 6.12); M. Porter, "RapidIO for Linux", Ottawa Linux Symposium 2005, section 4; RapidIO
// part 2 (messages, doorbells) and part 6 (6.6, port registers).
package rionet
