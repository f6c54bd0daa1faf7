package pktgen

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/frame"
	"golang.org/x/sys/unix"
)

// Replaying a capture instead of building packets. The kernel's pktgen has no such thing.
//
//	pcap FILE            the frames of FILE (pcap, also gzipped, or pcapng) are sent, and count is set to how
//	                     many they are; a larger count repeats them, 0 does so for ever. No FILE: none any more
//	pcap_speed original  as far apart as they were captured; 2 is twice as fast, 0.5 half; 0, the default,
//	                     is as fast as it goes, or as delay, rate and ratep say
//
// FILE is opened by the process that has the devices, so its path is absolute. It is read once, and
// checked: a frame that is cut, or that the device does not take, is an error, and the device
// stays as it was. What a packet is made of otherwise (sizes, addresses, flows) counts for nothing then.

// Limits of a capture: it is held in memory.
const (
	maxCapture       = 256 << 20 // bytes of frames
	maxCaptureFrames = 1 << 21
	maxPath          = 4095 // PATH_MAX
	maxSpeed         = 1e6
)

// capture is the frames of a file.
type capture struct {
	path   string
	frames [][]byte
	at     []int64 // ns after the first; none is before the one before it
	bytes  uint64
	most   int   // bytes of the longest
	wants  int   // MTU for the one that wants the largest
	round  int64 // ns from a beginning to the next
}

// replay is where a run stands in a capture.
type replay struct {
	next  int     // frame to be built
	begun float64 // ns of the capture before this round
	tail  int     // frame to be sent
	bytes uint64  // that were sent
}

// loaded is the capture that a command names, read before the device is locked: it takes a while.
type loaded struct {
	path string
	c    *capture
	err  error
}

func (d *device) load(s scanner) loaded {
	l := loaded{path: s.line(maxPath)}
	if l.path != "" {
		l.c, l.err = readCapture(d.thr.eng.opener, l.path, d.nd.MTU())
	}
	return l
}

func (d *device) cmdPcap(s *scanner) (string, error) {
	switch l := s.loaded; {
	case d.running.Load():
		return "ERROR: pcap: not while it runs", unix.EBUSY
	case l.err != nil:
		return "ERROR: pcap: " + l.err.Error(), unix.EINVAL
	case l.c == nil:
		d.capture = nil
		return ok("pcap=")
	case d.cloneSkb > 0:
		return "ERROR: pcap: not with clone_skb", unix.EINVAL
	default:
		d.capture, d.count = l.c, uint64(len(l.c.frames))
		return ok("pcap=%s: %d frames, %d bytes, %d us", l.path, len(l.c.frames), l.c.bytes, l.c.at[len(l.c.at)-1]/1000)
	}
}

func (d *device) cmdPcapSpeed(s *scanner) (string, error) {
	switch text := s.word(textLen); {
	case d.running.Load():
		return "ERROR: pcap_speed: not while it runs", unix.EBUSY
	case text == "original":
		d.pcapSpeed = 1
	default:
		v, err := strconv.ParseFloat(text, 64)
		if err != nil || !(v >= 0 && v <= maxSpeed) { // nor NaN
			return fmt.Sprintf("ERROR: pcap_speed must be original, or a number up to %d", int(maxSpeed)), unix.EINVAL
		}
		d.pcapSpeed = math.Abs(v) // -0 is 0
	}
	return ok("pcap_speed=%s", d.speedText())
}

func (d *device) speedText() string {
	if d.pcapSpeed == 1 {
		return "original"
	}
	return strconv.FormatFloat(d.pcapSpeed, 'g', -1, 64)
}

// line takes what stands before the line's end, at most limit bytes.
func (s *scanner) line(limit int) string {
	b := s.p
	for i, c := range b {
		if c == '\n' || c == 0 {
			b = b[:i]
			break
		}
	}
	b = b[:min(len(b), limit)]
	s.p = s.p[len(b):]
	return strings.TrimRight(string(b), " \t\r")
}

