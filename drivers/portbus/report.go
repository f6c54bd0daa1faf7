package portbus

import (
	"log/slog"
	"math/bits"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/profile"
)

// ErrorInfo is what a function has to say of an error that was reported, and what is known of the message that reported it.
type ErrorInfo struct {
	Severity     pci.AERSeverity
	Status, Mask uint32 // of the status register of that kind; Status 0: it could not be read
	First        int    // First Error Pointer; 0 of correctable errors, which have none, as in the kernel
	Header       [4]uint32
	HeaderValid  bool // Header is that of the packet

	ID      uint16 // who sent the message: bus, device and function; 0: not known
	Multi   bool   // there were more messages than the root port remembers
	Devices int    // how many functions were found to have an error
}

// Unmasked are the bits that were reported.
func (e ErrorInfo) Unmasked() uint32 { return e.Status &^ e.Mask }

// Bits of Uncorrectable Error Status and of Correctable Error Status that tell layers and agents apart (PCI Express Base 5.0, 7.8.4.2, 7.8.4.5).
const (
	uncDLP        uint32 = 1 << 4 // data link protocol
	uncPoisoned   uint32 = 1 << 12
	uncTimeout    uint32 = 1 << 14 // completion timeout
	uncAbort      uint32 = 1 << 15 // completer abort
	uncUnexpected uint32 = 1 << 16 // completion
	uncMalformed  uint32 = 1 << 18
	uncECRC       uint32 = 1 << 19
	uncUnsup      uint32 = 1 << 20 // request

	corReceiver uint32 = 1 << 0
	corBadTLP   uint32 = 1 << 6
	corBadDLLP  uint32 = 1 << 7
	corRollover uint32 = 1 << 8  // of the replay number
	corTimeout  uint32 = 1 << 12 // of the replay timer

	// withHeader are the errors of which the kernel prints the packet's header.
	withHeader = uncPoisoned | uncECRC | uncUnsup | uncAbort | uncUnexpected | uncMalformed
	// corCounted are the correctable errors that the kernel has counters of.
	corCounted uint32 = 0xffff
)

// ReadError reads what a function has to say of an error of that severity; not ok where it has nothing to say. The link to a
// function that reports a fatal error cannot be relied on: then only ports are read, which stand above the link, and all others unless
// linkHealthy; what is not read has Status 0.
func ReadError(m *pci.Member, sev pci.AERSeverity, linkHealthy bool) (e ErrorInfo, ok bool) {
	e = ErrorInfo{Severity: sev}
	c := config(m)
	if sev == pci.AERFatal && !linkHealthy && !aboveLink(c) {
		// What enumeration found stands in for a capability that cannot be read now.
		if _, ok = pci.FindExtCap(c, pci.ExtCapAER); !ok {
			ok = m.Function.AER != nil
		}
		return e, ok
	}
	at, ok := pci.FindExtCap(c, pci.ExtCapAER)
	if !ok {
		return e, false
	}
	e.Status, e.Mask = status(m, at, sev)
	if e.Unmasked() == 0 {
		return e, false
	}
	if sev == pci.AERCorrectable {
		return e, true
	}
	e.First = int(c.Read32(at+pci.AERCap) & pci.AERFirst)
	if e.Status&withHeader != 0 {
		e.HeaderValid = true
		for i := range e.Header {
			e.Header[i] = c.Read32(at + pci.AERHeader + bus.Off(4*i))
		}
	}
	return e, true
}

// status reads the status of a kind of errors, and its mask. A function that is gone has none.
func status(m *pci.Member, at bus.Off, sev pci.AERSeverity) (sta, mask uint32) {
	c := config(m)
	if sev == pci.AERCorrectable {
		sta, mask = c.Read32(at+pci.AERCorSta), c.Read32(at+pci.AERCorMask)
	} else {
		sta, mask = c.Read32(at+pci.AERUncSta), c.Read32(at+pci.AERUncMask)
	}
	if sta == 0xffffffff && gone(m) {
		return 0, mask
	}
	return sta, mask
}

// HasError says whether a function has an error of that kind that is not masked.
func HasError(m *pci.Member, sev pci.AERSeverity) bool {
	at, ok := pci.FindExtCap(config(m), pci.ExtCapAER)
	if !ok {
		return false
	}
	sta, mask := status(m, at, sev)
	return sta&^mask != 0
}

