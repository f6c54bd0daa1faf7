package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/link"
)

// Methods about QEMU, as host/outside_qemu.go has them.
const (
	outsideQEMU    = link.Method(0x0310)
	outsideExecute = link.Method(0x0311)
)

// machine is a QEMU's descriptors: RAM, its qtest socket, eventfds. Who has them can do all that the machine can.
type machine struct {
	h     *hostile
	files []*os.File
}

// qemu opens the machine of the group, as a worker would.
func (h *hostile) qemu() *machine {
	m := &machine{h: h}
	for {
		b, _ := json.Marshal(map[string]any{"machine": "eth2", "from": len(m.files)})
		reply, files, err := h.c.Call(context.Background(), outsideQEMU, b)
		var all struct{ Files int }
		if err == nil {
			err = json.Unmarshal(reply, &all)
		}
		if err != nil {
			h.say("cannot open its machine: %v", err)
			return m
		}
		if m.files = append(m.files, files...); len(m.files) >= all.Files || len(files) == 0 {
			return m
		}
	}
}

func (m *machine) fd(i int) int {
	if i >= len(m.files) {
		return -1
	}
	return int(m.files[i].Fd())
}

// write sends bytes to QEMU, and reads none of the answers; it says how much it took. QEMU that takes no more for a while ends it.
func (m *machine) write(b []byte) (n int) {
	for tries := 0; len(b) > 0 && tries < 100; {
		k, err := unix.SendmsgN(m.fd(1), b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch err {
		case nil:
			n, b, tries = n+k, b[k:], 0
		case unix.EAGAIN, unix.EINTR:
			tries++
			time.Sleep(5 * time.Millisecond)
		default:
			return n
		}
	}
	return n
}

// lines sends commands one by one, and waits a moment for what is said to each.
func (m *machine) lines(all ...string) {
	b := make([]byte, 64<<10)
	for _, l := range all {
		if m.write([]byte(l+"\n")) == 0 {
			return
		}
		p := []unix.PollFd{{Fd: int32(m.fd(1)), Events: unix.POLLIN}}
		if n, _ := unix.Poll(p, 100); n > 0 {
			_, _, _ = unix.Recvfrom(m.fd(1), b, unix.MSG_DONTWAIT)
		}
	}
}

func init() {
	for name, f := range map[string]func(m *machine){
		// A command that QEMU takes for a mistake of its own, and ends.
		"assert": func(m *machine) { m.lines("readb", "writeb 0x10", "read 0 0", "module_load x") },
		"partial": func(m *machine) {
			_ = m.write([]byte("writel 0x1000"))
		},
		// A line without an end (QEMU looks for that from the beginning each time that it reads, so longer ones take it minutes), and memory for whatever is asked.
		"line":   func(m *machine) { _ = m.write([]byte(strings.Repeat("x", 4<<20))) },
		"memory": func(m *machine) { m.lines("read 0x0 0x90000000") },
		"flood":  func(m *machine) { _ = m.write([]byte(strings.Repeat("readl 0xfee00000\n", 1<<20))) },
		"shut":   func(m *machine) { _ = unix.Shutdown(m.fd(1), unix.SHUT_RDWR) },
		// Power off: the base of ACPI's registers, their enable bit, and S5.
		"power": func(m *machine) {
			m.lines("outl 0xcf8 0x8000f840", "outl 0xcfc 0x601", "outl 0xcf8 0x8000f844", "outl 0xcfc 0x80", "outw 0x604 0x2000")
		},
		// Clocks, interrupts, words that steer a terminal; then complaints without end, of files that are there (where a compiler is) and are no modules of QEMU's.
		"chatter": func(m *machine) {
			m.lines("\x1b[2Jfoo\r", "clock_step 9223372036854775807", "clock_set 1", "irq_intercept_in nothing", "set_irq_in /machine x 0 1", "rtas x", "endianness", "module_load ../../../../etc/ passwd",
				"module_load \x1b[2J/../ x", "\x00", "OK", "IRQ raise 300", strings.Repeat("x ", 5000))
			for range 500 {
				m.lines("module_load ../../../../../../usr/lib/x86_64-linux-gnu/lib c", "module_load ../../../../../../usr/lib64/lib c")
			}
		},
		// Eventfds that are full, and make who writes wait.
		"bells": func(m *machine) {
			for i := 2; i < len(m.files); i++ {
				_ = unix.SetNonblock(m.fd(i), true)
				_, _ = unix.Write(m.fd(i), []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
				_ = unix.SetNonblock(m.fd(i), false)
			}
		},
		// Descriptors of its own in QEMU, which outlives it: of the link, of stderr.
		"pass": func(m *machine) {
			for range 20 {
				_ = unix.Sendmsg(m.fd(1), []byte("endianness\n"), unix.UnixRights(linkFD, 2, linkFD, 2, m.fd(0)), nil, unix.MSG_NOSIGNAL)
			}
			os.Exit(77)
		},
		// More RAM than there is, and seals on what there is.
		"ram": func(m *machine) {
			if n, err := unix.Pwrite(m.fd(0), []byte{1}, 512<<20); err == nil {
				m.h.say("got RAM that grows: %d", n)
			}
			if b, err := unix.Mmap(m.fd(0), 0, 512<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
				clear(b[:1<<20])
				_ = unix.Madvise(b, unix.MADV_REMOVE)
			}
			if _, err := unix.FcntlInt(uintptr(m.fd(0)), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE); err == nil {
				m.h.say("got RAM that nobody maps any more")
			}
		},
		"names":   hostileNames,
		"monitor": hostileMonitor,
	} {
		attacks["qemu-"+name] = func(h *hostile) { f(h.qemu()) }
	}
}

// hostileNames asks for machines of others', and for its own once more.
func hostileNames(m *machine) {
	for _, name := range []string{"eth0", "eth1", "eth2", "", "../eth0", "eth0\x00", "dev0", strings.Repeat("x", 100000)} {
		for _, from := range []int{0, -1, 1 << 40} {
			b, _ := json.Marshal(map[string]any{"machine": name, "from": from})
			m.h.ask(fmt.Sprintf("machine %.20q from %d", name, from), outsideQEMU, b)
		}
		if name == "eth2" {
			continue // its own: that is heard
		}
		for op := link.Method(1); op < 16; op++ {
			b, _ := json.Marshal(map[string]any{"machine": name, "command": "query-status"})
			m.h.ask(fmt.Sprintf("method %#x of machine %.20q", uint16(outsideQEMU+op), name), outsideQEMU+op, b)
		}
	}
}

// hostileMonitor asks the monitor of its own machine for what reaches further than that.
func hostileMonitor(m *machine) {
	plug := func(model, bus, prop string) string {
		b, _ := json.Marshal(map[string]any{"name": "x", "model": model, "bus": bus, "props": []string{prop}})
		return string(b)
	}
	for _, a := range [][2]string{
		{"quit", ""}, {"stop", ""}, {"cont", ""}, {"system_reset", ""}, {"system_powerdown", ""}, {"inject-nmi", ""}, {"query-commands", ""}, {"qmp_capabilities", ""},
		{"human-monitor-command", `{"command-line":"quit"}`}, {"migrate", `{"uri":"exec:id"}`}, {"migrate", `{"uri":"fd:qmp"}`}, {"dump-guest-memory", `{"paging":false,"protocol":"file:/tmp/x"}`},
		{"pmemsave", `{"val":0,"size":4096,"filename":"/tmp/x"}`}, {"memsave", `{"val":0,"size":4096,"filename":"/tmp/x"}`}, {"screendump", `{"filename":"/tmp/x"}`},
		{"blockdev-add", `{"driver":"file","filename":"/etc/passwd","node-name":"x"}`}, {"chardev-add", `{"id":"x","backend":{"type":"file","data":{"out":"/tmp/x"}}}`},
		{"netdev_add", `{"type":"tap","id":"x","fd":"3"}`}, {"netdev_add", `{"type":"socket","id":"x","listen":":1"}`}, {"netdev_del", `{"id":"net0"}`},
		{"object-add", `{"qom-type":"secret","id":"x","file":"/etc/passwd"}`}, {"object-add", `{"qom-type":"memory-backend-file","id":"x","mem-path":"/tmp/x","size":4096}`},
		{"device_add", `{"driver":"edu","id":"dev0"}`}, {"device_del", `{"id":"dev0"}`}, {"getfd", `{"fdname":"x"}`}, {"add-fd", ""}, {"qom-set", `{"path":"/machine","property":"x","value":1}`},
		{"plug", plug("vfio-pci", "eth2", "host=00:00.0")}, {"plug", plug("edu", "eth2", "x=y")}, {"plug", plug("edu", "", "x=y")}, {"plug", plug("edu", "pcie.0", "x=y")}, {"plug", plug("edu", "eth0", "x=y")},
		{"plug", plug(`edu",id=dev0`, "eth2", "x=y")}, {"plug", plug("edu", "eth2", `x="\n\nquit\n"`)}, {"plug", plug("e1000e", "eth2", "a,netdev=net0")}, {"plug", plug("e1000e", "eth2", "romfile=/etc/passwd")},
		{"plug", strings.Repeat("[", 16000)}, {"plug", strings.Repeat(`{"name":`, 2000)}, {"plug", strings.Repeat(" ", 1<<20)}, {"plug", `{"name":"x"}{"name":"y"}`}, {"plug", "null"},
		{"eject", `{"name":"eth0"}`}, {"eject", `{"name":"dev0"}`}, {"eject", `{"name":"../eth0"}`}, {"eject", `{"name":"eth2"}`},
		{"set_link", `{"name":"net1","up":false}`}, {"set_link", `{"name":"eth0","up":false}`}, {"inject", `{"name":"eth0 quit","error":1}`}, {"inject", `{"name":"eth2\nquit","error":1}`},
		{strings.Repeat("x", 1<<20), ""}, {"", ""}, {"plug\x00", ""},
	} {
		name, _ := json.Marshal(a[0])
		body := fmt.Sprintf(`{"machine":"eth2","command":%s`, name)
		if a[1] != "" {
			body += `,"args":` + a[1] // as it is, in the middle of what is right
		}
		m.h.ask(fmt.Sprintf("%.40q with %.40q", a[0], a[1]), outsideExecute, []byte(body+"}"))
	}
}
