// Package ledger is a table of numbers in memory that outlives the process that counts in it: a memfd of a supervisor's, which each
// of its workers in turn has mapped. A worker that is killed at any instruction leaves what it had stored until then, and the
// next one goes on from there.
//
// # Counters
//
// A [Counter] is one word with a name. Whoever asks for a name that there is gets that counter, in whichever process: names are
// made by whoever comes first, and two that come at once get the same one. "beat" is the heartbeat of a worker, "busy/..." the
// progress of its queues and threads. A counter costs what a store or a load costs, and Add a locked one.
//
// # Areas
//
// An [Area] is a run of words with a name, for what is more than a number. Its owner orders its stores so that what is there makes
// sense at each moment: [Pair] does that for a set of words that belong together, [Journal] for a few of very many.
//
// # Trust
//
// The memory is sealed: nobody can shrink it under an access. What is in it is another process's to write, a hostile one's too, at any moment.
// So [Ledger.Snapshot] and the rest read each word once, check it, and bound what they follow: lies make for wrong
// numbers and for names that are missing, never for a panic, an endless loop, or an access elsewhere. A name is at most [MaxName] bytes of
// printable ASCII; there are at most [MaxNames]. Addresses in the memory are only believed inside it.
//
// The size is fixed ([Size]), and only what is touched takes memory.
package ledger
