package fabric

import "github.com/ring3dev/ring3/rionet/rapidio"

// Sink is a node as the fabric sees it: what comes out of its link. Calls may come from any goroutine, several at a time; they must not
// wait for anything, nor for a lock that is held by who calls the fabric, nor call methods of a Port but SetMailbox and SetDoorbells.
// After Port.Detach there are none.
type Sink interface {
	// Message delivers one; m.Peer is its source, and m.Data is only valid during the call. Done, Retry or Error.
	Message(m *rapidio.Message) rapidio.Status
	// Doorbell delivers one. Done, Retry or Error.
	Doorbell(src rapidio.DestID, info uint16) rapidio.Status
	// PortWrite delivers one, or loses it.
	PortWrite(p []byte)
	// Complete is the response to a Message or Doorbell that was Pending, by its tag: Done, Retry or Error, always one.
	Complete(tag uint32, s rapidio.Status)
	// Response is the response to a maintenance transaction that was Pending: Done or Error, always one.
	Response(tag uint32, v uint32, s rapidio.Status)
	// Flush tells that what was delivered should be seen now: one interrupt for many. It follows everything, by itself or after a
	// burst; what another node's Message and Doorbell delivered at once is followed by it when that node calls Port.Flush.
	Flush()
	// ConfigWritten tells that somebody else wrote the endpoint's registers.
	ConfigWritten()
	// Link tells that the endpoint's link went up or down.
	Link(up bool)
}

// BurstSink is a Sink that takes several messages of one source at once. The first n of them, at least one, have the status that it
// returns.
type BurstSink interface {
	Sink
	Messages(src rapidio.DestID, mbox uint8, data [][]byte) (n int, s rapidio.Status)
}

// Maint is a maintenance transaction that a node starts.
type Maint struct {
	Tag   uint32
	Local bool // to the endpoint's own registers; Dest and Hop do not matter
	Dest  rapidio.DestID
	Hop   uint8
	Off   rapidio.Off
	Width rapidio.Width
	Write bool
	Value uint32 // to be written
}
