// Package cpuset reads and prints sets of CPUs in the two forms that the kernel's files
// have: masks ("3", "ff,ffffffff": 32 bits a group, the highest CPUs first) and lists
// ("0-1,4"). smp_affinity holds a mask, smp_affinity_list a list, cpulist and local_cpus
// one of each.
//
// What the kernel refuses is refused with the same error: EINVAL for what is not of the
// form, EOVERFLOW for a mask of more CPUs than a set holds, ERANGE for such a list.
// A set holds Limit CPUs, however many the machine has. An empty set is a valid mask or list; whoever uses it decides what it means.
package cpuset

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Limit is how many CPUs a set holds: 1024.
const Limit = len(unix.CPUSet{}) * strconv.IntSize

// Of makes a set of these CPUs; numbers outside 0 to Limit-1 are left out.
func Of(cpus ...int) unix.CPUSet {
	var s unix.CPUSet
	for _, c := range cpus {
		if c >= 0 {
			s.Set(c)
		}
	}
	return s
}

// machine is what a process was told that may read no files.
type machine struct {
	online unix.CPUSet
	nodes  string
}

var told atomic.Pointer[machine]

// Tell says what Online and Nodes give from now on: for a process that may read no files.
func Tell(online unix.CPUSet, nodes string) { told.Store(&machine{online, nodes}) }

// Nodes is the list of NUMA nodes that are possible: "0-1"; "" where the kernel has none.
func Nodes() string {
	if m := told.Load(); m != nil {
		return m.nodes
	}
	b, err := os.ReadFile("/sys/devices/system/node/possible")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Online is the set of CPUs that are online now. It reads
// /sys/devices/system/cpu/online, and asks the scheduler where that is not mounted.
func Online() (unix.CPUSet, error) {
	if m := told.Load(); m != nil {
		return m.online, nil
	}
	var s unix.CPUSet
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err == nil {
		if s, err = ParseList(string(b)); err == nil && s.Count() > 0 {
			return s, nil
		}
	}
	if err := unix.SchedGetaffinity(0, &s); err != nil {
		return unix.CPUSet{}, fmt.Errorf("reading the CPUs that are online: %w", err)
	}
	return s, nil
}

// Min is the lowest CPU in s, or -1.
func Min(s unix.CPUSet) int {
	for i := range Limit {
		if s.IsSet(i) {
			return i
		}
	}
	return -1
}

// Max is the highest CPU in s, or -1.
func Max(s unix.CPUSet) int {
	for i := Limit - 1; i >= 0; i-- {
		if s.IsSet(i) {
			return i
		}
	}
	return -1
}

// FormatMask prints the low n bits of s as a mask of n CPUs: as many digits as n needs,
// a comma after each 32 bits ("3" for n 2, "00000003" for n 32, "0,00000003" for n 33).
func FormatMask(s unix.CPUSet, n int) string {
	n = min(max(n, 1), Limit)
	var b strings.Builder
	for digit := (n + 3) / 4; digit > 0; {
		digit--
		v := 0
		for i := range 4 {
			if c := 4*digit + i; c < n && s.IsSet(c) {
				v |= 1 << i
			}
		}
		b.WriteByte("0123456789abcdef"[v])
		if digit > 0 && digit%8 == 0 {
			b.WriteByte(',')
		}
	}
	return b.String()
}

// FormatList prints the low n bits of s as a list: "0-1,4", or nothing for an empty set.
func FormatList(s unix.CPUSet, n int) string {
	var parts []string
	n = min(n, Limit)
	for i := 0; i < n; i++ {
		if !s.IsSet(i) {
			continue
		}
		first := i
		for i+1 < n && s.IsSet(i+1) {
			i++
		}
		if first == i {
			parts = append(parts, strconv.Itoa(first))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", first, i))
		}
	}
	return strings.Join(parts, ",")
}

// ParseMask reads a mask as the kernel does: groups of up to 8 hex digits, each 32 bits,
// the highest first, separated by commas or white space; the first line counts.
func ParseMask(text string) (unix.CPUSet, error) {
	bad := func(e unix.Errno) (unix.CPUSet, error) {
		return unix.CPUSet{}, fmt.Errorf("reading the CPU mask %.64q: %w", text, e)
	}
	groups := fields(text)
	if len(groups) > Limit/32 {
		return bad(unix.EOVERFLOW)
	}
	var s unix.CPUSet
	for g, group := range groups {
		for i := range len(group) {
			if !isHex(group[i]) {
				return bad(unix.EINVAL)
			}
		}
		v, err := strconv.ParseUint(group, 16, 32)
		if err != nil || len(group) > 8 {
			return bad(unix.EOVERFLOW)
		}
		for i := range 32 {
			if v>>i&1 != 0 {
				s.Set((len(groups)-1-g)*32 + i)
			}
		}
	}
	return s, nil
}

// ParseList reads a list as the kernel does: numbers and ranges, separated by commas or
// white space, on the first line. A range may have a stride, "0-31:2/8": of each 8 from 0 to 31 the
// first 2. "all" and "N" (the last CPU) stand for what they say of Limit CPUs.
func ParseList(text string) (unix.CPUSet, error) {
	bad := func(e unix.Errno) (unix.CPUSet, error) {
		return unix.CPUSet{}, fmt.Errorf("reading the CPU list %.64q: %w", text, e)
	}
	var s unix.CPUSet
	for _, part := range fields(text) {
		r, e := parseRange(part)
		if e != 0 {
			return bad(e)
		}
		for at := r.first; at <= r.last; at += r.group {
			for i := at; i < at+r.used && i <= r.last; i++ {
				s.Set(i)
			}
		}
	}
	return s, nil
}

// span is a part of a list: of each group CPUs from first to last the first used.
type span struct{ first, last, used, group int }

func parseRange(part string) (span, unix.Errno) {
	var r span
	bounds, stride, strided := strings.Cut(part, ":")
	if strings.EqualFold(bounds, "all") {
		r.last = Limit - 1
	} else {
		lo, hi, ranged := strings.Cut(bounds, "-")
		var e unix.Errno
		if r.first, e = number(lo); e != 0 {
			return r, e
		}
		switch r.last = r.first; {
		case ranged:
			if r.last, e = number(hi); e != 0 {
				return r, e
			}
		case strided:
			return r, unix.EINVAL
		}
	}
	r.used, r.group = r.last+1, r.last+1
	if strided {
		used, group, ok := strings.Cut(stride, "/")
		if !ok {
			return r, unix.EINVAL
		}
		var e unix.Errno
		if r.used, e = number(used); e != 0 {
			return r, e
		}
		if r.group, e = number(group); e != 0 {
			return r, e
		}
	}
	switch {
	case r.first > r.last || r.group == 0 || r.used > r.group:
		return r, unix.EINVAL
	case r.last >= Limit:
		return r, unix.ERANGE
	}
	return r, 0
}

// number reads a decimal number without sign, or "N".
func number(s string) (int, unix.Errno) {
	if s == "N" {
		return Limit - 1, 0
	}
	v, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		if len(s) > 0 && strings.Trim(s, "0123456789") == "" {
			return 0, unix.EOVERFLOW
		}
		return 0, unix.EINVAL
	}
	return int(min(v, 1<<30)), 0
}

// fields splits the first line as the kernel does: at commas and white space, any number
// of them.
func fields(text string) []string {
	line, _, _ := strings.Cut(text, "\n")
	return strings.FieldsFunc(line, func(r rune) bool { return r == ',' || r == ' ' || r >= '\t' && r <= '\r' })
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}
