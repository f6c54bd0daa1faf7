package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/link"
)

// outsideTAP is about the kernel interface of a device, as host/outside_tap.go has it.
const outsideTAP = link.Method(0x0330)

// tapCall asks for something about a device's interface.
func (h *hostile) tapCall(device, op string, more map[string]any) ([]*os.File, error) {
	q := map[string]any{"device": device, "op": op, "queues": 1, "mac": []byte{2, 0, 0, 0, 0, 1}, "mtu": 1500, "carrier": true}
	for k, v := range more {
		q[k] = v
	}
	b, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	_, files, err := h.c.Call(context.Background(), outsideTAP, b)
	return files, err
}

// tapOwn opens the worker's own interface, as it may, and is told its descriptors.
func (h *hostile) tapOwn() []*os.File {
	files, err := h.tapCall("eth2", "open", nil)
	if err != nil || len(files) != 1 {
		h.say("cannot open its interface: %d files, %v", len(files), err)
	}
	return files
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func init() {
	// What no device could have, and interfaces that are another's.
	attacks["tap-words"] = func(h *hostile) {
		for _, c := range []struct {
			op   string
			more map[string]any
		}{
			{"open", map[string]any{"queues": 0}}, {"open", map[string]any{"queues": math.MaxInt32}}, {"open", map[string]any{"mtu": 67}}, {"open", map[string]any{"mtu": math.MaxInt64}},
			{"open", map[string]any{"mac": []byte{1, 0, 0, 0, 0, 1}}}, {"open", map[string]any{"mac": make([]byte, 6)}}, {"open", map[string]any{"mac": make([]byte, 600)}},
			{"mtu", map[string]any{"mtu": -1}}, {"mac", map[string]any{"mac": []byte{}}}, {"offload", map[string]any{"offload": uint32(math.MaxUint32)}},
			{"OPEN", nil}, {"", nil}, {"\x1b[2J" + strings.Repeat("x", 300), nil},
		} {
			if files, err := h.tapCall("eth2", c.op, c.more); err == nil || len(files) > 0 {
				h.say("got %s of its interface with %v: %d files", c.op, c.more, len(files))
				closeFiles(files)
			}
		}
		for _, device := range []string{"eth0", "eth1", "lo", "", "../eth2", "eth2\x00"} {
			for _, op := range []string{"open", "mac", "mtu", "carrier", "wait", "alive", "release"} {
				if files, err := h.tapCall(device, op, nil); err == nil {
					h.say("got %s of the interface of %q", op, device)
					closeFiles(files)
				}
			}
		}
	}
	// It comes, goes and is given other queues, over and over, with descriptors that are not closed: as many as there may be.
	attacks["tap-again"] = func(h *hostile) {
		var all []*os.File
		for i := range 400 {
			op, more := []string{"open", "open", "carrier", "release"}[i%4], map[string]any{"queues": 1 + i%8}
			files, _ := h.tapCall("eth2", op, more) // while it holds descriptors of one that it gave up, there is none
			if all = append(all, files...); len(all) > 100 {
				closeFiles(all)
				all = nil
			}
		}
		closeFiles(all)
		closeFiles(h.tapOwn())
	}
	// Frames that are none, on its descriptor, which is its own: the kernel refuses them, or they are nobody's.
	attacks["tap-frames"] = func(h *hostile) {
		for _, f := range h.tapOwn() {
			fd := int(f.Fd())
			_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0) // the next worker reads it without waiting all the same
			for _, n := range []int{0, 1, 9, 10, 13, 14, 24, 60, 1500, 65535, 1 << 20} {
				for _, fill := range []byte{0, 1, 0xff} {
					_, _ = unix.Write(fd, bytes.Repeat([]byte{fill}, n))
				}
			}
			f.Close()
		}
	}
	// Its interface stays when all is over, by its descriptor. No other request would come further.
	attacks["tap-ioctl"] = func(h *hostile) {
		for _, f := range h.tapOwn() {
			if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1); err == nil {
				h.say("got an interface that stays")
			}
		}
	}
}
