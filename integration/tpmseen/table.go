package tpmseen

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// table is what a TPM's device was seen to do, one case a line.
type table struct {
	t    testing.TB
	path string
	b    strings.Builder
	fd   int  // what cases are about
	crb  bool // the TPM is a CRB
}

// newTable begins a table. The descriptor is to be opened (reopen).
func newTable(t testing.TB, path string) *table { return &table{t: t, path: path, fd: -1} }

func (c *table) head(s string) { fmt.Fprintf(&c.b, "== %s\n", s) }

func (c *table) say(name, result string) { fmt.Fprintf(&c.b, "%s: %s\n", name, result) }

// result is an errno by name, or a number.
func result(n int, err error) string {
	var e unix.Errno
	switch {
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	case err != nil:
		return err.Error()
	}
	return fmt.Sprint(n)
}

func done(err error) string {
	if err == nil {
		return "ok"
	}
	return result(0, err)
}

// raw opens without Go's poller, which would make the descriptor non-blocking.
func (c *table) raw(flags int) int {
	c.t.Helper()
	fd, err := unix.Open(c.path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		c.t.Fatalf("%s: %v", c.path, err)
	}
	return fd
}

// reopen starts anew, with nothing pending.
func (c *table) reopen(flags int) {
	c.t.Helper()
	c.close()
	c.fd = c.raw(flags)
}

func (c *table) close() {
	if c.fd >= 0 {
		_ = unix.Close(c.fd)
	}
	c.fd = -1
}

func (c *table) write(name string, p []byte) {
	n, err := unix.Write(c.fd, p)
	c.say(name, result(n, err))
}

// read reads n bytes at most, and says what is in the header if an answer begins with them.
func (c *table) read(name string, n int) []byte {
	p := make([]byte, n)
	n, err := unix.Read(c.fd, p)
	if err != nil || n < 10 {
		c.say(name, result(n, err))
		return nil
	}
	tag, length, code := binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:]), binary.BigEndian.Uint32(p[6:])
	if tag&0xff00 != 0x8000 || length > 4096 {
		c.say(name, result(n, nil))
		return nil
	}
	c.say(name, fmt.Sprintf("%d: tag %04x, length %d, code %#x", n, tag, length, code))
	return p[:n]
}

// do writes a command and reads its answer whole, each with its result.
func (c *table) do(name string, p []byte) []byte {
	c.write("write "+name, p)
	return c.read("read the answer", 4096)
}

var pollNames = []struct {
	bit  int16
	name string
}{
	{unix.POLLIN, "IN"}, {unix.POLLPRI, "PRI"}, {unix.POLLOUT, "OUT"}, {unix.POLLERR, "ERR"}, {unix.POLLHUP, "HUP"},
	{0x40, "RDNORM"}, {0x80, "RDBAND"}, {0x100, "WRNORM"}, {0x200, "WRBAND"},
}

func pollBits(bits int16) string {
	var s []string
	for _, b := range pollNames {
		if bits&b.bit != 0 {
			s, bits = append(s, b.name), bits&^b.bit
		}
	}
	if bits != 0 || s == nil {
		s = append(s, fmt.Sprintf("%#x", bits))
	}
	return strings.Join(s, "|")
}

// poll asks for everything, without waiting.
func (c *table) poll(name string) {
	p := []unix.PollFd{{Fd: int32(c.fd), Events: 0x3ff}}
	if _, err := unix.Poll(p, 0); err != nil {
		c.say(name, result(0, err))
		return
	}
	c.say(name, pollBits(p[0].Revents))
}

// await waits until there is an answer.
func (c *table) await() {
	p := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 60000)
	for errors.Is(err, unix.EINTR) { // the runtime's own signals
		n, err = unix.Poll(p, 60000)
	}
	if n != 1 || err != nil {
		c.t.Errorf("%s: no answer within a minute: %d, %v", c.path, n, err)
	}
}

// end closes the table.
func (c *table) end() string {
	c.close()
	return c.b.String()
}

// Unhex makes bytes of hexadecimal digits with blanks.
func Unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// padTo makes a command so many bytes long, whatever its header says.
func padTo(p []byte, n int) []byte {
	return append(append([]byte(nil), p...), make([]byte, n-len(p))...)
}

// Commands of TPM 2.0 (part 3).
var (
	getRandom   = Unhex("8001 0000000c 0000017b 0008")
	noSuch      = Unhex("8001 0000000a 00000fff")
	createECC   = Unhex("8002 00000043 00000131 40000001 00000009 40000009 0000 00 0000 0004 0000 0000 001a 0023 000b 00030072 0000 0006 0080 0043 0010 0003 0010 0000 0000 0000 00000000")
	startPolicy = Unhex("8001 0000002b 00000176 40000007 40000007 0010 00000000000000000000000000000000 0000 01 0010 000b")
)

// handleCommand is a command that takes a handle and no more: TPM2_FlushContext, TPM2_ReadPublic.
func handleCommand(code, handle uint32) []byte {
	p := binary.BigEndian.AppendUint32(Unhex("8001 0000000e"), code)
	return binary.BigEndian.AppendUint32(p, handle)
}
