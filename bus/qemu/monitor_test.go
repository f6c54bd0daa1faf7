package qemu

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// asked is what a QEMU was asked.
type askedOf struct {
	Execute   string
	Arguments json.RawMessage
}

// ownerOf is a Process whose QEMU says yes to everything, and what that was asked since it was asked last.
func ownerOf(t testing.TB, c Config) (p *Process, said func() []askedOf) {
	t.Helper()
	ours, theirs, err := socketpair("qmp")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(ours), "qmp")
	log := make(chan askedOf, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		fmt.Fprint(theirs, greeting)
		lines := bufio.NewScanner(theirs)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var req struct {
				askedOf
				ID uint64
			}
			if err := json.Unmarshal(lines.Bytes(), &req); err != nil {
				t.Errorf("%q is no JSON: %v", lines.Bytes(), err)
			}
			if req.Execute != "qmp_capabilities" {
				log <- req.askedOf
			}
			answer := "{}"
			if req.Execute == "human-monitor-command" {
				answer = `""`
				if strings.Contains(string(req.Arguments), "inject") {
					answer = `"OK id: x"`
				}
			}
			fmt.Fprintf(theirs, `{"return": %s, "id": %d}`+"\n", answer, req.ID)
		}
	}()
	p = &Process{c: c, log: slog.New(slog.DiscardHandler), pressed: make(chan struct{}, 1), watchers: map[int]func(Event){}}
	if p.qmp, err = newQMP(f, 20*time.Second, nil); err != nil {
		t.Fatal(err)
	}
	for i, d := range c.Devices {
		p.seats = append(p.seats, &seat{spec: d, serial: i, key: fmt.Sprint(i), ready: true})
	}
	t.Cleanup(func() { f.Close(); <-done })
	return p, func() (all []askedOf) {
		for {
			select {
			case a := <-log:
				all = append(all, a)
			default:
				return all
			}
		}
	}
}

var filterConfig = Config{Devices: []DeviceSpec{{Name: "rp0", Model: "pcie-root-port"}, {Name: "eth0", Model: "e1000e"}, {Name: "rp1", Model: "pcie-root-port"}, {Name: "eth1", Model: "e1000e", Bus: "rp1"}}}

func TestExecute(t *testing.T) {
	for _, tt := range []struct {
		cmd, args string
		want      error  // nil: it is done
		asks      string // QEMU, that begins so
	}{
		{"plug", `{"name":"e","model":"e1000e","bus":"rp0","props":["mac=52:54:00:00:00:01"]}`, nil, `netdev_add {"hubid":4,"id":"netp1","type":"hubport"}|human-monitor-command {"command-line":"device_add \"e1000e,id=devp1,bus=dev0,addr=0,romfile=,netdev=netp1,mac=52:54:00:00:00:01\""}`},
		{"plug", `{"name":"e","model":"edu","bus":"rp0"}`, nil, `human-monitor-command {"command-line":"device_add \"edu,id=devp1,bus=dev0,addr=0,romfile=\""}`},
		{"plug", `{"name":"e","model":"vfio-pci","bus":"rp0","props":["host=00:02.0"]}`, unix.EPERM, ""},
		{"plug", `{"name":"e","model":"ivshmem-plain","bus":"rp0"}`, unix.EPERM, ""},
		{"plug", `{"name":"e","model":"virtio-9p-pci","bus":"rp0"}`, unix.EPERM, ""},
		{"plug", `{"name":"e","model":"e1000e","bus":"rp0","props":["romfile=/etc/passwd"]}`, unix.EPERM, ""},
		{"plug", `{"name":"e","model":"e1000e","bus":"rp0","props":["ROMFILE=passwd"]}`, unix.EPERM, ""},
		{"plug", `{"name":"e","model":"e1000e","bus":"rp0","props":["netdev=net1"]}`, errAny, ""},
		{"plug", `{"name":"e","model":"e1000e","bus":"rp0","props":["mac=1,romfile=x"]}`, unix.EPERM, ""},
		{"plug", `{"name":"e","model":"e1000e","bus":"rp0","props":["a=\n"]}`, unix.EPERM, ""},
		{"plug", `{"name":"e","model":"e1000e","bus":"dev0"}`, bus.ErrNotSupported, ""},
		{"plug", `{"name":"e","model":"e1000e","bus":""}`, bus.ErrNotSupported, ""},
		{"plug", `{"name":"e","model":"e1000e","bus":"rp1"}`, bus.ErrBusy, ""},
		{"plug", `{"name":"eth0","model":"e1000e","bus":"rp0"}`, bus.ErrBusy, ""},
		{"plug", `{"name":"e","model":"edu","bus":"rp0","id":"x"}`, bus.ErrProtocol, ""},
		{"plug", `{"name":"e","model":"edu","bus":"rp0"}{}`, bus.ErrProtocol, ""},
		{"plug", `{"name":"e","model":"edu","bus":"rp0","iommu":true}`, bus.ErrNotSupported, ""},
		{"eject", `{"name":"eth1"}`, nil, `device_del {"id":"dev3"}`},
		{"eject", `{"name":"eth0"}`, bus.ErrNotSupported, ""},
		{"eject", `{"name":"dev3"}`, unix.ENODEV, ""},
		{"inject", `{"name":"rp0","error":16384}`, nil, `human-monitor-command {"command-line":"pcie_aer_inject_error dev0 0x4000"}`},
		{"inject", `{"name":"rp0 quit","error":16384}`, unix.ENODEV, ""},
		{"set_link", `{"name":"net1","up":false}`, nil, `set_link {"name":"net1","up":false}`},
		{"set_link", `{"name":"net0","up":false}`, unix.ENODEV, ""},
		{"query-status", ``, nil, `query-status`},
		{"quit", ``, unix.EPERM, ""},
		{"migrate", `{"uri":"exec:sh"}`, unix.EPERM, ""},
		{"human-monitor-command", `{"command-line":"quit"}`, unix.EPERM, ""},
		{"device_add", `{"driver":"edu"}`, unix.EPERM, ""},
		{"netdev_add", `{"type":"socket"}`, unix.EPERM, ""},
		{"plug", strings.Repeat(" ", maxArgs+1), unix.E2BIG, ""},
	} {
		p, said := ownerOf(t, filterConfig)
		_, err := p.Execute(tt.cmd, json.RawMessage(tt.args))
		var asks []string
		for _, a := range said() {
			asks = append(asks, strings.TrimSpace(a.Execute+" "+string(a.Arguments)))
		}
		if got := strings.Join(asks, "|"); got != tt.asks {
			t.Errorf("%s %.100s asks QEMU %s, want %s", tt.cmd, tt.args, got, tt.asks)
		}
		if tt.want == errAny && err != nil {
			continue
		}
		if !errors.Is(err, tt.want) {
			t.Errorf("%s %.100s = %v, want %v", tt.cmd, tt.args, err, tt.want)
		}
	}
}

