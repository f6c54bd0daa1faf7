package e1000

import (
	"fmt"
	"math/bits"
	"strings"
	"testing"
)

// TestBits sets every named bit alone, against the number that the datasheets give it.
func TestBits(t *testing.T) {
	for _, c := range []struct {
		name string
		v    uint64
		bit  int
		s    fmt.Stringer
	}{
		{"FD", uint64(ctrlFD), 0, ctrlFD}, {"GIO_MASTER_DISABLE", uint64(ctrlGIOMDIS), 2, ctrlGIOMDIS}, {"LRST", uint64(ctrlLRST), 3, ctrlLRST},
		{"ASDE", uint64(ctrlASDE), 5, ctrlASDE}, {"SLU", uint64(ctrlSLU), 6, ctrlSLU}, {"ILOS", uint64(ctrlILOS), 7, ctrlILOS},
		{"FRCSPD", uint64(ctrlFRCSPD), 11, ctrlFRCSPD}, {"FRCDPLX", uint64(ctrlFRCDPX), 12, ctrlFRCDPX}, {"RST", uint64(ctrlRST), 26, ctrlRST},
		{"RFCE", uint64(ctrlRFCE), 27, ctrlRFCE}, {"TFCE", uint64(ctrlTFCE), 28, ctrlTFCE}, {"VME", uint64(ctrlVME), 30, ctrlVME},
		{"PHY_RST", uint64(ctrlPHYRST), 31, ctrlPHYRST},
		{"FD", uint64(statusFD), 0, statusFD}, {"LU", uint64(statusLU), 1, statusLU}, {"TXOFF", uint64(statusTXOFF), 4, statusTXOFF},
		{"GIO_MASTER_ENABLE", uint64(statusGIOMaster), 19, statusGIOMaster},
		{"TXDW", uint64(causeTXDW), 0, causeTXDW}, {"TXQE", uint64(causeTXQE), 1, causeTXQE}, {"LSC", uint64(causeLSC), 2, causeLSC},
		{"RXSEQ", uint64(causeRXSEQ), 3, causeRXSEQ}, {"RXDMT0", uint64(causeRXDMT0), 4, causeRXDMT0}, {"RXO", uint64(causeRXO), 6, causeRXO},
		{"RXT0", uint64(causeRXT0), 7, causeRXT0}, {"MDAC", uint64(causeMDAC), 9, causeMDAC}, {"SRPD", uint64(causeSRPD), 16, causeSRPD},
		{"ACK", uint64(causeACK), 17, causeACK}, {"MNG", uint64(causeMNG), 18, causeMNG}, {"RXQ0", uint64(causeRXQ0), 20, causeRXQ0},
		{"RXQ1", uint64(causeRXQ1), 21, causeRXQ1}, {"TXQ0", uint64(causeTXQ0), 22, causeTXQ0}, {"TXQ1", uint64(causeTXQ1), 23, causeTXQ1},
		{"OTHER", uint64(causeOTHER), 24, causeOTHER}, {"INT_ASSERTED", uint64(causeINTA), 31, causeINTA},
		{"EN", uint64(rctlEN), 1, rctlEN}, {"UPE", uint64(rctlUPE), 3, rctlUPE}, {"MPE", uint64(rctlMPE), 4, rctlMPE}, {"LPE", uint64(rctlLPE), 5, rctlLPE},
		{"BAM", uint64(rctlBAM), 15, rctlBAM}, {"SECRC", uint64(rctlSECRC), 26, rctlSECRC},
		{"DD", uint64(rxDD), 32, rxDD}, {"EOP", uint64(rxEOP), 33, rxEOP}, {"CE", uint64(rxCE), 40, rxCE}, {"SE", uint64(rxSE), 41, rxSE},
		{"SEQ", uint64(rxSEQ), 42, rxSEQ}, {"CXE", uint64(rxCXE), 44, rxCXE}, {"RXE", uint64(rxRXE), 47, rxRXE},
		{"", uint64(eecdAutoRD), 9, nil}, {"", uint64(ctrlExtEIAME), 24, nil}, {"", uint64(ctrlExtIAME), 27, nil}, {"", uint64(ctrlExtPBACLR), 31, nil},
		{"", uint64(tctlEN), 1, nil}, {"", uint64(tctlPSP), 3, nil}, {"", uint64(tctlRTLC), 24, nil}, {"", uint64(dctlOne), 22, nil},
		{"", uint64(dctlGRAN), 24, nil}, {"", uint64(tarcEnable), 10, nil}, {"", uint64(rahAV), 31, nil},
		{"", uint64(txEOP), 24, nil}, {"", uint64(txIFCS), 25, nil}, {"", uint64(txRS), 27, nil}, {"", uint64(txDD), 32, nil},
	} {
		if c.v != 1<<c.bit {
			t.Errorf("%s = %#x, want bit %d", c.name, c.v, c.bit)
		}
		if c.s != nil && c.s.String() != c.name {
			t.Errorf("%#x.String() = %q, want %q", c.v, c.s, c.name)
		}
	}
}

