package host

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
)

// A worker has the functions that its plan names, and is told by one line what is wrong.
func TestHeldVFIO(t *testing.T) {
	out, err := newOutside(Config{}, groupPlan{Plan: Plan{Devices: []DeviceSpec{{Name: "eth0", Backend: "vfio", Device: "0000:ff:1f.7"}, {Name: "edu0", Backend: "sim", Device: "edu"}}}})
	if err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]error{
		`{`:                       syscall.EINVAL,
		`{"device":7}`:            syscall.EINVAL,
		`{"device":"edu"}`:        os.ErrPermission,
		`{"device":"0000:00:0"}`:  os.ErrPermission,
		`{}`:                      os.ErrPermission,
		strings.Repeat(" ", 5000): bus.ErrProtocol,
		`{"device":"0000:ff:1f.7","request":{"op":"open"}}`: os.ErrPermission,
		`{"device":"0000:ff:1f.7"}`:                         bus.ErrGone,
	} {
		if b, files, err := out.Call(t.Context(), outsideVFIO, []byte(body), nil, nil); !errors.Is(err, want) || b != nil || files != nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.60s = %q, %v, want %v on one line", body, b, err, want)
		}
	}
	if err := errors.Join(out.Quiesce(t.Context()), out.Close(), out.Close()); err != nil {
		t.Error(err)
	}
	if _, _, err := out.Call(t.Context(), outsideVFIO, []byte(`{"device":"0000:ff:1f.7"}`), nil, nil); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("VFIO after Close = %v, want ErrClosed", err)
	}
}

// What the kernel alone knows of a function is told, and stands in the worker's tree as it does without one.
func TestFunctionFacts(t *testing.T) {
	root := t.TempDir()
	at := filepath.Join(root, "devices/pci0000:00/0000:00:0a.0/0000:02:00.0")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	links := filepath.Join(root, "bus/pci/devices")
	if err := errors.Join(os.WriteFile(filepath.Join(at, "numa_node"), []byte("-1\n"), 0o644), os.MkdirAll(links, 0o755),
		os.Symlink("../../../devices/pci0000:00/0000:00:0a.0/0000:02:00.0", filepath.Join(links, "0000:02:00.0"))); err != nil {
		t.Fatal(err)
	}
	f := factsOf(syspci.Root(root), pci.Addr{Bus: 2})
	if want := (FunctionFacts{Parents: []string{"0000:00:0a.0"}, Attrs: map[string]string{"numa_node": "-1"}}); !reflect.DeepEqual(f, want) {
		t.Errorf("factsOf = %+v, want %+v", f, want)
	}
	if p, err := f.parent(); err != nil || p == nil || p.Addr != (pci.Addr{Dev: 10}) || p.Header != pci.HeaderBridge || p.Parent != nil {
		t.Errorf("parent = %+v, %v, want the bridge", p, err)
	}
	if _, err := (FunctionFacts{Parents: []string{"there"}}).parent(); err == nil {
		t.Error("an address that is none is taken")
	}
}
