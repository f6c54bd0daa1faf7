package campaign

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
	"github.com/ring3dev/ring3/vfio"
)

// real are functions of this machine, by VFIO.
type real struct{ devs map[string]*vfio.Device }

// closing is how long the run before may still have a function.
const closing = 10 * time.Second

// openReal opens the backend's functions, in the order of parts.
func openReal(ctx context.Context, b Backend, parts []part) (machine, error) {
	addrs := strings.Split(b.Device, ",")
	if len(addrs) != len(parts) {
		return nil, fmt.Errorf("%s: %d functions, want %d", b, len(addrs), len(parts))
	}
	m := &real{devs: map[string]*vfio.Device{}}
	for i, p := range parts {
		d, err := vfio.Open(ctx, addrs[i], vfio.Options{Log: b.Log})
		for end := time.Now().Add(closing); errors.Is(err, bus.ErrBusy) && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			d, err = vfio.Open(ctx, addrs[i], vfio.Options{Log: b.Log})
		}
		if err != nil {
			return nil, errors.Join(err, m.Close())
		}
		m.devs[p.name] = d
	}
	return m, nil
}

func (m *real) Device(name string) (bus.Device, error) { return m.devs[name], nil }

func (m *real) Close() error {
	var errs []error
	for _, d := range m.devs {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}

// id is vendor and device of the function that is to fail; 0 where there is none of this machine's.
func (b Backend) id() (uint32, error) {
	if b.Name != "vfio" {
		return 0, nil
	}
	first, _, _ := strings.Cut(b.Device, ",")
	a, err := pci.ParseAddr(first)
	if err != nil {
		return 0, err
	}
	f, err := syspci.Sys.Function(a)
	if err != nil {
		return 0, err
	}
	return uint32(f.ID.Vendor)<<16 | uint32(f.ID.Device), nil
}
