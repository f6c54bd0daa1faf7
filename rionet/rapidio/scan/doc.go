// Package scan finds the devices of a RapidIO net: as an enumerating host, which numbers them and writes the switches' routing tables, or as an
// agent, which discovers what a host has numbered. It is the rapidio.Enumerator of a bus:
//
//	s := scan.New(b, scan.Options{Log: log})
//	m, err := b.AddMport(ctx, ops, rapidio.MportOptions{Host: 0, Scan: s})
//	err = b.Scan(ctx, -1)
//
// After a port's first scan a goroutine looks after it until the port goes out of service: it scans again when something happens. Bus.RemoveMport
// waits until it is done with the port, and Scanner.Wait until all such have ended.
//
// # Enumeration
//
// A round has five parts. It is the multiple-host algorithm of the specification's annex, as the paper of 2005 and today's kernel have
// it, except that IDs and routes are decided when all devices were met and not on the way, so that nobody who has an ID loses it.
//
//   - Begin: lock the own endpoint (Host Base Device ID Lock), give it the host's ID, tag 1 and the Host bit.
//   - Walk, depth first. Hop counts and the "any" ID, 0xff or 0xffff, reach what is next: at each switch on the path the route of that ID leads
//     on. Each device is locked, then read. A switch routes the host's ID back by the port of arrival; its ports with a link are
//     opened and tried, those without are shut (Port Lockout) where there is error management to tell of a link. A device that has
//     the lock already was met by another link: its component tag says which it is, and both ends remember. What does not answer is tried again
//     at the end of the walk, and left out with one line if it does not answer then.
//   - Number: an endpoint keeps an ID that an enumeration gave it, unless another one has it; new ones get the lowest that are free, in
//     the order in which they were met. Component tags count up from 2, also in that order, and are kept as well. A switch on no endpoint's
//     way gets an ID of its own, so that it can be reached: 254 and downwards, with 16-bit IDs from 256 upwards.
//   - Settle, on unwinding: IDs, component tags, port-write targets (the host), and routing tables. Each switch sends each ID by a shortest way,
//     of several as short by the lowest port. Entries are written where they change; in subtrees where nothing does, nothing is. Of
//     entries that others left beyond the IDs in use, those that lead somewhere are made invalid, up to a gap of 32.
//   - Finish, on unwinding: Discovered and Master in Port General Control of each endpoint, or where there is no LP-serial block the value
//     0xdeadbeef in its Component Tag (the paper's "enumeration complete"; its tag is then in the host's memory only, and agents use
//     0x10000 + ID); the route of the "any" ID ends; locks are released.
//
// # Several hosts
//
// A host waits for a lock of a lower ID, and retreats from one of a higher: it releases what it has locked, logs that it "has lost enumeration to
// a remote host", and becomes an agent. A host whose endpoint another one locked first, or has numbered, has lost as well. The winner clears the
// Host bit of others, by which a host that was in charge before learns of it.
//
// The kernel waits for ever for a host that died in the middle. Here a lock that does not move for Options.LockTimeout is taken over: a
// lower host's at once, a higher one's after the loser has waited so long to be discovered. A host that lost looks every
// Options.Check whether the winner (the endpoint with the Host bit, else the port-write target of its switch) still has its ID; when that fails
// twice it enumerates.
//
// A port that had no link is shut until the host in charge opens it; so a host tries its neighbour for a second.
//
// # Discovery
//
// An agent waits, up to Options.DiscoverTimeout, until its endpoint is marked as enumerated: ConfigWritten tells, and it looks now and then.
// Then it changes nothing: it reads which IDs its neighbour routes (all of 8 bits; of 16 until 1,024 in a row have no route, and the port-write
// target), and goes their ways, switch by switch, reading what is at each new port. Only the routing registers are a problem: an entry is
// selected by one write and read by the next, so two agents would read each other's, and a host would write the wrong one. So an agent
// holds a switch's lock, with its own ID, while it reads up to 32 entries. Hosts know that: a lock with a higher ID counts as a host's only
// after 100 ms. Links on which nothing is routed are not seen. A small net's tables are read whole; of a large one agents know the entries on
// the ways that they went.
//
// # Again
//
// Port-writes, and changes of the own link, make the host look, 20 ms after the last one (Options.Settle) or 200 ms after the first.
// It reads the links of all ports and the IDs of all endpoints; if they are as they were, that was all. Otherwise it makes another round. A device
// that is still there, by tag, identity and ID, keeps its rapidio.Device and its driver, whatever way leads to it now; what has
// gone is removed, and what was replaced, however quickly, is another device, since its registers were reset. Then the host forwards
// the port-write to all processors that were there before, which discover again in the same manner.
//
// Port-writes may be lost. So the host also looks every Options.Check, an agent discovers every second such time; both less often where that
// would take more than a hundredth of their time, not counting waits for others' locks, but each minute where that takes no more than a tenth. What was left out is tried again after a second, two, four and so on.
//
// When the own link is down, or the port's fabric has gone, nothing is reached, and the net is emptied.
//
// # Errors
//
// A config access that has no response, or an error response, is made three times. Errors of one device leave it out, with what is beyond it,
// and one line is logged; it is not repeated until it went right. Errors of the own registers or the neighbour, a dead port and an ended context
// end the scan, with one error; locks are released as far as they can be reached, for at most 2 s, and the net stays as it was. Locks that
// remain have the host's ID and do not hinder its next round.
//
// Nothing that registers say is trusted. A walk has at most 255 hops, 1,024 switches, as many endpoints as there are IDs, 16 Mi entries of all tables
// together, and 131,072 accesses with 8-bit IDs, 4,194,304 with 16-bit ones; then it is cut short, with one line, and what was found is
// brought into service. A device whose lock or component tag does not hold what is written, or that says what cannot be, is left out.
//
// # Switches
//
// Tables are written by the kind of switch: its vendor and device, else the standard registers. Known are standard (Route Configuration
// Destination ID and Port Select) and Tsi500 (four tables of 4-bit ports at 0x10a00 + 0x20000*port, 8 IDs a word). Another kind is an
// entry of the list in switches.go.
//
// # Concurrency
//
// A Scanner is safe for concurrent use. A port has one scan at a time: port.turn, taken after the turn of package rapidio's Mport and before any other lock of
// that package, which calls drivers from AddDevice and RemoveDevice. port.mu guards what events leave, and Scanner.mu the list of ports; nothing is called with them held.
//
// # Sources
//
// RapidIO Interconnect Specification part 3 and annex 1 (multiple hosts), part 6, part 8; M. Porter, RapidIO for Linux, 2005; the texts of log lines
// follow Linux 6.12.
package scan
