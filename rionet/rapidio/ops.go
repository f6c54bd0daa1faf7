package rapidio

import (
	"context"
	"errors"
	"fmt"

	"github.com/ring3dev/ring3/bus"
)

// Status is the response to a doorbell, a message or a maintenance transaction (part 1, 4.3; part 2, 4.3).
type Status uint8

// Statuses.
const (
	Pending Status = iota // there is none yet
	Done
	Retry // the receiver has no room now; nothing was delivered
	Error // it was refused, or reached nobody
)

func (s Status) String() string {
	switch s {
	case Pending:
		return "pending"
	case Done:
		return "done"
	case Retry:
		return "retry"
	case Error:
		return "error"
	}
	return fmt.Sprintf("Status(%d)", uint8(s))
}

// Errors of transactions. A dead port's wrap bus.ErrGone, a closed one's bus.ErrClosed.
var (
	ErrResponse = errors.New("error response")                        // nobody is there, or it refused
	ErrRetry    = errors.New("retry response")                        // no room there
	ErrNoReply  = fmt.Errorf("no response: %w", bus.ErrTimeout)       // it was lost
	ErrClaimed  = fmt.Errorf("claimed already: %w", bus.ErrBusy)      // mailbox, doorbells
	ErrRange    = fmt.Errorf("out of range: %w", bus.ErrNotSupported) // offset, mailbox, length
)

// Err is the error that a response means; nil for Done.
func (s Status) Err() error {
	switch s {
	case Done:
		return nil
	case Retry:
		return ErrRetry
	case Error:
		return ErrResponse
	}
	return ErrNoReply
}

// Message is one message: 1 to MaxMessage bytes for a mailbox.
type Message struct {
	Peer DestID // where to, or where from
	Mbox uint8  // 0 to 3
	// Order is what a refusal of others means to one that is sent.
	Order Order
	// Data is the message. Of one to be received it is the room for it, and then what was received of it.
	Data []byte
}

// Order is how a message keeps its place among those of its port to one peer and mailbox when one of them is answered by Retry. Those that are
// under way behind that one may find room, and overtake it. So whoever cannot have that marks all of them: what is Behind a refused one is
// refused as well, wherever the refusing happens, until one comes that is Again. After a Retry the sender waits for the results of all that it
// has under way to that peer, all of which are Retry or Error, and begins again with the first.
type Order uint8

// Orders.
const (
	Alone  Order = iota // others do not matter
	Behind              // refused if the last one before it that is not Alone was
	Again               // the first after a refusal, or the first of all
)

// Width is the width of a config access, in bytes: 1, 2 or 4. Offsets are multiples of it.
type Width uint8

// Ops is a master port as hardware: what makes a process part of a fabric. Package mport has the one over shared memory, package fabric
// one inside the fabric's own process. All of it is safe for concurrent use, also from within Events, but for what an
// Outbox or Inbox says of itself.
//
// A transaction that gets no response in time fails with ErrNoReply. A port whose fabric is gone fails everything with bus.ErrGone, until
// it is back (Events.Link).
type Ops interface {
	// Info is what does not change.
	Info() PortInfo
	// LocalRead and LocalWrite access the port's own registers.
	LocalRead(ctx context.Context, off Off, w Width) (uint32, error)
	LocalWrite(ctx context.Context, off Off, w Width, v uint32) error
	// Read and Write are maintenance transactions: to the device that is hop switches away on the route to dest. Hop 0 is the
	// device at the other end of the port's own link. An endpoint takes it whatever dest and what is left of hop say.
	Read(ctx context.Context, dest DestID, hop uint8, off Off, w Width) (uint32, error)
	Write(ctx context.Context, dest DestID, hop uint8, off Off, w Width, v uint32) error
	// Doorbell sends one and waits for its response.
	Doorbell(ctx context.Context, dest DestID, info uint16) error
	// PortWrite sends 4 to MaxPortWrite bytes (a multiple of 4). There is no response: nil means it was sent.
	PortWrite(ctx context.Context, dest DestID, p []byte) error
	// OpenDoorbells lets doorbells in: before, and after the closing, their senders get Error.
	OpenDoorbells(open bool) error
	// OpenOutbox and OpenInbox open a mailbox, with room for so many messages (a power of two, 2 to 1024). Until an Inbox is open
	// senders get Error, and while all its room is taken Retry.
	OpenOutbox(mbox, entries int) (Outbox, error)
	OpenInbox(mbox, entries int) (Inbox, error)
	// Start names who is told of what comes in, once, before anything else but Info.
	Start(e Events)
	// Done is closed when the port is gone for good or closed; Err then says why.
	Done() <-chan struct{}
	Err() error
}

// PortInfo describes a master port.
type PortInfo struct {
	Name  string // "pe0": of the endpoint
	Model string // "fabric", "ivshmem"
	IDs   IDSize
}

// Events is told of what a port receives. Calls come one at a time, in order; they may use Ops, and must not take long.
type Events interface {
	// Doorbell came in.
	Doorbell(src DestID, info uint16)
	// PortWrite came in: 4 to MaxPortWrite bytes, only valid during the call.
	PortWrite(p []byte)
	// ConfigWritten tells that somebody else wrote this port's own registers, any of them.
	ConfigWritten()
	// Link tells that the port's own link went up or down: its fabric's end, and after a fabric died and came back the registers are
	// new, without IDs.
	Link(up bool)
}

// Outbox is an open outbound mailbox. It belongs to one goroutine.
type Outbox interface {
	// Add sends the first n of msgs; fewer than there are while the box is full. The data is copied before it returns. Messages to
	// one peer and mailbox arrive in order, but for those that are sent after a Retry (Order). A message whose mailbox or length is impossible counts as sent, with Error. All
	// of one call have one doorbell.
	Add(msgs []Message) (n int)
	// Results takes the responses to what was added, in its order: the first n of st. What has no response for too long
	// is Error. A box is full until results are taken.
	Results(st []Status) (n int)
	// InFlight is how many added messages have no result taken yet.
	InFlight() int
	// Wait sleeps until Add may take more or Results has more, ctx ends, or the port goes.
	Wait(ctx context.Context) error
	// Close gives the box up; what is in flight may still arrive.
	Close() error
}

// Inbox is an open inbound mailbox. It belongs to one goroutine, but for Free and Cut, which others may call while it waits.
type Inbox interface {
	// Get receives up to len(msgs) messages. Each msgs[i].Data is room, which is filled and cut to what came; a message longer
	// than its room is cut off and counted in Cut.
	Get(msgs []Message) (n int)
	// Wait sleeps until there is a message, ctx ends, or the port goes.
	Wait(ctx context.Context) error
	// Free is how many more messages find room now, at the least.
	Free() int
	// Cut is how many messages were cut off.
	Cut() uint64
	Close() error
}
