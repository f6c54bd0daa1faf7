package fabric

import (
	"container/heap"
	"slices"
	"sync"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// packet is one on its way over links that take time, or a response that is due.
type packet struct {
	at  time.Duration
	seq uint64 // of those for one time the first goes first

	kind packetKind
	from *Port // who sent it, or the request it answers; nil: a switch
	tag  uint32

	path   *path // of a message or doorbell
	mbox   uint8
	order  rapidio.Order
	info   uint16
	maint  Maint
	in     *port           // that takes a maintenance request
	hops   []hop           // its way
	to     *Port           // that takes a port-write
	msg    rapidio.Message // while it is delivered
	status rapidio.Status
	value  uint32
	n      int
	buf    []byte
}

type packetKind uint8

const (
	packetMessage packetKind = iota
	packetDoorbell
	packetMaint
	packetPortWrite
	packetComplete // the response to a message or doorbell is back
	packetResponse // that to a maintenance request
)

// room is the packet's room for data.
func (pk *packet) room(n int) []byte {
	if cap(pk.buf) < n {
		pk.buf = make([]byte, n)
	}
	return pk.buf[:n]
}

// scheduler lets packets arrive when it is time. It has no goroutine of its own: a timer runs it.
type scheduler struct {
	f  *Fabric
	mu sync.Mutex // below Fabric.mu

	queue   packetHeap
	free    []*packet
	own     int // packets of switches
	seq     uint64
	timer   *time.Timer
	running bool

	touched []*Port // of the goroutine that runs
}

// maxFree is how many packets are kept for later.
const maxFree = 1024

func (s *scheduler) init(f *Fabric) { s.f = f }

// packet is room for a packet of a node, or of a switch where from is nil; nil: too many are on their way.
func (s *scheduler) packet(from *Port) *packet {
	if from != nil {
		if from.inFlight.Load() >= maxInFlight {
			return nil
		}
		return s.response(from)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own == maxInFlight {
		return nil
	}
	s.own++
	return s.take()
}

// response is room for the response to what a node asked for and was done: there is always some.
func (s *scheduler) response(from *Port) *packet {
	from.inFlight.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	pk := s.take()
	pk.from = from
	return pk
}

// take is an unused packet. The caller holds s.mu.
func (s *scheduler) take() *packet {
	pk := new(packet)
	if n := len(s.free); n > 0 {
		pk = s.free[n-1]
		s.free = s.free[:n-1]
	}
	return pk
}

// done gives a packet up.
func (s *scheduler) done(pk *packet) {
	if pk.from != nil {
		pk.from.inFlight.Add(-1)
	}
	own := pk.from == nil
	*pk = packet{buf: pk.buf, hops: pk.hops[:0]}
	s.mu.Lock()
	defer s.mu.Unlock()
	if own {
		s.own--
	}
	if len(s.free) < maxFree {
		s.free = append(s.free, pk)
	}
}

// add lets a packet arrive at a time.
func (s *scheduler) add(pk *packet, at time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pk.at, pk.seq = at, s.seq
	s.seq++
	heap.Push(&s.queue, pk)
	if !s.running && s.queue[0] == pk {
		s.arm()
	}
}

// arm sets the timer to the first packet. The caller holds s.mu.
func (s *scheduler) arm() {
	if len(s.queue) == 0 {
		return
	}
	d := s.queue[0].at - s.f.now()
	if s.timer == nil {
		s.timer = time.AfterFunc(d, s.run)
	} else {
		s.timer.Reset(d)
	}
}

// run lets arrive what is due, and then tells those that got something.
func (s *scheduler) run() {
	s.mu.Lock()
	if s.running {
		s.mu.Unlock()
		return
	}
	s.running = true
	for len(s.queue) > 0 && s.queue[0].at <= s.f.now() {
		for len(s.queue) > 0 && s.queue[0].at <= s.f.now() && len(s.touched) < 64 {
			pk := heap.Pop(&s.queue).(*packet)
			s.mu.Unlock()
			s.f.arrive(pk)
			s.mu.Lock()
		}
		s.mu.Unlock()
		for i, p := range s.touched {
			p.flush()
			s.touched[i] = nil
		}
		s.touched = s.touched[:0]
		s.mu.Lock()
	}
	s.running = false
	s.arm()
	s.mu.Unlock()
}

func (s *scheduler) touch(p *Port) {
	if !slices.Contains(s.touched, p) {
		s.touched = append(s.touched, p)
	}
}

// packetHeap is a heap.Interface.
type packetHeap []*packet

func (h packetHeap) Len() int { return len(h) }
func (h packetHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h packetHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *packetHeap) Push(x any)   { *h = append(*h, x.(*packet)) }
func (h *packetHeap) Pop() any {
	old := *h
	pk := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return pk
}
