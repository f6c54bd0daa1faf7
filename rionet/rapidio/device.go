package rapidio

import (
	"context"
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
)

// init makes what a device needs that somebody built.
func (d *Device) init() {
	d.once.Do(func() {
		d.turn = newTurn()
		d.ctx, d.cancel = context.WithCancel(context.Background())
	})
}

// Name is the device's name on the bus: its net, s for a switch and e for an endpoint, the low 17 bits of its component tag: "00:e:0001".
func (d *Device) Name() string {
	if d.name != "" {
		return d.name
	}
	kind := 'e'
	if d.IsSwitch() {
		kind = 's'
	}
	id := 0
	if d.Net != nil {
		id = d.Net.id
	}
	return fmt.Sprintf("%02x:%c:%04x", id, kind, d.Tag&ComponentMask)
}

func (d *Device) String() string { return d.Name() }

// IsSwitch tells a switch from an endpoint.
func (d *Device) IsSwitch() bool { return d.Switch != nil }

// Ports is how many ports it has, of a switch.
func (d *Device) Ports() int { return int(d.SwitchPorts >> 8 & 0xff) }

// IDs is the width of device IDs on its net.
func (d *Device) IDs() IDSize { return d.Mport.IDs() }

// Gone is closed when the device was removed.
func (d *Device) Gone() <-chan struct{} {
	d.init()
	return d.ctx.Done()
}

// Way is how it is reached: the destination ID and the number of switches before it of a configuration access, and the last of these
// switches; nil: none. Once a device was added, this is how to ask: Net.Move may change the fields.
func (d *Device) Way() (dest DestID, hop uint8, prev *Device) {
	if d.Net != nil {
		d.Net.bus.mu.Lock()
		defer d.Net.bus.mu.Unlock()
	}
	return d.DestID, d.Hop, d.Prev
}

// here fails for a device that was removed.
func (d *Device) here() error {
	d.init()
	if d.ctx.Err() != nil {
		return bus.ErrGone
	}
	return nil
}

func (d *Device) read(ctx context.Context, off Off, w Width) (uint32, error) {
	err := d.here()
	if err == nil {
		var v uint32
		dest, hop, _ := d.Way()
		if v, err = d.Mport.Read(ctx, dest, hop, off, w); err == nil {
			return v, nil
		}
	}
	return 0, fmt.Errorf("%s: %w", d.Name(), err)
}

func (d *Device) write(ctx context.Context, off Off, w Width, v uint32) error {
	err := d.here()
	if err == nil {
		dest, hop, _ := d.Way()
		err = d.Mport.Write(ctx, dest, hop, off, w, v)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.Name(), err)
	}
	return nil
}

// Read8 reads a byte of its configuration space.
func (d *Device) Read8(ctx context.Context, off Off) (uint8, error) {
	v, err := d.read(ctx, off, 1)
	return uint8(v), err
}

// Read16 reads half a register.
func (d *Device) Read16(ctx context.Context, off Off) (uint16, error) {
	v, err := d.read(ctx, off, 2)
	return uint16(v), err
}

// Read32 reads a register.
func (d *Device) Read32(ctx context.Context, off Off) (uint32, error) { return d.read(ctx, off, 4) }

// Write8 writes a byte of its configuration space.
func (d *Device) Write8(ctx context.Context, off Off, v uint8) error {
	return d.write(ctx, off, 1, uint32(v))
}

// Write16 writes half a register.
func (d *Device) Write16(ctx context.Context, off Off, v uint16) error {
	return d.write(ctx, off, 2, uint32(v))
}

// Write32 writes a register.
func (d *Device) Write32(ctx context.Context, off Off, v uint32) error {
	return d.write(ctx, off, 4, v)
}

// SendDoorbell sends a doorbell to an endpoint, and waits for its response: ErrRetry where it has no room, ErrResponse where it takes none.
func (d *Device) SendDoorbell(ctx context.Context, info uint16) error {
	err := d.here()
	if err == nil && d.IsSwitch() {
		err = fmt.Errorf("a switch takes no doorbells: %w", bus.ErrNotSupported)
	}
	if err == nil {
		err = d.Mport.SendDoorbell(ctx, d.DestID, info)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.Name(), err)
	}
	return nil
}

// Next is the device at a port of a switch; nil: none, or the way back.
func (d *Device) Next(port int) *Device {
	if d.Switch == nil || d.Net == nil {
		return nil
	}
	d.Net.bus.mu.Lock()
	defer d.Net.bus.mu.Unlock()
	if port < 0 || port >= len(d.Switch.next) {
		return nil
	}
	return d.Switch.next[port]
}

// Routes are the ports of a switch by destination ID; InvalidRoute, and what lies beyond the end: none.
func (d *Device) Routes() []uint8 {
	if d.Switch == nil || d.Net == nil {
		return nil
	}
	d.Net.bus.mu.Lock()
	defer d.Net.bus.mu.Unlock()
	return slices.Clone(d.Switch.routes)
}

// Driver is the name of its driver; "": it has none.
func (d *Device) Driver() string {
	if d.Net == nil {
		return ""
	}
	d.Net.bus.mu.Lock()
	defer d.Net.bus.mu.Unlock()
	if d.driver == nil {
		return ""
	}
	return d.driver.Name
}

// Modalias is what module aliases are matched with: "rapidio:v0038d0500av0038ad0500".
func (d *Device) Modalias() string {
	return fmt.Sprintf("rapidio:v%04Xd%04Xav%04Xad%04X", d.VID, d.DID, d.AsmVID, d.AsmDID)
}

// uevent tells of the device.
func (d *Device) uevent(action string, env ...string) {
	if name := d.Driver(); name != "" {
		env = append(env, "DRIVER="+name)
	}
	d.Net.bus.uevent(action, d.path(), "rapidio", append(env, "MODALIAS="+d.Modalias())...)
}
