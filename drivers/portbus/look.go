package portbus

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// A port tells what happens by interrupts alone. One that was reset by itself, or lost a write, has forgotten for what it interrupts, or that it does, and is deaf from then on; and
// an interrupt may be lost. So each port is looked at now and then: is it as it was set up, and does a status say what nobody took in? That the kernel does not do.

const (
	// LookEvery is the time between two looks. It is of the wall clock: in virtual time, which runs as fast as somebody waits for it, looks would be all that happens.
	LookEvery = 2 * time.Second
	// lookAgain is the part of it after which a finding must still be there: who is at work on the port may have been half-way, and one read may lie.
	lookAgain = 2
	// goneLooks is how many looks in a row find no port until it is given up. Whatever a reset of the link above takes is over by then.
	goneLooks = 3
	// mendings is how many looks in a row set up again what does not stay, until it is left as it is.
	mendings = 3
	// upsetTime is how long a reset that was announced (ErrorDetected) keeps looks away if its end is not told.
	upsetTime = 30 * time.Second
)

// Keeper is implemented by a service that knows how its registers should be. It is called from a goroutine of the port's, and must not wait for anybody but the
// device.
type Keeper interface {
	// Check says of bits that the port was seen to keep what is not as it was set up, "Slot Control=0x0, want 0x17f1", and which event stands that was not taken in, "Slot Status=0x8"; both are "" where all
	// is well, where the service is suspended, and where it is at work on just that. It changes nothing.
	Check() (wrong, missed string)
	// Repair sets the registers up again, as Resume does, and forgets no event. reset says that the port was reset, with all that stands behind it.
	Repair(ctx context.Context, reset bool) error
}

// looks is what looking at a port needs.
type looks struct {
	over   chan struct{} // closed when nobody looks any more
	asleep atomic.Bool   // the port is suspended
	upset  atomic.Int64  // until when it may be reset, in ns since lookStart; 0: it is not
	failed atomic.Pointer[error]

	caps    capabilities // as they were found, with those that are not used
	offered Service
	sure    bool // all that was found out when the port came into service was found once more
	bridge  bool // it has buses behind it
	command pci.Command
	header  [windows]uint32 // as they were when the port came into service
	gone    int             // looks in a row
	mended  map[string]int  // looks in a row, by who was not as he was set up, or missed something
}

// Registers of a bridge's header that a reset clears: bus numbers, windows.
const (
	firstWindow = pci.CfgSecondary &^ 3
	windows     = 7 // dwords
	// statusAbove is the one whose upper half is a status, which is cleared by being written.
	statusAbove = 1
	secondary   = 0xff << 8 // in the first
)

// lookStart is when time began, for upset.
var lookStart = time.Now()

// SetLook is how often ports that come into service from now on are looked at; 0 is never. Without it it is LookEvery: it is for models, which take no time.
func (b *Bus) SetLook(every time.Duration) { b.every.Store(int64(every)) }

// startLooking begins to look, once all is set up.
func (p *Port) startLooking() {
	l := &p.looks
	l.command = pci.CmdMaster | pci.CmdMem
	if l.bridge = p.exp.Type != pci.ExpCollector; l.bridge {
		for i := range l.header {
			l.header[i] = p.cfg.Read32(firstWindow + bus.Off(4*i))
		}
	}
	l.mended = map[string]int{}
	every := time.Duration(p.bus.every.Load())
	if every <= 0 {
		close(l.over)
		return
	}
	go p.lookOften(every)
}

func (p *Port) lookOften(every time.Duration) {
	defer close(p.looks.over)
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.look(every / lookAgain)
		case <-p.ctx.Done():
			return
		case <-p.dev.Done():
			return
		}
		if p.Err() != nil {
			return
		}
	}
}

// quiet says that nothing can be told from what the port looks like.
func (p *Port) quiet() bool {
	until := p.looks.upset.Load()
	return p.looks.asleep.Load() || p.Err() != nil || p.ctx.Err() != nil || until != 0 && int64(time.Since(lookStart)) < until
}

// upset keeps looks away while the port is reset, and lets them come again.
func (p *Port) upset(on bool) {
	until := int64(0)
	if on {
		until = int64(time.Since(lookStart) + upsetTime)
	}
	p.looks.upset.Store(until)
}

// finding is what one look found.
type finding struct {
	gone     bool
	header   []string // what of the port's own is wrong
	reset    bool     // the numbers of the buses behind it are gone: it was reset
	lost     bool     // interrupt messages go nowhere
	services []serviceFinding
}

type serviceFinding struct {
	d             *Device
	wrong, missed string
}

func (f *finding) none() bool {
	return !f.gone && !f.lost && len(f.header) == 0 && len(f.services) == 0
}

