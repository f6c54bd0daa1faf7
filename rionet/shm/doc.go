// Package shm is the memory that a node shares with the fabric: rings in both directions, each with a producer on one
// side and a consumer on the other, between processes that do not trust each other.
//
// # Layout
//
// The memory (a memfd sealed against shrinking, whose size is a power of two; for a VM it is BAR 2 of ivshmem-doorbell) begins with a
// directory page: which node has its region where, by ivshmem ID. A region begins with a page that says what it is, and where its
// rings are:
//
//	ring      from -> to        what
//	tx        node -> daemon    messages, doorbells, port-writes, configuration accesses, opening and closing
//	answers   daemon -> node    results of messages and doorbells, run-length encoded; responses to the rest
//	events    daemon -> node    doorbells and port-writes
//	mbox 0-3  daemon -> node    messages
//
// Whether the link is up, and that somebody wrote the endpoint's registers, are words of that page: they have a state, and need no
// place in a ring. A [Plan] lays out a memory and formats it; a memory of several nodes, which trust each other, also has rings from
// each to the other, where messages need no daemon.
//
// # Rings
//
// A ring is a control block, records of 32 bytes, and as many slots for data. Indices count records and are free-running. The producer
// says which slot a record's data is in, and takes the one that came free last: however large a ring is, it
// touches as much memory as is under way. Putting stages a record, Publish shows all that was staged: one store
// and one look at whether the consumer sleeps, for a burst. Releasing is the same in the other direction.
//
// Who finds nothing to do arms a word, looks again, and sleeps; who publishes looks at the word after its store, and signals the
// other's eventfd if it is set. So there is one signal at most for each time that somebody slept.
//
// # Trust
//
// Nothing. Each side keeps its indices and its list of free slots to itself, never reads back what it wrote, and reads each word
// of the other's once. An index that goes where it cannot, or a slot or length that does not exist, breaks the ring ([ErrBroken]): it
// gives and takes nothing more until the node begins anew, and who notices says so. Nothing the other side writes makes
// an access outside of the memory, a loop without end, or a panic. Data is not looked at here; who does, copies it before.
//
// A node begins with [Node.Reset]: the daemon makes all of its rings anew. So it does not matter what another process left there.
//
// # Sides
//
// [Daemon] is the fabric's side of a region, [Node] the node's. A node whose memory is mapped works in it; one that reaches
// it through a device's registers ([OfRegion]) uses few and large accesses: the records of a burst are one, and each message's data one.
package shm
