package pktgen

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What of an engine goes on in another process: [Engine.Save] and [Engine.Restore].
//
// The state is parameters, texts, and where each device stands. Config.Ledger has where they stand at each moment, so that it outlives a
// process that is killed; what Save says is older then, and only says what was commanded.

// savedVersion is that of what Save writes.
const savedVersion = 1

// Limits of what Restore reads: what an engine could have saved.
const (
	maxSaved        = 64 << 20
	maxSavedDevices = 4096
)

type savedEngine struct {
	Version   int           `json:"version"`
	Epoch     uint64        `json:"epoch"`
	Open      bool          `json:"open"` // a start is under way
	Debug     bool          `json:"debug,omitempty"`
	Threads   []savedThread `json:"threads"`
	Receivers []savedRx     `json:"receivers,omitempty"`
}

type savedThread struct {
	Name    string        `json:"name"`
	Result  string        `json:"result,omitempty"`
	Devices []savedDevice `json:"devices,omitempty"` // in the order in which they were added
}

type savedDevice struct {
	Name   string      `json:"name"`
	Result string      `json:"result,omitempty"`
	Params savedParams `json:"params"`
	State  []uint64    `json:"state"` // see stateWords
	RNG    []byte      `json:"rng,omitempty"`
	Late   *savedLate  `json:"late,omitempty"`
}

// savedLate is a pace.
type savedLate struct {
	N         uint64      `json:"n"`
	Sum       uint64      `json:"sum_ns"`
	Min       uint64      `json:"min_ns"`
	Max       uint64      `json:"max_ns"`
	Histogram [][2]uint64 `json:"histogram"` // buckets that are not 0, by number
}

type savedRx struct {
	Name   string `json:"name"`
	Active bool   `json:"active"`
	Verify int    `json:"verify"`
	Result string `json:"result,omitempty"`
}

// savedParams are params, under the names of the commands that set them.
type savedParams struct {
	Count       uint64      `json:"count"`
	MinSize     int32       `json:"min_pkt_size"`
	MaxSize     int32       `json:"max_pkt_size"`
	Imix        [][2]uint64 `json:"imix_weights,omitempty"`
	Frags       int32       `json:"frags"`
	CloneSkb    int32       `json:"clone_skb"`
	Delay       uint64      `json:"delay"`
	DelayRem    uint64      `json:"delay_rem,omitempty"`
	DelayDen    uint64      `json:"delay_den,omitempty"`
	Flows       uint32      `json:"flows"`
	FlowLen     uint32      `json:"flowlen"`
	QueueMin    uint16      `json:"queue_map_min"`
	QueueMax    uint16      `json:"queue_map_max"`
	SkbPriority uint32      `json:"skb_priority"`
	SPI         uint32      `json:"spi"`
	DstMin      string      `json:"dst_min"`
	DstMax      string      `json:"dst_max"`
	SrcMin      string      `json:"src_min"`
	SrcMax      string      `json:"src_max"`
	Src6        [16]byte    `json:"src6"`
	Dst6        [16]byte    `json:"dst6"`
	Dst6Min     [16]byte    `json:"dst6_min"`
	Dst6Max     [16]byte    `json:"dst6_max"`
	SrcMAC      [6]byte     `json:"src_mac"`
	DstMAC      [6]byte     `json:"dst_mac"`
	SrcMACCount uint32      `json:"src_mac_count"`
	DstMACCount uint32      `json:"dst_mac_count"`
	UDPSrcMin   uint16      `json:"udp_src_min"`
	UDPSrcMax   uint16      `json:"udp_src_max"`
	UDPDstMin   uint16      `json:"udp_dst_min"`
	UDPDstMax   uint16      `json:"udp_dst_max"`
	MPLS        []uint32    `json:"mpls,omitempty"`
	VLANID      uint16      `json:"vlan_id"`
	VLANP       uint16      `json:"vlan_p"`
	VLANCFI     uint16      `json:"vlan_cfi"`
	SVLANID     uint16      `json:"svlan_id"`
	SVLANP      uint16      `json:"svlan_p"`
	SVLANCFI    uint16      `json:"svlan_cfi"`
	TOS         uint8       `json:"tos"`
	TClass      uint8       `json:"traffic_class"`
	Burst       uint32      `json:"burst"`
	Node        int32       `json:"node"`
	Mode        uint8       `json:"xmit_mode"`
	Flags       uint32      `json:"flags"`
	Pcap        string      `json:"pcap,omitempty"`
	PcapSpeed   float64     `json:"pcap_speed,omitempty"`
}