// openCapture opens a file by its name. A FIFO without a writer would hold up whoever opens it, and with it this device.
func openCapture(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// readCapture reads a file, all of whose frames must fit a device with that MTU.
func readCapture(open func(string) (*os.File, error), path string, mtu int) (*capture, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%q: want an absolute path", path)
	}
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s: want a regular file", path))
	}
	p, err := frame.NewPcap(bufio.NewReader(f))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c := &capture{path: path}
	var first time.Time
	for {
		b, at, err := p.NextWhole()
		switch n := len(c.frames) + 1; {
		case errors.Is(err, io.EOF):
			return c, c.complete()
		case err != nil:
			return nil, fmt.Errorf("%s: frame %d: %w", path, n, err)
		case len(b) < 14:
			return nil, fmt.Errorf("%s: frame %d has %d bytes, want an Ethernet header of 14", path, n, len(b))
		case mtuFor(b) > mtu:
			return nil, fmt.Errorf("%s: frame %d has %d bytes, and the device an MTU of %d", path, n, len(b), mtu)
		case n > maxCaptureFrames || c.bytes+uint64(len(b)) > maxCapture:
			return nil, fmt.Errorf("%s: more than %d frames or %d MiB", path, maxCaptureFrames, maxCapture>>20)
		case n == 1:
			first = at
		}
		c.add(b, at.Sub(first))
	}
}

// mtuFor is the MTU that a frame wants: without its Ethernet header and VLAN tag.
func mtuFor(b []byte) int {
	if len(b) >= 18 && b[12] == 0x81 && b[13] == 0 {
		return len(b) - 18
	}
	return len(b) - 14
}

func (c *capture) add(b []byte, after time.Duration) {
	at := max(int64(after), 0)
	if n := len(c.at); n > 0 {
		at = max(at, c.at[n-1])
	}
	c.frames, c.at = append(c.frames, b), append(c.at, at)
	c.bytes += uint64(len(b))
	c.most, c.wants = max(c.most, len(b)), max(c.wants, mtuFor(b))
}

// complete says how long a round takes: the frame after the last comes as long after it as they are
// apart on average.
func (c *capture) complete() error {
	n := len(c.frames)
	if n == 0 {
		return fmt.Errorf("%s: there is no frame in it", c.path)
	}
	c.round = c.at[n-1]
	if n > 1 {
		c.round += c.at[n-1] / int64(n-1)
	}
	return nil
}

// timed says whether the capture says when frames are sent.
func (d *device) timed() bool { return d.capture != nil && d.pcapSpeed != 0 }

// due is when the next frame of a capture is to be sent.
func (d *device) due() int64 {
	ns := (d.replay.begun + float64(d.capture.at[d.replay.next])) / d.pcapSpeed
	if ns >= float64(never-d.started) {
		return never
	}
	return d.started + int64(ns)
}

// fillCapture makes the buffers the next frames, of those that are due, and returns how many.
func (d *device) fillCapture(bufs []*dma.Buf) int {
	c := d.capture
	now := int64(math.MaxInt64)
	if d.timed() {
		now = mono()
	}
	for i, b := range bufs {
		if i > 0 && d.timed() && d.due() > now {
			return i
		}
		f := c.frames[d.replay.next]
		b.Tag = 0 // it is no template's any more
		b.Data = b.Mem[:copy(b.Mem, f)]
		d.size = uint32(len(f))
		if d.replay.next++; d.replay.next == len(c.frames) {
			d.replay.next = 0
			d.replay.begun += float64(c.round)
		}
	}
	d.built = true
	return len(bufs)
}

// replayed counts frames that were sent.
func (d *device) replayed(n int) {
	c, r := d.capture, &d.replay
	if c == nil {
		return
	}
	for range n {
		r.bytes += uint64(len(c.frames[r.tail]))
		if r.tail++; r.tail == len(c.frames) {
			r.tail = 0
		}
	}
}
