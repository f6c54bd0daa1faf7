package netdev

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/ring3dev/ring3/sysfs"
)

// Flags of an interface, as the kernel numbers them.
const (
	iffUp        = 0x1
	iffBroadcast = 0x2
	iffLoopback  = 0x8
	iffPromisc   = 0x100
	iffAllMulti  = 0x200
	iffMulticast = 0x1000
)

// setting is an attribute that can be written with a number up to highest. Like the kernel's,
// it gives EINVAL once the device is out of service.
func setting(d Device, show func() string, highest uint64, set func(ctx context.Context, v uint64) error) *sysfs.File {
	return sysfs.Attr(0o644, func(w *bytes.Buffer) error {
		w.WriteString(show())
		w.WriteByte('\n')
		return nil
	}, func(ctx context.Context, p []byte) (int, error) {
		v, err := sysfs.ParseUint(string(p), highest)
		if err != nil {
			return 0, err
		}
		if gone(d) {
			return 0, syscall.EINVAL
		}
		if err := set(ctx, v); err != nil {
			return 0, err
		}
		return len(p), nil
	})
}

// mtuFile is the attribute "mtu", which can be written where the device's MTU can change.
func mtuFile(d Device) *sysfs.File {
	show := func() string { return itoa(d.MTU()) }
	m, ok := d.(MTUSetter)
	if !ok {
		return sysfs.Show(show)
	}
	return setting(d, show, math.MaxUint64, func(ctx context.Context, v uint64) error {
		// What the kernel's int cannot hold is outside any range.
		if lowest, highest := m.MTURange(); v < uint64(lowest) || v > uint64(highest) {
			return fmt.Errorf("mtu %d, want %d to %d: %w", v, lowest, highest, syscall.EINVAL)
		}
		return m.SetMTU(ctx, int(v))
	})
}

// flagsFile is the attribute "flags". The running bit is not among them. A device with address
// filters can be made promiscuous by writing it; the other flags stay as they are, but an interface
// cannot be taken down.
func flagsFile(d Device) *sysfs.File {
	m, ok := d.(RxModer)
	show := func() string {
		v := uint64(iffUp | iffBroadcast | iffMulticast)
		if d.Info().Loopback {
			v = iffUp | iffLoopback
		}
		if gone(d) {
			v &^= iffUp
		}
		if ok {
			mode := m.RxMode()
			if mode.Promisc {
				v |= iffPromisc
			}
			if mode.AllMulti {
				v |= iffAllMulti
			}
		}
		return hex(v)
	}
	if !ok {
		return sysfs.Show(show)
	}
	var mu sync.Mutex // from reading the mode to writing it
	return setting(d, show, math.MaxUint64, func(ctx context.Context, v uint64) error {
		if v&iffUp == 0 {
			return fmt.Errorf("taking an interface down: %w", syscall.EOPNOTSUPP)
		}
		mu.Lock()
		defer mu.Unlock()
		mode := m.RxMode()
		mode.Promisc, mode.AllMulti = v&iffPromisc != 0, v&iffAllMulti != 0
		return m.SetRxMode(ctx, mode)
	})
}

// timeoutFile is the attribute "gro_flush_timeout", in nanoseconds.
func timeoutFile(d Device, u NAPIUser) *sysfs.File {
	return setting(d, func() string { return strconv.FormatInt(int64(u.NAPI().GROFlushTimeout), 10) }, math.MaxInt64, func(_ context.Context, v uint64) error {
		return ChangeNAPI(u, func(p *NAPI) { p.GROFlushTimeout = time.Duration(v) })
	})
}

// deferFile is the attribute "napi_defer_hard_irqs".
func deferFile(d Device, u NAPIUser) *sysfs.File {
	return setting(d, func() string { return itoa(u.NAPI().DeferHardIRQs) }, math.MaxInt32, func(_ context.Context, v uint64) error {
		return ChangeNAPI(u, func(p *NAPI) { p.DeferHardIRQs = int(v) })
	})
}

// napiMu is held from reading to writing the settings of a device.
var napiMu sync.Mutex

// ChangeNAPI changes a part of a device's settings. Changes at the same time do not undo each other.
// SetNAPI is called with a lock of all devices held, and must not wait.
func ChangeNAPI(u NAPIUser, change func(*NAPI)) error {
	napiMu.Lock()
	defer napiMu.Unlock()
	p := u.NAPI()
	change(&p)
	return u.SetNAPI(p)
}
