package host

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/aerinject"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/devfs"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/internal/sockpath"
	"github.com/ring3dev/ring3/internal/userns"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/procfs"
	"github.com/ring3dev/ring3/tpmdd/chardev"
)

// prepareView makes what stands beside the workers' files: the shell's view, and what is routed by what is written. It comes before any worker, since a
// directory that is built upon must be there first.
func (s *supervisor) prepareView() {
	root := s.tree.Root()
	root.MkdirAll("dev").Put("aer_inject", aerinject.Node(s.injectError))
	ns := userns.View(root, s.c.Keep)
	root.MkdirAll("proc")
	ns.MkdirAll("proc").Put("interrupts", procfs.New(0o444, s.mergedInterrupts, nil))
	ns.MkdirAll("proc/net").Put("dev", procfs.New(0o444, s.mergedNetDev, nil))
	s.ns, s.class = ns, ns.MkdirAll("sys"+classNet)
}

// dress puts into the shell's view what there is only once the workers are up, serves the TPMs' sockets, and shows the view.
func (s *supervisor) dress() error {
	root := s.tree.Root()
	if n, err := root.Walk("sys" + loopbackPath); err == nil {
		if d, ok := n.(*node.Dir); ok {
			s.ns.MkdirAll("sys"+path.Dir(loopbackPath)).Put(loopbackName, d)
		}
	}
	for _, name := range userns.BusFiles {
		if n, err := root.Walk(name); err == nil {
			s.ns.MkdirAll(path.Dir(name)).Put(path.Base(name), n)
		}
	}
	root.Put(userns.ViewName, s.ns)
	return s.serveTPMs()
}

// ours is what a file of the workers' shows; nil where there is none.
func (s *supervisor) ours(name string) []byte {
	n, err := s.tree.Root().Walk(name)
	if f, ok := n.(*node.File); err == nil && ok {
		b, _ := f.ReadAll()
		return b
	}
	return nil
}

// mergedNetDev is the kernel's file with the workers' lines after it: [System.mergedNetDev] says more.
func (s *supervisor) mergedNetDev(w *bytes.Buffer) error {
	kernel, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		kernel = []byte(netdev.ProcHeader)
	}
	mergeNetDev(w, kernel, s.ours("/proc/net/dev"))
	return nil
}

// mergeNetDev merges two texts of /proc/net/dev: lo is one line, ours, at the kernel's place.
func mergeNetDev(w *bytes.Buffer, kernel, ours []byte) {
	lines := map[string]string{}
	var order []string
	for l := range strings.Lines(strings.TrimPrefix(string(ours), netdev.ProcHeader)) {
		if name, _, ok := strings.Cut(strings.TrimSpace(l), ":"); ok {
			lines[name] = l
			order = append(order, name)
		}
	}
	for l := range strings.Lines(string(kernel)) {
		name, _, ok := strings.Cut(strings.TrimSpace(l), ":")
		own := lines[name]
		switch {
		case !ok || own == "":
			w.WriteString(l)
		case name == loopbackName:
			w.WriteString(own)
			order = slices.DeleteFunc(order, func(n string) bool { return n == loopbackName })
		}
	}
	for _, name := range order {
		w.WriteString(lines[name])
	}
}

// mergedInterrupts is the kernel's file with the workers' lines after it: [irqTable.merged] says more.
func (s *supervisor) mergedInterrupts(w *bytes.Buffer) error {
	kernel, err := os.ReadFile("/proc/interrupts")
	ours := s.ours("/proc/interrupts")
	header, rest, _ := bytes.Cut(ours, []byte("\n"))
	if err != nil {
		kernel = append(header, '\n')
	}
	var names []string
	for _, d := range s.known() {
		if d.MAC != "" {
			names = append(names, d.Name)
		}
	}
	for l := range strings.Lines(string(kernel)) {
		if !hidesLine(l, names) {
			w.WriteString(l)
		}
	}
	w.Write(rest)
	return nil
}

// hidesLine says whether a line of the kernel's is of an interface with one of our names: "eth0", "eth0-rx-0".
func hidesLine(line string, names []string) bool {
	for _, word := range strings.Fields(line) {
		word = strings.TrimSuffix(word, ",")
		if slices.ContainsFunc(names, func(n string) bool { return word == n || strings.HasPrefix(word, n+"-") }) {
			return true
		}
	}
	return false
}

// collisions are the machine's network interfaces that one of our devices hides in the shell.
func (s *supervisor) collisions() []string {
	taps := map[string]bool{loopbackName: s.c.Plan.find(loopbackName) == nil}
	for _, t := range s.c.Plan.Taps {
		if t.Interface == t.Device {
			taps[t.Device] = true
		}
	}
	return slices.DeleteFunc(s.class.Hidden(), func(n string) bool { return taps[n] })
}

// injectError gives a record that was written to /dev/aer_inject to the group whose function it names.
func (s *supervisor) injectError(ctx context.Context, r aerinject.Record) error {
	at := pci.Addr{Domain: r.Domain, Bus: r.Bus, Dev: r.Dev, Fn: r.Fn}
	ch := s.chargeAt(at)
	if ch == nil {
		return fmt.Errorf("%s: %w", at, unix.ENODEV)
	}
	args, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = ch.control(ctx, opInject, args, nil, false)
	return err
}

// tpmSocket is a socket of a TPM's, which outlives its driver.
type tpmSocket struct {
	l      *net.UnixListener
	served sync.WaitGroup
}

func (t *tpmSocket) unlisten() { _ = t.l.Close() }
func (t *tpmSocket) wait()     { t.served.Wait() }

// serveTPMs serves the devices of TPMs at sockets in the run folder, too.
func (s *supervisor) serveTPMs() error {
	if s.c.Dir == "" {
		return nil
	}
	dev := s.tree.Root().MkdirAll("dev")
	for _, d := range s.c.Plan.Devices {
		if !isTPM(d) {
			continue
		}
		for _, name := range []string{d.Name, rmName(d.Name)} {
			f, ok := dev.Lookup(name).(*node.File)
			if !ok || f.Open == nil {
				continue
			}
			at := filepath.Join(s.c.Dir, name+".sock")
			if err := s.serveTPM(at, f); err != nil {
				return fmt.Errorf("%s: serving %s: %w", d.Name, at, err)
			}
			dev.Put(name+".sock", &devfs.Link{Target: at})
		}
	}
	return nil
}

func (s *supervisor) serveTPM(at string, f *node.File) error {
	short, done, err := sockpath.Short(at)
	if err != nil {
		return err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false) // by its real name, below
	t := &tpmSocket{l: l}
	s.sockets = append(s.sockets, t)
	t.served.Go(func() {
		if err := chardev.ServeSocket(l, func() (devfs.Stream, error) { return f.Open(unix.O_RDWR) }, s.log); err != nil {
			s.log.Error(fmt.Sprintf("serving %s: %v", at, err))
		}
		_ = os.Remove(at)
	})
	return nil
}
