package syspci

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// fakeFunction puts a function into a tree, with these files beside those it needs.
func fakeFunction(t *testing.T, r Root, addr string, files map[string]string) {
	t.Helper()
	dir := filepath.Join(string(r), "bus/pci/devices", addr)
	all := map[string]string{
		"vendor": "0x8086\n", "device": "0x10d3\n", "subsystem_vendor": "0x8086\n", "subsystem_device": "0xa01f\n",
		"class": "0x020000\n", "revision": "0x03\n", "driver_override": "(null)\n", "numa_node": "-1\n",
		"resource": e1000eResource,
	}
	for name, s := range files {
		all[name] = s
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, s := range all {
		var err error
		if to, ok := strings.CutPrefix(s, "-> "); ok {
			err = os.Symlink(to, filepath.Join(dir, name))
		} else {
			err = os.WriteFile(filepath.Join(dir, name), []byte(s), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// e1000eResource is the file of QEMU's e1000e: 128 KiB, 128 KiB, 32 I/O ports, 16 KiB, and a ROM.
const e1000eResource = `0x00000000feb80000 0x00000000feb9ffff 0x0000000000040200
0x00000000feba0000 0x00000000febbffff 0x0000000000040200
0x000000000000c080 0x000000000000c09f 0x0000000000040101
0x00000000febd0000 0x00000000febd3fff 0x0000000000040200
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x00000000feb40000 0x00000000feb7ffff 0x0000000000046200
`

func addr(t testing.TB, s string) pci.Addr {
	t.Helper()
	a, err := pci.ParseAddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestFunction(t *testing.T) {
	r := Root(t.TempDir())
	fakeFunction(t, r, "0000:03:00.0", map[string]string{
		"driver": "-> ../../../../bus/pci/drivers/e1000e", "iommu_group": "-> ../../../kernel/iommu_groups/12",
		"driver_override": "vfio-pci\n", "numa_node": "1\n",
	})
	f, err := r.Function(addr(t, "0000:03:00.0"))
	if err != nil {
		t.Fatal(err)
	}
	wantID := pci.FunctionID{Vendor: 0x8086, Device: 0x10d3, SubVendor: 0x8086, SubDevice: 0xa01f, Class: 0x020000, Revision: 3}
	if f.ID != wantID || f.Driver != "e1000e" || f.Group != 12 || f.Override != "vfio-pci" || f.NUMA != 1 || f.Bridge {
		t.Errorf("Function = %+v, want what its files say", f)
	}
	wantBARs := []bus.RegionInfo{
		{Index: 0, Size: 0x20000, Addr: 0xfeb80000},
		{Index: 1, Size: 0x20000, Addr: 0xfeba0000},
		{Index: 2, Size: 0x20, Addr: 0xc080, Kind: bus.RegionIO},
		{Index: 3, Size: 0x4000, Addr: 0xfebd0000},
	}
	if !slices.Equal(f.BARs, wantBARs) {
		t.Errorf("BARs = %+v, want %+v", f.BARs, wantBARs)
	}
	if got, want := f.String(), "0000:03:00.0 (8086:10d3, driver e1000e)"; got != want {
		t.Errorf("String = %q, want %q", got, want)
	}

	fakeFunction(t, r, "0000:00:05.0", map[string]string{"class": "0x060400\n"})
	if f, err = r.Function(addr(t, "0000:00:05.0")); err != nil {
		t.Fatal(err)
	}
	if !f.Bridge || f.Driver != "" || f.Group != NoGroup || f.Override != "" || f.NUMA != -1 {
		t.Errorf("Function = %+v, want a bridge with no driver, group, override or node", f)
	}
	if got, want := f.String(), "0000:00:05.0 (8086:10d3, no driver)"; got != want {
		t.Errorf("String = %q, want %q", got, want)
	}
}

func TestFunctionErrors(t *testing.T) {
	r := Root(t.TempDir())
	_, err := r.Function(addr(t, "0000:03:00.0"))
	if !errors.Is(err, bus.ErrGone) || !strings.Contains(err.Error(), "0000:03:00.0: no such PCI function") {
		t.Errorf("Function where there is none = %v, want ErrGone and its address", err)
	}
	for name, bad := range map[string]string{
		"vendor": "0x18086\n", "class": "0x1000000\n", "revision": "three\n", "device": "",
		"resource": "nonsense\n", "iommu_group": "-> ../twelve",
	} {
		fakeFunction(t, r, "0000:03:00.0", map[string]string{name: bad})
		_, err := r.Function(addr(t, "0000:03:00.0"))
		if !errors.Is(err, bus.ErrProtocol) || !strings.Contains(err.Error(), name) {
			t.Errorf("Function with %s %q = %v, want ErrProtocol that names the file", name, bad, err)
		}
		if err := os.RemoveAll(r.Path(addr(t, "0000:03:00.0"))); err != nil {
			t.Fatal(err)
		}
	}
	// A file that is not there, of a function that is.
	fakeFunction(t, r, "0000:03:00.0", nil)
	if err := os.Remove(r.Path(addr(t, "0000:03:00.0"), "class")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Function(addr(t, "0000:03:00.0")); !errors.Is(err, unix.ENOENT) || errors.Is(err, bus.ErrGone) {
		t.Errorf("Function without class = %v, want ENOENT", err)
	}
}

func TestFunctions(t *testing.T) {
	r := Root(t.TempDir())
	if f, err := r.Functions(); f != nil || err != nil {
		t.Errorf("Functions of a machine without PCI = %v, %v, want none", f, err)
	}
	for _, a := range []string{"0000:10:00.0", "0000:03:00.1", "10000:00:00.0", "0000:03:00.0"} {
		fakeFunction(t, r, a, nil)
	}
	if err := os.Mkdir(filepath.Join(string(r), "bus/pci/devices/odd"), 0o755); err != nil {
		t.Fatal(err)
	}
	// One that vanished after it was listed.
	if err := os.Symlink("../nowhere", r.Path(addr(t, "0000:04:00.0"))); err != nil {
		t.Fatal(err)
	}
	all, err := r.Functions()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"0000:03:00.0", "0000:03:00.1", "0000:10:00.0", "10000:00:00.0"}
	if got := addrs(all); !slices.Equal(got, want) {
		t.Errorf("Functions = %v, want %v", got, want)
	}
	fakeFunction(t, r, "0000:05:00.0", map[string]string{"class": "?"})
	if f, err := r.Functions(); err == nil || f != nil {
		t.Errorf("Functions with one that lies = %v, %v, want an error", f, err)
	}
}

func addrs(f []*Function) []string {
	var out []string
	for _, x := range f {
		out = append(out, x.Addr.String())
	}
	return out
}

func TestGroups(t *testing.T) {
	r := Root(t.TempDir())
	dir := filepath.Join(string(r), "kernel/iommu_groups/7")
	if _, err := r.Members(7); err == nil || !strings.Contains(err.Error(), "group 7") {
		t.Errorf("Members of no group = %v, want an error that names it", err)
	}
	if _, err := r.GroupType(7); err == nil || !strings.Contains(err.Error(), "group 7") {
		t.Errorf("GroupType of no group = %v, want an error that names it", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "devices"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"0000:03:00.1", "0000:03:00.0", "0000:03:00.2", "a platform device"} {
		if err := os.WriteFile(filepath.Join(dir, "devices", name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fakeFunction(t, r, "0000:03:00.0", nil)
	fakeFunction(t, r, "0000:03:00.1", nil)
	f, err := r.Members(7)
	if want := []string{"0000:03:00.0", "0000:03:00.1"}; err != nil || !slices.Equal(addrs(f), want) {
		t.Errorf("Members = %v, %v, want %v: the third vanished", addrs(f), err, want)
	}
	if err := os.WriteFile(filepath.Join(dir, "type"), []byte("DMA-FQ\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if s, err := r.GroupType(7); s != "DMA-FQ" || err != nil {
		t.Errorf("GroupType = %q, %v, want DMA-FQ", s, err)
	}
}

func TestParseResource(t *testing.T) {
	const none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
	for _, c := range []struct {
		name, in string
		want     []bus.RegionInfo
	}{
		{"a 64-bit prefetchable BAR above 4 GiB", none + none + "0x0000380000000000 0x000038000000ffff 0x000000000014220c\n" + none + none + none,
			[]bus.RegionInfo{{Index: 2, Size: 0x10000, Addr: 0x380000000000, Prefetch: true, Is64: true}}},
		{"one that was not placed", "0x0000000000000000 0x0000000000000fff 0x0000000020040200\n" + none + none + none + none + none,
			[]bus.RegionInfo{{Index: 0, Size: 0x1000}}},
		{"one at an address but not placed", "0x00000000fe000000 0x00000000fe000fff 0x0000000020040200\n" + none,
			[]bus.RegionInfo{{Index: 0, Size: 0x1000}}},
		{"a line without a kind", "0x0000000000001000 0x0000000000001fff 0x0000000000000000\n", nil},
		{"lines behind the BARs", none + none + none + none + none + none + "rubbish", nil},
		{"nothing but zeros", none, nil},
	} {
		got, err := parseResource(strings.TrimSuffix(c.in, "\n"))
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: parseResource = %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
	for _, bad := range []string{
		"", "0x0 0x0", "0x0 0x0 0x0 0x0", "0x0 0x0 x", "-1 0x0 0x200", "0x1000 0xfff 0x200",
		"0x0 0xffffffffffffffff 0x200", "0x0 0x1ffffffffffffffff 0x200",
	} {
		if got, err := parseResource(bad); got != nil || !errors.Is(err, bus.ErrProtocol) {
			t.Errorf("parseResource(%q) = %+v, %v, want ErrProtocol", bad, got, err)
		}
	}
}

// FuzzParseResource: an error or regions, never both, and regions that make sense.
func FuzzParseResource(f *testing.F) {
	f.Add(e1000eResource)
	f.Add("0x0 0xffffffffffffffff 0x200\n")
	f.Add("0xfffffffffffff000 0xffffffffffffffff 0x100200\n")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseResource(s)
		if err != nil && got != nil {
			t.Fatalf("parseResource = %+v and %v", got, err)
		}
		last := -1
		for _, r := range got {
			if r.Index <= last || r.Index >= bars || r.Size == 0 || r.Addr+r.Size-1 < r.Addr {
				t.Errorf("parseResource has %+v after index %d", r, last)
			}
			last = r.Index
		}
	})
}
