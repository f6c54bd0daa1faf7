package uio

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
)

// What is wrong with a device is one line with the cause and what helps, and nothing stays open.
func TestOpenErrors(t *testing.T) {
	bind := "'sudo ring3 bind " + address + " --driver uio_pci_generic'"
	for _, c := range []struct {
		name   string
		device string
		spoil  func(m *machine)
		is     error
		words  []string
	}{
		{"no such address", "0000:00:06.0", nil, bus.ErrGone, []string{"0000:00:06.0", "lspci -D"}},
		{"no address", "00:05.0", nil, nil, []string{`"00:05.0"`, "0000:03:00.0", "uio0"}},
		{"no node", "uio", nil, nil, []string{`"uio"`}},
		{"an odd node", "uio-1", nil, nil, []string{`"uio-1"`}},
		{"no such node", "uio7", nil, bus.ErrGone, []string{"uio7", "/sys/class/uio"}},
		{"no module", "uio7", func(m *machine) { m.remove(filepath.Join(m.sys, "class")) }, bus.ErrGone, []string{"uio7", "modprobe"}},
		{"unbound", address, func(m *machine) {
			m.remove(filepath.Join(m.fn(), "uio"))
			m.remove(filepath.Join(m.fn(), "driver"))
		}, bus.ErrNotSupported, []string{"no kernel driver has it", bind}},
		{"unbound, no module", address, func(m *machine) {
			m.remove(filepath.Join(m.fn(), "uio"))
			m.remove(filepath.Join(m.fn(), "driver"))
			m.remove(filepath.Join(m.sys, "bus/pci/drivers"))
		}, bus.ErrNotSupported, []string{"'sudo modprobe uio_pci_generic', then " + bind}},
		{"another driver", address, func(m *machine) {
			m.remove(filepath.Join(m.fn(), "uio"))
			m.remove(filepath.Join(m.fn(), "driver"))
			m.link("../bus/pci/drivers/e1000e", filepath.Join(m.fn(), "driver"))
		}, bus.ErrBusy, []string{"driver e1000e has it", bind}},
		{"not yet there", address, func(m *machine) { m.remove(filepath.Join(m.fn(), "uio")) }, bus.ErrGone, []string{"being bound"}},
		{"no device file", address, func(m *machine) { m.remove(filepath.Join(m.dev, "uio0")) }, bus.ErrGone, []string{"/dev/uio0"}},
		{"no config space", address, func(m *machine) { m.remove(filepath.Join(m.fn(), "config")) }, bus.ErrGone, []string{"config space"}},
		{"a short config space", address, func(m *machine) { m.write(filepath.Join(m.fn(), "config"), "short") }, bus.ErrProtocol, []string{"bytes, want 256 or 4096"}},
		{"no count", address, func(m *machine) { m.remove(filepath.Join(m.sys, "class/uio/uio0/event")) }, fs.ErrNotExist, []string{"event"}},
		{"an odd map", address, func(m *machine) { m.window(m.fn(), "uio0", 3, 0, 0x1000, 0x1000) }, bus.ErrProtocol, []string{"map 3", "0x1000 of 0x1000"}},
		{"a map without size", address, func(m *machine) {
			m.window(m.fn(), "uio0", 3, 0, 1, 0)
			m.write(filepath.Join(m.fn(), "uio/uio0/maps/map3/size"), "big\n")
		}, bus.ErrProtocol, []string{`"big"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t)
			m.fifo("uio0")
			if c.spoil != nil {
				c.spoil(m)
			}
			t.Run("", func(t *testing.T) {
				bustest.NoLeaks(t)
				d, err := Open(t.Context(), c.device, m.options())
				if d != nil || err == nil {
					t.Fatalf("Open = %v, %v, want an error", d, err)
				}
				if c.is == nil {
					c.is = err
				}
				wantErr(t, "Open", err, c.is, c.words...)
			})
		})
	}
}

func TestOpenContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Open(ctx, address, newMachine(t).options())
	wantErr(t, "Open", err, context.Canceled, address)
}

// Config space that the kernel cut, and files that only root may open.
func TestRightsErrors(t *testing.T) {
	p := &place{name: address, node: "uio0"}
	remedy := "'sudo ring3 up --as $USER NAME=uio:" + address + "'"
	wantErr(t, "config space that is cut", p.configCut(4096, 0, nil), unix.EPERM, "shows 64 of its 4096 bytes", remedy)
	wantErr(t, "config space of nothing", p.configCut(4096, 0, unix.ENODEV), bus.ErrGone, "removed")
	wantErr(t, "config space that fails", p.configCut(256, 0, unix.EIO), unix.EIO, "config space")
	if err := p.configCut(4096, 4, nil); err != nil {
		t.Errorf("config space that is whole: %v", err)
	}
	denied := &fs.PathError{Op: "open", Path: "/dev/uio0", Err: unix.EACCES}
	wantErr(t, "a file of root's", openError(p, "/dev/uio0", denied), fs.ErrPermission, "/dev/uio0", remedy)
	wantErr(t, "a file that cannot be", openError(p, "/dev/uio0", unix.EMFILE), unix.EMFILE, "/dev/uio0")
	wantErr(t, "a file without device", openError(p, "/dev/uio0", unix.ENODEV), bus.ErrGone, "/dev/uio0")
}

// What was passed must be whole, and of this device.
func TestPassedErrors(t *testing.T) {
	m := newMachine(t)
	for _, c := range []struct {
		spoil func(f *Files)
		want  string
	}{
		{func(f *Files) { f.Device = "0000:00:06.0" }, "those of 0000:00:06.0"},
		{func(f *Files) { f.UIO = nil }, "lack /dev/uio0"},
		{func(f *Files) { f.Config = nil }, "lack config space"},
		{func(f *Files) { f.Config, _ = os.Open(os.DevNull); f.Config.Close() }, "copying the descriptor of config"},
	} {
		o := m.options()
		o.Files = m.files()
		c.spoil(o.Files)
		d, err := Open(t.Context(), address, o)
		if d != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Open = %v, %v, want an error that says %q", d, err, c.want)
		}
	}
}

// Root opens; the descriptors go through names to another process, where they are enough.
func TestFiles(t *testing.T) {
	bustest.NoLeaks(t)
	m := newMachine(t)
	m.fifo("uio0")
	f, err := OpenFiles(address, m.options())
	if err != nil {
		t.Fatal(err)
	}
	named := f.Named()
	var names []string
	for n := range named {
		names = append(names, n)
	}
	slices.Sort(names)
	if want := []string{"config", "reset", "resource0", "resource1", "resource2", "uio"}; !slices.Equal(names, want) {
		t.Errorf("Named = %v, want %v", names, want)
	}
	// The other process can open nothing.
	for _, name := range []string{"config", "reset", "resource0", "resource1", "resource2"} {
		if err := os.Rename(filepath.Join(m.fn(), name), filepath.Join(m.fn(), "was-"+name)); err != nil {
			t.Fatal(err)
		}
	}
	m.remove(filepath.Join(m.dev, "uio0"))
	o := m.options()
	if o.Files, err = FilesOf(address, named); err != nil {
		t.Fatal(err)
	}
	d := m.openWith(address, o)
	byNode := o // whoever passes them knows the name that a user gave
	if byNode.Files, err = FilesOf("/dev/uio0", named); err != nil {
		t.Fatal(err)
	}
	if d := m.openWith("uio0", byNode); d.Address() != address {
		t.Errorf("Address of uio0 = %s, want %s", d.Address(), address)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close = %v, want ErrClosed", err)
	}
	if _, err := d.Region(0); err != nil {
		t.Errorf("Region with the files passed = %v", err)
	}
	if err := d.Reset(t.Context()); err != nil {
		t.Errorf("Reset with the files passed = %v", err)
	}
	for _, bad := range []string{"resource8", "resource", "resource-1", "vendor"} {
		if f, err := FilesOf(address, map[string]*os.File{bad: nil}); f != nil || err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("FilesOf %q = %v, %v, want an error that names it", bad, f, err)
		}
	}
}

// Root is not content with less.
func TestOpenFilesErrors(t *testing.T) {
	m := newMachine(t)
	m.fifo("uio0")
	m.remove(filepath.Join(m.fn(), "resource1"))
	t.Run("", func(t *testing.T) {
		bustest.NoLeaks(t)
		f, err := OpenFiles(address, m.options())
		if f != nil {
			t.Error("OpenFiles gave files")
		}
		wantErr(t, "OpenFiles without a BAR", err, bus.ErrGone, "region 1")
	})
	// Who opens for himself uses what there is.
	d := m.openWith(address, m.options())
	_, err := d.Region(1)
	wantErr(t, "Region(1)", err, bus.ErrGone, "region 1")
	if _, err := d.Region(0); err != nil {
		t.Errorf("Region(0) = %v", err)
	}
	_, err = OpenFiles("uio9", m.options())
	wantErr(t, "OpenFiles of nothing", err, bus.ErrGone, "uio9")
	platform(m)
	m.fifo("uio1")
	f, err := OpenFiles("uio1", m.options())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n := f.Named(); len(n) != 1 || n["uio"] == nil || f.Device != "uio1" {
		t.Errorf("OpenFiles of a board's = %+v, want /dev/uio1 alone", f)
	}
}

// A PCI function may be asked for by its UIO device.
func TestPCIByNode(t *testing.T) {
	m := newMachine(t)
	m.fifo("uio0")
	for _, name := range []string{"uio0", "/dev/uio0"} {
		if d := m.openWith(name, m.options()); d.Address() != address || d.Function() == nil {
			t.Errorf("%s: Address = %s, Function = %v, want %s", name, d.Address(), d.Function(), address)
		}
	}
}
