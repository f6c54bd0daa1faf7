package pktgen

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// aton reads a dotted address as the kernel's in_aton does: whatever stands there
// counts, nothing is checked, missing parts are 0.
func aton(s string) uint32 {
	var l uint32
	for range 4 {
		l <<= 8
		if s == "" {
			continue
		}
		var v uint32
		for s != "" && s[0] != '.' && s[0] != '\n' {
			v = v*10 + uint32(s[0]) - '0'
			s = s[1:]
		}
		l |= v
		if s != "" {
			s = s[1:]
		}
	}
	return l
}

// ntoa is %pI4.
func ntoa(a uint32) string {
	return fmt.Sprintf("%d.%d.%d.%d", a>>24, a>>16&0xff, a>>8&0xff, a&0xff)
}

// pton6 reads an IPv6 address; ok is false where s is none.
func pton6(s string) (a [16]byte, ok bool) {
	ip, err := netip.ParseAddr(s)
	if err != nil || !ip.Is6() || ip.Zone() != "" {
		return a, false
	}
	return ip.As16(), true
}

// ntop6 is %pI6c: the longest run of at least two zero words as "::", the first of equal
// ones, and the last four bytes dotted where they hold an IPv4 address.
func ntop6(a [16]byte) string {
	var w [8]uint16
	for i := range w {
		w[i] = binary.BigEndian.Uint16(a[2*i:])
	}
	mapped := w[0]|w[1]|w[2]|w[3]|w[4] == 0 && w[5] == 0xffff
	isatap := w[4]|0x0200 == 0x0200 && w[5] == 0x5efe
	n := 8
	if mapped || isatap {
		n = 6
	}
	at, long := -1, 1
	for i := 0; i < n; i++ {
		j := i
		for j < n && w[j] == 0 {
			j++
		}
		if j-i > long {
			at, long = i, j-i
		}
		i = max(i, j-1)
	}
	var b strings.Builder
	colon := false
	for i := 0; i < n; i++ {
		if i == at {
			b.WriteString("::")
			colon = false
			i += long - 1
			continue
		}
		if colon {
			b.WriteByte(':')
		}
		fmt.Fprintf(&b, "%x", w[i])
		colon = true
	}
	if n == 6 {
		if colon {
			b.WriteByte(':')
		}
		b.WriteString(ntoa(binary.BigEndian.Uint32(a[12:])))
	}
	return b.String()
}

// parseMAC reads six bytes in hexadecimal with colons between; what follows is ignored.
func parseMAC(s string) (m [6]byte, ok bool) {
	if len(s) < 17 {
		return m, false
	}
	for i := range m {
		hi, ok1 := hexDigit(s[3*i])
		lo, ok2 := hexDigit(s[3*i+1])
		if !ok1 || !ok2 || i < 5 && s[3*i+2] != ':' {
			return m, false
		}
		m[i] = hi<<4 | lo
	}
	return m, true
}

// fmtMAC is %pM.
func fmtMAC(m [6]byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
