package pci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/sysfs"
)

// owner is a host that does what files ask for, on a tree of its own, and notes it.
type owner struct {
	s        *Sysfs
	fns      map[Addr]*Function
	done     []string
	override map[Addr]string
	noprobe  bool
	ids      map[ID]bool
	fail     error // what the next operation says
}

func (o *owner) note(format string, args ...any) error {
	o.done = append(o.done, fmt.Sprintf(format, args...))
	err := o.fail
	o.fail = nil
	return err
}

func (o *owner) RemoveFunction(_ context.Context, a Addr) error {
	o.s.Remove(o.fns[a])
	return o.note("remove %s", a)
}

func (o *owner) RescanBus(_ context.Context, a *Addr) error {
	if a == nil {
		return o.note("rescan")
	}
	return o.note("rescan %s", a)
}

func (o *owner) ResetFunction(_ context.Context, a Addr) error { return o.note("reset %s", a) }

func (o *owner) BindDriver(_ context.Context, driver string, a Addr) error {
	o.s.Add(o.fns[a], nil, SysfsInfo{Driver: driver, Attrs: map[string]*sysfs.File{driver: sysfs.Showf("1")}})
	return o.note("bind %s %s", driver, a)
}

func (o *owner) UnbindDriver(_ context.Context, driver string, a Addr) error {
	o.s.Add(o.fns[a], nil, SysfsInfo{})
	return o.note("unbind %s %s", driver, a)
}

func (o *owner) ProbeFunction(_ context.Context, a Addr) error { return o.note("probe %s", a) }

func (o *owner) Override(a Addr, driver string) error {
	o.override[a] = driver
	return o.note("override %s %q", a, driver)
}

func (o *owner) OverrideOf(a Addr) string { return o.override[a] }

func (o *owner) NewID(_ context.Context, driver string, id ID) error {
	if o.ids[id] {
		return fmt.Errorf("%s: %w", driver, unix.EEXIST)
	}
	o.ids[id] = true
	return o.note("new_id %s %x", driver, id)
}

func (o *owner) RemoveID(driver string, id ID) error {
	if !o.ids[id] {
		return fmt.Errorf("%s: %w", driver, unix.ENODEV)
	}
	delete(o.ids, id)
	return o.note("remove_id %s %x", driver, id)
}

func (o *owner) Autoprobe() bool      { return !o.noprobe }
func (o *owner) SetAutoprobe(on bool) { o.noprobe = !on; _ = o.note("autoprobe %v", on) }

func (o *owner) Uevent(action, devpath, subsystem string, env ...string) error {
	return o.note("%s %s %s %s", action, devpath, subsystem, strings.Join(env, ","))
}

const (
	portDir = "devices/pci1000:00/1000:00:01.0/"
	nicDir  = portDir + "1000:01:00.0/"
)

// ownedTree is a root port with errors counted, and a NIC behind it, that an owner acts on.
func ownedTree(t *testing.T) (*owner, *sysfs.Dir) {
	t.Helper()
	nic := device(0x8086, 0x10d3)
	up := bridge(modelBus{0: nic}).rootPort(false)
	up.set32(CfgRevision, 0x06040000)
	up.set32(0x100, 0x00010001)
	top := enumerate(t, modelBus{0x08: up}, testWindows)
	root := &sysfs.Dir{}
	root.MkdirAll("module/e1000e")
	o := &owner{fns: map[Addr]*Function{}, override: map[Addr]string{}, ids: map[ID]bool{}}
	o.s = NewSysfsOps(root, o)
	for _, f := range top.Functions {
		o.fns[f.Addr] = f
		o.s.Add(f, nil, SysfsInfo{NoReset: f.IsBridge()})
	}
	o.s.AddDriver("e1000e")
	return o, root
}

func file(t *testing.T, root *sysfs.Dir, at string) *sysfs.File {
	t.Helper()
	n, err := root.Walk(at)
	if err != nil {
		t.Fatalf("%s: %v", at, err)
	}
	return n.(*sysfs.File)
}

