package tracefile

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/ring3dev/ring3/bus/trace"
)

// linkType is USER0: what is in a packet is ours to say.
const linkType = 147

// layout is the version of a packet's layout, and header the size of its fixed part.
const (
	layout = 1
	header = 72
)

// Writer writes entries in some format. It belongs to one goroutine.
type Writer interface {
	Write(e *trace.Entry) error
	// Flush hands what was written to the file.
	Flush() error
}

// Source describes a device in a file.
type Source struct {
	Name, Address, Backend, Driver string
}

// SourceOf describes a traced device.
func SourceOf(d *trace.Device) Source {
	return Source{Name: d.Name(), Address: d.Address(), Backend: d.Backend(), Driver: d.Driver()}
}

func (s Source) String() string {
	return strings.TrimSpace(s.Address + " " + s.Backend + " " + s.Driver)
}

// pcapng writes pcapng.
type pcapng struct {
	w     *pcapgo.NgWriter
	index map[string]int // of an interface, by the device's name
	buf   []byte
}

// NewPcapng begins a pcapng file of these devices.
func NewPcapng(w io.Writer, devices []Source) (Writer, error) {
	if len(devices) == 0 {
		return nil, errors.New("writing a trace: of no device")
	}
	p := &pcapng{index: map[string]int{}}
	section := pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Hardware: runtime.GOARCH, OS: runtime.GOOS, Application: "ring3"}}
	for i, d := range devices {
		if i == 0 {
			var err error
			if p.w, err = pcapgo.NewNgWriterInterface(w, iface(d), section); err != nil {
				return nil, err
			}
		} else if _, err := p.w.AddInterface(iface(d)); err != nil {
			return nil, err
		}
		p.index[d.Name] = i
	}
	return p, nil
}

func iface(d Source) pcapgo.NgInterface {
	return pcapgo.NgInterface{Name: cut(d.Name), Description: cut(d.String()), LinkType: layers.LinkType(linkType), OS: runtime.GOOS}
}

// cut keeps a string within what the format's lengths can say.
func cut(s string) string { return s[:min(len(s), 1<<15)] }

func (p *pcapng) Write(e *trace.Entry) error {
	i, ok := p.index[e.Device]
	if !ok {
		return fmt.Errorf("writing a trace: of %s, which is not in the file", e.Device)
	}
	p.buf = appendEntry(p.buf[:0], e)
	return p.w.WritePacket(gopacket.CaptureInfo{Timestamp: e.Wall(), CaptureLength: len(p.buf), Length: len(p.buf), InterfaceIndex: i}, p.buf)
}

func (p *pcapng) Flush() error { return p.w.Flush() }

// appendEntry lays an entry out as the package's comment says.
func appendEntry(b []byte, e *trace.Entry) []byte {
	le := binary.LittleEndian
	name, text, data := cut(e.Name), cut(e.Text), e.Data()
	b = append(b, layout, byte(e.Kind), byte(e.Op), e.Width, byte(e.Region), byte(e.Mode), 0, 0)
	b = le.AppendUint64(b, e.Seq)
	b = le.AppendUint64(b, uint64(e.Time))
	b = le.AppendUint64(b, uint64(e.DT))
	b = le.AppendUint64(b, uint64(e.Off))
	b = le.AppendUint64(b, e.Value)
	b = le.AppendUint64(b, e.Aux)
	b = le.AppendUint32(b, e.Count)
	b = le.AppendUint16(b, uint16(len(name)))
	b = le.AppendUint16(b, uint16(len(text)))
	b = le.AppendUint16(b, uint16(len(data)))
	b = append(b, 0, 0, 0, 0, 0, 0)
	b = append(b, name...)
	b = append(b, text...)
	return append(b, data...)
}

// text writes lines.
type text struct{ w *bufio.Writer }

// NewText begins a text file: what trace.Entry.String says, after a comment ("# ...") on each
// device.
func NewText(w io.Writer, devices []Source) Writer {
	t := text{bufio.NewWriter(w)}
	for _, d := range devices {
		// An error stays with the writer, until Flush.
		fmt.Fprintf(t.w, "# %s: %s; times count from %s\n", d.Name, d, trace.Epoch().UTC().Format(time.RFC3339Nano))
	}
	return t
}

func (t text) Write(e *trace.Entry) error {
	if _, err := t.w.WriteString(e.String()); err != nil {
		return err
	}
	return t.w.WriteByte('\n')
}

func (t text) Flush() error { return t.w.Flush() }

// lines writes JSON objects.
type lines struct {
	w *bufio.Writer
	e *json.Encoder
}

// NewJSON writes one JSON object a line.
func NewJSON(w io.Writer) Writer {
	b := bufio.NewWriter(w)
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	return lines{b, e}
}

func (l lines) Write(e *trace.Entry) error { return l.e.Encode(e) }
func (l lines) Flush() error               { return l.w.Flush() }

// IsPcapng says whether a file of this name is to be pcapng; others are text.
func IsPcapng(name string) bool {
	return strings.HasSuffix(name, ".pcapng") || strings.HasSuffix(name, ".pcap")
}