// aboveLink says whether a function is one whose registers do not depend on the link that fails.
func aboveLink(c bus.Config) bool {
	e, ok := pci.FindExpress(c)
	return ok && (e.HasRoot() || e.Type == pci.ExpDownstream)
}

// Severity is how messages of a kernel call a severity.
func Severity(prof profile.Ports, s pci.AERSeverity) string {
	switch s {
	case pci.AERCorrectable:
		return prof.Corrected
	case pci.AERFatal:
		return prof.Uncorrected + " (Fatal)"
	}
	return prof.Uncorrected + " (Non-Fatal)"
}

// layer is the layer of the protocol that detected an error, and agent what part its function had in the transaction. Both are the
// kernel's tables, which follow the specification's (6.2.7) in the main.
func layer(s pci.AERSeverity, status uint32) string {
	physical, link := uint32(0), uncDLP
	if s == pci.AERCorrectable {
		physical, link = corReceiver, corBadTLP|corBadDLLP|corRollover|corTimeout
	}
	switch {
	case status&physical != 0:
		return "Physical Layer"
	case status&link != 0:
		return "Data Link Layer"
	}
	return "Transaction Layer"
}

func agent(s pci.AERSeverity, status uint32) string {
	if s == pci.AERCorrectable {
		if status&(corRollover|corTimeout) != 0 {
			return "Transmitter ID"
		}
		return "Receiver ID"
	}
	switch {
	case status&uncAbort != 0:
		return "Completer ID"
	case status&(uncTimeout|uncUnsup) != 0:
		return "Requester ID"
	}
	return "Receiver ID"
}

// aerPrefix begins some lines only, as in the kernel.
const aerPrefix = "AER: "

// Report prints an error of a function in the kernel's words, and counts it in pci.Function.AER. An error whose registers could not be read
// is printed and not counted, since nobody knows which it is.
func (p *Port) Report(m *pci.Member, e ErrorInfo) {
	sev := Severity(p.prof.Ports, e.Severity)
	if e.Status == 0 {
		p.LogOf(m, slog.LevelError, aerPrefix+"PCIe Bus Error: severity=%s, type=Inaccessible, (Unregistered Agent ID)", sev)
		p.reportFirst(m, e)
		return
	}
	level := slog.LevelError
	if e.Severity == pci.AERCorrectable {
		level = slog.LevelWarn
	}
	p.LogOf(m, level, "PCIe Bus Error: severity=%s, type=%s, (%s)", sev, layer(e.Severity, e.Status), agent(e.Severity, e.Status))
	p.LogOf(m, level, "  device [%04x:%04x] error status/mask=%08x/%08x", m.Function.ID.Vendor, m.Function.ID.Device, e.Status, e.Mask)
	for rest := e.Unmasked(); rest != 0; rest &= rest - 1 {
		bit := bits.TrailingZeros32(rest)
		name, first := pci.AERBitName(e.Severity, bit), ""
		if name == "" {
			name = "Unknown Error Bit"
		}
		if bit == e.First {
			first = " (First)"
		}
		p.LogOf(m, level, "   [%2d] %-22s%s", bit, name, first)
	}
	if s := m.Function.AER; s != nil {
		counted := e.Unmasked()
		if e.Severity == pci.AERCorrectable {
			counted &= corCounted
		}
		s.Count(e.Severity, counted)
	}
	if e.HeaderValid {
		p.LogOf(m, slog.LevelError, aerPrefix+"  TLP Header: %08x %08x %08x %08x", e.Header[0], e.Header[1], e.Header[2], e.Header[3])
	}
	p.reportFirst(m, e)
}

// reportFirst says which of several the message was of.
func (p *Port) reportFirst(m *pci.Member, e ErrorInfo) {
	if e.ID != 0 && e.Devices > 1 && e.ID == requester(m.Function.Addr) {
		p.LogOf(m, slog.LevelError, aerPrefix+"  Error of this Agent is reported first")
	}
}

// requester is how a function is named in packets.
func requester(a pci.Addr) uint16 { return uint16(a.Bus)<<8 | uint16(a.Devfn()) }
