package rapidio

import (
	"encoding/binary"
	"fmt"
	"sync"
)

// Words of a port-write as error management has it (part 8, 2.4.1).
const (
	pwTag    = 0
	pwDetect = 4
	pwPort   = 8 // implementation-defined 31:8, port 7:0
	pwLog    = 12
	pwLen    = 16 // of what is defined
)

// ParsePortWrite takes a port-write apart. One that is shorter than the defined part reads zeros there, and of a longer
// one than there may be the rest is not looked at.
func ParsePortWrite(p []byte) PortWrite {
	var pw PortWrite
	pw.Len = copy(pw.Raw[:], p)
	word := func(at int) uint32 { return binary.BigEndian.Uint32(pw.Raw[at:]) }
	pw.Tag, pw.Detect, pw.LogDetect = word(pwTag), word(pwDetect), word(pwLog)
	pw.Port, pw.Impl = uint8(word(pwPort)), word(pwPort)>>8
	return pw
}

// Bytes is a port-write as it is sent: the reverse of ParsePortWrite, without Raw.
func (pw PortWrite) Bytes() []byte {
	p := make([]byte, pwLen)
	binary.BigEndian.PutUint32(p[pwTag:], pw.Tag)
	binary.BigEndian.PutUint32(p[pwDetect:], pw.Detect)
	binary.BigEndian.PutUint32(p[pwPort:], pw.Impl<<8|uint32(pw.Port))
	binary.BigEndian.PutUint32(p[pwLog:], pw.LogDetect)
	return p
}

func (pw PortWrite) String() string {
	return fmt.Sprintf("port-write of tag %#08x: port %d, detect %#08x, implementation %#06x, logical %#08x", pw.Tag, pw.Port, pw.Detect, pw.Impl, pw.LogDetect)
}

// OnPortWrite has f called with each port-write that comes in, of whatever device. Calls come one at a time and must not take long.
// cancel ends it, as the release of RequestInbDoorbell.
func (m *Mport) OnPortWrite(f func(PortWrite)) (cancel func()) { return m.hooks.add(f) }

// OnPortWrite has f called with each port-write of the device. It ends with cancel, or when the device is gone.
func (d *Device) OnPortWrite(f func(PortWrite)) (cancel func()) { return d.hooks.add(f) }

// tagsLogged bounds what is remembered of foreign tags.
const tagsLogged = 64

// strays are the tags of which somebody was told.
type strays struct {
	mu   sync.Mutex
	tags map[uint32]bool
}

// first tells whether a tag is a new one, as long as there is room for more.
func (s *strays) first(tag uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tags[tag] || len(s.tags) == tagsLogged {
		return false
	}
	if s.tags == nil {
		s.tags = map[uint32]bool{}
	}
	s.tags[tag] = true
	return true
}

// portWrite is one that came in: for those who asked for its device's, for those who asked for all, and for whoever looks after the net.
func (m *Mport) portWrite(p []byte) {
	m.counts.portWrites.Add(1)
	if m.ctx.Err() != nil {
		return
	}
	if len(p) < 4 || len(p) > MaxPortWrite || len(p)%4 != 0 {
		m.counts.badPortWrites.Add(1)
		return
	}
	pw := ParsePortWrite(p)
	d := m.byTag(pw.Tag)
	if d != nil {
		d.hooks.call(pw)
	} else {
		m.counts.strayPortWrites.Add(1)
		if m.strays.first(pw.Tag) {
			m.bus.log.Warn(fmt.Sprintf("RIO: %s: port-write of component tag %#08x, which no device has; more are counted only", m.Name(), pw.Tag))
		}
	}
	m.hooks.call(pw)
	if s := m.opts.Scan; s != nil {
		s.PortWrite(m, pw)
	}
}

// byTag is the device of the port's net with a component tag.
func (m *Mport) byTag(tag uint32) *Device {
	m.bus.mu.Lock()
	defer m.bus.mu.Unlock()
	if m.net == nil {
		return nil
	}
	return m.net.tags[tag]
}
