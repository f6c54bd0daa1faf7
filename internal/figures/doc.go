// Package figures is the numbers of a running instance as one value, and everything that draws it: a table, a live
// view of a terminal, a report in HTML, a page for Prometheus. docs/metrics.md has the fields and names.
//
// An instance makes a [Snapshot] whenever it is asked; a [Stream] adds the rates between one and the next. Whoever draws gets
// snapshots and nothing else, so what was written to a file is drawn as what is live.
//
// Names may have any bytes (pktgen takes "eth0@\x1b[2J" for a device), and results quote what was written. [Printable]
// stands between them and a terminal.
package figures