// exchange copies what is the same in both, one way or the other.
func exchange(p *params, s *savedParams, save bool) {
	x := exchanger(save)
	swap(x, &p.count, &s.Count)
	swap(x, &p.minSize, &s.MinSize)
	swap(x, &p.maxSize, &s.MaxSize)
	swap(x, &p.frags, &s.Frags)
	swap(x, &p.cloneSkb, &s.CloneSkb)
	swap(x, &p.delay, &s.Delay)
	swap(x, &p.exact.rem, &s.DelayRem)
	swap(x, &p.exact.den, &s.DelayDen)
	swap(x, &p.cflows, &s.Flows)
	swap(x, &p.lflow, &s.FlowLen)
	swap(x, &p.queueMin, &s.QueueMin)
	swap(x, &p.queueMax, &s.QueueMax)
	swap(x, &p.skbPriority, &s.SkbPriority)
	swap(x, &p.spi, &s.SPI)
	swap(x, &p.dstMin, &s.DstMin)
	swap(x, &p.dstMax, &s.DstMax)
	swap(x, &p.srcMin, &s.SrcMin)
	swap(x, &p.srcMax, &s.SrcMax)
	swap(x, &p.in6Src, &s.Src6)
	swap(x, &p.in6Dst, &s.Dst6)
	swap(x, &p.min6Dst, &s.Dst6Min)
	swap(x, &p.max6Dst, &s.Dst6Max)
	swap(x, &p.srcMAC, &s.SrcMAC)
	swap(x, &p.dstMAC, &s.DstMAC)
	swap(x, &p.srcMACCount, &s.SrcMACCount)
	swap(x, &p.dstMACCount, &s.DstMACCount)
	swap(x, &p.udpSrcMin, &s.UDPSrcMin)
	swap(x, &p.udpSrcMax, &s.UDPSrcMax)
	swap(x, &p.udpDstMin, &s.UDPDstMin)
	swap(x, &p.udpDstMax, &s.UDPDstMax)
	swap(x, &p.vlanID, &s.VLANID)
	swap(x, &p.vlanP, &s.VLANP)
	swap(x, &p.vlanCFI, &s.VLANCFI)
	swap(x, &p.svlanID, &s.SVLANID)
	swap(x, &p.svlanP, &s.SVLANP)
	swap(x, &p.svlanCFI, &s.SVLANCFI)
	swap(x, &p.tos, &s.TOS)
	swap(x, &p.trafficClass, &s.TClass)
	swap(x, &p.burst, &s.Burst)
	swap(x, &p.node, &s.Node)
	swap(x, (*uint8)(&p.mode), &s.Mode)
	swap(x, (*uint32)(&p.flags), &s.Flags)
	swap(x, &p.pcapSpeed, &s.PcapSpeed)
}

type exchanger bool

func swap[T any](save exchanger, own, saved *T) {
	if save {
		*saved = *own
	} else {
		*own = *saved
	}
}

// Save is the state of all threads, devices and receivers, as JSON: every parameter, where each device stands, and whether it runs. Which destination
// each of its flows has is not in it: flows begin anew. Restore reads it.
func (e *Engine) Save() json.RawMessage {
	s := savedEngine{Version: savedVersion, Epoch: e.epoch.Load(), Open: e.openStart(), Debug: e.debug.Load(), Threads: []savedThread{}}
	for _, t := range e.threads {
		t.mu.Lock()
		x := savedThread{Name: t.name, Result: t.result}
		devs := t.devs // never changed in place
		t.mu.Unlock()
		for _, d := range slices.Backward(devs) {
			x.Devices = append(x.Devices, d.save())
		}
		s.Threads = append(s.Threads, x)
	}
	for _, r := range e.rx.all() {
		s.Receivers = append(s.Receivers, r.save())
	}
	b, err := json.Marshal(s)
	if err != nil { // there is nothing in it that could fail
		panic(err)
	}
	return b
}

