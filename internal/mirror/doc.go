// Package mirror shows the trees of several workers, joined, in the process that supervises them: a worker exports its tree over a link
// ([Export]); the supervisor has a [Tree] of ordinary nodes, which FUSE and the control socket serve, and a [Part] of it for each worker's place. A worker
// may die and another one take its place; the nodes stay, and so do programs' open files.
//
//	e := mirror.NewExport(root, "ns")              // in the worker; e is the link's handler for mirror.Class
//	err := e.Start(c)
//
//	t := mirror.NewTree(mirror.TreeOptions{})      // in the supervisor
//	p := t.Part("eth0+eth1")                       // the link's handler for mirror.Class, of this worker and of those after it
//	p.Attach(c)
//	err := p.Sync(ctx)                             // now t.Root() has it all
//
// # What a worker's death means to a program
//
// A read of a text or of a binary file that was on its way is made again, of the next worker (if it kills three, it gives EIO). A write that was on its
// way gives EIO, since it may have been done (unless its [Rule] says Again); one that was not sent yet is sent to the next worker. A stream (a device's
// file) gives EIO once, then it is opened again, with the flags of its open, at its next use. Calls wait for the next worker, at most Patience, then
// give EIO; after Fail they do so at once. What can be interrupted ends with its ctx at any time; what cannot (ReadAt, WriteAt, Open, Close, Poll), and
// each Show, ends after Patience.
//
// # What stays
//
// A new worker's entries are shown when all have come ([Part.Sync]), in one go: what is the same, by path, kind, mode and size, keeps its node, and so its
// inode; what is missing then goes. An entry that a living worker takes away goes as it does in one process: programs that have the file open go on with
// the old one, as far as the worker still knows it (its last 1,024), and get ENODEV then.
//
// # Joined files
//
// Directories are joined. A file that several have is shown and written by its [Rule]; without one, and of links, whoever had it first has it, and the others' are not
// shown: no worker reaches another's files. Binary files and streams are the first part's.
//
// # Order
//
// A worker tells of changes before it answers the call that made them: after `echo add_device eth0 > kpktgend_0` the file eth0 is there. Whoever changes the tree
// in the answer to another call than a file's uses [Export.Flush].
//
// # What is trusted
//
// Of a worker nothing: the number of entries, their depth, names, targets and sizes have bounds, and so have the calls and streams that are open in it. Whatever breaks
// one ends its link with bus.ErrProtocol. It changes only its own part, below the top, and never what the tree's owner put there;
// what its part may have at all is TreeOptions.May's to say. A link of its that leads out of the tree is not shown,
// unless TreeOptions.Leads says so.
// The kernel's entries of merged directories (node.Dir.Kernel) are not told.
//
// # Locks
//
// In the worker Export.mu is held while records are made and sent, marks.mu and tab for moments within it. In the supervisor Tree.mu guards what
// is shown, and Part.mu may be taken within it; neither is held during a call to a worker. stream.mu and session.mu are taken alone.
package mirror
