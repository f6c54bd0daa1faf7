package measure

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Bounds of what is parsed: a kernel's own list may be longer than ours.
const (
	MaxParse     = 64 << 20
	maxTemplate  = 255
	maxParsedPCR = 31
)

// Parse reads a list in either form: the second byte of the binary one is zero, that of a text never.
func Parse(p []byte) ([]Entry, error) {
	if len(p) > 1 && p[1] == 0 {
		return ParseBinary(p)
	}
	return ParseASCII(p)
}

// ParseBinary reads a list as binary_runtime_measurements has it. The entries point into p. It does not say whether
// digests are true: [Entry.Check] does.
func ParseBinary(p []byte) ([]Entry, error) {
	if len(p) > MaxParse {
		return nil, fmt.Errorf("measurement list: %d bytes: want at most %d", len(p), MaxParse)
	}
	var out []Entry
	for at := 0; at < len(p); {
		e, n, err := parseBinaryEntry(p[at:])
		if err != nil {
			return nil, fmt.Errorf("measurement list: entry %d, at byte %d: %w", len(out), at, err)
		}
		out = append(out, e)
		at += n
	}
	return out, nil
}

func parseBinaryEntry(p []byte) (Entry, int, error) {
	const fixed = 4 + sha1.Size + 4
	if len(p) < fixed {
		return Entry{}, 0, fmt.Errorf("%d bytes are left: want %d for PCR, digest and length of a name", len(p), fixed)
	}
	var e Entry
	pcr := binary.LittleEndian.Uint32(p)
	if pcr > maxParsedPCR {
		return Entry{}, 0, fmt.Errorf("PCR %d: want 0 to %d", pcr, maxParsedPCR)
	}
	e.PCR = int(pcr)
	copy(e.Sum[:], p[4:])
	name, rest, err := cutSized(p[fixed-4:], maxTemplate)
	if err != nil {
		return Entry{}, 0, fmt.Errorf("template's name: %w", err)
	}
	if e.Template = string(name); e.Template == "ima" {
		return Entry{}, 0, fmt.Errorf("template ima: it is SHA-1 only and has no lengths: want %s", TemplateFile)
	}
	if e.Data, rest, err = cutSized(rest, MaxParse); err != nil {
		return Entry{}, 0, fmt.Errorf("template's data: %w", err)
	}
	return e, len(p) - len(rest), nil
}

// cutSized reads a length and that many bytes.
func cutSized(p []byte, most uint32) (data, rest []byte, err error) {
	if len(p) < 4 {
		return nil, nil, fmt.Errorf("%d bytes are left: want 4 for its length", len(p))
	}
	n := binary.LittleEndian.Uint32(p)
	p = p[4:]
	if n > most || uint64(n) > uint64(len(p)) {
		return nil, nil, fmt.Errorf("length %d: want at most %d, and %d bytes are left", n, most, len(p))
	}
	return p[:n], p[n:], nil
}

// ParseASCII reads a list as ascii_runtime_measurements has it, with SHA-1 template digests.
func ParseASCII(p []byte) ([]Entry, error) {
	if len(p) > MaxParse {
		return nil, fmt.Errorf("measurement list: %d bytes: want at most %d", len(p), MaxParse)
	}
	var out []Entry
	for n := 1; len(p) > 0; n++ {
		var line []byte
		line, p, _ = bytes.Cut(p, []byte("\n"))
		e, err := parseLine(string(line))
		if err != nil {
			return nil, fmt.Errorf("measurement list: line %d: %w", n, err)
		}
		out = append(out, e)
	}
	return out, nil
}

func parseLine(line string) (Entry, error) {
	word := strings.Split(strings.TrimPrefix(line, " "), " ")
	if len(word) < 5 {
		return Entry{}, fmt.Errorf("%d words: want PCR, digest, template, file digest, name", len(word))
	}
	pcr, err := strconv.ParseUint(word[0], 10, 8)
	if err != nil || pcr > maxParsedPCR {
		return Entry{}, fmt.Errorf("PCR %q: want 0 to %d", word[0], maxParsedPCR)
	}
	sum, err := hex.DecodeString(word[1])
	if err != nil || len(sum) != sha1.Size {
		return Entry{}, fmt.Errorf("template digest %q: want %d hex digits", word[1], 2*sha1.Size)
	}
	alg, d, ok := strings.Cut(word[3], ":")
	digest, err := hex.DecodeString(d)
	if err != nil || !ok {
		return Entry{}, fmt.Errorf("digest %q: want algorithm, colon, hex digits", word[3])
	}
	ev := Event{Alg: alg, Digest: digest, Name: word[4]}
	switch {
	case word[2] == TemplateFile && len(word) == 5:
	case (word[2] == TemplateData || word[2] == templateSig) && len(word) == 6:
		if ev.Buf, err = hex.DecodeString(word[5]); err != nil {
			return Entry{}, fmt.Errorf("data %.40q: want hex digits", word[5])
		}
	default:
		return Entry{}, fmt.Errorf("template %q with %d words: want %s with 5, %s or %s with 6", word[2], len(word), TemplateFile, TemplateData, templateSig)
	}
	e := newEntry(int(pcr), word[2], ev)
	copy(e.Sum[:], sum)
	return e, nil
}

// Check says what is wrong with an entry in itself: a template digest that is not the one of its data, data that
// do not have the digest that stands beside them.
func (e Entry) Check() error {
	ev, err := e.Event()
	if err != nil {
		return err
	}
	if e.Violation() {
		return nil
	}
	if s := sha1.Sum(e.Data); s != e.Sum {
		return fmt.Errorf("%q: template digest %x: want %x, the SHA-1 of its data", ev.Name, e.Sum, s)
	}
	if e.Template != TemplateData {
		return nil
	}
	b, err := ParseBank(ev.Alg)
	if err != nil {
		return fmt.Errorf("%q: digest of its data: %w", ev.Name, err)
	}
	if got := b.Sum(ev.Buf); !bytes.Equal(got, ev.Digest) {
		return fmt.Errorf("%q: its data have the digest %s:%x: the entry says %x", ev.Name, b, got, ev.Digest)
	}
	return nil
}