func (d *device) save() savedDevice {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := savedDevice{Name: d.name, Result: d.result}
	exchange(&d.params, &s.Params, true)
	for _, e := range d.imix {
		s.Params.Imix = append(s.Params.Imix, [2]uint64{e.size, e.weight})
	}
	s.Params.MPLS = slices.Clone(d.labels)
	if d.capture != nil {
		s.Params.Pcap = d.capture.path
	}
	var w [stateLen]uint64
	d.stateWords(&w)
	s.State = w[:]
	s.RNG, _ = d.rng.MarshalBinary() // it never fails
	if p := d.pace; p != nil && p.late.n > 0 {
		s.Late = &savedLate{N: p.late.n, Sum: p.late.sum, Min: p.late.min, Max: p.late.max}
		for i, n := range p.hist {
			if n != 0 {
				s.Late.Histogram = append(s.Late.Histogram, [2]uint64{uint64(i), n})
			}
		}
	}
	return s
}

// Leave ends the threads and leaves every run as it is, behind what was sent, to be saved and to go on in another process. A write of `start` that waits
// for the end of a run goes on waiting until its context ends. Only Save and Close make sense afterwards.
func (e *Engine) Leave() {
	e.mu.Lock()
	closed := e.closed
	e.closed = true
	e.mu.Unlock()
	if closed {
		return
	}
	e.left.Store(true)
	for _, t := range e.threads {
		t.post(ctlLeave)
	}
	e.wg.Wait()
	e.rxKeep()
}

// Restore makes the devices that another engine's Save tells of, each on the thread where it was, or the first one if there is no such, as they
// were. Those that ran go on when `start` is written, if one was under way, or with Resume, at the packet where they were: by Config.Ledger, or else by
// what was saved. Receivers get their settings if they are there already, and when they are made.
//
// It is for an engine without devices. A state of another version, or one that makes no sense, is an error that changes nothing; a device that
// cannot be made (its network device is not there, its capture cannot be read) is told, and the others are made.
func (e *Engine) Restore(state json.RawMessage) error {
	s, err := parseSaved(state)
	if err != nil {
		return fmt.Errorf("pktgen: restoring: %w", err)
	}
	open := s.Open
	if e.starts != nil {
		open = e.openStart()
	} else {
		e.epoch.Store(s.Epoch)
	}
	if s.Debug {
		e.debug.Store(true)
	}
	e.rx.setSaved(s.Receivers)
	var errs []error
	for _, t := range s.Threads {
		to := e.threads[0]
		for _, o := range e.threads {
			if o.name == t.Name {
				to = o
			}
		}
		for _, d := range t.Devices {
			if err := e.restoreDevice(to, &d, open); err != nil {
				errs = append(errs, fmt.Errorf("pktgen: restoring %s: %w", d.Name, err))
			}
		}
		if t.Result != "" {
			to.setResult(t.Result)
		}
	}
	e.restored.Store(mono())
	e.joining.Store(open)
	return errors.Join(errs...)
}

func parseSaved(state json.RawMessage) (*savedEngine, error) {
	if len(state) > maxSaved {
		return nil, fmt.Errorf("%d bytes of state, want at most %d: %w", len(state), maxSaved, unix.EINVAL)
	}
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(state, &v); err != nil {
		return nil, fmt.Errorf("reading the state: %w", err)
	}
	if v.Version != savedVersion {
		return nil, fmt.Errorf("the state is of version %d, want %d: %w", v.Version, savedVersion, unix.EINVAL)
	}
	s := &savedEngine{}
	if err := json.Unmarshal(state, s); err != nil {
		return nil, fmt.Errorf("reading the state: %w", err)
	}
	names := map[string]bool{}
	for _, t := range s.Threads {
		for i := range t.Devices {
			d := &t.Devices[i]
			if err := d.check(); err != nil {
				return nil, fmt.Errorf("device %q: %w", d.Name, err)
			}
			if names[d.Name] = true; len(names) > maxSavedDevices {
				return nil, fmt.Errorf("more than %d devices: %w", maxSavedDevices, unix.EINVAL)
			}
		}
	}
	return s, nil
}

