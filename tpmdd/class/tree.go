package class

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/sysfs"
	"github.com/ring3dev/ring3/tpmdd"
)

// Place says where a chip stands.
type Place struct {
	Name   string // "tpm0"
	Device string // its device's directory below /sys: "/devices/platform/MSFT0101:00"
	Bus    string // the device's bus: "platform", "acpi", "pnp"
	Driver string // "tpm_tis"
	ID     string // what firmware calls the device: "MSFT0101"

	Registers bus.RegionInfo // what a device on bus pnp shows of them
}

// Add puts a chip into a tree that stands for /sys: its device, its directories and the links to them.
func Add(sys *sysfs.Dir, c *tpmdd.Chip, p Place) {
	nth := strings.TrimPrefix(p.Name, "tpm")
	dev := sys.MkdirAll(p.Device)
	base := p.Device[strings.LastIndexByte(p.Device, '/')+1:]
	parent := &sysfs.Link{Target: "../../../" + base}

	bus := "/bus/" + p.Bus
	link := func(dir, name, to string) {
		sys.MkdirAll(dir).Put(name, &sysfs.Link{Target: sysfs.Rel(dir, to)})
	}
	link(bus+"/devices", base, p.Device)
	link(bus+"/drivers/"+p.Driver, base, p.Device)
	link(p.Device, "subsystem", bus)
	link(p.Device, "driver", bus+"/drivers/"+p.Driver)
	device(dev, p)

	chip := p.Device + "/tpm/" + p.Name
	dir := sys.MkdirAll(chip)
	for name, n := range attrs(c) {
		dir.Put(name, n)
	}
	major, minor := deviceNumber(nth)
	node(dir, p.Name, major, minor)
	power(dir)
	dir.Put("device", parent)
	link(chip, "subsystem", "/class/tpm")
	link("/class/tpm", p.Name, chip)
	sys.MkdirAll("/class/tpmrm") // also where there is nothing in it
	if c.Family() == tpmdd.TPM12 {
		// Where the files were before there was a class.
		for _, name := range []string{"active", "cancel", "caps", "durations", "enabled", "owned", "pcrs", "pubek", "temp_deactivated", "timeouts", "tpm_version_major"} {
			dev.Put(name, &sysfs.Link{Target: "tpm/" + p.Name + "/" + name})
		}
		return
	}
	at := p.Device + "/tpmrm/tpmrm" + nth
	rm := sys.MkdirAll(at)
	node(rm, "tpmrm"+nth, dynamicMajor, managerMinor(nth))
	power(rm)
	rm.Put("device", parent)
	link(at, "subsystem", "/class/tpmrm")
	link("/class/tpmrm", "tpmrm"+nth, at)
}

// Device numbers: tpm0 is a misc device (LANANA: 10:224), everything else has a major of the kernel's choosing, and of its minors
// those above 65535 belong to resource managers.
const (
	miscMajor    = 10
	tpmMinor     = 224
	dynamicMajor = 253
	dynamicMinor = 65536
)

func deviceNumber(number string) (major int, minor string) {
	if number == "0" {
		return miscMajor, fmt.Sprint(tpmMinor)
	}
	return dynamicMajor, number
}

// managerMinor is a resource manager's minor number.
func managerMinor(number string) int {
	n, _ := strconv.Atoi(number)
	return dynamicMinor + n
}

// node are the files of something that has a node in /dev.
func node(d *sysfs.Dir, name string, major int, minor any) {
	d.Put("dev", sysfs.Showf("%d:%v", major, minor))
	d.Put("uevent", uevent("MAJOR=%d\nMINOR=%v\nDEVNAME=%s\n", major, minor, name))
}
