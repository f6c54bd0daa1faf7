// Hostile stands in a worker's place and tries what its rights allow, for TestHostile. What it tries is its own name behind "hostile-". It says
// hello, enters the sandbox, shows an empty tree, and says that its devices are up, as a worker would. Whatever it gets that it should not have it says in the log: "hostile: got ...";
// when it has tried all it says "hostile: done".
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/ledger"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/mirror"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/internal/sandbox"
)

// The protocol, as host/worker_wire.go and outside.go have it.
const (
	wireVersion   = 1
	lifeHello     = link.Method(0x0400)
	lifeConfigure = link.Method(0x0401)
	lifeState     = link.Method(0x0402)
	lifeLog       = link.Method(0x0403)
	lifeReport    = link.Method(0x0404)
	lifeStop      = link.Method(0x0405)
	lifeUevent    = link.Method(0x0406)
	lifeSuspect   = link.Method(0x0407)
	outsideFile   = link.Method(0x0301)
	linkFD        = 3
)

func main() {
	if err := sandbox.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	h := &hostile{up: make(chan struct{})}
	_, h.what, _ = strings.Cut(filepath.Base(os.Args[0]), "hostile-")
	f := os.NewFile(linkFD, "link")
	c, err := link.Open(f)
	if err != nil {
		os.Exit(1)
	}
	h.ready.Add(1)
	h.c = link.New(c, h, link.Options{SendWait: time.Hour})
	h.ready.Done()
	h.send(lifeHello, map[string]any{"wire": wireVersion, "version": "hostile\x1b[31m", "pid": 1})
	go func() {
		<-h.up
		if a := attacks[h.what]; a != nil {
			a(h)
		}
		h.say("done")
	}()
	<-h.c.Done()
}

type hostile struct {
	what  string
	c     *link.Conn
	ready sync.WaitGroup
	book  *os.File // the ledger's
	once  sync.Once
	up    chan struct{}
}

func (h *hostile) send(m link.Method, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return h.c.Send(m, b)
}

func (h *hostile) say(format string, args ...any) {
	_ = h.send(lifeLog, map[string]any{"level": 4, "text": "hostile: " + fmt.Sprintf(format, args...)})
}

// Call answers what the supervisor asks, as little as it may.
func (h *hostile) Call(ctx context.Context, m link.Method, body []byte, files []*os.File, _ func([]byte) error) ([]byte, []*os.File, error) {
	h.ready.Wait()
	switch {
	case m == lifeConfigure:
		h.book = files[0]
		if l, err := ledger.Open(files[0]); err == nil && h.what != "hang" {
			if beat, err := l.Counter("beat"); err == nil {
				go func() {
					for range time.Tick(20 * time.Millisecond) {
						beat.Add(1)
					}
				}()
			}
		}
		if err := mirror.NewExport(&node.Dir{}).Start(h.c); err != nil {
			h.say("cannot show a tree: %v", err)
		}
		time.AfterFunc(200*time.Millisecond, func() { h.once.Do(func() { close(h.up) }) })
		devices := []map[string]any{{"name": "eth2"}}
		if h.what == "claim" {
			devices = append(devices, map[string]any{"name": "eth0", "state": "mine"}, map[string]any{"name": "eth1\x1b[2J\nx", "state": "\x1b[2J"})
		}
		up := map[string]any{"wire": wireVersion, "version": "hostile\x1b[2J\n", "devices": devices}
		if h.what == "lost" { // what it could not replay, a line each
			up["lost"] = slices.Repeat([]string{"lost \x1b[2J\rflood\nforged"}, 50000)
		}
		reply, err := json.Marshal(up)
		return reply, nil, err
	case m == lifeStop:
		switch h.what {
		case "mute":
			<-ctx.Done()
		case "stop-exit":
			os.Exit(77)
		case "stop-lies":
			return []byte(`{"saved":{"x":"\u001b[2J"},"error":"\u001b[2J\nforged","unmade":true}`), nil, nil
		case "stop-bomb":
			return []byte(`{"saved":` + strings.Repeat("[", 3<<20)), nil, nil
		}
		return []byte("{}"), nil, nil
	case h.what == "mute":
		<-ctx.Done()
	case h.what == "claim" && m == 0x0200:
		h.say("got an operation that was another group's: %.200s", body)
	}
	return nil, nil, syscall.ENOSYS
}

