package vm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// qmp is a client of the QEMU Machine Protocol: JSON lines (docs/interop/qmp-spec).
type qmp struct {
	f  *os.File
	r  *bufio.Reader
	mu sync.Mutex // one command at a time
}

// qmpMessage is anything that QEMU sends.
type qmpMessage struct {
	QMP    json.RawMessage `json:"QMP"`
	Event  string          `json:"event"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

// qmpTimeout is how long QEMU may take for an answer.
const qmpTimeout = 20 * time.Second

// newQMP greets QEMU and leaves negotiation mode.
func newQMP(f *os.File) (*qmp, error) {
	q := &qmp{f: f, r: bufio.NewReaderSize(f, 64<<10)}
	return q, q.run("qmp_capabilities", nil)
}

// run is execute for a command without a result.
func (q *qmp) run(cmd string, args map[string]any) error {
	var b json.RawMessage
	if args != nil {
		var err error
		if b, err = json.Marshal(args); err != nil {
			return fmt.Errorf("qmp %s: %w", cmd, err)
		}
	}
	_, err := q.execute(cmd, b)
	return err
}

// execute runs a command and returns its result. Events are dropped. A deadline that passed
// stays passed, so an answer that came late is not taken for another's.
func (q *qmp) execute(cmd string, args json.RawMessage) (json.RawMessage, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b, err := json.Marshal(struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments,omitempty"`
	}{cmd, args})
	if err != nil {
		return nil, fmt.Errorf("qmp %s: %w", cmd, err)
	}
	limit := time.AfterFunc(qmpTimeout, func() { _ = q.f.SetDeadline(time.Now()) })
	defer limit.Stop()
	if _, err := q.f.Write(append(b, '\n')); err != nil {
		return nil, fmt.Errorf("qmp %s: %w", cmd, err)
	}
	for {
		line, err := q.r.ReadBytes('\n')
		if err != nil {
			return nil, fmt.Errorf("qmp %s: %w", cmd, err)
		}
		var m qmpMessage
		if err := json.Unmarshal(line, &m); err != nil {
			return nil, fmt.Errorf("qmp %s: %w: %.200q", cmd, err, line)
		}
		switch {
		case m.QMP != nil || m.Event != "":
		case m.Error != nil:
			return nil, fmt.Errorf("qmp %s: %s", cmd, m.Error.Desc)
		default:
			return m.Return, nil
		}
	}
}

// gone tells whether QEMU has no device of that id (any more): it lets one go that was
// unplugged when the guest did.
func (q *qmp) gone(id string) (bool, error) {
	b, err := q.execute("qom-list", json.RawMessage(`{"path":"/machine/peripheral"}`))
	if err != nil {
		return false, err
	}
	var list []struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return false, fmt.Errorf("qmp qom-list: %w", err)
	}
	for _, d := range list {
		if d.Name == id {
			return false, nil
		}
	}
	return true, nil
}