// TestStringLosesNothing sets every bit of every type that has names.
func TestStringLosesNothing(t *testing.T) {
	for b := range 32 {
		x := uint32(1) << b
		for _, s := range []fmt.Stringer{ctrl(x), status(x), cause(x), rctl(x)} {
			got := s.String()
			if got == "" || got == "0x0" || strings.Contains(got, "|") {
				t.Errorf("%T with bit %d: String() = %q, want one name or number", s, b, got)
			}
			if two := fmt.Sprint(s); !strings.HasPrefix(got, "0x") == strings.HasPrefix(two, "0x") {
				t.Errorf("%T with bit %d: %q and %q", s, b, got, two)
			}
		}
	}
	if got := (ctrlRST | ctrlFD | 1<<20).String(); got != "FD|RST|0x100000" {
		t.Errorf("String() = %q, want FD|RST|0x100000", got)
	}
	if got := ctrl(0).String(); got != "0x0" {
		t.Errorf("String() = %q, want 0x0", got)
	}
}

// TestFields puts every bit of a value into every field alone: what comes out is what fits,
// and no neighbour is touched.
func TestFields(t *testing.T) {
	for _, field := range []uint32{
		uint32(statusSpeed), uint32(rctlRDMTS), uint32(rctlBSIZE), uint32(tctlCT), uint32(tctlCOLD), uint32(tipgIPGT), uint32(tipgIPGR1),
		uint32(tipgIPGR2), uint32(ivarRXQ0), uint32(ivarTXQ0), uint32(ivarOTHER), eerd8254x.addr, eerd8254x.data, eerd82574.addr, eerd82574.data,
	} {
		for b := range 32 {
			x := uint32(1) << b
			v := put(field, x)
			if v&^field != 0 {
				t.Errorf("put(%#x, %#x) = %#x spills", field, x, v)
			}
			want := x
			if b >= bits.OnesCount32(field) {
				want = 0
			}
			if got := get(v|^field, field); got != want {
				t.Errorf("get(put(%#x, %#x)) = %#x, want %#x", field, x, got, want)
			}
		}
	}
	for v, want := range []int{10, 100, 1000, 1000} {
		if got := put(statusSpeed, status(v)).speed(); got != want {
			t.Errorf("speed of %d = %d, want %d", v, got, want)
		}
	}
}

// TestOffsets checks array registers and that no two registers share a place.
func TestOffsets(t *testing.T) {
	for got, want := range map[uint64]uint64{
		uint64(regEITR(0)): 0xe8, uint64(regEITR(4)): 0xf8, uint64(regMTA(127)): 0x53fc,
		uint64(regRAL(0)): 0x5400, uint64(regRAH(0)): 0x5404, uint64(regRAL(15)): 0x5478,
	} {
		if got != want {
			t.Errorf("offset %#x, want %#x", got, want)
		}
	}
	seen := map[uint64]bool{}
	var s hwStats
	for _, c := range s.counters() {
		if c.reg < 0x4000 || c.reg >= 0x4100 || c.reg%4 != 0 || seen[uint64(c.reg)] {
			t.Errorf("statistics register at %#x: outside the block or listed twice", c.reg)
		}
		seen[uint64(c.reg)] = true
		*c.sum++
		if *c.sum != 1 {
			t.Errorf("statistics register %#x shares its sum", c.reg)
		}
	}
	for _, reg := range moreRegs {
		if reg < 0x4000 || reg >= 0x4100 || reg%4 != 0 || seen[uint64(reg)] {
			t.Errorf("statistics register at %#x: outside the block or listed twice", reg)
		}
		seen[uint64(reg)] = true
	}
}
