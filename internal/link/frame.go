package link

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// maxFiles is how many descriptors a frame may carry (SCM_MAX_FD is 253).
const maxFiles = 200

// Kinds of frames.
const (
	kindCall = iota + 1
	kindPart
	kindReply
	kindError
	kindEvent
	kindCancel
)

const headerSize = 16

type header struct {
	size   uint32
	kind   uint8
	files  uint8
	method Method
	id     uint64
}

func (h *header) put(b []byte) {
	binary.LittleEndian.PutUint32(b, h.size)
	b[4], b[5] = h.kind, h.files
	binary.LittleEndian.PutUint16(b[6:], uint16(h.method))
	binary.LittleEndian.PutUint64(b[8:], h.id)
}

func parse(b []byte) header {
	return header{binary.LittleEndian.Uint32(b), b[4], b[5], Method(binary.LittleEndian.Uint16(b[6:])), binary.LittleEndian.Uint64(b[8:])}
}

// rights is the control message that passes files; nil for none. Nothing is changed of them: File.Fd would make some block.
func rights(files []*os.File) ([]byte, error) {
	if len(files) == 0 {
		return nil, nil
	}
	fds := make([]int, len(files))
	for i, f := range files {
		c, err := f.SyscallConn()
		if err == nil {
			err = c.Control(func(fd uintptr) { fds[i] = int(fd) })
		}
		if err != nil {
			return nil, fmt.Errorf("passing a descriptor: %w (%w)", err, syscall.EBADF)
		}
	}
	return unix.UnixRights(fds...), nil
}

// frames reads and handles them.
func (l *Conn) frames() error {
	buf := make([]byte, readSize)
	lo, hi := 0, 0 // of what was read and not handled yet
	oob := make([]byte, unix.CmsgSpace(4*253))
	var queue []*os.File
	defer func() { closeAll(queue) }()
	for {
		for hi-lo >= headerSize {
			h := parse(buf[lo:])
			if int64(h.size) > int64(l.o.MaxBody) || h.files > maxFiles {
				return fmt.Errorf("a frame of %d bytes and %d descriptors: %w", h.size, h.files, bus.ErrProtocol)
			}
			n := headerSize + int(h.size)
			if hi-lo < n {
				break
			}
			if int(h.files) > len(queue) {
				return fmt.Errorf("a frame of %d descriptors came with %d: %w", h.files, len(queue), bus.ErrProtocol)
			}
			files := queue[:h.files:h.files]
			queue = queue[h.files:]
			body := append([]byte(nil), buf[lo+headerSize:lo+n]...)
			clear(buf[lo : lo+n])
			lo += n
			if h.kind == kindCall || h.kind == kindEvent || h.kind == kindCancel {
				if !l.Charge(1 + len(body)>>12) {
					closeAll(files)
					return net.ErrClosed
				}
			}
			if err := l.handle(h, body, files); err != nil {
				return err
			}
		}
		if len(queue) > 2*maxFiles {
			return fmt.Errorf("%d descriptors that belong to no frame: %w", len(queue), bus.ErrProtocol)
		}
		old := buf
		switch n := headerSize; {
		case hi-lo >= n && n+int(parse(buf[lo:]).size) > len(buf):
			buf = make([]byte, n+int(parse(buf[lo:]).size))
		case hi == lo && len(buf) > readSize: // one long frame has passed
			buf = make([]byte, readSize)
		}
		n := copy(buf, old[lo:hi])
		if &buf[0] == &old[0] {
			lo = max(lo, n)
		}
		clear(old[lo:hi]) // of what was moved: see send
		lo, hi = 0, n
		k, oobn, flags, _, err := l.c.ReadMsgUnix(buf[hi:], oob)
		if oobn > 0 {
			files, err := received(oob[:oobn])
			queue = append(queue, files...)
			if err != nil {
				return err
			}
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return fmt.Errorf("more descriptors than there is room for: %w", bus.ErrProtocol)
		}
		if err != nil {
			return err
		}
		if k == 0 {
			return io.EOF
		}
		hi += k
	}
}

// received takes descriptors out of control messages.
func received(oob []byte) (files []*os.File, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("reading a control message: %w (%w)", err, bus.ErrProtocol)
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}
