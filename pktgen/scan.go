package pktgen

import (
	"bytes"

	"github.com/ring3dev/ring3/internal/profile"
)

// scanner walks over what was written to a file, with the kernel's habits: no tokens,
// no errors. A reader takes what it can use and leaves the rest.
type scanner struct {
	p      []byte
	prof   *profile.Pktgen
	loaded loaded // for pcap
}

// scan begins with a command: its name, of which limit bytes count, and a scanner that stands at its value.
func scan(p []byte, prof *profile.Pktgen, limit int) (s scanner, name string) {
	s = scanner{p: p, prof: prof}
	s.skip()
	name = s.word(limit)
	s.skip()
	return s, name
}

// separator tells what stands between a command and its value, in any number.
func separator(c byte) bool {
	switch c {
	case '"', '\n', '\r', '\t', ' ', '=':
		return true
	}
	return false
}

// skip passes separators.
func (s *scanner) skip() {
	i := 0
	for i < len(s.p) && separator(s.p[i]) {
		i++
	}
	s.p = s.p[i:]
}

// word takes at most limit bytes up to a separator. Like the kernel's, which lie in C
// strings, a word ends for its reader at a NUL, though the bytes behind that are taken too.
func (s *scanner) word(limit int) string {
	i := 0
	for i < len(s.p) && i < limit && (!separator(s.p[i]) || s.p[i] == '=' && !s.prof.Assign) {
		i++
	}
	w := s.p[:i]
	s.p = s.p[i:]
	return cstring(w)
}

// num takes at most limit decimal digits. No digit gives 0.
func (s *scanner) num(limit int) uint64 {
	var v uint64
	i := 0
	for ; i < len(s.p) && i < limit && s.p[i]-'0' <= 9; i++ {
		v = v*10 + uint64(s.p[i]-'0')
	}
	s.p = s.p[i:]
	return v
}

// hex takes at most limit hexadecimal digits, 8 or less, and says how many there were.
func (s *scanner) hex(limit int) (v uint32, n int) {
	for n < len(s.p) && n < limit {
		x, ok := hexDigit(s.p[n])
		if !ok {
			break
		}
		v = v<<4 | uint32(x)
		n++
	}
	s.p = s.p[n:]
	if n < limit && s.prof.ShortHex {
		v <<= 4 // made room for a digit that did not come
	}
	return v, n
}

// next takes one byte; ok is false at the end.
func (s *scanner) next() (c byte, ok bool) {
	if len(s.p) == 0 {
		return 0, false
	}
	c = s.p[0]
	s.p = s.p[1:]
	return c, true
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c-'0' <= 9:
		return c - '0', true
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}

// cstring is b up to its first NUL.
func cstring(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