// check refuses what no command could have made, where that would matter.
func (s *savedDevice) check() error {
	p := &s.Params
	bad := ""
	switch {
	case len(s.State) != stateLen:
		bad = fmt.Sprintf("%d words of state, want %d", len(s.State), stateLen)
	case len(p.Imix) > maxImix:
		bad = fmt.Sprintf("%d imix_weights, want at most %d", len(p.Imix), maxImix)
	case len(p.MPLS) > maxLabels:
		bad = fmt.Sprintf("%d labels, want at most %d", len(p.MPLS), maxLabels)
	case p.Flows > maxFlows:
		bad = fmt.Sprintf("%d flows, want at most %d", p.Flows, maxFlows)
	case p.Mode > uint8(queueXmit):
		bad = fmt.Sprintf("xmit_mode %d", p.Mode)
	case p.Flags >= 1<<len(flagNames):
		bad = fmt.Sprintf("flags %#x", p.Flags)
	case !tag(p.VLANID) || !tag(p.SVLANID) || p.VLANP > 7 || p.SVLANP > 7 || p.VLANCFI > 1 || p.SVLANCFI > 1:
		bad = fmt.Sprintf("tags %d/%d/%d and %d/%d/%d", p.VLANID, p.VLANP, p.VLANCFI, p.SVLANID, p.SVLANP, p.SVLANCFI)
	case p.SVLANID != tagOff && p.VLANID == tagOff, p.VLANID != tagOff && len(p.MPLS) > 0:
		// No command sets these together, and frames have no place for them.
		bad = fmt.Sprintf("tags %d and %d beside %d labels", p.VLANID, p.SVLANID, len(p.MPLS))
	case !(p.PcapSpeed >= 0 && p.PcapSpeed <= maxSpeed):
		bad = fmt.Sprintf("pcap_speed %g", p.PcapSpeed)
	case p.Burst == 0:
		bad = "burst 0"
	case p.DelayDen != 0 && p.DelayRem >= p.DelayDen:
		bad = fmt.Sprintf("a delay of %d/%d ns", p.DelayRem, p.DelayDen)
	}
	for _, e := range p.Imix {
		if e[1] == 0 || e[0] >= 1e10 || e[1] >= 1e10 {
			bad = fmt.Sprintf("imix_weights %d,%d", e[0], e[1])
		}
	}
	if bad != "" {
		return fmt.Errorf("%s: %w", bad, unix.EINVAL)
	}
	return nil
}

func tag(id uint16) bool { return id == tagOff || id < 4096 }

// restoreDevice makes one device. open: a start was under way.
func (e *Engine) restoreDevice(t *thread, s *savedDevice, open bool) error {
	var c *capture
	var lost error
	if path := s.Params.Pcap; path != "" {
		base, _, _ := strings.Cut(s.Name, "@")
		nd, err := e.lookup(base)
		if err != nil {
			return err
		}
		if c, lost = readCapture(e.opener, path, nd.MTU()); lost != nil {
			lost = fmt.Errorf("reading the capture: %w", lost)
		}
	}
	err := e.add(t, s.Name, func(d *device) { d.restore(s, c, lost, open) })
	return errors.Join(err, lost)
}

// restore makes a device, which nobody else has yet, what was saved.
func (d *device) restore(s *savedDevice, c *capture, lost error, open bool) {
	exchange(&d.params, &s.Params, false)
	d.capture = c
	d.labels = slices.Clone(s.Params.MPLS)
	mix := make([]imixEntry, len(s.Params.Imix))
	for i, e := range s.Params.Imix {
		mix[i] = imixEntry{size: e[0], weight: e[1]}
	}
	if d.setImix(mix); len(mix) > 0 {
		d.fillImix()
	}
	d.result = s.Result
	if d.rng.UnmarshalBinary(s.RNG) != nil {
		s.RNG = nil // it stays random
	}
	ran := d.setState((*[stateLen]uint64)(s.State))
	if l := s.Late; l != nil {
		d.pace = &pace{late: span{l.N, l.Sum, l.Min, l.Max}}
		for _, b := range l.Histogram {
			d.pace.hist[b[0]%buckets] = b[1]
		}
	}
	saved, wasRunning := d.epoch, ran
	if found, r := d.takeOver(); found {
		ran = r
	} else if ran {
		d.restarts++
	}
	switch {
	case lost != nil:
		d.result = "ERROR: pcap: " + lost.Error()
	case ran && open:
		d.resume = true
		d.thr.eng.log.Info("pktgen: a run goes on", "device", d.name, "packets", d.sofar, "count", d.count, "restarts", d.restarts, "uncertain", d.uncertain)
	case ran: // it was being stopped
		d.stopped = mono()
		d.result = d.summary()
	case d.epoch != saved || wasRunning: // it ended after this was saved
		d.result = d.summary()
	}
}

