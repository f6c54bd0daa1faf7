package scan

import (
	"fmt"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// gap is after how many IDs without a route a search for more ends, with 16-bit IDs: hosts give the lowest that are free.
const gap = 1024

// listed are the IDs that the neighbour routes: all that can be reached have a route there.
func (s *search) listed() (ids []rapidio.DestID, err error) {
	t := s.at(s.root)
	for first, last := 0, 0; first < int(s.ids.Any()); {
		var some []rapidio.DestID
		for ; len(some) < chunk && first < int(s.ids.Any()); first++ {
			some = append(some, rapidio.DestID(first))
		}
		if err := s.entries(t, s.root, some); err != nil {
			return nil, err
		}
		for _, id := range some {
			if s.root.held(id) != rapidio.InvalidRoute {
				last = int(id)
				ids = append(ids, id)
			}
		}
		if s.ids == rapidio.Large && first-last > gap {
			break
		}
	}
	if s.root.dev.ErrMgmt == 0 {
		return ids, nil
	}
	// The host's own ID may be far from all others; its switches know it.
	v, err := t.read(s.root.dev.ErrMgmt + rapidio.EMPortWriteTgt)
	if err != nil {
		return nil, err
	}
	id := rapidio.DestID(v >> 16)
	if id < s.ids.Any() && id != s.own {
		s.boss = id // unless an endpoint says that it is another one's
		if s.root.held(id) == unknown {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// at is a switch by the route by which it was met.
func (s *search) at(n *node) target {
	return target{a: &s.access, dest: n.path, hop: uint8(n.hop), ports: n.ports()}
}

// A switch is locked for so many entries, and for so long, at a time; then others have their turn.
const (
	chunk      = 32
	chunkTime  = 20 * time.Millisecond
	chunkPause = 2 * time.Millisecond
)

// entries reads those entries of a switch's table that are not known yet.
func (s *search) entries(t target, n *node, ids []rapidio.DestID) error {
	for again := false; ; again = true {
		for len(ids) > 0 && n.held(ids[0]) != unknown {
			ids = ids[1:]
		}
		if len(ids) == 0 {
			return nil
		}
		if again {
			if err := sleep(s.ctx, chunkPause); err != nil {
				return err
			}
		}
		if err := s.some(t, n, ids[:min(len(ids), chunk)]); err != nil {
			return err
		}
	}
}

// some reads entries with the switch locked, until it is somebody else's turn.
func (s *search) some(t target, n *node, ids []rapidio.DestID) (err error) {
	if err := s.borrow(t); err != nil {
		return err
	}
	defer func() {
		if e := s.surrender(t, s.own); err == nil {
			err = e
		}
	}()
	begun := time.Now()
	for _, id := range ids {
		port, err := n.dev.Switch.Ops.GetEntry(s.ctx, t, rapidio.GlobalTable, id)
		if err != nil {
			return fmt.Errorf("route of %#x: %w", id, err)
		}
		n.hold(id, int16(port))
		if time.Since(begun) > chunkTime {
			break
		}
	}
	return nil
}

// smallTables is up to how many entries all tables together are read whole, for people to look at.
const smallTables = 4096

// tables reads what is left of the tables of a small net, and shows what is known of all.
func (s *search) tables(ids []rapidio.DestID) error {
	var switches []*node
	for _, n := range s.nodes {
		if n.isSwitch() {
			switches = append(switches, n)
		}
	}
	for _, n := range switches {
		if len(switches)*len(ids) <= smallTables {
			if err := s.entries(s.at(n), n, ids); err != nil {
				if s.fatal(err) {
					return err
				}
				s.trouble = append(s.trouble, fmt.Sprintf("leaving out routes of %s: %v", n.label(), err))
			}
		}
		n.want = make([]uint8, len(n.table))
		for id, v := range n.table {
			if n.want[id] = rapidio.InvalidRoute; v != unknown {
				n.want[id] = uint8(v)
			}
		}
	}
	return nil
}
