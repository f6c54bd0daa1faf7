package link

import (
	"encoding/binary"
	"errors"
	"strings"
	"syscall"
	"unicode"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/node"
)

// causes are the errors of package bus that keep their identity, by their number in a frame. Their order is the protocol.
var causes = []error{nil, bus.ErrTimeout, bus.ErrGone, bus.ErrClosed, bus.ErrNotSupported, bus.ErrNoIOMMU, bus.ErrBusy, bus.ErrProtocol, bus.ErrDMAFault}

// RemoteError is what the other side answered.
type RemoteError struct {
	Errno syscall.Errno // 0: it had none
	Cause error         // of package bus, or nil
	Text  string
}

func (e *RemoteError) Error() string { return e.Text }

// Unwrap gives the errno and the cause, where there are.
func (e *RemoteError) Unwrap() []error {
	var all []error
	if e.Cause != nil {
		all = append(all, e.Cause)
	}
	if e.Errno != 0 {
		all = append(all, e.Errno)
	}
	return all
}

// maxText is as much as is kept of an error's text.
const maxText = 4096

func errorBody(err error) []byte {
	text := err.Error()
	text = text[:min(len(text), maxText)]
	b := make([]byte, 8, 8+len(text))
	binary.LittleEndian.PutUint32(b, uint32(node.Errno(err)))
	for i, c := range causes {
		if i > 0 && errors.Is(err, c) {
			b[4] = byte(i)
			break
		}
	}
	return append(b, text...)
}

func errorOf(b []byte) error {
	if len(b) < 8 {
		return &RemoteError{Errno: syscall.EIO, Text: "an error without a reason"}
	}
	e := &RemoteError{Errno: syscall.Errno(binary.LittleEndian.Uint32(b)), Text: plain(b[8:min(len(b), 8+maxText)])}
	if i := int(b[4]); i < len(causes) {
		e.Cause = causes[i]
	}
	if e.Errno > 4095 {
		e.Errno = syscall.EIO
	}
	return e
}

// plain makes a text fit for a terminal and a log, whoever wrote it: no control characters but the ends of its lines, and all of it UTF-8.
func plain(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(string(b), "?"))
}
