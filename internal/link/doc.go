// Package link is the conversation between a supervisor and a worker: calls, their replies in any number of parts, events,
// and descriptors, over one Unix stream socket, both ways at once.
//
//	ours, theirs, err := link.Pair()
//	c := link.New(ours, handler, link.Options{Name: "worker 4711"})
//	reply, files, err := c.Call(ctx, method, body)
//
// # Order
//
// All that one side sends arrives in the order in which it was sent. Events, and the parts of a reply, are handled one after
// the other on the goroutine that reads; calls are handled each on a goroutine of its own. So what a side tells by an event before it
// answers a call is known to the other when the call returns.
//
// # What is trusted
//
// Nothing. A frame's size, the number of its descriptors, its kind, the calls that are open, with their bytes and descriptors, what waits to be sent: each has a bound
// ([Options]). Whoever breaks one ends the connection with bus.ErrProtocol; an answer that nobody waits for any more is dropped. A peer that takes
// nothing holds nobody up for longer than Options.SendWait. One that floods is read slower (Options.Rate): the socket fills, and it waits itself.
//
// Bodies may be keys: what passed is zeroed in the buffers here. A body that was handed out is its owner's to clear.
//
// # Frames
//
// Little-endian: length of the body, 32 bits; kind, 8; number of descriptors, 8; method, 16; the call's number, 64; the body. Descriptors come with
// the frame's first byte (SCM_RIGHTS). An error's body is its errno, 32 bits, and its text.
//
// Errors of a call keep their errno and text, and wrap what they wrapped of package bus, if that has a number here ([bus.ErrGone] and its like).
//
// # Locks
//
// sending, held while a frame is written; mu, which guards the calls that are open. Neither is held while a handler runs.
package link
