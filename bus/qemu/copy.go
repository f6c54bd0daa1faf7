package qemu

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/ring3dev/ring3/bus"
)

// maxCopy is how many bytes go into one command: in hexadecimal they fit into the buffer for replies, and into a socket's.
const maxCopy = 2048

const hexDigits = "0123456789abcdef"

// readBytes reads memory into p. It says false where the link is dead.
func (q *qtest) readBytes(addr uint64, p []byte) bool {
	if q.dead.Load() {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(p) > 0 {
		n := min(len(p), maxCopy)
		b := append(q.out[:0], "read 0x"...)
		b = append(strconv.AppendUint(b, addr, 16), " 0x"...)
		b = append(strconv.AppendUint(b, uint64(n), 16), '\n')
		if !q.write(b) {
			return false
		}
		for q.pending > 1 { // of what was posted before
			if _, ok := q.next(); !ok {
				return false
			}
		}
		if !q.nextBytes(p[:n]) {
			return false
		}
		addr, p = addr+uint64(n), p[n:]
	}
	return q.settle()
}

// nextBytes blocks until the reply of a read has come: "OK 0x" and two digits a byte. Called with mu held.
func (q *qtest) nextBytes(p []byte) bool {
	for {
		line, ok := q.line()
		if !ok {
			if !q.receive() {
				return false
			}
			continue
		}
		if bytes.HasPrefix(line, pfxRaise) || bytes.HasPrefix(line, pfxLower) {
			if _, _, ok := q.handle(line); !ok {
				return false
			}
			continue
		}
		q.pending--
		if !parseBytes(line, p) {
			q.kill(fmt.Errorf("reading a qtest reply: %d bytes that begin with %.20q, want OK 0x and %d bytes: %w", len(line), line, len(p), bus.ErrProtocol))
			return false
		}
		return true
	}
}

// parseBytes reads the reply of a read of len(p) bytes.
func parseBytes(l, p []byte) bool {
	const prefix = "OK 0x"
	if len(l) != len(prefix)+2*len(p) || string(l[:len(prefix)]) != prefix {
		return false
	}
	l = l[len(prefix):]
	for i := range p {
		v, ok := parseHex(l[2*i : 2*i+2])
		if !ok {
			return false
		}
		p[i] = byte(v)
	}
	return true
}

// writeBytes posts writes of p to memory.
func (q *qtest) writeBytes(addr uint64, p []byte) {
	if q.dead.Load() {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(p) > 0 {
		n := min(len(p), maxCopy)
		b := append(q.copyOut[:0], "write 0x"...)
		b = append(strconv.AppendUint(b, addr, 16), " 0x"...)
		b = append(strconv.AppendUint(b, uint64(n), 16), " 0x"...)
		for _, x := range p[:n] {
			b = append(b, hexDigits[x>>4], hexDigits[x&0xf])
		}
		if !q.write(append(b, '\n')) || !q.posted() {
			return
		}
		addr, p = addr+uint64(n), p[n:]
	}
}

// ReadBytes is bus.Copier's.
func (r *region) ReadBytes(off bus.Off, p []byte) {
	if !r.copies(off, len(p)) || !r.dev.m.qt.readBytes(r.info.Addr+uint64(off), p) || !r.dev.alive() { // QEMU reads 0 where a device was
		bus.Ones(p)
	}
}

// WriteBytes is bus.Copier's.
func (r *region) WriteBytes(off bus.Off, p []byte) {
	if r.copies(off, len(p)) {
		r.dev.m.qt.writeBytes(r.info.Addr+uint64(off), p)
	}
}

// copies says whether n bytes at off can be copied.
func (r *region) copies(off bus.Off, n int) bool {
	o := uint64(off)
	return r.info.Kind == bus.RegionMem && o <= r.info.Size && uint64(n) <= r.info.Size-o && r.dev.alive()
}
