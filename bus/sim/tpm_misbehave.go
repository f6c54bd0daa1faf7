package sim

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// misbehaviour is what a TPM does wrong, and with which of its commands.
type misbehaviour map[string]commandRange

type commandRange struct{ first, last int }

func (m misbehaviour) is(kind string, number int) bool {
	r, ok := m[kind]
	return ok && number >= r.first && number <= r.last
}

// Kinds that both interfaces have: they are in the answer, or in that there is none.
var tpmKinds = map[string]bool{
	"long": true, "short": true, "huge": true, "runt": true, "tag": true, "fail": true,
	"retry": true, "testing": true, "hang": true, "wedge": true, "locality": true,
}

// Kinds of one interface.
var (
	tisKinds = with(tpmKinds, "expect", "noexpect", "burst0", "storm")
	crbKinds = with(tpmKinds, "fatal")
)

func with(kinds map[string]bool, more ...string) map[string]bool {
	kinds = maps.Clone(kinds)
	for _, k := range more {
		kinds[k] = true
	}
	return kinds
}

// parseMisbehaviour reads the property.
func parseMisbehaviour(v string, kinds map[string]bool) (misbehaviour, error) {
	m := misbehaviour{}
	if v == "" {
		return m, nil
	}
	for part := range strings.SplitSeq(v, "+") {
		kind, when, limited := strings.Cut(part, ":")
		if !kinds[kind] {
			return nil, fmt.Errorf("property misbehave=%s: no kind is named %q: there are %s", v, kind, strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
		}
		if _, ok := m[kind]; ok {
			return nil, fmt.Errorf("property misbehave=%s: %s is given twice", v, kind)
		}
		r := commandRange{1, math.MaxInt}
		if limited {
			var ok bool
			if r, ok = parseRange(when); !ok {
				return nil, fmt.Errorf("property misbehave=%s: %s: want the number of a command, from 1, or N-M, or N-", v, part)
			}
		}
		m[kind] = r
	}
	return m, nil
}

func parseRange(s string) (r commandRange, ok bool) {
	a, b, is := strings.Cut(s, "-")
	var err error
	if r.first, err = strconv.Atoi(a); err != nil || r.first < 1 {
		return r, false
	}
	switch {
	case !is:
		r.last = r.first
	case b == "":
		r.last = math.MaxInt
	default:
		if r.last, err = strconv.Atoi(b); err != nil || r.last < r.first {
			return r, false
		}
	}
	return r, true
}

// What is added to, or taken from, the length that an answer says it has, and how long a huge one is.
const (
	lengthOff  = 4
	hugeAnswer = tpmMax + 904
	runtAnswer = 6
	badTag     = 0xdead
)

// mangle is where the answer itself is to go wrong. Its length may lie.
func (r *tpmRun) mangle(answer []byte) []byte {
	if len(answer) < tpmHeader {
		return answer // of a TPM that is not the built-in one
	}
	answer = slices.Clone(answer)
	setLength := func(n int) { binary.BigEndian.PutUint32(answer[2:], uint32(n)) }
	if r.is("tag") {
		binary.BigEndian.PutUint16(answer, badTag)
	}
	switch {
	case r.is("long"):
		setLength(len(answer) + lengthOff)
	case r.is("short"):
		// Bytes that are left over, also behind a bare header, whose length must not be below its own.
		answer = append(answer, make([]byte, lengthOff)...)
		setLength(len(answer) - lengthOff)
	case r.is("huge"):
		answer = append(answer, make([]byte, hugeAnswer-len(answer))...)
		setLength(len(answer))
	case r.is("runt"):
		answer = answer[:runtAnswer]
		setLength(runtAnswer)
	}
	return answer
}