// examine looks once. It changes nothing.
func (p *Port) examine() (f finding) {
	l := &p.looks
	command := p.cfg.Read16(pci.CfgCommand)
	if command == 0xffff {
		f.gone = p.Gone()
		return f
	}
	f.lost = p.deaf()
	if v := pci.Command(command); v&l.command != l.command {
		f.header = append(f.header, fmt.Sprintf("Command=%#x, want %#x", command, uint16(l.command)))
	}
	if l.bridge {
		if v := p.cfg.Read32(firstWindow); v&secondary != l.header[0]&secondary {
			f.reset = v&secondary == 0
			f.header = append(f.header, fmt.Sprintf("bus numbers=%#x, want %#x", v, l.header[0]))
		}
	}
	for _, d := range p.devices {
		k, ok := p.Service(d.service).(Keeper)
		if !ok {
			continue
		}
		if wrong, missed := k.Check(); wrong != "" || missed != "" {
			f.services = append(f.services, serviceFinding{d, wrong, missed})
		}
	}
	return f
}

// still is what of a finding was found before, too.
func (f *finding) still(before *finding) {
	f.gone, f.lost = f.gone && before.gone, f.lost && before.lost
	f.reset = f.reset && before.reset
	if len(before.header) == 0 {
		f.header = nil
	}
	var both []serviceFinding
	for _, s := range f.services {
		for _, b := range before.services {
			if b.d != s.d {
				continue
			}
			if b.wrong == "" {
				s.wrong = ""
			}
			if b.missed == "" {
				s.missed = ""
			}
			if s.wrong != "" || s.missed != "" {
				both = append(both, s)
			}
		}
	}
	f.services = both
}

// look looks at the port, once more where something is amiss, and then sees to it.
func (p *Port) look(again time.Duration) {
	if p.quiet() {
		return
	}
	if !p.looks.sure {
		p.confirm(again)
	}
	first := p.examine()
	if first.none() {
		p.looks.gone = 0
		clear(p.looks.mended)
		return
	}
	if !p.wait(again) || p.quiet() {
		return
	}
	f := p.examine()
	if f.still(&first); f.gone {
		if p.looks.gone++; p.looks.gone == goneLooks {
			p.fail(fmt.Errorf("%s %s: in service: config space reads all-ones: %w", p.addr, DriverName, bus.ErrGone))
		}
		return
	}
	p.looks.gone = 0
	p.mend(&f)
}

// wait waits by the wall clock, and says whether the port is still in service.
func (p *Port) wait(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-p.ctx.Done():
		return false
	}
}

// confirm finds out once more what the port offers, since one read that lied while it came into service would leave it without a service, or with an interrupt that
// never comes, for good.
func (p *Port) confirm(again time.Duration) {
	l := &p.looks
	for range goneLooks {
		if pci.ReadID(p.cfg).Vendor == 0xffff {
			return // later
		}
		if l.sure = p.offers(); l.sure || !p.wait(again) {
			return
		}
	}
	if !p.quiet() && !p.Gone() {
		p.fail(fmt.Errorf("%s %s: in service: its capabilities are not those that it came into service with: %w", p.addr, DriverName, bus.ErrProtocol))
	}
}

// offers says whether it offers what it did, by the same vectors.
func (p *Port) offers() bool {
	exp, ok := pci.FindExpress(p.cfg)
	now := &Port{cfg: p.cfg, prof: p.prof, exp: exp, mode: p.mode, irqs: p.irqs}
	now.findExtended()
	if !ok || exp != p.exp || now.caps != p.looks.caps {
		return false
	}
	if now.caps = p.caps; now.discover() != p.looks.offered {
		return false
	}
	return !slices.ContainsFunc(p.devices, func(d *Device) bool { return now.vectorOf(d.service) != d.vector })
}

// deaf says whether messages do not go where they went. INTx has nothing to forget.
func (p *Port) deaf() bool {
	if len(p.irqs) == 0 || p.mode == bus.INTx {
		return false
	}
	if c := pci.Command(p.cfg.Read16(pci.CfgCommand)); c == 0xffff || c&pci.CmdMem == 0 {
		return false // its table is out of reach; that is seen to first
	}
	lost, err := bus.RestoreIRQs(p.dev, false)
	return lost && err == nil // where there is an error the port does not answer, which is seen elsewhere
}

// mend sets up again what is not as it was set up, and takes in what was missed, with one line for all. What does not stay is left alone in the end.
func (p *Port) mend(f *finding) {
	m := mending{looks: &p.looks}
	m.forget(f)
	header := m.tries(thePort, strings.Join(f.header, ", "))
	if header {
		p.setCommand()
		if f.reset {
			p.restoreHeader()
			delete(m.mended, theMessages) // what did not stay before the reset may stay now
		}
		again := p.deaf() // they may be in reach only now
		f.lost = f.lost || again && p.deaf()
	}
	reset := header && f.reset
	var err error
	if f.lost && m.tries(theMessages, "interrupt messages go nowhere") {
		_, err = bus.RestoreIRQs(p.dev, true)
		reset = reset || err == nil // those that do not stay were taken away by no reset
	}
	var todo []*Device
	for _, s := range f.services {
		wrong, missed := m.tries(s.d.name+isWrong, s.wrong), m.takes(s.d.name+isMissed, s.missed)
		if wrong || missed {
			todo = append(todo, s.d)
		}
	}
	m.tell(p)
	if err != nil && p.Err() == nil {
		p.Log(slog.LevelWarn, "setting up again: %v", err)
	}
	if header || reset {
		todo = p.devices
	}
	p.takeIn(todo) // before registers are written: what stands is what happened
	for _, d := range todo {
		p.repair(d, reset)
	}
	p.takeIn(todo)
	if reset && len(p.Below()) > 0 {
		p.Recover(p.ctx, p.Member(), true, p.bringBack)
	}
}

