package e1000_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/qemu/qemutest"
	"github.com/ring3dev/ring3/drivers/e1000"
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
	for model, queues := range map[string]string{"e1000e": "2", "e1000": "1"} {
		t.Run(model, func(t *testing.T) {
			netdevtest.All(t, rings, func(t *testing.T, ring int) netdevtest.Pair {
				m := machineOf(t, qemu.Config{
					Devices: []qemu.DeviceSpec{{Name: "eth0", Model: model, IOMMU: true}, {Name: "eth1", Model: model, IOMMU: true}},
					Wires:   [][2]string{{"eth0", "eth1"}},
				})
				return pair(t, m, model, map[string]string{"ring": strconv.Itoa(ring), "queues": queues}, nil)
			})
		})
	}
}

// TestIOMMUFault has a device read its descriptors from where it has none: whoever sends, waits
// or drains learns the reason, and the device at the other end of the wire lives on.
func TestIOMMUFault(t *testing.T) {
	for _, model := range []string{"e1000e", "e1000"} {
		t.Run(model, func(t *testing.T) {
			a, b := qemutest.Pair(t, model, qemutest.IOMMU())
			na, nb := qemutest.Bind(t, a, e1000.Driver, nil).(netdev.Device), qemutest.Bind(t, b, e1000.Driver, nil).(netdev.Device)
			pool, err := na.Tx(0).NewPool(8)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			regs, err := a.Region(0)
			if err != nil {
				t.Fatal(err)
			}
			const regTDBAL, regTDBAH, regTCTL = 0x3800, 0x3804, 0x0400
			tctl := regs.Read32(regTCTL)
			regs.Write32(regTCTL, 0)
			regs.Write32(regTDBAL, 0x7ff0000)
			regs.Write32(regTDBAH, 0)
			regs.Write32(regTCTL, tctl)
			f := pool.Get()
			f.Data = f.Mem[:64]
			clear(f.Data)
			if n := na.Tx(0).Burst([]*dma.Buf{f}); n != 1 {
				t.Fatalf("Burst = %d, want 1", n)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := na.Tx(0).Drain(ctx); !errors.Is(err, bus.ErrDMAFault) || !strings.Contains(err.Error(), "DMA read from 0x7ff0000") {
				t.Errorf("Drain = %v, want ErrDMAFault at 0x7ff0000", err)
			}
			if err := na.Rx(0).Wait(ctx); !errors.Is(err, bus.ErrDMAFault) {
				t.Errorf("Wait = %v, want ErrDMAFault", err)
			}
			if err := na.Err(); !errors.Is(err, bus.ErrDMAFault) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Err = %v, want ErrDMAFault in one line", err)
			}
			if err := nb.Err(); err != nil {
				t.Errorf("Err of the other device = %v, want nil", err)
			}
		})
	}
}
