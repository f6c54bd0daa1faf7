package pci

import (
	"bytes"
	"fmt"
	"math/bits"
	"sync"
)

// AERError is an error as Advanced Error Reporting has it: bits of the status registers, and the header of the packet that
// caused it.
type AERError struct {
	Uncorrectable uint32
	Correctable   uint32
	Header        [4]uint32
}

// AERSeverity is how bad an error is.
type AERSeverity uint8

// Severities, as the kernel numbers them.
const (
	AERNonFatal AERSeverity = iota
	AERFatal
	AERCorrectable
)

// Names of error bits as the kernel's files and messages have them (PCI Express Base 5.0, 7.8.4.2 and 7.8.4.5; Linux,
// Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats).
var (
	correctableNames = [32]string{
		0: "RxErr", 6: "BadTLP", 7: "BadDLLP", 8: "Rollover", 12: "Timeout", 13: "NonFatalErr", 14: "CorrIntErr", 15: "HeaderOF",
	}
	uncorrectableNames = [32]string{
		0: "Undefined", 4: "DLP", 5: "SDES", 12: "TLP", 13: "FCP", 14: "CmpltTO", 15: "CmpltAbrt", 16: "UnxCmplt", 17: "RxOF",
		18: "MalfTLP", 19: "ECRC", 20: "UnsupReq", 21: "ACSViol", 22: "UncorrIntErr", 23: "BlockedTLP", 24: "AtomicOpBlocked",
		25: "TLPBlockedErr", 26: "PoisonTLPBlocked", 27: "DMWrReqBlocked", 28: "IDECheck", 29: "MisIDETLP", 30: "PCRC_CHECK", 31: "TLPXlatBlocked",
	}
)

// AERBitName is the kernel's name of a bit; "" if it has none.
func AERBitName(s AERSeverity, bit int) string {
	if s == AERCorrectable {
		return correctableNames[bit&31]
	}
	return uncorrectableNames[bit&31]
}

// AERStats counts the errors of a function, as the files aer_* show them. Safe for concurrent use.
type AERStats struct {
	mu sync.Mutex
	// By severity: each bit, and all.
	bits  [3][32]uint64
	total [3]uint64
	// Of a root port: messages that were received.
	root [3]uint64
}

// Count counts what a function reports of itself: an error, and each of its bits.
func (s *AERStats) Count(sev AERSeverity, status uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total[sev]++
	for ; status != 0; status &= status - 1 {
		s.bits[sev][bits.TrailingZeros32(status)]++
	}
}

// CountRoot counts a message that a root port received.
func (s *AERStats) CountRoot(sev AERSeverity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.root[sev]++
}

// Root is how many messages of a severity a root port received.
func (s *AERStats) Root(sev AERSeverity) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.root[sev]
}

// Bit is how often a bit was counted; Total how many errors were.
func (s *AERStats) Bit(sev AERSeverity, bit int) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bits[sev][bit&31]
}

// Total is how many errors of a severity were counted.
func (s *AERStats) Total(sev AERSeverity) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total[sev]
}

// text is the file aer_dev_correctable, aer_dev_fatal or aer_dev_nonfatal.
func (s *AERStats) text(sev AERSeverity) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b bytes.Buffer
	file, total := "nonfatal", "NONFATAL"
	switch sev {
	case AERCorrectable:
		file, total = "cor", "COR"
	case AERFatal:
		file, total = "fatal", "FATAL"
	}
	for i, n := range s.bits[sev] {
		switch name := AERBitName(sev, i); {
		case name != "":
			fmt.Fprintf(&b, "%s %d\n", name, n)
		case n != 0:
			fmt.Fprintf(&b, "dev_%s_errs_bit[%d] %d\n", file, i, n)
		}
	}
	fmt.Fprintf(&b, "TOTAL_ERR_%s %d\n", total, s.total[sev])
	return b.String()
}
