// Package trace wraps any bus.Device and records what its driver does to it, and it to its
// driver: each access to a register or to config space, by the register's name; interrupts;
// doorbells, and the descriptors that they give to the device; DMA memory, resets, the link's
// death. It is what a logic analyser is on a board.
//
//	dev := trace.Wrap(dev, trace.Options{Name: "eth0", Registers: driver.Registers(id)})
//	... the driver works with dev ...
//	for _, e := range trace.Snapshot([]*trace.Device{dev}, 20) {
//		fmt.Println(e.String())
//	}
//
// # Records and readers
//
// A [Record] has a fixed size; making one takes a clock reading and a few stores under a lock,
// and neither allocates nor formats. The last [DefaultRecords] of them are always there:
// [Device.Last] is the flight recorder. Names and words are made by who reads: [Device.Entries].
// Any number of readers ([Device.NewReader]) read at their own pace. The driver never waits for
// one; a reader that is overtaken is told exactly how many records it lost. [Follow] does the
// reading for several devices, puts their records in one order, and says in an entry of kind
// [Lost] where some are missing.
//
// Recording begins on; [Device.SetEnabled] turns it off, and an access then costs one branch
// more than without a trace.
//
// # After a death
//
// With [Options].Shared the last 256 records are in memory, too, that another process has: who looks after this one reads
// them there when it was killed at whatever instruction ([Recover]), and names them by the driver's table ([Options.Entries]). It costs some 10 ns a record.
//
// # When it is recorded
//
// A read is recorded after it was made, a write before, so what the device does at once (its
// DMA, its interrupt) follows the write that made it do so. An interrupt is recorded when the
// driver consumes it. Records of one device are numbered in the order of their times.
//
// What a driver does in memory is not recorded: in DMA memory, in a region that it holds ([bus.Holder]), or by copying many bytes
// ([bus.Copier]), which only memory is for.
//
// # What a doorbell publishes
//
// Where the driver's register table describes a ring behind a register ([bus.RingInfo]), a
// write to it is a [Doorbell], followed by a [Publish] (of the same number) that says which descriptors the device
// got, with the first of them as they stood in memory at that moment, before the device knew.
// The trace learns where the ring is from the driver's own writes and allocations. What it
// cannot know for sure (the ring lies in no memory of the driver's; the index is outside; the
// recording was off meanwhile) it leaves out.
//
// # Text
//
// [Entry.String] is one line, with eight columns and words, divided by blanks:
//
//	0.104532181 eth0        412 doorbell bar0+0x3818/4    TDT[0]         0x20
//	0.104532181 eth0        412 publish  bar0+0x3818/16   TDT[0]         0x0            0..31 (32) {...} ...
//	0.104611904 eth0        413 irq      -                MSI-X[0]       0x1
//
// They are: seconds since the program began; device; the record's number; its kind; place
// (region, offset, width in bytes); name; value; the value in words, or what there is to
// say. A column that has nothing to say is "-". A column never holds a blank. New kinds may come; columns
// are only added at the end of a line, to the words.
//
// Files, and filters of entries, are in package tracefile.
//
// # Concurrency
//
// A Device is as safe for concurrent use as the device within. A Reader belongs to one
// goroutine.
package trace
