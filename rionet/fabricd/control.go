package fabricd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// serveConn answers one client's requests in order, until it closes the connection or becomes a node.
func (s *Server) serveConn(c *net.UnixConn) {
	r := bufio.NewReader(c)
	for {
		line, err := nextLine(c, r)
		if errors.Is(err, errTooLong) {
			_ = s.refuse(c, fmt.Errorf("request: %w", err))
		}
		if err != nil {
			break
		}
		q, err := parseRequest(line)
		if err != nil {
			_ = s.refuse(c, err)
			break
		}
		if q.Join != "" {
			if r.Buffered() > 0 {
				_ = s.refuse(c, errors.New("request to join has something behind its end"))
				break
			}
			s.serveJoin(c, q)
			return
		}
		if q.Op == opWatch {
			s.serveWatch(c)
			break
		}
		if err := s.answer(c, q); err != nil {
			break
		}
	}
	c.Close()
	s.forget(c)
}

// nextLine waits for a request for idleWait, and once it began for lineWait.
func nextLine(c *net.UnixConn, r *bufio.Reader) ([]byte, error) {
	if err := c.SetReadDeadline(time.Now().Add(idleWait)); err != nil {
		return nil, err
	}
	if _, err := r.Peek(1); err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(lineWait)); err != nil {
		return nil, err
	}
	return readLine(r, maxRequest)
}

func (s *Server) reply(c *net.UnixConn, a response) error {
	a.V = version
	return send(c, a, sendWait)
}

func (s *Server) refuse(c *net.UnixConn, err error) error {
	return s.reply(c, response{Error: err.Error(), Code: codeOf(err)})
}

// answer does one operation. An error means that the connection is of no more use.
func (s *Server) answer(c *net.UnixConn, q request) error {
	a := response{OK: true}
	switch q.Op {
	case opShow:
		a.Fabric = s.show()
	case opStats:
		a.Stats = s.stats()
	case opWindows:
		a.Windows = s.listWindows()
	case opLink:
		if err := s.setLink(q.Ends[0], q.Ends[1], *q.Up); err != nil {
			return s.refuse(c, err)
		}
	}
	return s.reply(c, a)
}

// watcher is a client that is told of events.
type watcher struct {
	events chan Event
	slow   context.CancelFunc // it took too few of them
}

// maxEvents may wait for a watcher.
const maxEvents = 1024

// serveWatch sends events until the client goes, or is too slow.
func (s *Server) serveWatch(c *net.UnixConn) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	slow, tooSlow := context.WithCancel(ctx)
	defer tooSlow()
	w := &watcher{events: make(chan Event, maxEvents), slow: tooSlow}
	s.mu.Lock()
	s.watchers[w] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
	}()
	s.wg.Go(func() { // sees that the client went
		defer cancel()
		var b [1]byte
		_ = c.SetReadDeadline(time.Time{})
		_, _ = c.Read(b[:])
	})
	defer c.Close()
	if s.reply(c, response{OK: true}) != nil {
		return
	}
	for {
		select {
		case e := <-w.events:
			if s.reply(c, response{Event: &e}) != nil {
				return
			}
		case <-slow.Done():
			if ctx.Err() == nil {
				_ = s.refuse(c, fmt.Errorf("watching: %d events were not taken", maxEvents))
			}
			return
		}
	}
}

// tell gives an event to the watchers.
func (s *Server) tell(e Event) {
	e.Time = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		select {
		case w.events <- e:
		default:
			w.slow()
		}
	}
}
