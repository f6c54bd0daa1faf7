package fabricd

import "github.com/ring3dev/ring3/rionet/rapidio"

// A node as the fabric sees it (fabric.Sink): all goes into its memory, whoever calls.

// Message delivers one.
func (n *node) Message(m *rapidio.Message) rapidio.Status {
	st := n.d.PutMessage(m.Mbox, m.Peer, m.Data)
	n.put(m.Peer, m.Mbox, st)
	return st
}

// Messages delivers several.
func (n *node) Messages(src rapidio.DestID, mbox uint8, data [][]byte) (int, rapidio.Status) {
	k, st := n.d.PutMessages(mbox, src, data)
	n.put(src, mbox, st)
	return k, st
}

// put notes what became of what came.
func (n *node) put(src rapidio.DestID, mbox uint8, st rapidio.Status) {
	switch {
	case st == rapidio.Retry:
		n.s.refused.note(src, n)
		if !n.full[mbox].Load() {
			n.setFull(mbox, true)
		}
	case st == rapidio.Error:
		n.poke() // it may have broken the ring: its worker finds out
	case n.full[mbox].Load():
		n.setFull(mbox, false)
	}
}

// setFull has the Mailbox CSR say whether a mailbox is full.
func (n *node) setFull(mbox uint8, full bool) {
	n.boxes.Lock()
	defer n.boxes.Unlock()
	if n.open[mbox] {
		n.full[mbox].Store(full)
		n.port.SetMailbox(mbox, true, full)
	}
}

// Doorbell delivers one.
func (n *node) Doorbell(src rapidio.DestID, info uint16) rapidio.Status {
	return n.event(n.d.PutDoorbell(src, info))
}

// PortWrite delivers one, or loses it.
func (n *node) PortWrite(p []byte) { n.event(n.d.PutPortWrite(p)) }

func (n *node) event(st rapidio.Status) rapidio.Status {
	if st == rapidio.Error {
		n.poke() // it broke the ring: its worker finds out
	}
	return st
}

// Complete is the response to a message or doorbell.
func (n *node) Complete(tag uint32, s rapidio.Status) { n.d.PutResult(tag, s) }

// Response is the response to a maintenance transaction.
func (n *node) Response(tag, v uint32, s rapidio.Status) { n.d.PutResponse(tag, v, s) }

// Flush lets the node see all that, and signals it if it sleeps.
func (n *node) Flush() {
	if v := n.d.Flush(); v != 0 {
		n.kick(v)
	}
}

// ConfigWritten tells that somebody else wrote the endpoint's registers.
func (n *node) ConfigWritten() {
	n.d.ConfigWritten()
	n.config.Store(true)
	n.poke()
}

// Link tells that the endpoint's link went up or down.
func (n *node) Link(up bool) { n.d.SetLink(up) }