var errAny = errors.New("some error")

// What QEMU may be asked for by who is not trusted, whatever that says.
var (
	mayAdd    = regexp.MustCompile(`^device_add "[a-zA-Z0-9_.-]+,id=devp[0-9]+,bus=dev[0-9p]+,addr=0(,[A-Za-z0-9_.-]+=[!#-+.0-~-]*)*"$`)
	mayInject = regexp.MustCompile(`^pcie_aer_inject_error dev[0-9p]+ 0x[0-9a-f]+( 0x[0-9a-f]+){0,4}$`)
)

func FuzzExecute(f *testing.F) {
	f.Add("plug", `{"name":"e","model":"e1000e","bus":"rp0","props":["mac=52:54:00:00:00:01","x=\"\\"]}`)
	f.Add("plug", `{"name":"e","model":"edu","bus":"rp0","props":["romfile=x"]}`)
	f.Add("eject", `{"name":"eth1"}`)
	f.Add("inject", `{"name":"rp0","error":16384,"header":[1,2,3,4]}`)
	f.Add("set_link", `{"name":"net1","up":false}`)
	f.Add("quit", ``)
	p, said := ownerOf(f, filterConfig)
	f.Fuzz(func(t *testing.T, cmd, args string) {
		p.seats = p.seats[:len(filterConfig.Devices)]
		p.plugs = 0
		r, err := p.Execute(cmd, json.RawMessage(args))
		if (r == nil) == (err == nil) {
			t.Errorf("Execute = %q, %v: want one of them", r, err)
		}
		for _, a := range said() {
			var x struct {
				Line string `json:"command-line"`
				Type string
				ID   string
				Name string
			}
			if len(a.Arguments) > 0 {
				if err := json.Unmarshal(a.Arguments, &x); err != nil {
					t.Fatal(err)
				}
			}
			ok := false
			switch a.Execute {
			case "human-monitor-command":
				ok = mayInject.MatchString(x.Line) || mayAdd.MatchString(x.Line) && strings.Count(x.Line, "romfile=") <= 1 &&
					(!strings.Contains(x.Line, "romfile=") || strings.Contains(x.Line, "romfile=,") || strings.HasSuffix(x.Line, `romfile="`))
			case "netdev_add", "netdev_del":
				ok = strings.HasPrefix(x.ID, "netp") && (x.Type == "hubport" || a.Execute == "netdev_del")
			case "device_del":
				ok = slices.Contains([]string{"dev3", "devp1"}, x.ID)
			case "set_link":
				ok = slices.Contains([]string{"net1", "net3", "netp1"}, x.Name)
			case "query-status":
				ok = len(a.Arguments) == 0
			}
			if !ok {
				t.Errorf("%s %q made QEMU do %s %s", cmd, args, a.Execute, a.Arguments)
			}
		}
	})
}

// FuzzSync reads away what a mad QEMU, or a process before this one, left on the socket.
func FuzzSync(f *testing.F) {
	for _, s := range []string{"OK\nOK 0x12\n", "K 0x1", "IRQ raise 20\n", "FAIL ring3-\n", "\n\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(p[0])
		done := make(chan struct{})
		go func() { // answers the mark as QEMU does, once, after what is there
			defer close(done)
			defer unix.Close(p[1])
			_, _ = unix.Write(p[1], b)
			in := make([]byte, 4096)
			n, err := unix.Read(p[1], in)
			if n > 0 && err == nil {
				_, _ = unix.Write(p[1], fmt.Appendf(nil, "\nFAIL Unknown command '%s'\nOK 0x7\n", strings.TrimSpace(string(in[:n]))))
			}
		}()
		w := &wire{fd: p[0], limit: time.Now().Add(20 * time.Second)}
		if err := w.sync(); err != nil {
			t.Fatalf("sync() after %q = %v", b, err)
		}
		out := []byte(nil)
		if l, err := w.lineOf(&out); l != "OK 0x7" || err != nil {
			t.Errorf("the line after the mark = %q, %v, want OK 0x7", l, err)
		}
		_ = unix.Shutdown(p[0], unix.SHUT_RDWR)
		<-done
	})
}
