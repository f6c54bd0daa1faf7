package e1000_test

import (
	"context"
	"encoding/json"
	"net"
	"reflect"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/bus/sim/simtest"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
)

// TestSettingsAgain takes every setting of a controller to another one, of the same model, as when its driver died.
func TestSettingsAgain(t *testing.T) {
	bustest.NoLeaks(t)
	for _, model := range []string{"e1000e", "e1000"} {
		bind := func() netdev.Device {
			m := simtest.Machine(t, sim.Config{Devices: []sim.DeviceSpec{{Name: "eth0", Model: model}}})
			return simtest.Bind(t, simtest.Device(t, m, "eth0"), e1000.Driver, nil).(netdev.Device)
		}
		a, b := bind(), bind()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		before := netdev.SaveSettings(a)
		_, on := a.(netdev.Offloader).Features()
		for what, err := range map[string]error{
			"MTU":      a.(netdev.MTUSetter).SetMTU(ctx, 4000),
			"features": a.(netdev.Offloader).SetFeatures(ctx, on&^netdev.RxCsum|netdev.RxVLAN),
			"pause":    a.(netdev.Pauser).SetPause(ctx, netdev.Pause{Rx: true}),
			"coalesce": a.(netdev.Coalescer).SetCoalesce(ctx, netdev.Coalesce{RxUsecs: 100}),
			"filters":  a.(netdev.RxModer).SetRxMode(ctx, netdev.RxMode{AllMulti: true, Multicast: []net.HardwareAddr{{1, 0, 0x5e, 1, 2, 3}}}),
			"polling":  a.(netdev.NAPIUser).SetNAPI(netdev.NAPI{Weight: 7, DeferHardIRQs: 2, GROFlushTimeout: time.Millisecond}),
		} {
			if err != nil {
				t.Fatalf("%s: %s: %v", model, what, err)
			}
		}
		text, err := json.Marshal(netdev.SaveSettings(a))
		if err != nil {
			t.Fatal(err)
		}
		var s netdev.Settings
		if err := json.Unmarshal(text, &s); err != nil {
			t.Fatal(err)
		}
		if err := netdev.RestoreSettings(ctx, b, s); err != nil {
			t.Errorf("%s: %v", model, err)
		}
		if got := netdev.SaveSettings(b); !reflect.DeepEqual(got, s) || reflect.DeepEqual(got, before) {
			t.Errorf("%s: settings\n%+v, want\n%s", model, got, text)
		}
	}
}