func (h *hostile) Event(link.Method, []byte, []*os.File) error { return nil }

// ask asks for something that it should not get.
func (h *hostile) ask(what string, m link.Method, body []byte, files ...*os.File) {
	patience := 200 * time.Millisecond
	if strings.HasPrefix(h.what, "qemu-") { // QEMU is asked before it is answered
		patience = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	reply, got, err := h.c.Call(ctx, m, body, files...)
	if err == nil || len(got) > 0 {
		h.say("got %s: %.100q and %d files", what, reply, len(got))
	}
	for _, f := range got {
		f.Close()
	}
}

// scribble writes nonsense over the ledger from a byte on, and ends.
func (h *hostile) scribble(from int) {
	b, err := unix.Mmap(int(h.book.Fd()), 0, ledger.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		h.say("cannot map its ledger: %v", err)
		return
	}
	r := rand.NewChaCha8([32]byte{9})
	_, _ = r.Read(b[from : 8<<20])
	_ = unix.Madvise(b[16<<20:], unix.MADV_REMOVE)
	os.Exit(77)
}

var attacks = map[string]func(h *hostile){
	"mute":  func(h *hostile) {},
	"hang":  func(h *hostile) {},
	"claim": func(h *hostile) {},
	"lost":  func(h *hostile) {},
	// How it ends when it is asked to.
	"stop-exit": func(h *hostile) {},
	"stop-lies": func(h *hostile) {},
	"stop-bomb": func(h *hostile) {},
	// The ledger, of which its successor and the report of its death are made: no ledger any more, and one that lies in each word.
	"ledger":      func(h *hostile) { h.scribble(0) },
	"ledger-lies": func(h *hostile) { h.scribble(16) },
	// Files of another group's, and of nobody's.
	"files": func(h *hostile) {
		for _, use := range []string{"pcap", "trace", "replay", "net/dev", "", "x", "../pcap"} {
			for _, name := range []string{"eth0", "eth1", "eth2", "/etc/passwd", "../../../etc/passwd", "/proc/self/mem", "x\x00y"} {
				b, _ := json.Marshal(map[string]string{"use": use, "name": name})
				h.ask(fmt.Sprintf("file %s %q", use, name), outsideFile, b)
				h.ask(fmt.Sprintf("begin %s %q", use, name), outsideFile+1, b)
			}
		}
	},
	// Devices of another group's, by every method that there may be.
	"devices": func(h *hostile) {
		for m := link.Method(0x0303); m < 0x0360; m++ {
			for _, name := range []string{"eth0", "eth1", "eth2", "0000:00:00.0", ""} {
				for _, op := range []string{"", "open", "info", "release"} {
					b, _ := json.Marshal(map[string]any{"device": name, "name": name, "machine": name, "group": name, "op": op, "queues": 1, "mac": []byte{2, 0, 0, 0, 0, 1}, "mtu": 1500,
						"request": map[string]any{"op": op}, "cmd": "human-monitor-command", "execute": "quit"})
					h.ask(fmt.Sprintf("method %#x of %q", uint16(m), name), m, b)
				}
			}
		}
	},
	// Calls of every class, with anything.
	"calls": func(h *hostile) {
		r := rand.New(rand.NewPCG(1, 2))
		for i := range 3000 {
			m := link.Method(r.Uint32())
			if i%2 == 0 {
				m = link.Method(r.IntN(6)<<8 | r.IntN(64))
			}
			b := make([]byte, r.IntN(200))
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			if i%3 == 0 {
				b = []byte(`{"op":` + strings.Repeat("[", 2000))
			}
			h.ask(fmt.Sprintf("method %#x", uint16(m)), m, b)
		}
	},
	"event":      func(h *hostile) { _ = h.c.Send(0x7777, nil) },
	"tree-event": func(h *hostile) { _ = h.c.Send(0x0101, []byte(strings.Repeat("\xff", 1000))) },
	"state":      func(h *hostile) { _ = h.c.Send(lifeState, []byte(`{"version":`)) },
	"report":     func(h *hostile) { _ = h.c.Send(lifeReport, []byte(`[`)) },
	"hello": func(h *hostile) {
		for range 3 {
			_ = h.send(lifeHello, map[string]any{"wire": 1})
		}
	},
	"random": func(h *hostile) {
		r := rand.NewChaCha8([32]byte{7})
		b := make([]byte, 1<<16)
		_, _ = r.Read(b)
		_, _ = unix.Write(linkFD, b)
	},
	"half": func(h *hostile) { _, _ = unix.Write(linkFD, []byte{255, 255}) },
	"huge": func(h *hostile) {
		_, _ = unix.Write(linkFD, []byte{255, 255, 255, 255, 5, 0, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0})
	},
	"panic": func(h *hostile) { panic("hostile\x1b[2J") },
	"exit":  func(h *hostile) { os.Exit(77) },
	// More than anybody wants.
	"logs": func(h *hostile) {
		for i := range 20000 {
			_ = h.send(lifeLog, map[string]any{"level": 4, "text": fmt.Sprintf("flood %d \x1b[2J\r%s", i, strings.Repeat("x", 300))})
		}
	},
	"suspects": func(h *hostile) {
		for i := range 20000 {
			_ = h.send(lifeSuspect, map[string]any{"text": fmt.Sprintf("flood %d \x1b[2J\r%s", i, strings.Repeat("x", 300))})
		}
	},
	"uevents": func(h *hostile) {
		for range 20000 {
			_ = h.send(lifeUevent, map[string]any{"action": "add", "devpath": "/devices/x", "subsystem": strings.Repeat("x", 1000), "env": make([]string, 100)})
		}
	},
	"flood": func(h *hostile) {
		var wg sync.WaitGroup
		for range 2000 {
			wg.Go(func() { h.ask("a flood's call", 0x0330, make([]byte, 1<<20)) })
		}
		wg.Wait()
	},
	"files-passed": func(h *hostile) {
		for range 100 {
			var files []*os.File
			for range 150 {
				files = append(files, os.Stdin)
			}
			h.ask("a call with files", 0x0330, []byte("{}"), files...)
		}
		for range 100 {
			_ = unix.Sendmsg(linkFD, make([]byte, 1), unix.UnixRights(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), nil, 0)
		}
	},
	"nodes": func(h *hostile) {
		root := &node.Dir{}
		e := mirror.NewExport(root)
		if err := e.Start(h.c); err != nil {
			return
		}
		for i := range 1 << 20 {
			root.Put(fmt.Sprintf("dir-%d-%s", i, strings.Repeat("x", 100)), &node.Dir{})
		}
		_ = e.Flush()
	},
	"memory": func(h *hostile) {
		var all [][]byte
		for {
			b := make([]byte, 16<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			if all = append(all, b); len(all) > 1<<20 {
				return
			}
		}
	},
	"cpu": func(h *hostile) {
		for range 16 {
			go func() {
				for began := time.Now(); time.Since(began) < time.Hour; {
				}
			}()
		}
		time.Sleep(2 * time.Second)
	},
	"ptrace": func(h *hostile) { _ = unix.PtraceAttach(os.Getppid()) },
	"ioctl": func(h *hostile) { // a kernel interface's name, by whatever descriptor
		for fd := range 64 {
			if unix.IoctlSetInt(fd, unix.TUNSETIFF, 0) == nil {
				h.say("got descriptor %d set up", fd)
			}
		}
	},
	"socket": func(h *hostile) { _, _ = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0) },
	"kill":   func(h *hostile) { _ = unix.Kill(os.Getppid(), unix.SIGKILL) },
	"fork":   func(h *hostile) { _, _, _ = unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0) },
	"open": func(h *hostile) {
		for _, path := range []string{"/", "/proc/1/mem", "/dev/mem", "..", "/etc/passwd", "/proc/self/fd/3", "/run"} {
			if fd, err := unix.Open(path, unix.O_RDONLY, 0); err == nil {
				h.say("got %s: descriptor %d", path, fd)
			}
		}
		if err := unix.Symlink("/etc/passwd", "x"); err == nil {
			h.say("got a symlink")
		}
	},
	"truncate": func(h *hostile) { // what is shared by descriptor, so that whoever maps it dies of SIGBUS
		for fd := range 64 {
			if unix.Ftruncate(fd, 0) == nil {
				h.say("got descriptor %d emptied", fd)
			}
		}
	},
}
