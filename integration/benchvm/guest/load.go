//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/ring3dev/ring3/integration/benchvm/row"
)

// The feeder's end of the wire is the first CPU's, the receiver's the second's.
const (
	feederCPU    = 0
	feederThread = "kpktgend_0"
	receiverCPU  = 1
)

const (
	discardPort = 9 // pktgen's
	receiverIP  = "10.66.0.1"
	feederIP    = "10.66.0.2"
	loadSize    = 1024 // bytes of a frame, as in the talk
)

// offers are the packets a second that are sent. 1 Gb/s takes 119,000 of this size, with preamble and
// gap.
var offers = []int{5_000, 10_000, 20_000, 30_000, 40_000, 60_000, 80_000, 119_000}

// receiver is one way to receive.
type receiver struct {
	name string
	// open takes the device; the process counts datagrams.
	open func() (count *process, close func() error, err error)
}

// load sends UDP frames at rising rates: what is delivered to a program that counts them, and how busy
// the receiver's CPU is. The three curves of "User Mode Drivers" (UNSW, 2004).
func load(s *session, emit func(...row.Row) error) (err error) {
	set := s.set("load")
	receivers := []receiver{
		{"kernel", s.kernelReceiver},
		{"ring3", s.ring3Receiver},
		{"ring3+tap", s.tapReceiver},
	}
	label := func(r receiver, offer int) string {
		return fmt.Sprintf("%s udp=%d offered=%d", r.name, loadSize, offer)
	}
	wanted := map[string][]int{}
	for _, r := range receivers {
		for _, o := range offers {
			if set.Wants(label(r, o)) || set.Wants(label(r, o)+" cpu") {
				wanted[r.name] = append(wanted[r.name], o)
			}
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	if err := s.bind(row.Feeder, ""); err != nil {
		return err
	}
	if err := domain(row.Feeder, "identity"); err != nil {
		return err
	}
	f := feeder{s: s}
	defer func() { err = errors.Join(err, f.close()) }()
	for range min(s.Reps, 3) {
		for _, r := range receivers {
			if len(wanted[r.name]) == 0 {
				continue
			}
			measured, err := f.curve(r, wanted[r.name])
			if err != nil {
				return fmt.Errorf("load: %s: %w", r.name, err)
			}
			for i, m := range measured {
				name := label(r, wanted[r.name][i])
				set.Add(name, "pps", m.delivered)
				set.Add(name+" sent", "pps", m.sent)
				set.Add(name+" cpu", "%", m.cpu)
			}
		}
	}
	var rows []row.Row
	for _, r := range set.Rows() {
		if both, ok := set.Compare(r.Case, r.Case+" sent", r.Unit); ok {
			both.Of = "sent"
			rows = append(rows, both)
		} else if !strings.HasSuffix(r.Case, " sent") {
			rows = append(rows, r)
		}
	}
	return emit(rows...)
}

// feeder sends, with the kernel's pktgen, past the IOMMU.
type feeder struct {
	s    *session
	name string // of its interface, once it has one
}

// measured is one point of a curve.
type measured struct{ delivered, sent, cpu float64 }

// curve measures one receiver.
func (f *feeder) curve(r receiver, offers []int) (out []measured, err error) {
	count, closing, err := r.open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closing()) }()
	if f.name == "" { // not before there is somebody at the other end
		if f.name, err = f.s.kernelDriver(row.Feeder); err != nil {
			return nil, err
		}
		if err := pinIRQs(row.Feeder, feederCPU); err != nil {
			return nil, err
		}
		if err := (kernelPktgen{}).write(feederThread, "add_device "+f.name); err != nil {
			return nil, err
		}
	} else if err := up(f.name); err != nil {
		return nil, err
	}
	if err := pinIRQs(row.Receiver, receiverCPU); err != nil {
		return nil, err
	}
	for _, o := range offers {
		m, err := f.point(count, o)
		if err != nil {
			return nil, fmt.Errorf("%d packets a second: %w", o, err)
		}
		out = append(out, m)
	}
	return out, nil
}

// settle is how long the CPU's time is not looked at after the beginning: pktgen takes a moment to begin.
const settle = 250 * time.Millisecond

