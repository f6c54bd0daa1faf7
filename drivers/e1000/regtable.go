package e1000

import (
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// registers is the register table of a function that the driver serves, in the order of the
// offsets: every register that the driver uses, and those that a trace, a dump or a look at a
// sleeping device may want to name. Names are the datasheets', a second queue's has its
// number.
func registers(id pci.FunctionID) []bus.Register {
	c, err := chipOf(id)
	if err != nil {
		return nil
	}
	t := slices.Concat(generalRegs, statRegs)
	if c.pcie {
		t = slices.Concat(t, regs82574, queueRegs(1))
	} else {
		t = slices.Concat(t, regs8254x)
	}
	t = append(t, queueRegs(0)...)
	slices.SortFunc(t, func(a, b bus.Register) int { return int(a.Off) - int(b.Off) })
	return t
}

// named makes a register's Bits of the String method of its value's type.
func named[T interface {
	~uint32
	fmt.Stringer
}](v uint64) string {
	return T(v).String()
}

// generalRegs are the registers of all chips that are not a queue's and not statistics.
var generalRegs = []bus.Register{
	{Off: regCTRL, Name: "CTRL", Bits: named[ctrl]},
	{Off: regSTATUS, Name: "STATUS", Access: bus.RO, Bits: named[status]},
	{Off: regEECD, Name: "EECD"},
	{Off: regEERD, Name: "EERD"},
	{Off: regCTRLEXT, Name: "CTRL_EXT", Bits: named[ctrlExt]},
	{Off: 0x001c, Name: "FLA"},
	{Off: regMDIC, Name: "MDIC", Bits: named[mdic]},
	{Off: regFCAL, Name: "FCAL"},
	{Off: regFCAH, Name: "FCAH"},
	{Off: regFCT, Name: "FCT"},
	{Off: regVET, Name: "VET"},
	{Off: regICR, Name: "ICR", Access: bus.RC, Bits: named[cause]},
	{Off: regITR, Name: "ITR"},
	{Off: regICS, Name: "ICS", Access: bus.WO, Bits: named[cause]},
	{Off: regIMS, Name: "IMS", Bits: named[cause]},
	{Off: regIMC, Name: "IMC", Access: bus.WO, Bits: named[cause]},
	{Off: regRCTL, Name: "RCTL", Bits: named[rctl]},
	{Off: regFCTTV, Name: "FCTTV"},
	{Off: 0x0178, Name: "TXCW"},
	{Off: 0x0180, Name: "RXCW", Access: bus.RO},
	{Off: regTCTL, Name: "TCTL", Bits: named[tctl]},
	{Off: regTIPG, Name: "TIPG"},
	{Off: 0x0458, Name: "AIT"},
	{Off: 0x0e00, Name: "LEDCTL"},
	{Off: regPBA, Name: "PBA"},
	{Off: regFCRTL, Name: "FCRTL"},
	{Off: regFCRTH, Name: "FCRTH"},
	{Off: 0x2410, Name: "RDFH"}, {Off: 0x2418, Name: "RDFT"}, {Off: 0x2420, Name: "RDFHS"}, {Off: 0x2428, Name: "RDFTS"}, {Off: 0x2430, Name: "RDFPC"},
	{Off: 0x3410, Name: "TDFH"}, {Off: 0x3418, Name: "TDFT"}, {Off: 0x3420, Name: "TDFHS"}, {Off: 0x3428, Name: "TDFTS"}, {Off: 0x3430, Name: "TDFPC"},
	{Off: regRDTR, Name: "RDTR"},
	{Off: regRADV, Name: "RADV"},
	{Off: 0x2c00, Name: "RSRPD"},
	{Off: regTIDV, Name: "TIDV"},
	{Off: regTADV, Name: "TADV"},
	{Off: regRXCSUM, Name: "RXCSUM", Bits: named[rxcsum]},
	{Off: regMTA(0), Name: "MTA", Count: mtaWords},
	{Off: regRAL(0), Name: "RAL", Count: raPairs, Stride: 8},
	{Off: regRAH(0), Name: "RAH", Count: raPairs, Stride: 8},
	{Off: 0x5600, Name: "VFTA", Count: 128},
	{Off: 0x5800, Name: "WUC"}, {Off: 0x5808, Name: "WUFC"}, {Off: 0x5810, Name: "WUS"}, {Off: 0x5820, Name: "MANC"}, {Off: 0x5838, Name: "IPAV"},
	{Off: 0x5840, Name: "IP4AT", Count: 4, Stride: 8},
	{Off: 0x5880, Name: "IP6AT", Count: 4},
	{Off: 0x5900, Name: "WUPL"},
	{Off: 0x5f00, Name: "FFLT", Count: 4, Stride: 8},
	{Off: 0x9000, Name: "FFMT", Count: 128, Stride: 8},
	{Off: 0x9800, Name: "FFVT", Count: 128, Stride: 8},
}

// regs8254x are those that the 82574L does not have.
var regs8254x = []bus.Register{
	{Off: 0x1008, Name: "PBS"},
	{Off: 0x3000, Name: "TXDMAC"},
	{Off: 0x3830, Name: "TSPMT"},
}

// regs82574 are those that only the 82574L has.
var regs82574 = []bus.Register{
	{Off: regEIAC, Name: "EIAC", Bits: named[cause]},
	{Off: regIAM, Name: "IAM", Bits: named[cause]},
	{Off: regIVAR, Name: "IVAR"},
	{Off: regEITR(0), Name: "EITR", Count: maxVectors},
	{Off: 0x0f00, Name: "EXTCNF_CTRL"}, {Off: 0x0f08, Name: "EXTCNF_SIZE"}, {Off: 0x0f10, Name: "PHY_CTRL"},
	{Off: 0x100c, Name: "PBECCSTS"}, {Off: 0x1010, Name: "EEMNGCTL"}, {Off: 0x1014, Name: "EEMNGDATA"}, {Off: 0x1028, Name: "FLASHT"},
	{Off: 0x102c, Name: "EEWR"}, {Off: 0x1030, Name: "FLSWCTL"}, {Off: 0x1034, Name: "FLSWDATA"}, {Off: 0x1038, Name: "FLSWCNT"}, {Off: 0x103c, Name: "FLOP"},
	{Off: 0x2170, Name: "PSRCTL"},
	{Off: 0x2c08, Name: "RAID"},
	{Off: regTARC(0), Name: "TARC", Count: 2, Stride: queueStride},
	{Off: regRFCTL, Name: "RFCTL"},
	{Off: 0x5010, Name: "MAVTV", Count: 4},
	{Off: regMRQC, Name: "MRQC", Bits: named[mrqc]},
	{Off: 0x5860, Name: "MANC2H"},
	{Off: 0x5864, Name: "RSSIM"}, {Off: 0x5868, Name: "RSSIR"},
	{Off: 0x5890, Name: "MFUTP", Count: 2, Stride: 4},
	{Off: 0x5b00, Name: "GCR"}, {Off: 0x5b08, Name: "FUNCTAG"},
	{Off: 0x5b10, Name: "GSCL_1"}, {Off: 0x5b14, Name: "GSCL_2"}, {Off: 0x5b18, Name: "GSCL_3"}, {Off: 0x5b1c, Name: "GSCL_4"},
	{Off: 0x5b30, Name: "FACTPS", Access: bus.RO}, {Off: 0x5b64, Name: "GCR2"},
	// SWSM.SMBI is a semaphore that a read takes.
	{Off: 0x5b50, Name: "SWSM", Access: bus.RC}, {Off: 0x5b54, Name: "FWSM"}, {Off: 0x5b58, Name: "SWSM2", Access: bus.RC},
	{Off: 0x5b68, Name: "PBACLR", Access: bus.W1C},
	{Off: regRETA(0), Name: "RETA", Count: retaWords},
	{Off: regRSSRK(0), Name: "RSSRK", Count: rssrkWords},
	{Off: 0x5f40, Name: "FCRTV"},
	{Off: 0xb600, Name: "TSYNCTXCTL"}, {Off: 0xb620, Name: "TSYNCRXCTL"},
	{Off: 0x4100, Name: "IAC", Access: bus.RC}, {Off: 0x4104, Name: "ICRXPTC", Access: bus.RC}, {Off: 0x4108, Name: "ICRXATC", Access: bus.RC},
	{Off: 0x410c, Name: "ICTXPTC", Access: bus.RC}, {Off: 0x4110, Name: "ICTXATC", Access: bus.RC}, {Off: 0x4118, Name: "ICTXQEC", Access: bus.RC},
	{Off: 0x411c, Name: "ICTXQMTC", Access: bus.RC}, {Off: 0x4120, Name: "ICRXDMTC", Access: bus.RC}, {Off: 0x4124, Name: "ICRXOC", Access: bus.RC},
}

// queueRegs are the registers of a pair of queues, 82574L 10.2.5 and 10.2.6; the 8254x
// have queue 0.
func queueRegs(q int) []bus.Register {
	n := ""
	if q > 0 {
		n = fmt.Sprint(q)
	}
	rx := &bus.RingInfo{Low: regRDBAL(q), High: regRDBAH(q), Len: regRDLEN(q), Size: descSize, Desc: describeRx}
	tx := &bus.RingInfo{Low: regTDBAL(q), High: regTDBAH(q), Len: regTDLEN(q), Size: descSize, Desc: describeTx}
	return []bus.Register{
		{Off: rx.Low, Name: "RDBAL" + n}, {Off: rx.High, Name: "RDBAH" + n}, {Off: rx.Len, Name: "RDLEN" + n},
		{Off: regRDH(q), Name: "RDH" + n}, {Off: regRDT(q), Name: "RDT" + n, Ring: rx},
		{Off: regRXDCTL(q), Name: "RXDCTL" + n, Bits: named[dctl]},
		{Off: tx.Low, Name: "TDBAL" + n}, {Off: tx.High, Name: "TDBAH" + n}, {Off: tx.Len, Name: "TDLEN" + n},
		{Off: regTDH(q), Name: "TDH" + n}, {Off: regTDT(q), Name: "TDT" + n, Ring: tx},
		{Off: regTXDCTL(q), Name: "TXDCTL" + n, Bits: named[dctl]},
	}
}

// statRegs are the statistics registers, all of which clear when read, 13.7.
var statRegs = func() []bus.Register {
	var t []bus.Register
	for i, name := range []string{
		"CRCERRS", "ALGNERRC", "SYMERRS", "RXERRC", "MPC", "SCC", "ECOL", "MCC", "LATECOL", "", "COLC", "", "DC", "TNCRS", "SEC", "CEXTERR",
		"RLEC", "", "XONRXC", "XONTXC", "XOFFRXC", "XOFFTXC", "FCRUC", "PRC64", "PRC127", "PRC255", "PRC511", "PRC1023", "PRC1522", "GPRC", "BPRC", "MPRC",
		"GPTC", "", "GORCL", "GORCH", "GOTCL", "GOTCH", "", "", "RNBC", "RUC", "RFC", "ROC", "RJC", "MGTPRC", "MGTPDC", "MGTPTC",
		"TORL", "TORH", "TOTL", "TOTH", "TPR", "TPT", "PTC64", "PTC127", "PTC255", "PTC511", "PTC1023", "PTC1522", "MPTC", "BPTC", "TSCTC", "TSCTFC",
	} {
		if name != "" {
			t = append(t, bus.Register{Off: regCRCERRS + 4*bus.Off(i), Name: name, Access: bus.RC})
		}
	}
	return t
}()
