package tap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/internal/netspace"
	"github.com/ring3dev/ring3/netdev"
)

// nics are two controllers with their driver, wired.
func nics(t *testing.T, model string) (a, b netdev.Device) {
	t.Helper()
	m, err := sim.Start(t.Context(), sim.Config{
		Devices: []sim.DeviceSpec{{Name: "x0", Model: model, Props: []string{"mac=02:00:00:00:00:01"}}, {Name: "x1", Model: model, Props: []string{"mac=02:00:00:00:00:02"}}},
		Wires:   [][2]string{{"x0", "x1"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	var out [2]netdev.Device
	for i, name := range []string{"x0", "x1"} {
		d, err := m.Device(name)
		if err != nil {
			t.Fatal(err)
		}
		r := pci.Bind(t.Context(), d, pci.Env{Name: name}, []*pci.Driver{e1000.Driver})
		if r.Outcome != pci.Bound {
			t.Fatal(r.Err)
		}
		t.Cleanup(func() { _ = r.Instance.Close() })
		out[i] = r.Instance.(netdev.Device)
	}
	if err := netdev.Wire(out[0], out[1]); err != nil {
		t.Fatal(err)
	}
	return out[0], out[1]
}

// TestTagged sends tagged frames from one kernel interface to the other, whether the devices
// strip the tags or leave them in the frame.
func TestTagged(t *testing.T) {
	needTap(t)
	for _, model := range []string{"e1000e", "e1000"} {
		for _, vlan := range []netdev.Feature{0, netdev.TxVLAN | netdev.RxVLAN} {
			t.Run(model+" "+vlan.String(), func(t *testing.T) {
				bustest.NoLeaks(t)
				x0, x1 := nics(t, model)
				for _, d := range []netdev.Device{x0, x1} {
					o := d.(netdev.Offloader)
					_, on := o.Features()
					if err := o.SetFeatures(t.Context(), on|vlan); err != nil {
						t.Fatal(err)
					}
				}
				_, _, there := twoSides(t, x0, x1, Config{})
				tagged(t, there)
			})
		}
	}
}

// etherTypeTest is IEEE 802's "local experimental 1".
const etherTypeTest = 0x88b5

func tagged(t *testing.T, there *netspace.Space) {
	t.Helper()
	from := packetSocket(t, link(t, "x0").Attrs().Index, 0)
	var to int
	there.Do(func() { to = packetSocket(t, link(t, "x1").Attrs().Index, unix.ETH_P_ALL) })
	buf, oob := make([]byte, 4096), make([]byte, 256)
	for _, n := range []int{46, 100, 1500} {
		const tci = 0x2abc
		head := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x81, 0, tci >> 8, tci & 0xff, etherTypeTest >> 8, etherTypeTest & 0xff}
		body := pattern(n, n)
		if _, err := unix.Write(from, append(head, body...)); err != nil {
			t.Fatal(err)
		}
		var k, oobn int
		for k < 14 || binary.BigEndian.Uint16(buf[12:]) != etherTypeTest { // others are the kernel's own
			var err error
			if k, oobn, _, _, err = unix.Recvmsg(to, buf, oob, 0); err != nil {
				t.Fatalf("a tagged frame with %d bytes did not arrive: %v", n, err)
			}
		}
		// The kernel takes tags out of what it receives, and tells them beside the frame.
		want := append(append(bytes.Clone(head[:12]), head[16:]...), body...)
		if !bytes.Equal(buf[:k], want) {
			t.Errorf("arrived %d bytes: %x, want %d: %x", k, buf[:k], len(want), want)
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(msgs) != 1 || len(msgs[0].Data) < 20 {
			t.Fatalf("nothing beside the frame: %v, %v", msgs, err)
		}
		if got := binary.NativeEndian.Uint16(msgs[0].Data[16:]); got != tci {
			t.Errorf("the tag is %#x, want %#x", got, tci)
		}
	}
}

// packetSocket opens a packet socket at an interface, for frames of a type.
func packetSocket(t *testing.T, index int, etherType uint16) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	at := &unix.SockaddrLinklayer{Ifindex: index, Protocol: etherType<<8 | etherType>>8}
	if err = unix.Bind(fd, at); err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1)
	}
	if err == nil {
		wait := unix.NsecToTimeval(int64(20 * time.Second))
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestDriver carries TCP over the real driver, on models with every offload, at other MTUs as
// well.
func TestDriver(t *testing.T) {
	needTap(t)
	for _, model := range []string{"e1000e", "e1000"} {
		t.Run(model, func(t *testing.T) {
			bustest.NoLeaks(t)
			x0, x1 := nics(t, model)
			b0, b1, there := twoSides(t, x0, x1, Config{})
			for _, mtu := range []int{1500, 4000, 1280} {
				for _, d := range []netdev.Device{x0, x1} {
					if err := d.(netdev.MTUSetter).SetMTU(t.Context(), mtu); err != nil {
						t.Fatal(err)
					}
				}
				waitFor(t, "new MTU", func() bool {
					here, far := link(t, "x0").Attrs().MTU, 0
					there.Do(func() { far = link(t, "x1").Attrs().MTU })
					return here == mtu && far == mtu
				})
				transfer(t, there, "10.1.0.2:0", 8<<20)
				transfer(t, there, "[fd00:1::2]:0", 8<<20)
				echo(t, there, "10.1.0.2:0", 1, 1200, 5000, 20000)
			}
			s0, s1 := b0.Stats(), b1.Stats()
			t.Logf("x0 %+v\nx1 %+v", s0, s1)
			if s0.TxGSO == 0 || s1.RxJoined == 0 || s0.TxDropped+s1.TxDropped != 0 || x0.Stats().TxErrors+x1.Stats().TxErrors != 0 {
				t.Errorf("x0 %+v, %d errors\nx1 %+v, %d errors\nwant frames to be segmented, joined ones, and no errors", s0, x0.Stats().TxErrors, s1, x1.Stats().TxErrors)
			}
		})
	}
}

// TestDeathInFlight: the memory of frames that a dead device still had comes back once it is closed.
func TestDeathInFlight(t *testing.T) {
	needTap(t)
	bustest.NoLeaks(t)
	m, err := sim.Start(t.Context(), sim.Config{Devices: []sim.DeviceSpec{{Name: "x0", Model: "e1000e"}}})
	if err != nil {
		t.Fatal(err)
	}
	in, err := m.Device("x0")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := fault.Parse("TDT#2:gone") // the first is written when the device comes up
	if err != nil {
		t.Fatal(err)
	}
	plan.Registers = e1000.Driver.Registers(pci.ReadID(in.Config()))
	r := pci.Bind(t.Context(), fault.Wrap(in, plan), pci.Env{Name: "x0"}, []*pci.Driver{e1000.Driver})
	if r.Outcome != pci.Bound {
		t.Fatal(r.Err)
	}
	b := attachT(t, r.Instance.(netdev.Device), Config{Name: "x0"})
	up(t, "x0", "10.1.0.1/24")
	c, err := net.Dial("udp", "10.1.0.2:9") // whose address is asked for
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("x"))
	<-b.Done()
	if err := b.Err(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Err = %v, want %v", err, bus.ErrGone)
	}
	if err := b.Close(); err != nil {
		t.Errorf("Close = %v, want nil", err)
	}
	_ = r.Instance.Close() // it is gone
	if err := b.Close(); err != nil {
		t.Errorf("Close after the device's = %v, want nil", err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("Machine.Close = %v, want nil", err)
	}
}
