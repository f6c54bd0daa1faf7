package pci

import "github.com/ring3dev/ring3/bus"

// enableErrors makes a function with Advanced Error Reporting report its errors: status registers are cleared of what was before, and
// Device Control enables the messages (PCI Express Base 5.0, 6.2.5). Whoever enumerates a bus does so, as the kernel does (pci_aer_init): drivers
// have no part in it, and root ports keep messages to themselves until somebody serves them.
func enableErrors(c bus.Config, aer bus.Off) {
	for _, r := range []bus.Off{AERUncSta, AERCorSta} {
		if v := c.Read32(aer + r); v != 0 && v != 0xffffffff {
			c.Write32(aer+r, v)
		}
	}
	if e, ok := FindExpress(c); ok {
		if v := c.Read16(e.At + ExpDevCtl); v != 0xffff && v&DevCtlErrors != DevCtlErrors {
			c.Write16(e.At+ExpDevCtl, v|DevCtlErrors)
		}
	}
}
