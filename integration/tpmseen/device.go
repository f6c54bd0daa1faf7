package tpmseen

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// Device is what system calls on /dev/tpm0 give, one case a line. crb is a TPM with a command response buffer, with which
// what might hang is left out.
func Device(t testing.TB, crb bool) string {
	t.Helper()
	c := newTable(t, "/dev/tpm0")
	c.crb = crb
	c.opens()
	c.lengths()
	c.answers()
	c.nonblocking()
	c.vectors()
	c.notForTPMs()
	return c.end()
}

func (c *table) opens() {
	c.head("open")
	c.fd = c.raw(unix.O_RDWR)
	try := func(name string, flags int) {
		fd, err := unix.Open(c.path, flags, 0)
		c.say(name, done(err))
		if err == nil {
			_ = unix.Close(fd)
		}
	}
	try("a second open", unix.O_RDWR)
	try("a second open, O_RDONLY", unix.O_RDONLY)
	try("a second open, O_PATH", unix.O_PATH)
	c.write("write after the refused open", getRandom)
	c.read("read the answer", 4096)
	c.close()
	for _, f := range []struct {
		name  string
		flags int
	}{
		{"O_RDWR", unix.O_RDWR}, {"O_RDONLY", unix.O_RDONLY}, {"O_WRONLY", unix.O_WRONLY}, {"O_RDWR|O_NONBLOCK", unix.O_RDWR | unix.O_NONBLOCK},
		{"O_RDWR|O_TRUNC", unix.O_RDWR | unix.O_TRUNC}, {"O_RDWR|O_APPEND", unix.O_RDWR | unix.O_APPEND}, {"O_RDWR|O_CREAT", unix.O_RDWR | unix.O_CREAT},
		{"O_RDWR|O_CREAT|O_EXCL", unix.O_RDWR | unix.O_CREAT | unix.O_EXCL}, {"O_RDWR|O_SYNC", unix.O_RDWR | unix.O_SYNC},
		{"O_RDWR|O_DIRECT", unix.O_RDWR | unix.O_DIRECT}, {"O_RDWR|O_DIRECTORY", unix.O_RDWR | unix.O_DIRECTORY},
	} {
		try(f.name, f.flags)
	}
	c.reopen(unix.O_RDONLY)
	c.write("write, O_RDONLY", getRandom)
	c.reopen(unix.O_WRONLY)
	c.read("read, O_WRONLY", 4096)
	c.write("write, O_WRONLY", getRandom)
	c.reopen(unix.O_RDWR)
	c.read("read after a close with an answer unread", 4096)
}

// lengths are about a write's size and what its header says of it. Left out is a header that says 6 with a TIS: that
// write had not returned after two minutes, nor could it be killed; swtpm seems to wait for the rest of a header. Headers that
// say 7 to 9, and 5 with a CRB, were not tried, for fear of the same.
func (c *table) lengths() {
	c.head("write")
	header := func(n uint32) []byte {
		return append(Unhex("8001"), byte(n>>24), byte(n>>16), byte(n>>8), byte(n), 0, 0, 1, 0x7b, 0, 8)
	}
	for _, w := range []struct {
		name string
		p    []byte
	}{
		{"0 bytes", nil}, {"1 byte", getRandom[:1]}, {"5 bytes", getRandom[:5]},
		{"6 bytes, header says 12", getRandom[:6]},
		{"11 bytes, header says 12", getRandom[:11]}, {"12 bytes, header says 13", header(13)}, {"12 bytes, header says 0xffffffff", header(0xffffffff)},
		{"12 bytes, header says 0", header(0)}, {"12 bytes, header says 5", header(5)},
		{"12 bytes, header says 10", header(10)}, {"12 bytes, header says 11", header(11)},
		{"20 bytes, header says 12", padTo(getRandom, 20)}, {"4096 bytes, header says 12", padTo(getRandom, 4096)},
		{"3968 bytes, header says 3968", padTo(header(3968), 3968)}, {"3969 bytes, header says 3969", padTo(header(3969), 3969)},
		{"4096 bytes, header says 4096", padTo(header(4096), 4096)}, {"4097 bytes, header says 12", padTo(getRandom, 4097)},
		{"4097 bytes, header says 4097", padTo(header(4097), 4097)},
	} {
		if c.crb && len(w.p) == 12 && w.p[5] == 5 {
			continue
		}
		c.reopen(unix.O_RDWR)
		c.do(w.name, w.p)
	}
	c.reopen(unix.O_RDWR)
	c.do("an unknown command", noSuch)
	c.do("a command with an unknown tag", Unhex("8009 0000000c 0000017b 0008"))
	c.do("a command of TPM 1.2", Unhex("00c1 0000000e 00000046 00000008"))
	n, _, e := unix.Syscall(unix.SYS_WRITE, uintptr(c.fd), 0, 12)
	c.say("write from address 0", result(int(n), e))
}

