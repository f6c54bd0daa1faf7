package rionet

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// peer is an endpoint that can talk rionet.
type peer struct {
	id  rapidio.DestID
	dev *rapidio.Device

	active atomic.Bool // it joined: frames go to it
	exact  atomic.Bool // it keeps the length of messages: so do we of its
	heard  atomic.Bool // it sent or took a message since the keeper looked last
	// held: frames wait until the peer knows that we keep lengths, and until then at the latest; nil: they go.
	held atomic.Pointer[time.Time]

	// guarded by txQueue.mu
	errors    int       // messages in a row that came back as errors
	waiting   int       // messages that wait to be sent, again or behind such
	stayed    uint64    // the last txQueue.pass in which one of those stayed where it was
	fullSince time.Time // it had no room since, and took nothing; zero: it did
	congested bool      // for so long that what waited was dropped
	inBox     int       // messages in the box, or staged, without a result
	again     bool      // a message came back: all behind it do, too, and the next one to be sent is the first of them (rapidio.Again)
	window    int       // messages in the box at once, while it is slow; 0: any number
	retryAt   time.Time // when to send again, at the earliest

	// guarded by Device.mu
	gone      bool      // it is removed
	announced bool      // doorbellExact came and JOIN did not yet
	owed      bool      // it is to get a JOIN though it is active
	tries     int       // how often it took JOIN and refused EXACT
	nextJoin  time.Time // when to send JOIN, if it is owed or the peer is not active
	wait      time.Duration
	joined    time.Time // when it took our last JOIN
	nextAlive time.Time // when to see whether an active peer is alive
	silent    int       // lost doorbells in a row
	confirm   bool      // it is to get ALIVE: it said EXACT, and waits for our word that we took it
	asked     time.Time // when ask began last
	mute      bool      // it let our frames wait in vain, and they do not again until it says ALIVE
	said      pace      // of what is logged of it
}

// peerPage has the peers of 256 device IDs.
type peerPage [256]atomic.Pointer[peer]

// peerTable finds peers by device ID, without a lock.
type peerTable [256]atomic.Pointer[peerPage]

// get is the peer of an ID, or nil.
func (t *peerTable) get(id rapidio.DestID) *peer {
	page := t[id>>8].Load()
	if page == nil {
		return nil
	}
	return page[id&0xff].Load()
}

// set changes it. Calls do not overlap.
func (t *peerTable) set(id rapidio.DestID, p *peer) {
	page := t[id>>8].Load()
	if page == nil {
		page = new(peerPage)
		t[id>>8].Store(page)
	}
	page[id&0xff].Store(p)
}

// stray is an endpoint that rang before it was found.
type stray struct {
	joined, announced bool
	at                time.Time // when it rang last
}

const (
	// maxStrays bounds what strangers can make us remember.
	maxStrays = 1024
	// strayFor is how long. Who has that device ID later may be another; who still wants to join says so every 2 s.
	strayFor = time.Minute
)

// Peer is a peer's state, as Peers tells it.
type Peer struct {
	ID     rapidio.DestID `json:"destid"`
	Device string         `json:"device"` // on the bus: "00:e:0001"
	Active bool           `json:"active"`
	Exact  bool           `json:"exact"` // frames from it keep their length
}

// Peers lists the endpoints that can be peers, by device ID. Safe for concurrent use.
func (d *Device) Peers() []Peer {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]Peer, 0, len(d.all))
	for _, p := range d.all {
		list = append(list, Peer{ID: p.id, Device: p.dev.Name(), Active: p.active.Load(), Exact: p.exact.Load()})
	}
	slices.SortFunc(list, func(a, b Peer) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// addPeer takes in an endpoint that was found. One that rang before is answered now.
func (d *Device) addPeer(dev *rapidio.Device) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if old := d.peers.get(dev.DestID); old != nil {
		d.drop(old) // the same ID with another device: it was numbered anew
	}
	now := time.Now()
	p := &peer{id: dev.DestID, dev: dev, nextJoin: now, wait: joinFirst}
	d.peers.set(p.id, p)
	d.all = append(d.all, p)
	if s, ok := d.strays[p.id]; ok {
		delete(d.strays, p.id)
		if now.Sub(s.at) < strayFor {
			p.announced = s.announced
			if s.joined {
				d.onJoin(p, now)
			}
		}
	}
	d.wakeKeeper()
}

// removePeer forgets an endpoint.
func (d *Device) removePeer(dev *rapidio.Device) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.all {
		if p.dev == dev {
			d.drop(p)
			return
		}
	}
}

// drop forgets a peer. Called with mu held.
func (d *Device) drop(p *peer) {
	p.gone = true
	d.deactivate(p, time.Now())
	d.peers.set(p.id, nil)
	d.all = slices.DeleteFunc(d.all, func(q *peer) bool { return q == p })
}

// activate lets frames go to a peer, or with hold wait: none is to find it active before that. Called with mu held.
func (d *Device) activate(p *peer, now time.Time, hold bool) {
	p.exact.Store(p.announced && !d.classic)
	p.announced = false
	if hold {
		d.hold(p, now)
	}
	d.confirm(p, now)
	if p.gone || p.active.Load() {
		return
	}
	p.active.Store(true)
	p.heard.Store(false)
	p.silent = 0
	if !p.confirm {
		p.nextAlive = now.Add(aliveEvery)
	}
	list := append(slices.Clone(d.activePeers()), p)
	d.active.Store(&list)
	d.joins.Add(1)
	d.say(p, now, "peer joined", "exact", p.exact.Load())
}

// keepsLengths is for an active peer that said so after its JOIN. Called with mu held.
func (d *Device) keepsLengths(p *peer, now time.Time) {
	if d.classic || !p.active.Load() || p.exact.Swap(true) {
		return
	}
	d.confirm(p, now)
	d.say(p, now, "peer keeps lengths", "exact", true)
}

// deactivate stops that. JOIN goes to the peer again after a while. Called with mu held.
func (d *Device) deactivate(p *peer, now time.Time) {
	was := p.active.Swap(false) // before its hold ends: who looks at both, in this order, mostly finds it gone
	p.exact.Store(false)
	p.held.Store(nil)
	p.announced, p.owed, p.confirm, p.tries = false, false, false, 0
	p.wait, p.nextJoin = joinFirst, now.Add(joinFirst)
	if !was {
		return
	}
	list := slices.DeleteFunc(slices.Clone(d.activePeers()), func(q *peer) bool { return q == p })
	d.active.Store(&list)
	d.leaves.Add(1)
	if d.life.Err() == nil {
		d.say(p, now, "peer left")
	}
	d.wakeKeeper()
}

// activePeers are those that frames go to; not to be changed.
func (d *Device) activePeers() []*peer {
	if list := d.active.Load(); list != nil {
		return *list
	}
	return nil
}

// lost deactivates a peer that takes nothing any more.
func (d *Device) lost(p *peer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.active.Load() {
		d.deactivate(p, time.Now())
	}
}
