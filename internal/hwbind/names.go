package hwbind

import (
	"fmt"

	ids "github.com/u-root/u-root/pkg/pci"

	"github.com/ring3dev/ring3/bus/pci"
)

// Names is a function's class, and its name as far as the list of PCI IDs knows it.
func Names(id pci.FunctionID) (class, name string) {
	class = className(id.Class)
	vendor, device := ids.Lookup(ids.IDs, id.Vendor, id.Device)
	return class, vendor + " " + device
}

// classes are names by base class and subclass (PCI Code and ID Assignment 1.11).
var classes = map[uint32]string{
	0x0100: "SCSI controller", 0x0101: "IDE controller", 0x0104: "RAID controller", 0x0106: "SATA controller", 0x0107: "SAS controller", 0x0108: "NVMe controller",
	0x0200: "Ethernet controller", 0x0207: "InfiniBand controller", 0x0280: "network controller",
	0x0300: "VGA controller", 0x0302: "3D controller", 0x0401: "audio device", 0x0403: "audio device",
	0x0500: "RAM", 0x0600: "host bridge", 0x0601: "ISA bridge", 0x0604: "PCI bridge", 0x0700: "serial port", 0x0703: "modem",
	0x0800: "interrupt controller", 0x0801: "DMA controller", 0x0805: "SD controller", 0x0806: "IOMMU",
	0x0c03: "USB controller", 0x0c05: "SMBus", 0x0d11: "Bluetooth", 0x1000: "encryption controller", 0x1080: "encryption controller",
}

// bases are names by base class alone.
var bases = map[uint32]string{
	0x01: "storage", 0x02: "network", 0x03: "display", 0x04: "multimedia", 0x05: "memory", 0x06: "bridge", 0x07: "communication", 0x08: "system",
	0x09: "input", 0x0b: "processor", 0x0c: "serial bus", 0x0d: "wireless", 0x10: "encryption", 0x11: "signal processing", 0x12: "accelerator",
}

func className(class uint32) string {
	if s := classes[class>>8]; s != "" {
		return s
	}
	if s := bases[class>>16]; s != "" {
		return s
	}
	return fmt.Sprintf("class %06x", class)
}