// linkTime is how long a device that goes on waits for its link, which comes up after a driver does.
const linkTime = 10 * time.Second

// goOn begins the run of a device that ran, or that was to run, when this process took over; it tells whether there is one. The thread calls it.
func (d *device) goOn() bool {
	d.mu.Lock()
	resume, begun := d.resume, d.epoch == d.thr.eng.epoch.Load()
	if resume {
		built, late := d.built, d.pace
		d.setUp()
		if d.built = built; late != nil {
			d.pace = late
		}
		if d.srcMAC == [6]byte{} {
			copy(d.hh[6:12], d.mac6[:])
		}
		d.linkBy = d.nextTx + int64(linkTime)
		d.running.Store(true)
		d.keepAll()
	}
	d.mu.Unlock()
	if resume || begun {
		return resume
	}
	d.begin()
	return true
}

// Resume has the devices that ran go on, and does not wait for them: for when nobody is there who would write `start` again. Whoever does
// waits for their end all the same.
func (e *Engine) Resume() {
	if e.joining.Load() {
		e.served(ctlResume)
	}
}

// joinTime is how long after Restore a start is taken for the one that was under way, though that has ended already.
const joinTime = 30 * time.Second

// join tells whether a start is the one that was under way in another process.
func (e *Engine) join() bool {
	return e.joining.CompareAndSwap(true, false) && (mono()-e.restored.Load() < int64(joinTime) || e.busy() || e.toGoOn())
}

// toGoOn tells whether there are devices that ran and do not yet again.
func (e *Engine) toGoOn() bool {
	return e.each(func(d *device) bool { return d.resume })
}

// each calls f for the devices, each with its lock held, until it returns true; it tells whether it did.
func (e *Engine) each(f func(d *device) bool) bool {
	for _, t := range e.threads {
		t.mu.Lock()
		devs := t.devs // never changed in place
		t.mu.Unlock()
		for _, d := range devs {
			d.mu.Lock()
			done := f(d)
			d.mu.Unlock()
			if done {
				return true
			}
		}
	}
	return false
}

// Running says whether a device of the engine runs, or is to go on.
func (e *Engine) Running() bool { return e.joining.Load() || e.busy() }

// forgetStart ends a start that was under way in another process.
func (e *Engine) forgetStart() {
	if !e.joining.CompareAndSwap(true, false) {
		return
	}
	e.keepStart(startOpen, 0)
	e.each(func(d *device) bool {
		if d.resume {
			d.resume, d.stopped = false, mono()
			d.result = d.summary()
			d.keepAll()
		}
		return false
	})
}

// Words of the area that keeps starts.
const (
	startEpoch = iota
	startOpen
	startWords
)

func (e *Engine) keepStart(word int, v uint64) {
	if e.starts != nil {
		e.starts.Store(word, v)
	}
	if word == startOpen {
		e.open.Store(v)
	}
}

// openStart says whether a start is under way.
func (e *Engine) openStart() bool {
	if e.starts != nil {
		return e.starts.Load(startOpen) != 0
	}
	return e.open.Load() != 0
}

// note tells that Save has changed.
func (e *Engine) note() {
	if e.changes != nil {
		e.changes()
	}
}

type storeFunc = func(ctx context.Context, p []byte) (int, error)

// noted is a store after which something may have changed.
func (e *Engine) noted(store storeFunc) storeFunc {
	if e.changes == nil {
		return store
	}
	return func(ctx context.Context, p []byte) (int, error) {
		defer e.changes()
		return store(ctx, p)
	}
}