// answers are about when an answer can be read, and what it keeps from being written.
func (c *table) answers() {
	c.head("answers")
	c.reopen(unix.O_RDWR)
	c.poll("poll, nothing pending")
	c.read("read, nothing pending", 4096)
	c.write("write", getRandom)
	c.poll("poll, answer unread")
	c.write("write, answer unread", getRandom)
	c.write("write 4097 bytes, answer unread", padTo(getRandom, 4097))
	c.write("write 5 bytes, answer unread", getRandom[:5])
	c.read("read 4 of it", 4)
	c.poll("poll, answer partly read")
	c.read("read 6 more", 6)
	c.read("read the rest", 4096)
	c.poll("poll, answer read")
	c.read("read again", 4096)
	c.write("write", getRandom)
	c.read("read 4 of it", 4)
	c.do("when the answer is partly read", getRandom)
	c.write("write", getRandom)
	c.read("read 4 of it", 4)
	c.write("write 5 bytes, answer partly read", getRandom[:5])
	c.read("read after it", 4096)
	c.write("write", getRandom)
	c.read("read 0 bytes of it", 0)
	c.poll("poll after it")
	c.read("read after it", 4096)
	c.write("write", getRandom)
	n, _, e := unix.Syscall(unix.SYS_READ, uintptr(c.fd), 0, 4096)
	c.say("read to address 0", result(int(int32(n)), e))
	c.read("read after it", 4096)
	c.write("write an unknown command", noSuch)
	c.read("read exactly its answer", 10)
	c.poll("poll after it")
}

// nonblocking are the same with O_NONBLOCK.
func (c *table) nonblocking() {
	c.head("O_NONBLOCK")
	c.reopen(unix.O_RDWR | unix.O_NONBLOCK)
	c.read("read, nothing pending", 4096)
	c.poll("poll, nothing pending")
	c.write("write", getRandom)
	c.write("write at once again", getRandom)
	c.await()
	c.poll("poll, answer unread")
	c.write("write, answer unread", getRandom)
	c.read("read 10 of it", 10)
	c.read("read the rest", 4096)
	c.read("read again", 4096)
	c.write("write 5 bytes", getRandom[:5])
	c.write("write 4097 bytes", padTo(getRandom, 4097))
	c.write("write, header says 0", Unhex("8001 00000000 0000017b 0008"))
	c.await()
	c.poll("poll, an error unread")
	c.write("write, an error unread", getRandom)
	c.read("read it", 4096)
	c.read("read again", 4096)
	c.poll("poll after it")
	c.write("write", getRandom)
	c.await()
	if err := unix.SetNonblock(c.fd, false); err != nil {
		c.t.Error(err)
	}
	c.read("read after O_NONBLOCK was taken away", 4096)
	c.do("after O_NONBLOCK was taken away", getRandom)
}

// vectors are about pieces: each is a call of its own for the driver.
func (c *table) vectors() {
	c.head("vectors")
	c.reopen(unix.O_RDWR)
	n, err := unix.Writev(c.fd, [][]byte{getRandom[:10], getRandom[10:]})
	c.say("writev of 10 and 2 bytes", result(n, err))
	n, err = unix.Writev(c.fd, [][]byte{getRandom, getRandom})
	c.say("writev of two commands", result(n, err))
	c.read("read", 4096)
	c.write("write", getRandom)
	n, err = unix.Readv(c.fd, [][]byte{make([]byte, 10), make([]byte, 100)})
	c.say("readv of 10 and 100 bytes", result(n, err))
}

// notForTPMs are calls that a TPM's device does not know.
func (c *table) notForTPMs() {
	c.head("others")
	c.reopen(unix.O_RDWR)
	c.write("write", getRandom)
	p := make([]byte, 20)
	off, err := unix.Seek(c.fd, 0, 0)
	c.say("lseek", result(int(off), err))
	n, err := unix.Pread(c.fd, p, 0)
	c.say("pread at 0", result(n, err))
	n, err = unix.Pwrite(c.fd, getRandom, 0)
	c.say("pwrite at 0", result(n, err))
	for _, i := range []struct {
		name string
		req  uint
	}{{"TCGETS", unix.TCGETS}, {"FIONREAD", 0x541b}, {"TPMIOC_CANCEL", 0x5403}, {"TPMIOC_TRANSMIT", 0x5401}} {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), uintptr(i.req), 0)
		c.say("ioctl "+i.name, done(errOf(e)))
	}
	_, err = unix.Mmap(c.fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	c.say("mmap", done(err))
	c.say("fsync", done(unix.Fsync(c.fd)))
	c.say("ftruncate", done(unix.Ftruncate(c.fd, 0)))
	c.say("flock", done(unix.Flock(c.fd, unix.LOCK_EX)))
	c.say("fchmod 0600", done(unix.Fchmod(c.fd, 0o600)))
	var st unix.Stat_t
	if err := unix.Fstat(c.fd, &st); err != nil {
		c.t.Error(err)
	}
	c.say("fstat", fmt.Sprintf("mode %o, size %d, blocks %d, blksize %d", st.Mode, st.Size, st.Blocks, st.Blksize))
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		c.t.Fatal(err)
	}
	defer unix.Close(ep)
	c.say("epoll_ctl", done(unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, c.fd, &unix.EpollEvent{Events: unix.EPOLLIN})))
	c.read("read after all of these", 4096)
	dup, err := unix.Dup(c.fd)
	if err != nil {
		c.t.Fatal(err)
	}
	c.write("write", getRandom)
	_ = unix.Close(c.fd)
	c.fd = dup
	c.read("read by a duplicate of the descriptor", 4096)
}

func errOf(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}
