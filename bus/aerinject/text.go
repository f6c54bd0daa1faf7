package aerinject

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/pci"
)

// maxText bounds what ParseText reads.
const maxText = 1 << 20

// Names of error bits in the tool's language, which are those of the kernel's pci_regs.h, and of QEMU's monitor.
var (
	uncNames = map[string]uint32{
		"TRAIN": 1 << 0, "DLP": 1 << 4, "SDN": 1 << 5, "POISON_TLP": 1 << 12, "FCP": 1 << 13, "COMP_TIME": 1 << 14, "COMP_ABORT": 1 << 15,
		"UNX_COMP": 1 << 16, "RX_OVER": 1 << 17, "MALF_TLP": 1 << 18, "ECRC": 1 << 19, "UNSUP": 1 << 20, "ACSV": 1 << 21, "INTN": 1 << 22,
		"MCBTLP": 1 << 23, "ATOP_EBLOCKED": 1 << 24, "TLP_PRF_BLOCKED": 1 << 25,
	}
	corNames = map[string]uint32{
		"RCVR": 1 << 0, "BAD_TLP": 1 << 6, "BAD_DLLP": 1 << 7, "REP_ROLL": 1 << 8, "REP_TIMER": 1 << 12, "ADV_NONFATAL": 1 << 13,
		"INTERNAL": 1 << 14, "HL_OVERFLOW": 1 << 15,
	}
)

// ParseText reads the language of the tool aer-inject: words, in which line ends mean nothing and "#" begins a comment.
//
//	AER                              a record begins
//	PCI_ID [DDDD:]BB:DD.F            its function; or numbers: [DOMAIN n] BUS n DEV n FN n
//	COR_STATUS   [NAME | n]...       its correctable bits: RCVR BAD_TLP BAD_DLLP REP_ROLL REP_TIMER ...
//	UNCOR_STATUS [NAME | n]...       its uncorrectable bits: DLP POISON_TLP FCP COMP_TIME COMP_ABORT UNX_COMP ...
//	HEADER_LOG n n n n
//
// Upper and lower case are the same, and numbers are decimal, octal after 0, hexadecimal after 0x. An error names the
// line, wraps EINVAL, and there are no records then.
func ParseText(r io.Reader) ([]Record, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxText+1))
	if err != nil {
		return nil, fmt.Errorf("reading errors to inject: %w", err)
	}
	if len(text) > maxText {
		return nil, fmt.Errorf("reading errors to inject: more than %d bytes: %w", maxText, unix.EINVAL)
	}
	p := parser{words: scan(string(text))}
	for {
		w, ok := p.next()
		if !ok {
			break
		}
		if err := p.term(w); err != nil {
			return nil, err
		}
	}
	if err := p.finish(); err != nil {
		return nil, err
	}
	return p.recs, nil
}

// word is one word of the text, in upper case.
type word struct {
	text string
	line int
}

func scan(text string) []word {
	var words []word
	line := 0
	for l := range strings.SplitSeq(text, "\n") {
		line++
		l, _, _ = strings.Cut(l, "#")
		for w := range strings.FieldsSeq(l) {
			words = append(words, word{strings.ToUpper(w), line})
		}
	}
	return words
}

type parser struct {
	words []word
	recs  []Record
	cur   *Record // the record that is being read
	begun int     // its line
	where bool    // it says which function
}

func (p *parser) next() (word, bool) {
	if len(p.words) == 0 {
		return word{}, false
	}
	w := p.words[0]
	p.words = p.words[1:]
	return w, true
}

func failure(line int, format string, args ...any) error {
	return fmt.Errorf("line %d: %s: %w", line, fmt.Sprintf(format, args...), unix.EINVAL)
}

// finish ends the record that is being read.
func (p *parser) finish() error {
	if p.cur == nil {
		return nil
	}
	if !p.where {
		return failure(p.begun, "this AER names no function (PCI_ID, or BUS, DEV, FN)")
	}
	p.recs = append(p.recs, *p.cur)
	p.cur = nil
	return nil
}

