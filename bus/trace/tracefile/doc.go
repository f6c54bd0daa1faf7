// Package tracefile keeps traces in files and shows parts of them: pcapng for machines, text for
// people, and filters over both.
//
// # pcapng
//
// One interface a device, with its name as if_name and "ADDRESS BACKEND DRIVER" as
// if_description; link type 147 (USER0); nanosecond timestamps. A packet is one entry,
// little-endian:
//
//	offset size
//	     0    1  version of this layout: 1
//	     1    1  kind: 1 read, 2 write, 3 doorbell, 4 publish, 5 irq, 6 unmask, 7 irqs, 8 dma,
//	             9 open, 10 reset, 11 died, 12 close, 13 lost
//	     2    1  op: of dma 1 alloc, 2 map, 3 free; of irqs 4 enable, 5 disable; else 0
//	     3    1  width of the access, or of a descriptor, in bytes
//	     4    1  region, signed: -1 config space, -2 none
//	     5    1  mode of an interrupt: 0 INTx, 1 MSI, 2 MSI-X
//	     6    2  0
//	     8    8  number of the record, by device
//	    16    8  nanoseconds since the program began
//	    24    8  nanoseconds since the device's record before; 0: not known
//	    32    8  offset of the register
//	    40    8  value
//	    48    8  aux: vector of an interrupt, size of memory, last index of a publish
//	    56    4  count: how many descriptors were published
//	    60    2  length n of the name
//	    62    2  length t of the text
//	    64    2  length d of the data: the first descriptors of a publish
//	    66    6  0
//	    72    n  name, UTF-8
//	  72+n    t  text, UTF-8
//	72+n+t    d  data
//
// Names and texts are in the file, so it is read without the drivers that made it. What
// follows a packet's end as described here is a later version's, and skipped.
//
// # Filters
//
// [ParseFilter] takes an expression of github.com/expr-lang/expr that says yes or no of an
// entry:
//
//	reg == "TDT" && value > 10
//	kind in ["irq", "unmask"] || dt > 5*ms
//	kind == "publish" && count >= 32
//	reg startsWith "RX" && bitand(value, 0x80) != 0
//	text contains "LU"
//
// Its fields: device, address, kind, name ("RAL[3]"), reg ("RAL"), text (strings); seq, dt (ns
// since the device's record before), index, region, off, width, value, aux, count (integers; a
// value above 1<<63-1 is negative); t (seconds since the program began, a fraction). And the
// constants us and ms, in nanoseconds.
package tracefile
