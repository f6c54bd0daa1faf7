package hwbind

import (
	"fmt"
	"strings"
)

// Udev is a file of rules that bind the functions at every start of the machine, and give
// their nodes to the owner. The caller has checked that they may be bound.
func (m *Machine) Udev(r Request) string {
	var b strings.Builder
	who := "root"
	if r.Owner != nil {
		who = r.Owner.Name
	}
	fmt.Fprintf(&b, "# Gives PCI functions to %s for %s when the machine starts. Put it into\n", r.Driver, who)
	b.WriteString("#\t/etc/udev/rules.d/80-ring3.rules\n")
	b.WriteString("# and, if the initramfs holds the driver that has a function now, renew it: sudo update-initramfs -u\n")
	for _, a := range r.Addrs {
		fmt.Fprintf(&b, "ACTION==\"add\", SUBSYSTEM==\"pci\", KERNEL==\"%s\", ATTR{driver_override}=\"%s\", RUN{builtin}+=\"kmod load %s\"\n", a, r.Driver, r.Driver)
		// A driver that is built in, or was loaded before, has it already.
		fmt.Fprintf(&b, "ACTION==\"add\", SUBSYSTEM==\"pci\", KERNEL==\"%s\", DRIVER!=\"%s\", "+
			"RUN+=\"/bin/sh -c 'cd /sys/bus/pci; [ ! -e devices/$kernel/driver ] || echo $kernel > devices/$kernel/driver/unbind; echo $kernel > drivers_probe'\"\n", a, r.Driver)
	}
	if r.Owner == nil {
		return b.String()
	}
	for _, a := range r.Addrs {
		if r.Driver == UIO {
			fmt.Fprintf(&b, "ACTION==\"add\", SUBSYSTEM==\"uio\", KERNELS==\"%s\", OWNER=\"%s\"\n", a, r.Owner.Name)
			continue
		}
		fmt.Fprintf(&b, "ACTION==\"bind\", SUBSYSTEM==\"pci\", KERNEL==\"%s\", DRIVER==\"%s\", "+
			"RUN+=\"/bin/sh -c 'chown %s /dev/vfio/$$(basename $$(readlink /sys/bus/pci/devices/$kernel/iommu_group))'\"\n", a, r.Driver, r.Owner.Name)
		fmt.Fprintf(&b, "ACTION==\"add\", SUBSYSTEM==\"vfio-dev\", KERNELS==\"%s\", OWNER=\"%s\"\n", a, r.Owner.Name)
	}
	return b.String()
}
