// Package fabricd is the daemon of a RapidIO fabric between processes and virtual machines, and the client of its control socket.
//
// The daemon runs the model of package fabric: all endpoints and switches, their registers, routes and links. A process or a machine joins
// as the node of one endpoint. An endpoint without a node is as if unplugged.
//
// # Sockets
//
//	PATH          the control socket, 0600: requests, and processes that join
//	PATH.d/       a folder of the daemon's, 0700, with a lock in it
//	PATH.d/NAME   a socket for each endpoint, 0600, at which the ivshmem server's protocol is spoken at once
//
// Who may use a fabric is who may write to its sockets: the user that started it, and root. That is all that is checked, so who wants to
// let others in changes the modes. A daemon that is killed leaves its sockets; the next at the same path replaces them, and its lock tells
// a daemon that runs from one that did. What is not a socket, or one at which somebody else answers, is left alone.
//
// QEMU joins by
//
//	-chardev socket,id=rio,path=PATH.d/pe1 -device ivshmem-doorbell,chardev=rio,vectors=8
//
// (6 vectors or more. Fewer share, and QEMU complains of those that it has no use for.) It has no memory windows, which are asked for on the control socket.
//
// # Control protocol
//
// Lines of JSON, at most 4096 bytes a request; any number of requests on a connection, answered in order.
//
//	{"op":"version"}  {"op":"show"}  {"op":"stats"}  {"op":"windows"}  {"op":"watch"}
//	{"op":"link","ends":["pe0","sw0:0"],"up":false}
//	{"join":"pe1","ids":0,"window":65536}
//
// Answers are {"v":1,"ok":true,...} or {"v":1,"error":"a line","code":"busy"}; codes are busy, unknown, width, version and closed. After
// watch come lines with an "event" until the client goes: what happened is joined, left, numbered (a node has another device ID), link-up or
// link-down; one that leaves 1024 of them is cut off. Where join says ok, what follows on the
// connection is the ivshmem server's protocol, from its version on; "ids" of 8 or 16 is refused unless the fabric has that width, "window" is a
// size or a list of them. A request has 10 s from its first byte to its end, an answer 10 s to be taken, and a connection that asks nothing
// ends after a minute. Beside nodes, 64 connections are taken and two for each endpoint.
//
// [Client] speaks all that, and [Join] joins. Both refuse a daemon that another user runs, unless root does or one who is named: what a node
// sends is not for whoever takes the socket's place while the daemon is away.
//
// # Nodes
//
// A node is its connection: when that ends, the node is gone and its link down, whatever became of the process; a node that wants
// to leave closes it. It says nothing on it; what does is no ivshmem client. One that wants to join while an endpoint has a node is refused by the name
// of the endpoint and the other's process ID: by an error line, or on an endpoint's socket by the end of the connection.
//
// To ivshmem the daemon is peer 0 with one vector, an eventfd of each node's own; a node is its endpoint's index and 1, with
// shm.NumVectors vectors. The memory is laid out by package shm. Nodes whose endpoints trust links join, also by way of others,
// share one memory; those at the ends of one such link get each other's vectors. The memory of such a group stays while one of its nodes is there.
//
// # What moves
//
// Each node has a worker, which takes what it sends in bursts, gives it to the fabric's port, and writes the answers; then it tells the
// nodes that got something, each once. On links without delay the fabric hands a message over in that call: one copy from the sender's
// memory to the receiver's. A worker that finds nothing yields a few times, then sleeps until its node signals.
//
// Where a mailbox is full the worker holds the message, and with it all that its node sends after it, for up to 100 ms, and then answers Retry.
// Nothing more is held for a mailbox for which that was in vain, until it takes something, and the later one makes room the less time it is
// given next, down to 3 ms. So a receiver that is slow for a moment costs nobody a message, and one that stalled stops a sender once.
//
// # Trust
//
// Nothing that a node writes is trusted. Its region is its own; what it makes of it is checked by package shm, and a node that breaks the
// rules there is ended with a line of why in the log (a warning every 10 s at most), and may join again. The memory cannot be shrunk. An eventfd is shared with its flags: a
// node that makes one blocking and fills it would stop who signals it, so a watchdog looks for signals that take a second, ends that
// node, and frees who waits. A node may keep its worker busy, which is one thread.
//
// Nodes of one trust group can harm each other, as the name says.
//
// # Memory windows
//
// A window is a file on a tmpfs that other processes map: in the daemon's folder where that is on one, else in a folder below /dev/shm or
// XDG_RUNTIME_DIR. Its memory is allocated when the node joins. When the node goes the file is filled with ones, which
// is what a dead device reads as, and removed: who has it mapped reads that, and does not fault. That holds against nodes that go in any
// way, not against a process of the same user that truncates the file. Windows of a daemon that was killed stay as they were for
// those who map them.
//
// # Locks
//
// group.mu before Server.mu and before what package fabric locks; Server.mu is never held while a fabric, a node or a
// client is called, but for ending a node, which waits for nothing. node.boxes is held around calls of the port that only set
// flags. node.life keeps a node's memory in place for other workers.
package fabricd
