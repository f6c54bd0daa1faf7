package vfio

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// Reset resets the function, by a reset of its own or, where it has none, of the bus or
// slot that it stands in, if all functions there are this process's and no other of them is in
// use. The kernel saves and restores config space, and keeps accesses to mapped registers
// waiting meanwhile. Interrupts stay enabled.
func (d *Device) Reset(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.Err(); err != nil {
		return fmt.Errorf("resetting: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return d.errorf("resetting: %w", err)
	}
	if err := d.resetAny(ctx); err != nil {
		return d.errorf("resetting: %w", err)
	}
	return nil
}

// resetAny is Reset with mu held. ctx is for whom the device was borrowed from.
func (d *Device) resetAny(ctx context.Context) error {
	var first error
	if d.canReset {
		if first = d.k.reset(d.fd); first == nil {
			return nil
		}
		first = fmt.Errorf("by the function's own: %w", first)
	}
	var err error
	if d.lent != nil {
		_, _, err = d.lent.call(ctx, lendRequest{Op: lendReset})
	} else {
		err = d.hotReset()
	}
	if err != nil && first != nil {
		return fmt.Errorf("%w; %w", first, err)
	}
	return err
}

// notOwned is what iommufd calls a device that is another's.
const notOwned = ^uint32(0)

// hotReset resets the bus or slot.
func (d *Device) hotReset() error {
	b, err := d.k.hotResetInfo(d.fd)
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("the function has no reset, nor has its bus or slot: %w", bus.ErrNotSupported)
	}
	if err != nil {
		return fmt.Errorf("asking what a bus reset hits: %w", err)
	}
	flags, hit, err := parseHotReset(b)
	if err != nil {
		return fmt.Errorf("asking what a bus reset hits: %w", err)
	}
	groups, err := d.space.mayReset(d, flags, hit)
	if err != nil {
		return err
	}
	if err := d.k.hotReset(d.fd, groups); err != nil {
		return fmt.Errorf("by the bus: %w", err)
	}
	return nil
}

// mayReset says why functions may not be reset for d, or which groups' descriptors prove that
// they may.
func (s *Space) mayReset(d *Device, flags uint32, hit []dependent) ([]int32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var fds []int32
	var others, used []string
	for _, h := range hit {
		if slices.ContainsFunc(s.members, func(o *Device) bool { return o != d && o.fn.Addr == h.addr }) {
			used = append(used, h.addr.String())
		}
		if flags&hotByDevice != 0 {
			if h.group == notOwned {
				others = append(others, h.addr.String())
			}
			continue
		}
		i := slices.IndexFunc(s.groups, func(g *group) bool { return uint32(g.number) == h.group })
		if i < 0 {
			others = append(others, fmt.Sprintf("%s (IOMMU group %d)", h.addr, h.group))
		} else if fd := int32(s.groups[i].fd); !slices.Contains(fds, fd) {
			fds = append(fds, fd)
		}
	}
	switch {
	case others != nil:
		return nil, fmt.Errorf("the function has no reset, and its bus's would hit %s, which is not open here: %w", strings.Join(others, ", "), bus.ErrNotSupported)
	case used != nil:
		return nil, fmt.Errorf("the function has no reset, and its bus's would hit %s, which is in use here: %w", strings.Join(used, ", "), bus.ErrNotSupported)
	case flags&hotByDevice != 0 && flags&hotOwned == 0:
		return nil, fmt.Errorf("the function has no reset, and its bus's would hit functions that are not bound to VFIO: %w", bus.ErrNotSupported)
	}
	return fds, nil
}
