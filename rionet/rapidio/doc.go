// Package rapidio is the RapidIO subsystem: what stands between master ports, which send and receive, and drivers of what they reach. RapidIO
// is a switched fabric: endpoints with a device ID each, switches that route by the destination's, and three things to do with
// a device: reading and writing its registers, ringing its doorbells, sending messages to its mailboxes. Nothing
// is enumerated by itself: a host finds devices, numbers them and writes the switches' tables, and all others find what it made.
//
// It is the subsystem of Porter (RapidIO for Linux, OLS 2005), in a process, with today's kernel's names, files and
// enumeration. Its parts of that paper: struct rio_ops is [Ops], rio_mport is [Mport], rio_net [Net], rio_dev [Device],
// rio_switch [Switch] with [SwitchOps], rio_driver [Driver].
//
// # Concepts
//
//   - A [Bus] is a subsystem: up to 8 master ports, their nets, and drivers. A program has one, or one for each set of ports; there is
//     no global one.
//   - A [Mport] is a master port in service: "rapidio0". Its [Ops] are the hardware: package mport has it over shared memory, package
//     fabric in the fabric's own process.
//   - A [Net] is what a master port reaches: "rnet_0". A port has none before somebody looked for devices.
//   - A [Device] is an endpoint or a switch of a net, by its net, its kind and its component tag: "00:e:0001", "00:s:0000". The port's own
//     endpoint is none: its registers are read by [Mport.LocalRead]. A device that went and came back is another one.
//   - A [Driver] serves devices by vendor, device and assembly IDs.
//   - An [Enumerator] finds devices. Package scan has it; a bus can do without, and then somebody calls [Bus.AddNet] and [Net.AddDevice].
//
// A program begins with
//
//	b := rapidio.NewBus(rapidio.BusOptions{Log: log})
//	m, err := b.AddMport(ctx, ops, rapidio.MportOptions{Host: 0, Scan: scan.New(b, scan.Options{})})
//	err = b.Register(driver)
//	err = b.Scan(ctx, -1)
//
// and ends with b.Close. Ports, drivers and devices may come and go in any order.
//
// # Registers
//
// A device has 16 MiB of configuration space: capability registers (CARs, read only) from 0x00, command and status registers (CSRs) from
// 0x40, and blocks of extended features, which [FindFeatures] finds. It is big-endian: a byte's offset 0 is the
// highest of its register. Accesses are 1, 2 or 4 bytes wide and aligned; others fail with [ErrRange] and reach nobody.
// [Mport.Read32] reaches what is a number of switches away on the route to an ID, whatever it is, which is how enumeration begins;
// [Device.Read32] reaches a device. Whatever a device says is its word only: a chain of blocks that leads out of its space or
// back is followed as far as it makes sense, and no further than [Features].Malformed says.
//
// # Mailboxes and doorbells
//
// They belong to whoever claims them, by port: one of the 4 mailboxes in each direction, a range of the 65,536 doorbells, which do not
// overlap, and, of a remote device, a range of its doorbells, which is an agreement inside this process. What is claimed already fails
// with [ErrClaimed].
//
// Mailboxes come in two forms. [Mport.RequestInbMbox] and [Mport.RequestOutbMbox] give an [Inbox] or [Outbox] to a goroutine that polls and waits: the
// fast form, which allocates nothing. The Func forms are those of 2005: a goroutine of the subsystem's calls back when there are
// messages, or when what was sent has results.
//
// Messages are 1 to 4096 bytes, and have a response: done, retry (the receiver has no room; nothing is sent again by itself), error (nobody
// has opened that mailbox, or nobody is there). So have doorbells, 16 bits each. Of a doorbell that is in nobody's range the first is
// logged, and all are counted ([Mport.Stats]).
//
// # Drivers
//
// A device is offered to the drivers in the order in which they were registered, until one takes it; a driver that is new is offered the
// devices that have none. [ErrNoDevice] of a Probe means that it is for somebody else; other errors are logged, and the next driver is
// asked. Remove is called when the driver or the device goes. By then the device may not answer: what is claimed of it is
// given up, and its registers fail with bus.ErrGone. A device that goes ends the context of its Probe.
//
// # Port-writes
//
// Switches, and endpoints with error management, tell of errors and of links that came or went by a message without response, which is not
// guaranteed to arrive. Who sent it is told by its component tag. It goes to the handlers of that device ([Device.OnPortWrite]), then
// to those of the port ([Mport.OnPortWrite]), then to the Enumerator, which looks at what changed. Of a tag that nobody has, one line is
// logged, and all are counted.
//
// # Files
//
// [Bus.SysfsBus] is /sys/bus/rapidio, [Bus.SysfsClass] /sys/class/rapidio_port, [Bus.SysfsDevices] /sys/devices/virtual/rapidio_port; all three
// change as things come and go. docs/abi/sys-bus-rapidio.md lists the files. No read of one waits for a driver. The links window0 and so on lead to memory that
// another node shares, where this process can map it ([Windows]).
//
// # Callbacks and locks
//
// Callbacks of a port (doorbells, port-writes, the Enumerator's) come one at a time, from the goroutine of its Ops, and must not take long;
// those of mailboxes from a goroutine each. None is called with a lock of this package but its own. A release waits for its callback to
// return, so that what it uses can be freed; called from within any callback it does not wait, and then the one that runs is the last.
//
// A port has a turn, held by a scan and by [Bus.RemoveMport], and a device has one, held while its driver is probed or removed. So an Enumerator does not remove the
// port that it scans, nor a driver the device that it is given; and since RemoveMport also waits for what an Enumerator does by itself, no driver waits for it while it is
// probed or removed. Both can be waited for until a context ends. Bus.mu guards lists and what they
// hold; nothing foreign is called under it. Order: a port's turn, a device's turn, the claims of a port, Bus.mu. A callback holds none of the
// first two, and its port's events wait for it: whoever holds a turn may wait for a callback to return, so callbacks wait for no turn, and
// do not call what takes one (AddDevice, RemoveDevice, Register, Scan, Bind): they start or wake a goroutine that does.
//
// # Errors
//
// [ErrResponse], [ErrRetry] and [ErrNoReply] are of the other end; [ErrRange] and [ErrClaimed] of the caller; bus.ErrGone of a device or a port that
// is not there (a port whose fabric died says so until it is back), bus.ErrClosed of one that this process took out of service.
//
// Sources: RapidIO Interconnect Specification 3.2, part 1 (logical I/O: 4, 5), part 2 (messages: 4, 5), part 3 (transport: 2, 3), part 6
// (LP-serial: 6), part 8 (error management: 2), annex 1 (multiple host enumeration); Linux, Documentation/driver-api/rapidio,
// Documentation/ABI/testing/sysfs-bus-rapidio and sysfs-class-rapidio; the paper above.
package rapidio