// term reads what begins with the keyword w.
func (p *parser) term(w word) error {
	if w.text == "AER" {
		if err := p.finish(); err != nil {
			return err
		}
		p.cur, p.begun, p.where = &Record{}, w.line, false
		return nil
	}
	if p.cur == nil {
		return failure(w.line, "%q before the first AER", w.text)
	}
	var err error
	switch w.text {
	case "PCI_ID":
		err = p.pciID(w)
	case "DOMAIN":
		if p.cur.Domain, err = p.number(w, math.MaxUint32); err == nil {
			if w, _ = p.next(); w.text != "BUS" {
				return failure(p.lineOf(w), "%q, want BUS after DOMAIN", w.text)
			}
			err = p.place(w)
		}
	case "BUS":
		p.cur.Domain = 0
		err = p.place(w)
	case "COR_STATUS":
		p.cur.Error.Correctable, err = p.status(corNames)
	case "UNCOR_STATUS":
		p.cur.Error.Uncorrectable, err = p.status(uncNames)
	case "HEADER_LOG":
		for i := range p.cur.Error.Header {
			if p.cur.Error.Header[i], err = p.number(w, math.MaxUint32); err != nil {
				return err
			}
		}
	default:
		return failure(w.line, "%q, want AER, PCI_ID, DOMAIN, BUS, COR_STATUS, UNCOR_STATUS or HEADER_LOG", w.text)
	}
	return err
}

// lineOf is the line of a word, the last one's where the text has ended.
func (p *parser) lineOf(w word) int { return max(w.line, p.begun) }

// number is the number that follows the keyword key.
func (p *parser) number(key word, highest uint32) (uint32, error) {
	w, ok := p.next()
	if !ok {
		return 0, failure(key.line, "%s without its number", key.text)
	}
	v, ok := number(w.text)
	if !ok || v > highest {
		return 0, failure(w.line, "%q after %s, want a number up to %#x", w.text, key.text, highest)
	}
	return v, nil
}

// number reads one as the tool's scanner does.
func number(s string) (uint32, bool) {
	digits, base := s, 10
	switch {
	case strings.HasPrefix(s, "0X"):
		digits, base = s[2:], 16
	case len(s) > 1 && s[0] == '0':
		digits, base = s[1:], 8
	}
	v, err := strconv.ParseUint(digits, base, 32)
	return uint32(v), err == nil
}

// place reads what follows BUS: a number, DEV, FN.
func (p *parser) place(w word) error {
	var v [3]uint32
	highest := [...]uint32{0xff, 0x1f, 7}
	for i, key := range [...]string{"BUS", "DEV", "FN"} {
		if i > 0 {
			if w, _ = p.next(); w.text != key {
				return failure(p.lineOf(w), "%q, want %s", w.text, key)
			}
		}
		var err error
		if v[i], err = p.number(w, highest[i]); err != nil {
			return err
		}
	}
	p.cur.Bus, p.cur.Dev, p.cur.Fn, p.where = uint8(v[0]), uint8(v[1]), uint8(v[2]), true
	return nil
}

func (p *parser) pciID(key word) error {
	w, ok := p.next()
	if !ok {
		return failure(key.line, "PCI_ID without its address")
	}
	s := w.text
	if strings.Count(s, ":") == 1 {
		s = "0000:" + s
	}
	a, err := pci.ParseAddr(s)
	if err != nil {
		return failure(w.line, "%q after PCI_ID, want [DDDD:]BB:DD.F", w.text)
	}
	p.cur.Domain, p.cur.Bus, p.cur.Dev, p.cur.Fn, p.where = a.Domain, a.Bus, a.Dev, a.Fn, true
	return nil
}

// status reads names and numbers up to the next keyword.
func (p *parser) status(names map[string]uint32) (uint32, error) {
	var v uint32
	for ; len(p.words) > 0; p.words = p.words[1:] {
		w := p.words[0]
		bits, ok := names[w.text]
		if !ok && w.text[0] >= '0' && w.text[0] <= '9' {
			if bits, ok = number(w.text); !ok {
				return 0, failure(w.line, "%q, want a number up to 0xffffffff", w.text)
			}
		}
		if !ok {
			break // a keyword, or wrong: term sees
		}
		v |= bits
	}
	return v, nil
}
