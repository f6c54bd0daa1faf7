package vm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// qmp is a client of the QEMU Machine Protocol: JSON lines (docs/interop/qmp-spec).
type qmp struct {
	f       *os.File
	do      sync.Mutex // one command at a time
	answers chan qmpMessage
	ended   chan struct{}

	mu   sync.Mutex
	gone map[string]chan struct{} // by device: closed when QEMU let it go
}

// qmpMessage is anything that QEMU sends.
type qmpMessage struct {
	QMP    json.RawMessage `json:"QMP"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

// qmpTimeout is how long QEMU may take for an answer.
const qmpTimeout = 20 * time.Second

// newQMP greets QEMU and leaves negotiation mode.
func newQMP(f *os.File) (*qmp, error) {
	q := &qmp{f: f, answers: make(chan qmpMessage, 1), ended: make(chan struct{}), gone: map[string]chan struct{}{}}
	go q.read()
	return q, q.run("qmp_capabilities", nil)
}

func (q *qmp) read() {
	defer close(q.ended)
	r := bufio.NewReaderSize(q.f, 64<<10)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		var m qmpMessage
		switch {
		case json.Unmarshal(line, &m) != nil || m.QMP != nil:
		case m.Event == "DEVICE_DELETED":
			var d struct {
				Device string `json:"device"`
			}
			_ = json.Unmarshal(m.Data, &d)
			if c := q.isGone(d.Device); d.Device != "" {
				close(c)
				q.forget(d.Device)
			}
		case m.Event != "":
		default:
			q.answers <- m
		}
	}
}

// isGone is what will be closed when QEMU let a device go.
func (q *qmp) isGone(id string) chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone[id] == nil {
		q.gone[id] = make(chan struct{})
	}
	return q.gone[id]
}

func (q *qmp) forget(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.gone, id)
}

// run is execute for a command without a result.
func (q *qmp) run(cmd string, args map[string]any) error {
	b, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("qmp %s: %w", cmd, err)
	}
	if args == nil {
		b = nil
	}
	_, err = q.execute(cmd, b)
	return err
}

// execute runs a command and returns its result.
func (q *qmp) execute(cmd string, args json.RawMessage) (json.RawMessage, error) {
	q.do.Lock()
	defer q.do.Unlock()
	b, err := json.Marshal(struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments,omitempty"`
	}{cmd, args})
	if err != nil {
		return nil, fmt.Errorf("qmp %s: %w", cmd, err)
	}
	if _, err := q.f.Write(append(b, '\n')); err != nil {
		return nil, fmt.Errorf("qmp %s: %w", cmd, err)
	}
	select {
	case m := <-q.answers:
		if m.Error != nil {
			return nil, fmt.Errorf("qmp %s: %s", cmd, m.Error.Desc)
		}
		return m.Return, nil
	case <-q.ended:
		return nil, fmt.Errorf("qmp %s: QEMU ended", cmd)
	case <-time.After(qmpTimeout):
		return nil, fmt.Errorf("qmp %s: no answer after %v", cmd, qmpTimeout)
	}
}

// waitGone waits until QEMU let a device go, which happens when the guest did.
func (q *qmp) waitGone(id string, limit time.Duration) error {
	c := q.isGone(id)
	// It may be gone already.
	if err := q.run("qom-get", map[string]any{"path": "/machine/peripheral/" + id, "property": "type"}); err != nil {
		return nil
	}
	select {
	case <-c:
		return nil
	case <-q.ended:
		return errors.New("QEMU ended")
	case <-time.After(limit):
		return fmt.Errorf("the guest has not let %s go after %v", id, limit)
	}
}
