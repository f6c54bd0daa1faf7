// Imports checks that packages of ring3 import each other downwards only, as
// ARCHITECTURE.md's layers say, and the other rules on what a file may import:
//
//	go run ./hack/imports [DIR]
//
// It reads every Go file below DIR (the current directory), whatever its build tags,
// prints one line for each breach and exits 1 if there is one. Tests may import
// sideways and upwards, but no more than the rest may they import hack or integration,
// use cgo, or use unsafe where it does not belong.
package main

import (
	"bytes"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const module = "github.com/ring3dev/ring3"

// layers are from the bottom up. A package belongs to the longest entry that is its path
// or a parent of it, and imports only from its own layer and those below.
var layers = [][]string{
	{"internal/ioctl", "internal/node", "internal/cpuset", "internal/osthread", "internal/crash", "internal/mounts", "internal/netspace", "internal/frame", "internal/journal", "internal/klog", "internal/uevent", "internal/profile", "internal/rt", "internal/runlabel", "internal/child", "internal/sockpath", "internal/unixconn"},
	{"procfs", "sysfs", "devfs"},
	{"bus"}, // the contract itself
	{"bus/mmio", "bus/dma", "bus/pci", "bus/bustest", "internal/iova", "internal/physmem", "internal/fdio", "internal/syspci", "internal/dmafault", "internal/swtpm", "internal/link", "internal/mirror", "internal/sandbox", "internal/ledger"},
	{"bus/qemu", "bus/sim", "bus/ivshmem", "bus/trace", "bus/trace/tracefile", "bus/fault", "bus/aerinject", "vfio", "uio"},
	{"netdev"},
	{"drivers/portbus"},
	{"drivers"},
	{"rionet/rapidio"}, // with scan
	{"rionet/fabric", "rionet/shm"},
	{"pktgen", "tpmdd", "rionet", "netdev/tap"}, // rionet: with mport, fabricd and rejoin
	{"internal/kernfs", "internal/figures", "internal/instance", "internal/userns", "internal/hwbind"},
	{"host"},
	{"internal/bench", "internal/campaign"},
	{"cmd", "examples"},
	{"hack", "integration"},
}

// Packages of one layer that import each other only where the paths are the same tree,
// or not at all.
var apart = []struct{ dirs, why string }{
	{"drivers", "a driver imports no other driver (what ports share is in drivers/portbus)"},
	{"pktgen tpmdd rionet", "a subsystem imports no other subsystem"},
	{"bus/qemu bus/sim bus/ivshmem vfio uio", "a backend imports no other backend"},
}

// backends are what a driver and what stands on drivers never sees.
var backends = []string{"bus/qemu", "bus/sim", "bus/ivshmem", "vfio", "uio"}

// helpers are packages for tests alone: they import what tests may, and only tests import them.
var helpers = []string{"drivers/portbus/porttest"}

// foreign says who may import a module that is kept in one place.
var foreign = []struct {
	path  string
	dirs  []string
	tests bool // tests anywhere may
}{
	{"github.com/hanwen/go-fuse", []string{"internal/kernfs"}, false},
	{"github.com/google/gopacket", []string{"internal/frame", "bus/trace/tracefile"}, true},
	{"github.com/google/go-tpm", []string{"tpmdd"}, true},
	{"github.com/expr-lang/expr", []string{"bus/trace/tracefile"}, false},
	{"github.com/spf13/cobra", []string{"host", "cmd"}, false},
	{"github.com/vishvananda", []string{"netdev/tap", "internal/bench"}, true},
	{"github.com/elastic/go-seccomp-bpf", []string{"internal/sandbox"}, false},
	{"golang.org/x/net", []string{"internal/sandbox"}, false},
	{"golang.org/x/perf", []string{"internal/bench"}, false},
	{"github.com/prometheus", []string{"internal/figures"}, true},
	{"github.com/gdamore/tcell", []string{"internal/figures"}, false},
	{"go.yaml.in/yaml", []string{"rionet/fabric"}, false},
	{"github.com/creack/pty", nil, true},
	{"github.com/google/go-tpm", []string{"tpmdd", "host"}, true},
	{"github.com/hugelgupf/p9", []string{"integration/guest"}, false},
	{"github.com/u-root", []string{"integration/vm", "internal/hwbind"}, false},
}

// unsafeDirs are where unsafe may stand, in files named *_unsafe.go or *_unsafe_test.go.
var unsafeDirs = []string{"bus/mmio", "bus/dma", "internal/ioctl"}

// file is what matters of one Go file.
type file struct {
	path    string // from the root, with slashes
	imports []string
	safety  bool // has a // SAFETY: comment
}

func main() {
	root := "."
	if len(os.Args) > 1 {
		root = os.Args[1]
	}
	if err := run(root, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "imports:", err)
		os.Exit(1)
	}
}

func run(root string, stdout io.Writer) error {
	files, err := read(root)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("no Go files below %s", root)
	}
	bad := 0
	for _, f := range files {
		for _, msg := range check(f) {
			fmt.Fprintf(stdout, "%s: %s\n", f.path, msg)
			bad++
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d breaches of the import rules; hack/imports/main.go has them", bad)
	}
	return nil
}

