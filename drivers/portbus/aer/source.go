package aer

import (
	"log/slog"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
)

// maxSources is how many functions one message is followed to at most, as in the kernel.
const maxSources = 5

// handle works one message off: correctable errors first, as both kinds may be in one.
func (i *instance) handle(m message) {
	i.count(m.status)
	if m.status&(pci.RootStaCor|pci.RootStaMultiCor) != 0 {
		i.serve(pci.AERCorrectable, uint16(m.source), m.status&pci.RootStaMultiCor != 0)
	}
	if m.status&(pci.RootStaUnc|pci.RootStaMultiUnc) != 0 {
		sev := pci.AERNonFatal
		if m.status&pci.RootStaFatal != 0 {
			sev = pci.AERFatal
		}
		i.serve(sev, uint16(m.source>>16), m.status&pci.RootStaMultiUnc != 0)
	}
}

// count counts what the root port received: of each kind one, however many there were.
func (i *instance) count(status uint32) {
	f := i.port.Function()
	if f == nil || f.AER == nil {
		return
	}
	if status&pci.RootStaCor != 0 {
		f.AER.CountRoot(pci.AERCorrectable)
	}
	switch {
	case status&pci.RootStaUnc == 0:
	case status&pci.RootStaFatal != 0:
		f.AER.CountRoot(pci.AERFatal)
	default:
		f.AER.CountRoot(pci.AERNonFatal)
	}
}

// serve reports all errors that a message is about, and then does something about them: a reset would wipe out what is to be reported.
func (i *instance) serve(sev pci.AERSeverity, id uint16, multi bool) {
	multiple := ""
	if multi {
		multiple = "Multiple "
	}
	from := pci.Addr{Domain: i.port.Addr().Domain, Bus: uint8(id >> 8), Dev: uint8(id) >> 3, Fn: uint8(id) & 7}
	i.d.Log(slog.LevelInfo, "%s%s error message received from %s", multiple, portbus.Severity(i.port.Profile(), sev), from)
	sources := i.find(sev, id, multi)
	if len(sources) == 0 {
		i.d.Log(slog.LevelInfo, "found no error details for %s", from)
		return
	}
	var seen [maxSources]portbus.ErrorInfo
	for n, m := range sources {
		e, ok := portbus.ReadError(m, sev, false)
		if !ok {
			continue
		}
		e.ID, e.Multi, e.Devices = id, multi, len(sources)
		seen[n] = e
		i.port.Report(m, e)
	}
	for n, m := range sources {
		if sev == pci.AERCorrectable {
			correct(m, seen[n])
			continue
		}
		// An earlier recovery may have been this one's too.
		if _, ok := portbus.ReadError(m, sev, false); ok {
			i.recover(m, sev == pci.AERFatal)
		}
	}
}

// correct clears a correctable error, which is over. Only what was reported is cleared: another that came since has its own message.
func correct(m *pci.Member, e portbus.ErrorInfo) {
	if e.Status == 0 {
		return
	}
	portbus.ClearErrors(m, pci.AERCorrectable, e.Status)
	portbus.ClearDevice(m)
}

// find is who sent a message: the function that it names, and if the root port could not remember all of them, or the name makes no sense,
// those whose status says that they have such an error.
func (i *instance) find(sev pci.AERSeverity, id uint16, multi bool) (found []*pci.Member) {
	look := func(m *pci.Member) (enough bool) {
		if !source(m, sev, id, multi) {
			return false
		}
		found = append(found, m)
		return !multi || len(found) == maxSources
	}
	if look(i.port.Member()) {
		return found
	}
	for _, m := range i.reporters() {
		if look(m) {
			break
		}
	}
	return found
}

// source says whether a function is where a message came from.
func source(m *pci.Member, sev pci.AERSeverity, id uint16, multi bool) bool {
	// Some ports lose the bus number, so bus 0 says nothing.
	if id>>8 != 0 {
		a := m.Function.Addr
		if id == uint16(a.Bus)<<8|uint16(a.Devfn()) {
			return true
		}
		if !multi {
			return false
		}
	}
	if m.Driver == "" && m.Function.Header != pci.HeaderBridge { // nobody enabled it
		return false
	}
	c := m.Device.Config()
	e, ok := pci.FindExpress(c)
	if !ok || c.Read16(e.At+pci.ExpDevCtl)&pci.DevCtlErrors == 0 {
		return false
	}
	return portbus.HasError(m, sev)
}

// reporters are the functions that report to this port: those below a root port, and those that an event collector is for.
func (i *instance) reporters() []*pci.Member {
	if i.port.Express().Type != pci.ExpCollector {
		return i.port.Below()
	}
	h := i.port.Hierarchy()
	c := i.port.Member().Device.Config()
	at, ok := pci.FindExtCap(c, pci.ExtCapEC)
	if !ok || h == nil {
		return nil
	}
	var all []*pci.Member
	devices := c.Read32(at + ecDevices)
	for dev := range uint8(32) {
		if devices>>dev&1 == 0 {
			continue
		}
		for fn := range uint8(8) {
			m := h.Find(pci.Addr{Domain: i.port.Addr().Domain, Bus: i.port.Addr().Bus, Dev: dev, Fn: fn})
			if m != nil && m.Function.Addr != i.port.Addr() {
				all = append(all, m)
			}
		}
	}
	return all
}

// ecDevices is the map of devices in an event collector's association capability: bit n is device n of its own bus (7.9.10.2). Its range of
// other buses is not followed.
const ecDevices bus.Off = 0x04