// Each write, what it gives, and what is done for it.
func TestSysfsWrites(t *testing.T) {
	const (
		nic  = "1000:01:00.0"
		port = "1000:00:01.0"
		drv  = "bus/pci/drivers/e1000e/"
		id   = "{8086 10d3 0 0 0 0}"
		uuid = "a63a5a05-8f2d-4a3c-9f0d-0123456789ab"
	)
	o, root := ownedTree(t)
	for _, c := range []struct {
		at, text string
		want     error
		done     string
	}{
		{nicDir + "rescan", "1\n", nil, "rescan " + nic}, {nicDir + "rescan", "0", nil, ""}, {nicDir + "rescan", "0x2", nil, "rescan " + nic},
		{nicDir + "rescan", "x", unix.EINVAL, ""}, {nicDir + "rescan", "-1", unix.EINVAL, ""}, {nicDir + "rescan", "99999999999999999999", unix.EINVAL, ""},
		{nicDir + "remove", "yes", unix.EINVAL, ""}, {nicDir + "remove", "0", nil, ""},
		{nicDir + "reset", "1", nil, "reset " + nic}, {nicDir + "reset", "0", unix.EINVAL, ""}, {nicDir + "reset", "2", unix.EINVAL, ""},
		{nicDir + "driver_override", "vfio-pci\nx", nil, "override " + nic + ` "vfio-pci"`}, {nicDir + "driver_override", "a\x00\x00", nil, "override " + nic + ` "a"`},
		{nicDir + "driver_override", "\n", nil, "override " + nic + ` ""`}, {nicDir + "driver_override", strings.Repeat("x", 4095), unix.EINVAL, ""},
		{nicDir + "driver_override", strings.Repeat("x", 4094), nil, "override " + nic + ` "` + strings.Repeat("x", 4094) + `"`},
		{nicDir + "driver_override", "\n", nil, "override " + nic + ` ""`},
		{portDir + "uevent", "change", nil, "change /devices/pci1000:00/1000:00:01.0 pci SYNTH_UUID=0,PCI_CLASS=60400,PCI_ID=1B36:000C,PCI_SUBSYS_ID=0000:0000,PCI_SLOT_NAME=" + port + ",MODALIAS=pci:v00001B36d0000000Csv00000000sd00000000bc06sc04i00"},
		{nicDir + "uevent", "shout", unix.EINVAL, ""}, {nicDir + "uevent", "ad\n", unix.EINVAL, ""}, {nicDir + "uevent", "add x", unix.EINVAL, ""}, {nicDir + "uevent", "\n", unix.EINVAL, ""},
		{"bus/pci/uevent", "add\n", nil, "add /bus/pci bus SYNTH_UUID=0"},
		{"bus/pci/uevent", "bind " + uuid + " A=1 b=x\n", nil, "bind /bus/pci bus SYNTH_UUID=" + uuid + ",SYNTH_ARG_A=1,SYNTH_ARG_b=x"},
		{"bus/pci/uevent", "bind " + uuid + " A=1,2", unix.EINVAL, ""},
		{"bus/pci/rescan", "1", nil, "rescan"}, {"bus/pci/rescan", "", unix.EINVAL, ""},
		{"bus/pci/drivers_probe", nic + "\n", nil, "probe " + nic}, {"bus/pci/drivers_probe", "1000:01:00.1", unix.EINVAL, ""}, {"bus/pci/drivers_probe", "nic", unix.EINVAL, ""},
		{"bus/pci/drivers_autoprobe", "0", nil, "autoprobe false"}, {"bus/pci/drivers_autoprobe", "x", nil, "autoprobe true"},
		{drv + "unbind", nic, unix.ENODEV, ""},
		{drv + "bind", nic + "\n", nil, "bind e1000e " + nic}, {drv + "bind", "1000:02:00.0", unix.ENODEV, ""}, {drv + "bind", nic + " ", unix.ENODEV, ""}, {drv + "bind", strings.ToUpper("1000:0a:00.0"), unix.ENODEV, ""},
		{drv + "unbind", port, unix.ENODEV, ""}, {drv + "unbind", nic, nil, "unbind e1000e " + nic},
		{drv + "new_id", "8086 10d3\n", nil, "new_id e1000e " + id}, {drv + "new_id", "0x8086 10D3 ffffffff ffffffff 0 0 0", unix.EEXIST, ""}, {drv + "new_id", "8086", unix.EINVAL, ""},
		{drv + "remove_id", "8086 10d3", nil, "remove_id e1000e " + id}, {drv + "remove_id", "8086 10d3", unix.ENODEV, ""}, {drv + "remove_id", "x", unix.EINVAL, ""},
		{drv + "uevent", "remove", nil, "remove /bus/pci/drivers/e1000e drivers SYNTH_UUID=0"},
		{portDir + "remove", "1", nil, "remove " + port},
	} {
		o.done = nil
		f := file(t, root, c.at)
		n, err := f.Write(t.Context(), []byte(c.text))
		if c.text == "" {
			n, err = f.Store(t.Context(), nil) // no write(2) is empty
		}
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || err == nil && n != len(c.text) || err != nil && n != 0 {
			t.Errorf("writing %.40q to %s = %d, %v, want %v", c.text, c.at, n, err, c.want)
		}
		if got := strings.Join(o.done, ";"); got != c.done {
			t.Errorf("writing %.40q to %s did %q, want %q", c.text, c.at, got, c.done)
		}
	}
	if names := root.MkdirAll("bus/pci/devices").Names(); len(names) != 0 {
		t.Errorf("after the port was removed there are %v, want nothing", names)
	}
	if len(o.s.attrs) != 0 {
		t.Errorf("after all were removed, files of %v are remembered", o.s.attrs)
	}
}

