package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ring3dev/ring3/integration/vm/wire"
)

// receive hands out what init says until nothing comes any more.
func (m *Machine) receive() {
	for {
		msg, err := m.conn.Receive()
		if err != nil {
			m.end(err)
			return
		}
		if msg.Ask != nil {
			go func() {
				_ = m.conn.Send(wire.Message{ID: msg.ID, Answer: m.answer(msg.Ask)})
			}()
			continue
		}
		m.mu.Lock()
		r := m.runs[msg.ID]
		m.mu.Unlock()
		if r != nil {
			select {
			case r.messages <- msg:
			case <-r.done:
			}
		}
	}
}

// run is a program that runs in the VM.
type run struct {
	messages chan wire.Message // of init about it; closed when the VM ended
	done     chan struct{}     // closed when nobody wants them any more
}

// end notes why nothing comes any more.
func (m *Machine) end(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = fmt.Errorf("%w: %w", ErrEnded, err)
	for _, r := range m.runs {
		close(r.messages)
	}
	m.runs = nil
}

// Run runs a program in the VM and hands what it says to out, piece by piece, until it
// ended. Where ctx ends first the program is killed, and may take as long as grace to end.
// An error means that the VM is of no more use.
func (m *Machine) Run(ctx context.Context, grace time.Duration, c wire.Command, out func([]byte)) (wire.Exit, error) {
	id, r, err := m.newRun()
	if err != nil {
		return wire.Exit{}, err
	}
	defer m.endRun(id, r)
	if err := m.conn.Send(wire.Message{ID: id, Run: &c}); err != nil {
		return wire.Exit{}, err
	}
	done := ctx.Done()
	var hung <-chan time.Time
	for {
		select {
		case <-done:
			done = nil
			_ = m.conn.Send(wire.Message{ID: id, Kill: true})
			hung = time.After(grace)
		case <-hung:
			return wire.Exit{}, fmt.Errorf("%s: %w, and it did not end when killed: the VM hangs", c.Argv[0], context.Cause(ctx))
		case msg, ok := <-r.messages:
			switch {
			case !ok:
				return wire.Exit{}, m.whyEnded()
			case msg.Output != nil:
				out(msg.Output)
			case msg.Exit != nil:
				if ctx.Err() != nil {
					msg.Exit.Err = fmt.Sprintf("killed: %v", context.Cause(ctx))
				}
				return *msg.Exit, nil
			}
		}
	}
}

// newRun gives a number to a program that is to run.
func (m *Machine) newRun() (int, *run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended != nil {
		return 0, nil, m.ended
	}
	m.last++
	r := &run{messages: make(chan wire.Message, 64), done: make(chan struct{})}
	m.runs[m.last] = r
	return m.last, r, nil
}

func (m *Machine) endRun(id int, r *run) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.runs, id)
	close(r.done)
}

// whyEnded is nil while the VM runs.
func (m *Machine) whyEnded() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ended
}

// answer does what a test asks of the host.
func (m *Machine) answer(a *wire.Ask) *wire.Answer {
	result, err := m.do(a)
	if err != nil {
		return &wire.Answer{Err: err.Error()}
	}
	b, err := json.Marshal(result)
	if err != nil {
		return &wire.Answer{Err: err.Error()}
	}
	return &wire.Answer{Result: b}
}

func (m *Machine) do(a *wire.Ask) (any, error) {
	if a.Op == wire.OpQMP {
		var q wire.QMP
		if err := json.Unmarshal(a.Args, &q); err != nil {
			return nil, err
		}
		return m.qmp.execute(q.Execute, q.Arguments)
	}
	if f := m.host[strings.TrimPrefix(a.Op, wire.OpHost)]; f != nil {
		return f(a.Args)
	}
	var id string
	if err := json.Unmarshal(a.Args, &id); err != nil {
		return nil, err
	}
	switch a.Op {
	case wire.OpAddress:
		return m.address(id)
	case wire.OpGone:
		return m.qmp.gone(id)
	case wire.OpCapture:
		return nil, m.capture(id)
	case wire.OpCaptured:
		return m.captured(id)
	}
	return nil, fmt.Errorf("no request %q is known", a.Op)
}

// capture begins to write down what passes a netdev.
func (m *Machine) capture(netdev string) error {
	file := filepath.Join(m.dir, netdev+".pcap")
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.captures[netdev] != "" {
		return fmt.Errorf("%s is being captured already", netdev)
	}
	err := m.qmp.run("object-add", map[string]any{"qom-type": "filter-dump", "id": "dump-" + netdev, "netdev": netdev, "file": file})
	if err != nil {
		return err
	}
	m.captures[netdev] = file
	return nil
}

// captured ends a capture and returns it.
func (m *Machine) captured(netdev string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	file := m.captures[netdev]
	if file == "" {
		return nil, fmt.Errorf("%s is not being captured", netdev)
	}
	delete(m.captures, netdev)
	if err := m.qmp.run("object-del", map[string]any{"id": "dump-" + netdev}); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(file)
	return b, errors.Join(err, os.Remove(file))
}

// address looks up where a device stands, by its id.
func (m *Machine) address(id string) (string, error) {
	var buses []pciBus
	b, err := m.qmp.execute("query-pci", nil)
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(b, &buses); err != nil {
		return "", fmt.Errorf("query-pci: %w", err)
	}
	for _, bus := range buses {
		if addr := bus.find(id); addr != "" {
			return addr, nil
		}
	}
	return "", fmt.Errorf("the VM has no PCI device with the id %q", id)
}

// pciBus is a bus as query-pci tells of it.
type pciBus struct {
	Devices []struct {
		ID       string `json:"qdev_id"`
		Bus      int    `json:"bus"`
		Slot     int    `json:"slot"`
		Function int    `json:"function"`
		Bridge   pciBus `json:"pci_bridge"`
	} `json:"devices"`
}

func (b pciBus) find(id string) string {
	for _, d := range b.Devices {
		if d.ID == id {
			return fmt.Sprintf("0000:%02x:%02x.%x", d.Bus, d.Slot, d.Function)
		}
		if addr := d.Bridge.find(id); addr != "" {
			return addr
		}
	}
	return ""
}
