package qemu

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}` + "\n"

// monitorOf is a client of a QEMU that answers each command with what answer says of its id.
func monitorOf(t *testing.T, greeting string, onEvent func(qmpEvent), answer func(id uint64) string) (*qmp, error) {
	t.Helper()
	ours, theirs, err := socketpair("qmp")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(ours), "qmp")
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		fmt.Fprint(theirs, greeting)
		lines := bufio.NewScanner(theirs)
		for lines.Scan() {
			var req struct {
				Execute string
				ID      uint64
			}
			if err := json.Unmarshal(lines.Bytes(), &req); err != nil {
				t.Error(err)
			}
			said := fmt.Sprintf(`{"return": {}, "id": %d}`, req.ID)
			if req.Execute != "qmp_capabilities" {
				said = answer(req.ID)
			}
			if said == "" {
				return
			}
			fmt.Fprintln(theirs, said)
		}
	}()
	t.Cleanup(func() { f.Close(); <-done })
	return newQMP(f, time.Second, onEvent)
}

// Events come before, between and after replies; late replies are nobody's.
func TestQMPEvents(t *testing.T) {
	events := make(chan qmpEvent, 100)
	q, err := monitorOf(t, greeting, func(e qmpEvent) { events <- e }, func(id uint64) string {
		deleted := fmt.Sprintf(`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "DEVICE_DELETED", "data": {"device": "dev%d", "path": "/x"}}`, id)
		stale := fmt.Sprintf(`{"return": "stale", "id": %d}`, id-1)
		reply := fmt.Sprintf(`{"return": "%d", "id": %d}`, id, id)
		if id%2 == 0 {
			reply = fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "no %d"}, "id": %d}`, id, id)
		}
		return strings.Join([]string{deleted, stale, `{"event": "RESUME"}`, reply, stale, deleted}, "\n")
	})
	if err != nil {
		t.Fatal(err)
	}
	for id := uint64(2); id < 20; id++ {
		r, err := q.execute("x", nil)
		var said *qmpError
		switch {
		case id%2 == 0 && (!errors.As(err, &said) || said.desc != fmt.Sprintf("no %d", id)):
			t.Errorf("execute %d = %s, %v, want QEMU's own words", id, r, err)
		case id%2 != 0 && (err != nil || string(r) != fmt.Sprintf(`"%d"`, id)):
			t.Errorf("execute %d = %s, %v, want its own answer", id, r, err)
		}
		for _, want := range []string{"DEVICE_DELETED", "RESUME", "DEVICE_DELETED"} {
			select {
			case e := <-events:
				if e.Event != want || e.Event == "DEVICE_DELETED" && e.Data.Device != fmt.Sprintf("dev%d", id) {
					t.Errorf("event %+v, want %s of dev%d", e, want, id)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("an event was lost")
			}
		}
	}
}

// A machine whose wires were emptied is not left stopped, however often QEMU says no.
func TestUnclog(t *testing.T) {
	for _, tt := range []struct {
		name string
		no   []bool // by command
		last uint64 // how many there are
		fine bool
	}{
		{"all well", []bool{false, false}, 2, true},
		{"cont fails once", []bool{false, true, false}, 3, true},
		{"cont fails", []bool{false, true, true}, 3, false},
		{"stop fails", []bool{true, false}, 2, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q, err := monitorOf(t, greeting, nil, func(id uint64) string {
				if n := id - 2; n >= uint64(len(tt.no)) || !tt.no[n] {
					return fmt.Sprintf(`{"return": {}, "id": %d}`, id)
				}
				return fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "no"}, "id": %d}`, id)
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := (&Process{qmp: q}).unclog(); (err == nil) != tt.fine {
				t.Errorf("unclog = %v", err)
			}
			if n := q.id.Load() - 1; n != tt.last {
				t.Errorf("it gave %d commands, want %d", n, tt.last)
			}
		})
	}
}

func TestQMPBad(t *testing.T) {
	for _, tt := range []struct {
		name, greeting, answer string
		is                     error
	}{
		{"no greeting", `{"event": "RESUME"}` + "\n", "", bus.ErrProtocol},
		{"no JSON", "hello\n", "", bus.ErrProtocol},
		{"too old", `{"QMP": {"version": {"qemu": {"major": 6, "minor": 0}}}}` + "\n", "", bus.ErrNotSupported},
		{"ends", greeting, "", bus.ErrGone},
		{"garbage", greeting, "{]", bus.ErrProtocol},
		{"a line without end", greeting, strings.Repeat("x", 1<<17), bus.ErrGone},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q, err := monitorOf(t, tt.greeting, nil, func(uint64) string { return tt.answer })
			if err == nil {
				_, err = q.execute("x", nil)
			}
			if !errors.Is(err, tt.is) {
				t.Errorf("a monitor with %s = %v, want %v", tt.name, err, tt.is)
			}
		})
	}
}