// point measures one rate.
func (f *feeder) point(count *process, offer int) (m measured, err error) {
	before, err := count.again()
	if err != nil {
		return m, err
	}
	busy := make(chan error, 1)
	go func() {
		time.Sleep(settle)
		a, err := readCPU(receiverCPU)
		if err == nil {
			time.Sleep(f.s.Time)
			var b cpuTimes
			b, err = readCPU(receiverCPU)
			m.cpu = a.busy(b)
		}
		busy <- err
	}()
	g := kernelPktgen{}
	if err := g.write(f.name, "src_min "+feederIP); err != nil {
		return m, err
	}
	sent, pps, err := generate(g, feederThread, f.name, sendCase{Size: loadSize, Burst: 1, Clone: manyClones, Rate: offer, MAC: receiverMAC, IP: receiverIP}, f.s.Time+2*settle)
	if err = errors.Join(err, <-busy); err != nil {
		return m, err
	}
	if sent == 0 {
		return m, errors.New("nothing was sent")
	}
	after, err := settled(count, before)
	m.sent = pps
	m.delivered = pps * float64(after-before) / float64(sent)
	return m, err
}

// settled asks until nothing more arrives.
func settled(count *process, n uint64) (uint64, error) {
	for {
		time.Sleep(50 * time.Millisecond)
		now, err := count.again()
		if err != nil || now == n {
			return now, err
		}
		n = now
	}
}

// close takes the feeder away.
func (f *feeder) close() error {
	var errs []error
	if f.name != "" {
		errs = append(errs, (kernelPktgen{}).write(feederThread, "rem_device_all"))
	}
	errs = append(errs, f.s.bind(row.Feeder, ""), domain(row.Feeder, "auto"))
	return errors.Join(errs...)
}

// receiverMAC is what the host gave the device.
const receiverMAC = "52:54:00:12:34:51"

// kernelReceiver is the kernel's driver and stack, and a UDP socket.
func (s *session) kernelReceiver() (*process, func() error, error) {
	if err := s.bind(row.Receiver, "e1000e"); err != nil {
		return nil, nil, err
	}
	name, err := s.kernelDriver(row.Receiver)
	if err != nil {
		return nil, nil, err
	}
	return s.udpCounter(name, func() error { return s.bind(row.Receiver, "") })
}

// udpCounter counts what comes to an interface on the discard port.
func (s *session) udpCounter(name string, closing func() error) (*process, func() error, error) {
	if err := address(name, [4]byte{10, 66, 0, 1}); err != nil {
		return nil, nil, errors.Join(err, closing())
	}
	p, err := serving(who{nobody: false, cpu: receiverCPU}, "udp", udpArg{Port: discardPort})
	if err != nil {
		return nil, nil, errors.Join(err, closing())
	}
	return p, func() error { return errors.Join(p.result(&nothing{}), closing()) }, nil
}

// serving starts a child and waits until it serves.
func serving(w who, name string, arg any) (*process, error) {
	p, err := start(w, name, arg)
	if err == nil {
		_, err = p.look()
	}
	return p, err
}

// ring3Receiver is ring3's driver and a sink in the same process.
func (s *session) ring3Receiver() (*process, func() error, error) {
	if err := s.bind(row.Receiver, "vfio-pci"); err != nil {
		return nil, nil, err
	}
	p, err := serving(who{nobody: true, cpu: receiverCPU}, "sink", deviceArg{row.Receiver, "eth0"})
	if err != nil {
		return nil, nil, err
	}
	return p, func() error { return p.result(&nothing{}) }, nil
}

// tapReceiver is ring3's driver, its TAP, the kernel's stack and a UDP socket.
func (s *session) tapReceiver() (*process, func() error, error) {
	if err := s.bind(row.Receiver, "vfio-pci"); err != nil {
		return nil, nil, err
	}
	const name = "rt0"
	p, err := serving(who{cpu: receiverCPU}, "tap", deviceArg{row.Receiver, name})
	if err != nil {
		return nil, nil, err
	}
	closing := func() error { return p.result(&nothing{}) }
	if err := waitFor("carrier of "+name, func() bool {
		b, _ := os.ReadFile("/sys/class/net/" + name + "/carrier")
		return strings.TrimSpace(string(b)) == "1"
	}); err != nil {
		return nil, nil, errors.Join(err, closing())
	}
	return s.udpCounter(name, closing)
}
