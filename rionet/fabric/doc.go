// Package fabric is a model of a RapidIO fabric: endpoints with their registers, switches whose tables really route, and links
// with width, rate, delay, loss and failure. It moves messages, doorbells, port-writes and maintenance transactions between
// the nodes that are attached to its endpoints. It knows neither shared memory nor sockets: package fabricd, the daemon, attaches the
// nodes of other processes, and Fabric.Mport attaches one of this process.
//
// # Topology
//
// Parse reads a file:
//
//	ids: 8                                   # bits of a device ID, 8 or 16
//	switches:
//	- {name: sw0, ports: 4, kind: standard}  # or tsi500: 4 ports, 8-bit IDs
//	endpoints:
//	- {name: pe0}
//	- {name: pe1, mailboxes: false}          # takes and sends no messages
//	- {name: pe2, serial: false}             # without LP-serial registers, as early devices
//	links:
//	- [pe0, "sw0:0"]
//	- {ends: [pe1, "sw0:1"], width: 4, rate: 10G, delay: 5us, loss: 0.01}
//	- {ends: [pe0, pe2], trust: true}        # these may share memory; takes no port
//
// Errors are one line with the file's name and the line's number.
//
// # Nodes
//
// Attach plugs a node into an endpoint. The endpoint's registers are then as after power-up: no ID, mailboxes and doorbells closed. An
// endpoint without a node is as if it were unplugged: its link is down at both ends. What comes out of the link goes to the
// node's Sink, what goes in comes through the methods of its Port.
//
// Message and Doorbell are answered at once (Done, Retry, Error) where no link on the way, or on the response's way back, has a delay, a
// rate or loss: an ideal way. Nothing is queued then, and nothing allocated; a burst ends with Port.Flush. Elsewhere the answer is
// Pending and Sink.Complete follows. Packets from one node to one device ID stay in order also when the way between them
// changes. A port has at most 4096 packets on such ways; Retry answers more.
//
// # Routing
//
// A packet goes by its destination ID, each switch's table telling the port. A maintenance request has a hop count besides: the switch
// that gets it with 0 takes it, others count it down; an endpoint takes whatever maintenance request reaches it, and messages and doorbells
// for its own ID only. A response leaves through the port by which the request came, and is then routed by its own destination, the
// requester's ID: a host sets its ID, and routes to it, before it looks behind a switch. An entry of 0xff means the default port, whose
// 0xff means that there is none.
//
// What reaches nobody is answered with Error at once:
//
//   - no route: counted at the switch as unrouted
//   - a port on the way is down, locked out or, but for maintenance, not enabled: counted at that port; statistics call it errors
//   - the endpoint has another ID
//   - it passed 256 switches, so the tables have a circle: counted as looped at the switch where it ended
//
// The same holds for a response that does not find back. What a link loses is different: its sender gets Error when its Port Response
// Timeout (10 ms after power-up) has passed. What is merely late, by a long delay, never times out. Losses are pseudo-random, the
// same in each run: a link's direction has a seed of its own.
//
// # Registers
//
// Accesses have 8, 16 or 32 bits; what there is not reads as 0, and bits that are read only stay.
//
//	                         endpoint        switch          kind tsi500
//	device, vendor           0x0001 0x5233   0x0002 0x5233   0x0500 0x000d
//	assembly, vendor         0x0001 0x5233, revision 1
//	LP-serial block, 0x100   0x0001          0x0009          0x0009
//	error management, 0x3000 0x0007          0x0007          0x0007
//	routing tables           -               0x70, 0x74, 0x78 0x10a00 + 0x20000*port
//
// Vendor 0x5233 is none that was assigned. Both blocks of extended features are of map I. Ports are enabled after power-up. Master enable
// of Port General Control is kept and not obeyed. Port Response Timeout counts 300 ns. Links have no ackIDs: they read 0. A link
// request of input-status is answered at once where the link is up; four of reset-device in a row reset the device at the other end.
//
// Port n Control 2 has the slowest lane speed by which the link's lanes carry its rate with 8 bits of data in 10; width and rate
// otherwise do not depend on each other: rate paces.
//
// # Port-writes
//
// A switch whose port-write target was written sends one when the link of a port goes up or down (Port n Error Detect bit 31), and when
// it loses a packet for want of a route (Logical/Transport Layer Error Detect bit 26) or because of a circle (bit 0): for these only when
// the bit was clear, and enabled, which all are after power-up. They have 16 bytes: component tag, Port n Error Detect, port,
// Logical/Transport Layer Error Detect. One that does not reach its target is lost and counted.
// Where a node is slow to take them, 64 wait for it; those beyond are lost, whoever sent them.
//
// # Concurrency
//
// Nodes move messages in parallel. A port keeps the ways it uses, each with the generation of the fabric in which it was found;
// routes, links and IDs that change make a new generation. So a message takes no lock of the fabric, and senders meet only
// at their receiver. Registers are behind Fabric.mu. Lock order: Fabric.mu, scheduler.mu, link.mu. No Sink is called with any of
// them held; while one is called Port.life is, shared, so that after Port.Detach nobody calls it.
//
// # Sources
//
// RapidIO Interconnect Specification 1.3 and 2.1, parts 1, 2, 3, 6 and 8; M. Porter, RapidIO for Linux, 2005.
package fabric