// What an operation's error is to the writer.
func TestSysfsWriteErrors(t *testing.T) {
	for _, c := range []struct {
		at, text string
		err      error
		want     unix.Errno
	}{
		{nicDir + "reset", "1", bus.ErrNotSupported, unix.ENOTTY}, {nicDir + "rescan", "1", bus.ErrNotSupported, unix.EOPNOTSUPP},
		{nicDir + "remove", "1", bus.ErrGone, unix.ENODEV}, {"bus/pci/rescan", "1", bus.ErrBusy, unix.EBUSY}, {"bus/pci/rescan", "1", bus.ErrTimeout, unix.ETIMEDOUT},
		{"bus/pci/drivers_probe", "1000:01:00.0", bus.ErrBusy, unix.EINVAL}, {"bus/pci/drivers/e1000e/bind", "1000:01:00.0", unix.EBUSY, unix.EBUSY},
		{nicDir + "driver_override", "x", unix.ENOMEM, unix.ENOMEM},
	} {
		o, root := ownedTree(t)
		o.fail = fmt.Errorf("because: %w", c.err)
		n, err := file(t, root, c.at).Write(t.Context(), []byte(c.text))
		var got unix.Errno
		if n != 0 || !errors.As(err, &got) || got != c.want || !strings.Contains(err.Error(), "because") {
			t.Errorf("writing to %s where the host says %v = %d, %v, want %v", c.at, c.err, n, err, c.want)
		}
	}
}

// What is shown, and what is shown anew.
func TestSysfsShown(t *testing.T) {
	o, root := ownedTree(t)
	for at, mode := range map[string]fs.FileMode{
		nicDir + "remove": 0o220, nicDir + "rescan": 0o200, nicDir + "reset": 0o200, nicDir + "driver_override": 0o644, nicDir + "uevent": 0o644,
		"bus/pci/rescan": 0o200, "bus/pci/uevent": 0o200, "bus/pci/drivers_probe": 0o200, "bus/pci/drivers_autoprobe": 0o644,
		"bus/pci/drivers/e1000e/bind": 0o200, "bus/pci/drivers/e1000e/unbind": 0o200, "bus/pci/drivers/e1000e/new_id": 0o200,
		"bus/pci/drivers/e1000e/remove_id": 0o200, "bus/pci/drivers/e1000e/uevent": 0o200, portDir + "aer_dev_fatal": 0o444,
	} {
		if got := file(t, root, at).Mode; got != mode {
			t.Errorf("mode of %s = %o, want %o", at, got, mode)
		}
	}
	for _, at := range []string{portDir + "reset", nicDir + "aer_dev_fatal", nicDir + "aer_rootport_total_err_cor", nicDir + "driver"} {
		if _, err := root.Walk(at); err == nil {
			t.Errorf("%s is there, want it not to be", at)
		}
	}
	nic, port := Addr{Domain: 0x1000, Bus: 1}, Addr{Domain: 0x1000, Dev: 1}
	show := func(at, want string) {
		t.Helper()
		if got := text(t, root, at); got != want {
			t.Errorf("%s = %q, want %q", at, got, want)
		}
	}
	show(nicDir+"driver_override", "(null)\n")
	o.override[nic] = "vfio-pci"
	show(nicDir+"driver_override", "vfio-pci\n")
	show("bus/pci/drivers_autoprobe", "1\n")
	o.noprobe = true
	show("bus/pci/drivers_autoprobe", "0\n")

	stats := o.fns[port].AER
	stats.Count(AERCorrectable, 1<<6)
	stats.CountRoot(AERNonFatal)
	show(portDir+"aer_dev_correctable", "RxErr 0\nBadTLP 1\nBadDLLP 0\nRollover 0\nTimeout 0\nNonFatalErr 0\nCorrIntErr 0\nHeaderOF 0\nTOTAL_ERR_COR 1\n")
	show(portDir+"aer_rootport_total_err_nonfatal", "1\n")
	show(portDir+"aer_rootport_total_err_fatal", "0\n")
	show(portDir+"aer_rootport_total_err_cor", "0\n")

	// Bound and unbound: the driver's files come and go, and so does what the uevent says.
	if err := o.BindDriver(t.Context(), "e1000e", nic); err != nil {
		t.Fatal(err)
	}
	show(nicDir+"e1000e", "1\n")
	show(nicDir+"driver/module/../../module/e1000e/../e1000e/../../bus/pci/drivers_autoprobe", "0\n")
	if got := text(t, root, nicDir+"uevent"); !strings.HasPrefix(got, "DRIVER=e1000e\n") {
		t.Errorf("uevent of a bound function = %q", got)
	}
	if err := o.BindDriver(t.Context(), "other", nic); err != nil {
		t.Fatal(err)
	}
	show(nicDir+"other", "1\n")
	if _, err := root.Walk(nicDir + "e1000e"); err == nil {
		t.Error("a file of the driver before is still there")
	}
	o.s.RemoveDriver("other")
	if err := o.UnbindDriver(t.Context(), "other", nic); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Walk(nicDir + "other"); err == nil {
		t.Error("a file of a driver is there, and no driver")
	}
}

