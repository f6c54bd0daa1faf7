package qemu

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// qmp is a client of the QEMU Machine Protocol: JSON lines (docs/interop/qmp-spec). One goroutine reads: replies go to whoever
// runs a command, events to onEvent. Safe for concurrent use.
type qmp struct {
	f       *os.File // non-blocking socket
	r       *bufio.Reader
	onEvent func(qmpEvent) // called by the reader: it must not wait, and run no command
	version struct{ Major, Minor, Micro int }

	replies chan qmpMessage
	ended   chan struct{} // the reader has; err says why
	err     error

	mu sync.Mutex    // held by the one who runs a command
	id atomic.Uint64 // of that command
}

// qmpMessage is anything that QEMU sends.
type qmpMessage struct {
	QMP *struct {
		Version struct {
			QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
	qmpEvent
	ID     uint64          `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// qmpEvent is what QEMU tells by itself.
type qmpEvent struct {
	Event string `json:"event"`
	Data  struct {
		Device string `json:"device"`
		Reason string `json:"reason"` // of RESET
	} `json:"data"`
}

// qmpError is QEMU's own refusal of a command.
type qmpError struct{ cmd, desc string }

func (e *qmpError) Error() string { return fmt.Sprintf("qemu: qmp %s: %s", e.cmd, e.desc) }

// newQMP greets QEMU and leaves negotiation mode. The reader ends with the socket.
func newQMP(f *os.File, timeout time.Duration, onEvent func(qmpEvent)) (*qmp, error) {
	q := &qmp{f: f, r: bufio.NewReaderSize(f, 64<<10), onEvent: onEvent, replies: make(chan qmpMessage, 1), ended: make(chan struct{})}
	_ = f.SetReadDeadline(time.Now().Add(timeout))
	m, err := q.read()
	if err != nil {
		return nil, err
	}
	if m.QMP == nil {
		return nil, fmt.Errorf("qemu: qmp: no greeting: %w", bus.ErrProtocol)
	}
	q.version = m.QMP.Version.QEMU
	if v := q.version; v.Major < 6 || v.Major == 6 && v.Minor < 1 {
		return nil, fmt.Errorf("qemu: QEMU %d.%d is too old: want 6.1 or later: %w", v.Major, v.Minor, bus.ErrNotSupported)
	}
	_ = f.SetReadDeadline(time.Time{})
	go q.readAll()
	_, err = q.execute("qmp_capabilities", nil)
	return q, err
}

// readAll sorts what comes until the socket ends.
func (q *qmp) readAll() {
	defer close(q.ended)
	for {
		m, err := q.read()
		if err != nil {
			q.err = err
			return
		}
		switch {
		case m.Event != "":
			if q.onEvent != nil {
				q.onEvent(m.qmpEvent)
			}
		case (m.Return != nil || m.Error != nil) && m.ID == q.id.Load(): // else nobody waits for it any more
			select {
			case q.replies <- m:
			default: // a second one
			}
		}
	}
}

// execute runs a command and returns its result.
func (q *qmp) execute(cmd string, args any) (json.RawMessage, error) {
	return q.executeWith(cmd, args, nil)
}

// executeWith passes a file with the command, unless it is nil.
func (q *qmp) executeWith(cmd string, args any, file *os.File) (json.RawMessage, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	id := q.id.Add(1)
	select {
	case <-q.replies: // it came when nobody waited any more
	default:
	}
	req := struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{cmd, args, id}
	b, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("qemu: qmp %s: %w", cmd, err)
	}
	_ = q.f.SetWriteDeadline(time.Now().Add(AnswerTimeout))
	if err := q.write(append(b, '\n'), file); err != nil {
		return nil, fmt.Errorf("qemu: qmp %s: %w (%w)", cmd, err, bus.ErrGone)
	}
	late := time.NewTimer(AnswerTimeout)
	defer late.Stop()
	for {
		select {
		case m := <-q.replies:
			switch {
			case m.ID != id: // as above
			case m.Error != nil:
				return nil, &qmpError{cmd, strings.TrimSpace(m.Error.Desc)}
			default:
				return m.Return, nil
			}
		case <-q.ended:
			return nil, fmt.Errorf("qmp %s: %w", cmd, q.err)
		case <-late.C:
			return nil, fmt.Errorf("qemu: qmp %s: no answer within %v: %w", cmd, AnswerTimeout, bus.ErrTimeout)
		}
	}
}

// monitor runs a command of the human monitor (HMP), which has what QMP has not. It returns what that says.
func (q *qmp) monitor(line string) (string, error) {
	r, err := q.execute("human-monitor-command", map[string]any{"command-line": line})
	if err != nil {
		return "", err
	}
	var said string
	if err := json.Unmarshal(r, &said); err != nil {
		return "", fmt.Errorf("qemu: the monitor's answer to %q: %w (%w)", line, err, bus.ErrProtocol)
	}
	return strings.TrimSpace(said), nil
}

func (q *qmp) write(b []byte, file *os.File) error {
	if file == nil {
		_, err := q.f.Write(b)
		return err
	}
	c, err := q.f.SyscallConn()
	if err != nil {
		return err
	}
	n, sent := 0, error(nil)
	err = c.Write(func(fd uintptr) bool {
		n, sent = unix.SendmsgN(int(fd), b, unix.UnixRights(int(file.Fd())), nil, unix.MSG_NOSIGNAL)
		return sent != unix.EAGAIN
	})
	if err == nil {
		err = sent
	}
	if err == nil && n < len(b) {
		_, err = q.f.Write(b[n:])
	}
	return err
}

func (q *qmp) read() (qmpMessage, error) {
	var m qmpMessage
	line, err := q.r.ReadSlice('\n')
	if err != nil {
		return m, fmt.Errorf("qemu: reading a qmp message: %w (%w)", err, bus.ErrGone)
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("qemu: reading a qmp message: %w (%w)", err, bus.ErrProtocol)
	}
	return m, nil
}