// read finds the Go files below root, leaving out what the go command leaves out.
func read(root string) ([]file, error) {
	var out []file
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path != root && (name[0] == '.' || name[0] == '_' || name == "testdata" || name == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || name[0] == '.' || name[0] == '_' {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		f, err := parse(filepath.ToSlash(rel), src)
		if err != nil {
			return err
		}
		out = append(out, f)
		return nil
	})
	return out, err
}

func parse(path string, src []byte) (file, error) {
	ast, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ImportsOnly)
	if err != nil {
		return file{}, err
	}
	f := file{path: path, safety: bytes.Contains(src, []byte("// SAFETY:"))}
	for _, i := range ast.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			return file{}, fmt.Errorf("%s: import %s: %w", path, i.Path.Value, err)
		}
		f.imports = append(f.imports, p)
	}
	return f, nil
}

// check lists the breaches of one file.
func check(f file) []string {
	dir := "."
	if i := strings.LastIndexByte(f.path, '/'); i >= 0 {
		dir = f.path[:i]
	}
	test := strings.HasSuffix(f.path, "_test.go") || belowAny(dir, helpers)
	var out []string
	if dir != "." && layer(dir) < 0 && !test {
		out = append(out, fmt.Sprintf("package %s is in no layer; give it one in hack/imports/main.go", dir))
	}
	for _, imp := range f.imports {
		var msg string
		switch {
		case imp == "C":
			msg = "cgo: ring3 is built without a C compiler"
		case imp == "unsafe":
			msg = checkUnsafe(f, dir)
		case imp == module || strings.HasPrefix(imp, module+"/"):
			msg = checkOwn(dir, strings.TrimPrefix(strings.TrimPrefix(imp, module), "/"), test)
		default:
			msg = checkForeign(dir, imp, test)
		}
		if msg != "" {
			out = append(out, msg)
		}
	}
	return out
}

func checkUnsafe(f file, dir string) string {
	named := strings.HasSuffix(f.path, "_unsafe.go") || strings.HasSuffix(f.path, "_unsafe_test.go")
	for _, d := range unsafeDirs {
		if dir == d && named && f.safety {
			return ""
		}
		if dir == d && named {
			return "unsafe without a // SAFETY: comment that argues for it"
		}
	}
	return fmt.Sprintf("unsafe: only in files *_unsafe.go of %s", strings.Join(unsafeDirs, ", "))
}

func checkForeign(dir, imp string, test bool) string {
	for _, f := range foreign {
		if !below(imp, f.path) || test && f.tests || belowAny(dir, f.dirs) {
			continue
		}
		if f.dirs == nil {
			return fmt.Sprintf("imports %s: only tests do", imp)
		}
		return fmt.Sprintf("imports %s: only %s does", imp, strings.Join(f.dirs, " and "))
	}
	return ""
}

// checkOwn judges an import of one package of ring3 by another.
func checkOwn(from, to string, test bool) string {
	if from == to {
		return ""
	}
	if (below(to, "hack") || below(to, "integration")) && !sameTop(from, to) {
		return fmt.Sprintf("imports %s: nobody imports hack or integration", to)
	}
	if test {
		return ""
	}
	if belowAny(to, helpers) {
		return fmt.Sprintf("imports %s: only tests do", to)
	}
	for _, a := range apart {
		dirs := strings.Fields(a.dirs)
		if belowAny(from, dirs) && belowAny(to, dirs) && !sameTree(from, to, dirs) && !below(to, "drivers/portbus") {
			return fmt.Sprintf("imports %s: %s", to, a.why)
		}
	}
	if below(from, "drivers") && belowAny(to, backends) {
		return fmt.Sprintf("imports %s: a driver imports no backend; it is handed a bus.Device", to)
	}
	if belowAny(from, []string{"pktgen", "tpmdd", "rionet", "netdev"}) && belowAny(to, backends) {
		return fmt.Sprintf("imports %s: only drivers, and of those only the contract, see a bus", to)
	}
	if belowAny(from, backends) && below(to, "drivers") {
		return fmt.Sprintf("imports %s: a backend imports no driver", to)
	}
	lf, lt := layer(from), layer(to)
	if lf >= 0 && lt > lf {
		return fmt.Sprintf("imports %s, which is above it (layer %d from layer %d); imports point downwards", to, lt, lf)
	}
	return ""
}

// layer is the number of a package's layer from the bottom, -1 for none.
func layer(dir string) int {
	best, n := -1, -1
	for i, l := range layers {
		for _, d := range l {
			if below(dir, d) && len(d) > n {
				best, n = i, len(d)
			}
		}
	}
	return best
}

// sameTree tells whether two packages are of one driver, backend or subsystem: under the
// same entry of dirs or, where the entry is a folder of many, the same folder there.
func sameTree(a, b string, dirs []string) bool {
	for _, d := range dirs {
		if !below(a, d) || !below(b, d) {
			continue
		}
		if d != "drivers" {
			return true
		}
		name := func(p string) string { n, _, _ := strings.Cut(strings.TrimPrefix(p, d+"/"), "/"); return n }
		return name(a) == name(b)
	}
	return false
}

func sameTop(a, b string) bool {
	x, _, _ := strings.Cut(a, "/")
	y, _, _ := strings.Cut(b, "/")
	return x == y
}

// below tells whether path is dir or in it.
func below(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func belowAny(path string, dirs []string) bool {
	for _, d := range dirs {
		if below(path, d) {
			return true
		}
	}
	return false
}
