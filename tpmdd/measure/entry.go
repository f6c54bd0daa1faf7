package measure

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"strings"
)

// Templates that this package writes, and one more that it reads.
const (
	TemplateFile = "ima-ng"  // d-ng|n-ng
	TemplateData = "ima-buf" // d-ng|n-ng|buf
	templateSig  = "ima-sig" // d-ng|n-ng|sig: of a kernel that appraises
)

// BootAggregate is the name of the first entry.
const BootAggregate = "boot_aggregate"

// Entry is one measurement.
type Entry struct {
	PCR      int
	Sum      [sha1.Size]byte // SHA-1 of Data; all zero for a violation
	Template string
	Data     []byte // the template's fields, each behind its length
}

// Event is what an entry says.
type Event struct {
	Alg    string // of Digest, as the kernel names it
	Digest []byte // of the file or of the data
	Name   string
	Buf    []byte // ima-buf: the data; ima-sig: the signature
}

// newEntry makes an entry of an event, whose name is taken as it is.
func newEntry(pcr int, template string, ev Event) Entry {
	var d []byte
	d = appendField(d, []byte(ev.Alg+":\x00"), ev.Digest)
	d = appendField(d, []byte(ev.Name), []byte{0})
	if template != TemplateFile {
		d = appendField(d, ev.Buf)
	}
	return Entry{PCR: pcr, Sum: sha1.Sum(d), Template: template, Data: d}
}

// newViolation makes an entry that says that the PCR is no longer to be trusted: digests of zeros.
func newViolation(pcr int, name string) Entry {
	e := newEntry(pcr, TemplateFile, Event{Alg: SHA256.String(), Digest: make([]byte, SHA256.Size()), Name: name})
	e.Sum = [sha1.Size]byte{}
	return e
}

func appendField(d []byte, parts ...[]byte) []byte {
	field := bytes.Join(parts, nil)
	d = binary.LittleEndian.AppendUint32(d, uint32(len(field)))
	return append(d, field...)
}

// cleanName makes a name one word: blanks end a field in the ASCII form, and a control character a line.
func cleanName(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c <= ' ' || c == 0x7f {
			b[i] = '_'
		}
	}
	return string(b)
}

// Violation says that the PCR was not extended with this entry's digest but with ones.
func (e Entry) Violation() bool { return e.Sum == [sha1.Size]byte{} }

// Digest is what the PCR in a bank was extended with for this entry. It says false where the bank is not known.
func (e Entry) Digest(b Bank) ([]byte, bool) {
	out := make([]byte, b.Size())
	if len(out) == 0 {
		return nil, false
	}
	mapped := b.newHash() != nil
	switch {
	case e.Violation() && mapped:
		copy(out, bytes.Repeat([]byte{0xff}, len(out)))
	case e.Violation():
		copy(out, bytes.Repeat([]byte{0xff}, sha1.Size))
	case mapped:
		copy(out, b.Sum(e.Data))
	default:
		s := sha1.Sum(e.Data)
		copy(out, s[:])
	}
	return out, true
}

// Event takes an entry apart.
func (e Entry) Event() (Event, error) {
	want := 0
	switch e.Template {
	case TemplateFile:
		want = 2
	case TemplateData, templateSig:
		want = 3
	default:
		return Event{}, fmt.Errorf("template %q: want %s, %s or %s", e.Template, TemplateFile, TemplateData, templateSig)
	}
	fields, err := splitFields(e.Data, want)
	if err != nil {
		return Event{}, fmt.Errorf("template %s: %w", e.Template, err)
	}
	alg, digest, ok := bytes.Cut(fields[0], []byte(":\x00"))
	if !ok {
		return Event{}, fmt.Errorf("template %s: digest field %q: want algorithm, colon, zero byte, digest", e.Template, fields[0])
	}
	name := fields[1]
	if len(name) == 0 || bytes.IndexByte(name, 0) != len(name)-1 {
		return Event{}, fmt.Errorf("template %s: name field %q: want one zero byte, at its end", e.Template, name)
	}
	ev := Event{Alg: string(alg), Digest: digest, Name: string(name[:len(name)-1])}
	if want == 3 {
		ev.Buf = fields[2]
	}
	return ev, nil
}

// splitFields reads n fields, which must be all there is.
func splitFields(d []byte, n int) ([][]byte, error) {
	out := make([][]byte, 0, n)
	for i := range n {
		if len(d) < 4 {
			return nil, fmt.Errorf("ends before field %d of %d", i+1, n)
		}
		size := binary.LittleEndian.Uint32(d)
		d = d[4:]
		if uint64(size) > uint64(len(d)) {
			return nil, fmt.Errorf("field %d has %d bytes: %d are left", i+1, size, len(d))
		}
		out = append(out, d[:size])
		d = d[size:]
	}
	if len(d) > 0 {
		return nil, fmt.Errorf("%d bytes after field %d", len(d), n)
	}
	return out, nil
}

// appendBinary adds the entry as binary_runtime_measurements has it, with the digest of one bank.
func (e Entry) appendBinary(p []byte, b Bank) []byte {
	p = binary.LittleEndian.AppendUint32(p, uint32(e.PCR))
	p = append(p, e.shown(b)...)
	p = binary.LittleEndian.AppendUint32(p, uint32(len(e.Template)))
	p = append(p, e.Template...)
	p = binary.LittleEndian.AppendUint32(p, uint32(len(e.Data)))
	return append(p, e.Data...)
}

// appendASCII adds the entry as ascii_runtime_measurements has it.
func (e Entry) appendASCII(p []byte, b Bank) []byte {
	p = fmt.Appendf(p, "%2d %x %s", e.PCR, e.shown(b), e.Template)
	ev, err := e.Event()
	if err != nil {
		return append(p, '\n') // not reached: this package's own entries can be taken apart
	}
	p = fmt.Appendf(p, " %s:%x %s", ev.Alg, ev.Digest, ev.Name)
	if e.Template != TemplateFile {
		p = fmt.Appendf(p, " %x", ev.Buf)
	}
	return append(p, '\n')
}

// Binary writes entries as binary_runtime_measurements has them, with the digests that they state, true or not.
func Binary(entries []Entry) []byte {
	var p []byte
	for _, e := range entries {
		p = e.appendBinary(p, SHA1)
	}
	return p
}

// shown is the template digest as the list shows it: that of a violation is zero in every bank.
func (e Entry) shown(b Bank) []byte {
	if b == SHA1 {
		return e.Sum[:]
	}
	if e.Violation() {
		return make([]byte, b.Size())
	}
	d, _ := e.Digest(b)
	return d
}

// String is the entry's line.
func (e Entry) String() string {
	return strings.TrimSuffix(string(e.appendASCII(nil, SHA1)), "\n")
}
