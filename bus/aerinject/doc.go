// Package aerinject injects errors of Advanced Error Reporting into functions that did not have them, as the kernel's
// module aer_inject does: by showing them. Wrap puts an overlay over a function's config space. An Injector knows the
// functions that are wrapped and the root port of each; Inject makes the status registers of the function, and those of
// its root port, read as if the error had been, and fires the root port's interrupt. Whoever handles errors cannot tell:
// it reads, writes one to clear, and what was injected is cleared, as what hardware has is.
//
//	dev := aerinject.Wrap(dev)
//	in := aerinject.NewInjector(aerinject.Options{Log: log})
//	in.Add(addr, dev, root)
//	err := in.Inject(aerinject.Record{Bus: 1, Error: pci.AERError{Correctable: 1 << 6}})
//
// Node is /dev/aer_inject, to which the tool aer-inject writes its records (ParseRecord); ParseText reads the tool's own
// language.
//
// # What is shown
//
// Offsets are those of PCI Express Base 5.0, 7.8.4.
//
//	Uncorrectable, Correctable Error Status   the hardware's bits, and those injected
//	Header Log                                that of the last uncorrectable record, until all its bits are cleared
//	Root Error Status                         the hardware's bits, and those injected; a kind that both report is multiple
//	Error Source Identification               whoever reported first; where hardware reports alone, its own
//
// Nothing else is changed: First Error Pointer, Device Status, masks and severities are the hardware's, as with the
// kernel's module. So messages about an injected error name no first one. Accesses of 8 and 16 bits see the same as those
// of 32, which the kernel's module alone serves. All writes go on to the hardware.
//
// Where this differs from the kernel's module: what hardware has is still seen; a write of a bit that is not set does not
// set it (the module's does); of several errors of one kind that nobody cleared, the source is the first one's, as the
// specification has it, not the last one's.
//
// # Cost
//
// One atomic load an access of config space until something was injected into that function; then also a comparison of
// the offset. Regions, DMA and interrupts are the wrapped device's own.
package aerinject
