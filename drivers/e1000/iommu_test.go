package e1000_test

import (
	"errors"
	"strconv"
	"testing"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/netdev/netdevtest"
)

// TestIOMMU is the conformance of two devices that each reach their own memory only: a
// driver that gave a device an address of RAM, or memory for the wrong direction, would end
// here with a fault.
func TestIOMMU(t *testing.T) {
	bustest.NeedQEMU(t)
	rings := []int{64, 4096}
	if testing.Short() {
		rings = rings[:1]
	}
	for _, model := range []string{"e1000e", "e1000"} {
		t.Run(model, func(t *testing.T) {
			netdevtest.All(t, rings, func(t *testing.T, ring int) netdevtest.Pair {
				m := machineOf(t, qemu.Config{
					Devices: []qemu.DeviceSpec{{Name: "eth0", Model: model, IOMMU: true}, {Name: "eth1", Model: model, IOMMU: true}},
					Wires:   [][2]string{{"eth0", "eth1"}},
				})
				o := map[string]string{"ring": strconv.Itoa(ring)}
				a, b := bind(t, m, "eth0", o, nil), bind(t, m, "eth1", o, nil)
				return netdevtest.Pair{
					A: a.(netdev.Device), B: b.(netdev.Device),
					CloseA: a.Close,
					Close:  func() error { return errors.Join(a.Close(), b.Close(), m.Close()) },
				}
			})
		})
	}
}
