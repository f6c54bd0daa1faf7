package tpmseen

import (
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// Manager is what /dev/tpmrm0, the resource manager, does, one case a line, as Device.
func Manager(t testing.TB) string {
	t.Helper()
	c := newTable(t, "/dev/tpmrm0")
	c.spaces()
	c.objects()
	c.sessions()
	c.managerErrors()
	return c.end()
}

// handle does a command whose answer begins with a handle, and says which.
func (c *table) handle(name string, p []byte) uint32 {
	a := c.do(name, p)
	if len(a) < 14 || binary.BigEndian.Uint32(a[6:]) != 0 {
		return 0
	}
	h := binary.BigEndian.Uint32(a[10:])
	c.say("its handle", fmt.Sprintf("%#x", h))
	return h
}

// handles asks which handles there are from one on.
func (c *table) handles(name string, from uint32) {
	p := binary.BigEndian.AppendUint32(Unhex("8001 00000016 0000017a 00000001"), from)
	c.write("write TPM2_GetCapability, "+name, append(p, 0, 0, 0, 100))
	a := make([]byte, 4096)
	n, err := unix.Read(c.fd, a)
	if err != nil || n < 19 {
		c.say("read the answer", result(n, err))
		return
	}
	a = a[:n]
	s := fmt.Sprintf("%d: more %d, count %d:", n, a[10], binary.BigEndian.Uint32(a[15:]))
	for p := a[19:]; len(p) >= 4; p = p[4:] {
		s += fmt.Sprintf(" %#x", binary.BigEndian.Uint32(p))
	}
	c.say("read the answer", s)
}

func (c *table) spaces() {
	c.head("open")
	c.fd = c.raw(unix.O_RDWR)
	second, err := unix.Open(c.path, unix.O_RDWR, 0)
	c.say("a second open", done(err))
	tpm0, err := unix.Open("/dev/tpm0", unix.O_RDWR, 0)
	c.say("open /dev/tpm0 while it is open", done(err))
	third, err := unix.Open(c.path, unix.O_RDWR, 0)
	c.say("another open while /dev/tpm0 is open", done(err))
	for _, fd := range []int{second, tpm0, third} {
		_ = unix.Close(fd)
	}
	c.do("TPM2_GetRandom", getRandom)
	c.poll("poll, nothing pending")
	c.write("write", getRandom)
	c.poll("poll, answer unread")
	c.write("write, answer unread", getRandom)
	c.read("read 4 of it", 4)
	c.do("when the answer is partly read", getRandom)
}

const (
	flush      = 0x165 // TPM2_FlushContext
	readPublic = 0x173 // TPM2_ReadPublic
)

// objects are about transient objects, of which an open has three.
func (c *table) objects() {
	c.head("objects")
	c.reopen(unix.O_RDWR)
	var h [4]uint32
	for i := range h {
		h[i] = c.handle(fmt.Sprintf("TPM2_CreatePrimary, object %d", i+1), createECC)
	}
	c.read("read after it", 4096)
	c.handles("transient objects", 0x80000000)
	c.do("TPM2_ReadPublic of object 1", handleCommand(readPublic, h[0]))
	c.do("TPM2_ReadPublic of object 3", handleCommand(readPublic, h[2]))
	c.do("TPM2_FlushContext of object 2", handleCommand(flush, h[1]))
	c.do("TPM2_FlushContext of object 2 again", handleCommand(flush, h[1]))
	c.handles("transient objects", 0x80000000)
	c.handle("TPM2_CreatePrimary again", createECC)
	first := c.fd
	c.fd = c.raw(unix.O_RDWR)
	c.handles("transient objects, by another open", 0x80000000)
	c.do("TPM2_ReadPublic of the other's object", handleCommand(readPublic, h[0]))
	c.do("TPM2_FlushContext of the other's object", handleCommand(flush, h[0]))
	c.handle("TPM2_CreatePrimary by another open", createECC)
	_ = unix.Close(first)
}

// sessions are about sessions, whose handles are the TPM's own.
func (c *table) sessions() {
	c.head("sessions")
	c.reopen(unix.O_RDWR)
	var h [4]uint32
	for i := range h {
		h[i] = c.handle(fmt.Sprintf("TPM2_StartAuthSession, session %d", i+1), startPolicy)
	}
	c.read("read after it", 4096)
	c.handles("loaded sessions", 0x02000000)
	c.handles("saved sessions", 0x03000000)
	getDigest := func(h uint32) []byte { return handleCommand(0x189, h) } // TPM2_PolicyGetDigest
	c.do("TPM2_PolicyGetDigest of session 1", getDigest(h[0]))
	c.do("TPM2_FlushContext of session 2", handleCommand(flush, h[1]))
	c.do("TPM2_FlushContext of session 2 again", handleCommand(flush, h[1]))
	c.do("TPM2_PolicyGetDigest of session 3", getDigest(h[2]))
	first := c.fd
	c.fd = c.raw(unix.O_RDWR)
	c.do("TPM2_PolicyGetDigest of the other's session 1", getDigest(h[0]))
	c.do("TPM2_FlushContext of the other's session 1", handleCommand(flush, h[0]))
	c.close()
	c.fd = first
	c.do("TPM2_PolicyGetDigest of session 3 after that", getDigest(h[2]))
	c.do("TPM2_GetRandom after that", getRandom)
	c.reopen(unix.O_RDWR)
	c.handles("saved sessions after close", 0x03000000)
}

// managerErrors are commands that the resource manager, not the TPM, refuses.
func (c *table) managerErrors() {
	c.head("errors")
	for _, w := range []struct {
		name string
		p    []byte
	}{
		{"an unknown command", noSuch},
		{"a command of a vendor's", Unhex("8001 0000000a 20000001")},
		{"TPM2_ReadPublic of 0x80000000", handleCommand(readPublic, 0x80000000)},
		{"TPM2_ReadPublic of 0x80ffffff, which there is not", handleCommand(readPublic, 0x80ffffff)},
		{"TPM2_ReadPublic of 0x80fffff0", handleCommand(readPublic, 0x80fffff0)},
		{"TPM2_ReadPublic of 0x81000000", handleCommand(readPublic, 0x81000000)},
		{"TPM2_FlushContext of 0x80000000", handleCommand(flush, 0x80000000)},
		{"TPM2_FlushContext of 0x80ffffff, which there is not", handleCommand(flush, 0x80ffffff)},
		{"TPM2_FlushContext of 0x02000000, which there is not", handleCommand(flush, 0x02000000)},
		{"TPM2_FlushContext of 0x40000001", handleCommand(flush, 0x40000001)},
		{"TPM2_ReadPublic without its handle", Unhex("8001 0000000a 00000173")},
		{"TPM2_ReadPublic with half a handle", Unhex("8001 0000000c 00000173 80ff")},
		{"0 bytes", nil}, {"5 bytes", getRandom[:5]}, {"9 bytes, header says 9", Unhex("8001 00000009 000001")},
		{"12 bytes, header says 13", Unhex("8001 0000000d 0000017b 0008")}, {"12 bytes, header says 0", Unhex("8001 00000000 0000017b 0008")},
		{"12 bytes, header says 5", Unhex("8001 00000005 0000017b 0008")},
		{"20 bytes, header says 12", padTo(getRandom, 20)}, {"4097 bytes", padTo(getRandom, 4097)},
		{"a command of TPM 1.2", Unhex("00c1 0000000e 00000046 00000008")},
	} {
		c.reopen(unix.O_RDWR)
		c.do(w.name, w.p)
	}
	c.reopen(unix.O_RDWR | unix.O_NONBLOCK)
	c.write("O_NONBLOCK: write TPM2_ReadPublic of 0x80fffff0", handleCommand(readPublic, 0x80fffff0))
	c.await()
	c.read("O_NONBLOCK: read the answer", 4096)
	c.write("O_NONBLOCK: write an unknown command", noSuch)
	c.await()
	c.read("O_NONBLOCK: read the answer", 4096)
}