func TestParseNewID(t *testing.T) {
	for _, c := range []struct {
		s    string
		want ID
		ok   bool
	}{
		{"8086 10d3", ID{Vendor: 0x8086, Device: 0x10d3}, true},
		{" 0X8086\n0x10D3\t1 2 20000 ffff00 0", ID{Vendor: 0x8086, Device: 0x10d3, SubVendor: 1, SubDevice: 2, Class: 0x20000, ClassMask: 0xffff00}, true},
		{"ffffffff ffffffff ffffffff ffffffff 10802 ffffff", ID{Vendor: Any, Device: Any, Class: 0x10802, ClassMask: 0xffffff}, true},
		{"8086 10d3 and more", ID{Vendor: 0x8086, Device: 0x10d3, SubVendor: 0xa}, true}, // scanf takes the a
		{"8086 10d3 0x", ID{Vendor: 0x8086, Device: 0x10d3}, true},
		{"8086 10d3 1 2 3 4 0 rest", ID{Vendor: 0x8086, Device: 0x10d3, SubVendor: 1, SubDevice: 2, Class: 3, ClassMask: 4}, true},
		{"", ID{}, false}, {"8086", ID{}, false}, {"8086:10d3", ID{}, false}, {"-1 2", ID{}, false}, {"18086 1", ID{}, false}, {"123456789 1", ID{}, false},
		{"8086 10d3 1 2 3 4 5", ID{}, false},
	} {
		got, err := parseNewID(c.s)
		if got != c.want || (err == nil) != c.ok || err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("parseNewID(%q) = %+v, %v, want %+v", c.s, got, err, c.want)
		}
	}
}

func FuzzParseNewID(f *testing.F) {
	f.Add("8086 10d3")
	f.Add("0xffffffff 1 2 3 4 5 0")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := parseNewID(s); err != nil && (id != ID{} || !errors.Is(err, unix.EINVAL)) {
			t.Fatalf("parseNewID(%q) = %+v, %v", s, id, err)
		}
	})
}

// Whatever is written anywhere: a count or an error, never both, and no panic.
func FuzzSysfsWrites(f *testing.F) {
	for i, s := range []string{"1", "vfio-pci\n", "1000:01:00.0\n", "8086 10d3", "add a63a5a05-8f2d-4a3c-9f0d-0123456789ab A=1"} {
		f.Add(uint8(i), s)
	}
	files := []string{nicDir + "remove", nicDir + "rescan", nicDir + "reset", nicDir + "driver_override", nicDir + "uevent", "bus/pci/rescan", "bus/pci/uevent",
		"bus/pci/drivers_probe", "bus/pci/drivers_autoprobe", "bus/pci/drivers/e1000e/bind", "bus/pci/drivers/e1000e/unbind", "bus/pci/drivers/e1000e/new_id",
		"bus/pci/drivers/e1000e/remove_id", "bus/pci/drivers/e1000e/uevent"}
	f.Fuzz(func(t *testing.T, which uint8, s string) {
		if s == "" {
			return
		}
		_, root := ownedTree(t)
		p := []byte(s)
		if n, err := file(t, root, files[int(which)%len(files)]).Write(t.Context(), p); (err == nil) != (n == min(len(p), pageSize)) || err != nil && n != 0 {
			t.Fatalf("writing %q to %s = %d, %v", s, files[int(which)%len(files)], n, err)
		}
	})
}
