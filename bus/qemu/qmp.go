package qemu

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// qmp is a client of the QEMU Machine Protocol: JSON lines (docs/interop/qmp-spec).
type qmp struct {
	f       *os.File // non-blocking socket
	r       *bufio.Reader
	mu      sync.Mutex
	version struct{ Major, Minor, Micro int }
}

// qmpMessage is anything that QEMU sends.
type qmpMessage struct {
	QMP *struct {
		Version struct {
			QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
	Event  string          `json:"event"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// newQMP greets QEMU and leaves negotiation mode.
func newQMP(f *os.File, timeout time.Duration) (*qmp, error) {
	q := &qmp{f: f, r: bufio.NewReaderSize(f, 64<<10)}
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
	_, err = q.execute("qmp_capabilities", nil)
	return q, err
}

// execute runs a command and returns its result. Events that arrive meanwhile are dropped.
func (q *qmp) execute(cmd string, args any) (json.RawMessage, error) {
	return q.executeWith(cmd, args, nil)
}

// executeWith passes a file with the command, unless it is nil.
func (q *qmp) executeWith(cmd string, args any, file *os.File) (json.RawMessage, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	req := struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{cmd, args}
	b, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("qemu: qmp %s: %w", cmd, err)
	}
	_ = q.f.SetDeadline(time.Now().Add(AnswerTimeout))
	if err := q.write(append(b, '\n'), file); err != nil {
		return nil, fmt.Errorf("qemu: qmp %s: %w (%w)", cmd, err, bus.ErrGone)
	}
	for {
		m, err := q.read()
		switch {
		case err != nil:
			return nil, fmt.Errorf("qmp %s: %w", cmd, err)
		case m.Error != nil:
			return nil, fmt.Errorf("qemu: qmp %s: %s", cmd, strings.TrimSpace(m.Error.Desc))
		case m.Return != nil:
			return m.Return, nil
		}
	}
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
