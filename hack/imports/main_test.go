package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, c := range []struct{ path, imp, want string }{
		// Downwards.
		{"bus/pci/x.go", "bus", ""},
		{"bus/x.go", "bus/pci", "above it"},
		{"drivers/e1000/tx.go", "netdev", ""},
		{"netdev/x.go", "drivers/e1000", "above it"},
		{"host/up.go", "bus/qemu", ""},
		{"internal/node/x.go", "procfs", "above it"},
		{"bus/dma/x.go", "bus/pci", ""}, // one layer
		{"cmd/ring3/main.go", "drivers/e1000", ""},
		{"host/up.go", "cmd/ring3", "above it"},
		// Apart.
		{"drivers/e1000/tx.go", "bus/qemu", "a driver imports no backend"},
		{"drivers/e1000/tx.go", "bus/sim/x", "a driver imports no backend"},
		{"drivers/e1000/tx.go", "bus/simple", ""},
		{"drivers/e1000/tx.go", "drivers/edu", "no other driver"},
		{"drivers/e1000/phy/tx.go", "drivers/e1000", ""},
		{"drivers/aer/x.go", "drivers/portbus", ""},
		{"bus/qemu/x.go", "drivers/e1000", "a backend imports no driver"},
		{"bus/qemu/x.go", "vfio", "no other backend"},
		{"bus/qemu/x.go", "bus/qemu/sub", ""},
		{"pktgen/x.go", "tpmdd", "no other subsystem"},
		{"pktgen/x.go", "bus/qemu", "contract"},
		{"rionet/x.go", "rionet/rapidio", ""},
		{"rionet/fabricd/x.go", "rionet/fabric", ""},
		{"rionet/fabric/x.go", "rionet/fabricd", "above it"},
		{"rionet/mport/x.go", "bus/ivshmem", "contract"},
		// Nobody's.
		{"host/up.go", "hack/imports", "nobody imports"},
		{"host/up_test.go", "integration", "nobody imports"},
		{"integration/vm/x.go", "integration", ""},
		{"newthing/x.go", "bus", "in no layer"},
		// Tests.
		{"drivers/e1000/x_test.go", "bus/qemu", ""},
		{"bus/x_test.go", "bus/pci", ""},
		{"drivers/portbus/porttest/x.go", "bus/sim", ""},
		{"drivers/portbus/aer/x.go", "drivers/portbus/porttest", "only tests"},
		{"drivers/portbus/aer/x_test.go", "drivers/portbus/porttest", ""},
		// Foreign.
		{"internal/kernfs/x.go", "github.com/hanwen/go-fuse/v2/fuse", ""},
		{"host/x_test.go", "github.com/hanwen/go-fuse/v2/fuse", "only internal/kernfs"},
		{"pktgen/x.go", "github.com/google/gopacket/layers", "only internal/frame"},
		{"pktgen/x_test.go", "github.com/google/gopacket/layers", ""},
		{"bus/trace/tracefile/x.go", "github.com/google/gopacket/pcapgo", ""},
		{"bus/trace/x.go", "github.com/expr-lang/expr", "only bus/trace/tracefile"},
		{"internal/figures/x.go", "github.com/prometheus/client_golang/prometheus", ""},
		{"pktgen/x.go", "github.com/prometheus/client_golang/prometheus", "only internal/figures"},
		{"host/x.go", "github.com/gdamore/tcell/v2", "only internal/figures"},
		{"integration/x_test.go", "github.com/creack/pty", ""},
		{"host/x.go", "github.com/creack/pty", "only tests"},
		{"pktgen/x.go", "C", "cgo"},
		{"pktgen/x_test.go", "C", "cgo"},
		{"bus/dma/order_unsafe.go", "unsafe", "without a // SAFETY:"},
		{"bus/dma/order.go", "unsafe", "only in files"},
		{"host/x_unsafe.go", "unsafe", "only in files"},
		{"host/x.go", "unsafely", ""},
	} {
		imp := c.imp
		if !strings.Contains(imp, ".") && imp != "C" && !strings.HasPrefix(imp, "unsafe") {
			imp = module + "/" + imp
		}
		got := strings.Join(check(file{path: c.path, imports: []string{imp}}), "; ")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s importing %s: %q, want %q", c.path, c.imp, got, c.want)
		}
	}
	if got := check(file{path: "bus/mmio/a_unsafe.go", imports: []string{"unsafe"}, safety: true}); got != nil {
		t.Errorf("unsafe with its comment: %q", got)
	}
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	write := func(name, src string) {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(src), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := run(dir, &bytes.Buffer{}); err == nil {
		t.Error("an empty folder passes")
	}
	write("bus/ok.go", "package bus\nimport \"fmt\"\n")
	write("bus/testdata/x.go", "not go")
	write(".cache/x.go", "not go")
	if err := run(dir, &bytes.Buffer{}); err != nil {
		t.Errorf("run = %v", err)
	}
	write("bus/tagged.go", "//go:build never\n\npackage bus\nimport _ \""+module+"/host\"\n")
	var out bytes.Buffer
	if err := run(dir, &out); err == nil || !strings.HasPrefix(out.String(), "bus/tagged.go: imports host, which is above it") {
		t.Errorf("run = %v, %q", err, out.String())
	}
}

// TestRepository: the rules hold here.
func TestRepository(t *testing.T) {
	var out bytes.Buffer
	if err := run("../..", &out); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
}