// mending is what is done about one finding, in words.
type mending struct {
	*looks
	wrong, missed, given []string
}

// Who stands in looks.mended; the last two follow a service's name.
const (
	thePort, theMessages = "the port", "messages"
	isWrong, isMissed    = " wrong", " missed"
)

// forget has all those begin anew of whom a finding says nothing.
func (m *mending) forget(f *finding) {
	keep := map[string]bool{thePort: len(f.header) > 0, theMessages: f.lost}
	for _, s := range f.services {
		keep[s.d.name+isWrong], keep[s.d.name+isMissed] = s.wrong != "", s.missed != ""
	}
	maps.DeleteFunc(m.mended, func(who string, _ int) bool { return !keep[who] })
}

// tries says whether what is wrong, if anything is, is set up once more.
func (m *mending) tries(who, wrong string) bool {
	n := m.mended[who]
	if wrong == "" || n > mendings {
		return false
	}
	if m.mended[who]++; n == mendings {
		m.given = append(m.given, wrong)
		return false
	}
	m.wrong = append(m.wrong, wrong)
	return true
}

// takes says whether what was missed, if anything was, is taken in. What stands at every look is no fault of the port's, and not given up: it may be a storm, or a bit that is
// stuck. It is taken in at ever longer intervals.
func (m *mending) takes(who, missed string) bool {
	if missed == "" {
		return false
	}
	n := m.mended[who]
	if m.mended[who]++; n >= mendings && n&(n-1) != 0 {
		return false
	}
	m.missed = append(m.missed, missed)
	return true
}

// tell logs it.
func (m *mending) tell(p *Port) {
	missed := "what it did not interrupt for is taken in: " + strings.Join(m.missed, ", ")
	switch {
	case len(m.wrong) > 0:
		text := "it is not as it was set up, and is set up again: " + strings.Join(m.wrong, ", ")
		if len(m.missed) > 0 {
			text += "; " + missed
		}
		p.Log(slog.LevelWarn, "%s", text)
	case len(m.missed) > 0:
		p.Log(slog.LevelWarn, "%s", missed)
	}
	if len(m.given) > 0 {
		p.Log(slog.LevelError, "it cannot be set up, and is left as it is: %s", strings.Join(m.given, ", "))
	}
}

// bringBack is for what was reset with the port.
func (p *Port) bringBack(ctx context.Context) bus.Verdict {
	if err := p.RestoreBelow(ctx, "port reset"); err != nil {
		p.Log(slog.LevelWarn, "bringing back what was reset with it: %v", err)
		return bus.Disconnect
	}
	return bus.Recovered
}

// setCommand lets the port work.
func (p *Port) setCommand() {
	p.modify(pci.CfgCommand, 0, uint16(p.looks.command|pci.CmdIO))
}

// restoreHeader writes bus numbers and windows as they were.
func (p *Port) restoreHeader() {
	for i, v := range p.looks.header {
		at := firstWindow + bus.Off(4*i)
		if i == statusAbove {
			p.cfg.Write16(at, uint16(v))
			continue
		}
		p.cfg.Write32(at, v)
	}
}

// takeIn has services look as if they had been interrupted. It does not count as an interrupt.
func (p *Port) takeIn(ds []*Device) {
	var done []*vector
	for _, d := range ds {
		if v := d.vector; v != nil && !slices.Contains(done, v) {
			done = append(done, v)
			v.fire(0)
		}
	}
}

// repair has one service set its registers up. Who holds it takes it into service or out of it just now.
func (p *Port) repair(d *Device, reset bool) {
	if !d.mu.TryLock() {
		return
	}
	defer d.mu.Unlock()
	var err error
	switch k := d.inst.(type) {
	case Keeper:
		err = k.Repair(p.ctx, reset)
	case Restorer:
		if reset {
			err = k.SlotReset(p.ctx)
		}
	}
	if err != nil && p.ctx.Err() == nil && p.Err() == nil {
		d.Log(slog.LevelWarn, "setting up again: %v", err)
	}
}

// fail has the port be as good as gone: it is for a driver anew to find out what became of it.
func (p *Port) fail(err error) {
	if p.looks.failed.CompareAndSwap(nil, &err) && p.env.Log != nil {
		p.env.Log.Error(err.Error())
	}
}
