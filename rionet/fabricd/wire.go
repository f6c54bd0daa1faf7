package fabricd

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// version is that of the control protocol. A request may leave it out.
const version = 1

// Limits of the control protocol.
const (
	maxRequest  = 4096     // bytes of a request's line
	maxResponse = 64 << 20 // of a response's: a large fabric with all its routes
	extraConns  = 64       // connections that are not nodes, beside two for each endpoint
	maxWindows  = 8        // of one node
	minWindow   = 4096
	maxWindow   = 1 << 30
)

// Time limits: of a client that is slow to send, slow to take, or has nothing to say; and of a client for a daemon that is slow.
const (
	lineWait = 10 * time.Second
	sendWait = 10 * time.Second
	idleWait = 60 * time.Second
	callWait = 30 * time.Second
	dialWait = 5 * time.Second
)

// Operations.
const (
	opVersion = "version"
	opShow    = "show"
	opStats   = "stats"
	opLink    = "link"
	opWindows = "windows"
	opWatch   = "watch"
)

// request is one line from a client: an operation, or the wish to be a node.
type request struct {
	V    int      `json:"v,omitempty"` // 0: 1
	Op   string   `json:"op,omitempty"`
	Ends []string `json:"ends,omitempty"`
	Up   *bool    `json:"up,omitempty"`
	Join string   `json:"join,omitempty"` // endpoint
	// IDs is the width that the node can do; 0: whatever the fabric has.
	IDs    rapidio.IDSize `json:"ids,omitempty"`
	Window Sizes          `json:"window,omitempty"`
}

// Sizes are sizes of memory windows in bytes. In JSON one may stand without brackets.
type Sizes []int64

// UnmarshalJSON takes a number or a list of them.
func (s *Sizes) UnmarshalJSON(b []byte) error {
	if b = bytes.TrimSpace(b); len(b) > 0 && b[0] != '[' {
		var one int64
		if err := json.Unmarshal(b, &one); err != nil {
			return err
		}
		if *s = nil; one != 0 {
			*s = Sizes{one}
		}
		return nil
	}
	var many []int64
	if err := json.Unmarshal(b, &many); err != nil {
		return err
	}
	*s = many
	return nil
}

// check tells whether windows may be of these sizes.
func (s Sizes) check() error {
	if len(s) > maxWindows {
		return fmt.Errorf("%d windows, at most %d are given", len(s), maxWindows)
	}
	for _, n := range s {
		if n < minWindow || n > maxWindow {
			return fmt.Errorf("window of %d bytes, wanted %d to %d", n, minWindow, maxWindow)
		}
		if n%minWindow != 0 {
			return fmt.Errorf("window of %d bytes, wanted a multiple of %d", n, minWindow)
		}
	}
	return nil
}

// parseRequest reads a line. What it accepts has exactly one operation with sensible arguments.
func parseRequest(line []byte) (request, error) {
	var q request
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		return request{}, fmt.Errorf("request is not understood: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return request{}, errors.New("request has something behind its end")
	}
	if q.V != 0 && q.V != version {
		return request{}, &Error{Code: codeVersion, Msg: fmt.Sprintf("request speaks version %d of the control protocol, this fabric %d", q.V, version)}
	}
	if (q.Op != "") == (q.Join != "") {
		return request{}, errors.New(`request wants one of "op" and "join"`)
	}
	if q.Op != "" && !slices.Contains([]string{opVersion, opShow, opStats, opLink, opWindows, opWatch}, q.Op) {
		return request{}, fmt.Errorf("no operation %.32q", q.Op)
	}
	if q.Op == opLink && (len(q.Ends) != 2 || q.Up == nil) {
		return request{}, errors.New(`link wants "ends" with two names, and "up"`)
	}
	if q.Join != "" {
		if q.IDs != 0 && q.IDs != rapidio.Small && q.IDs != rapidio.Large {
			return request{}, fmt.Errorf("ids %d, wanted 8, 16 or 0 for either", int(q.IDs))
		}
		if err := q.Window.check(); err != nil {
			return request{}, err
		}
	}
	return q, nil
}

// response is one line to a client.
type response struct {
	V     int    `json:"v"`
	OK    bool   `json:"ok,omitempty"`
	Error string `json:"error,omitempty"`
	Code  string `json:"code,omitempty"`

	IDs     rapidio.IDSize `json:"ids,omitempty"`  // to join
	Peer    int            `json:"peer,omitempty"` // to join: its ivshmem ID
	Fabric  *Fabric        `json:"fabric,omitempty"`
	Stats   *Stats         `json:"stats,omitempty"`
	Windows []Window       `json:"windows,omitempty"`
	Event   *Event         `json:"event,omitempty"`
}

// Codes of errors, for programs.
const (
	codeBusy    = "busy"
	codeUnknown = "unknown" // no such endpoint or link
	codeWidth   = "width"
	codeVersion = "version"
	codeClosed  = "closed"
)

// Error is what a fabric's daemon answered in place of a result. By its code it is bus.ErrBusy, fs.ErrNotExist, bus.ErrNotSupported or
// bus.ErrClosed.
type Error struct{ Code, Msg string }

func (e *Error) Error() string { return e.Msg }

// Unwrap is the error of the code.
func (e *Error) Unwrap() error {
	switch e.Code {
	case codeBusy:
		return bus.ErrBusy
	case codeUnknown:
		return fs.ErrNotExist
	case codeWidth, codeVersion:
		return bus.ErrNotSupported
	case codeClosed:
		return bus.ErrClosed
	}
	return nil
}

// codeOf is the code by which a client knows err again.
func codeOf(err error) string {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, bus.ErrBusy):
		return codeBusy
	case errors.Is(err, fs.ErrNotExist):
		return codeUnknown
	case errors.Is(err, bus.ErrClosed):
		return codeClosed
	}
	return ""
}

// Event is what a watching client is told.
type Event struct {
	Time time.Time `json:"time"`
	What string    `json:"what"`           // EventJoined ...
	Node string    `json:"node,omitempty"` // endpoint
	PID  int       `json:"pid,omitempty"`
	Ends []string  `json:"ends,omitempty"` // of a link
	Why  string    `json:"why,omitempty"`  // it left
}

// What happens to a fabric.
const (
	EventJoined   = "joined"
	EventLeft     = "left"
	EventNumbered = "numbered" // a node has another device ID
	EventLinkUp   = "link-up"
	EventLinkDown = "link-down"
)

// Window is a memory window of a node: a file that another process maps.
type Window struct {
	Node   string         `json:"node"`
	DestID rapidio.DestID `json:"destid"` // that the node has now; all ones: none yet
	Index  int            `json:"index"`
	Size   int64          `json:"size"`
	Path   string         `json:"path"`
}

var errTooLong = errors.New("line is too long")

// readLine reads a line without its end. What has more than limit bytes is errTooLong.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		b, err := r.ReadSlice('\n')
		if len(line)+len(b) > limit+1 {
			return nil, fmt.Errorf("%w: more than %d bytes", errTooLong, limit)
		}
		line = append(line, b...)
		if err == nil {
			return line[:len(line)-1], nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if err == io.EOF && len(line) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}
