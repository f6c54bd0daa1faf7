package hwbind

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ring3dev/ring3/bus/pci"
)

// remembered is what stood before a function was bound, and what we made of it.
type remembered struct {
	Address  string `json:"address"`
	Was      string `json:"was"`      // the driver that had it; "" for none
	Override string `json:"override"` // its driver_override; "" for none
	Bound    string `json:"bound"`    // the driver that we bound it to
	Owner    *Owner `json:"owner,omitempty"`
}

func (m *Machine) stateFile(a pci.Addr) string {
	return filepath.Join(m.State, "bound-"+a.String()+".json")
}

// remember writes what stood before.
func (m *Machine) remember(a pci.Addr, r remembered) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.State, 0o755); err != nil {
		return fmt.Errorf("%s: remembering its driver: %w", a, err)
	}
	// A half-written file would be worse than none.
	tmp := m.stateFile(a) + ".new"
	if err = os.WriteFile(tmp, append(b, '\n'), 0o644); err == nil {
		err = os.Rename(tmp, m.stateFile(a))
	}
	if err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("%s: remembering its driver: %w", a, err)
	}
	return nil
}

// recall reads it; nil where nothing is remembered, or nothing that makes sense.
func (m *Machine) recall(a pci.Addr) *remembered {
	b, err := os.ReadFile(m.stateFile(a))
	if err != nil {
		return nil
	}
	var r remembered
	if json.Unmarshal(b, &r) != nil || r.Address != a.String() || !isName(r.Was) || !isName(r.Override) {
		return nil
	}
	return &r
}

// isName holds what becomes part of a path to one name, or none.
func isName(s string) bool { return !strings.ContainsAny(s, "/\n") && s != "." && s != ".." }

// forget removes it.
func (m *Machine) forget(a pci.Addr) error {
	if err := os.Remove(m.stateFile(a)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: forgetting its driver: %w", a, err)
	}
	_ = os.Remove(m.State) // if it is empty
	return nil
}
