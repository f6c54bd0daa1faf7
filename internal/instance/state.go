package instance

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// format is the version of state.json. A reader refuses another one.
const format = 1

// maxState bounds what is read of a state file.
const maxState = 1 << 20

// State is what an instance tells about itself in state.json.
type State struct {
	Format  int       `json:"format"`
	ID      string    `json:"id"`      // one of its own for every instance ever
	Version string    `json:"version"` // of the binary
	Proc              // the process that holds the lock
	Where   here      `json:"where"`
	Since   time.Time `json:"since"`
	Mount   string    `json:"mount,omitempty"`   // where the tree stands; "" while it is not mounted
	Devices []string  `json:"devices,omitempty"` // as given: "eth0=qemu:e1000e"
	Extra   []string  `json:"extra,omitempty"`   // further words of the command line, for people
	Measure string    `json:"measure,omitempty"` // the TPM that everything is measured into
	// What must go when the process is gone.
	Children []Proc   `json:"children,omitempty"`
	Mounts   []Mount  `json:"mounts,omitempty"`
	Dirs     []string `json:"dirs,omitempty"` // directories it made elsewhere, removed if empty
}

func (s State) clone() State {
	s.Devices = slices.Clone(s.Devices)
	s.Extra = slices.Clone(s.Extra)
	s.Children = slices.Clone(s.Children)
	s.Mounts = slices.Clone(s.Mounts)
	s.Dirs = slices.Clone(s.Dirs)
	return s
}

// readState reads the state in an instance's folder. It is the user's own file, but a
// torn or foreign one must not hurt.
func readState(dir string) (State, error) {
	path := filepath.Join(dir, stateFile)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return State{}, fmt.Errorf("reading the state: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return State{}, fmt.Errorf("reading the state: %w", err)
	}
	s, err := parseState(b)
	if err != nil {
		return State{}, fmt.Errorf("reading the state %s: %w", path, err)
	}
	return s, nil
}

func parseState(b []byte) (State, error) {
	if len(b) > maxState {
		return State{}, fmt.Errorf("more than %d bytes", maxState)
	}
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return State{}, err
	}
	if s.Format != format {
		return State{}, fmt.Errorf("format %d, want %d", s.Format, format)
	}
	if s.ID == "" || s.Pid <= 0 {
		return State{}, fmt.Errorf("no id or pid")
	}
	return s, nil
}

// writeState replaces the state whole, so that a reader sees the old one or the new one.
func writeState(dir string, s State) error {
	b, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return fmt.Errorf("writing the state: %w", err)
	}
	tmp := filepath.Join(dir, stateFile+".new")
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the state: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, stateFile)); err != nil {
		return fmt.Errorf("writing the state: %w", err)
	}
	return nil
}

// Info is an instance that is alive, as List and Pick find it.
type Info struct {
	Name string `json:"name"`
	Dir  string `json:"dir"` // its folder
	State
}

// Sock is the path of the control socket.
func (i Info) Sock() string { return filepath.Join(i.Dir, sockFile) }

// Old is an empty directory for the kernel's own trees to stand at in ring3 shell.
func (i Info) Old() string { return filepath.Join(i.Dir, oldDir) }

// Env is the variable, as NAME=VALUE, that lets ring3 find this run folder from a place
// where uid or environment are others: in ring3 shell the caller's uid is 0.
func (i Info) Env() string { return BaseEnv + "=" + filepath.Dir(i.Dir) }

// String is a line for people: name, pid, devices.
func (i Info) String() string {
	return fmt.Sprintf("%s (pid %d, %s)", i.Name, i.Pid, strings.Join(i.Devices, " "))
}
