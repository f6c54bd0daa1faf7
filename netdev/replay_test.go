package netdev

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// full is a device that has every setting, and notes the order in which they are set.
type full struct {
	tunable
	on       Feature
	pause    Pause
	coalesce Coalesce
	log      []string
}

func (d *full) Features() (available, on Feature) { return TxCsum | TxTSO4 | RxCsum | RxVLAN, d.on }
func (d *full) SetFeatures(_ context.Context, on Feature) error {
	d.on, d.log = on, append(d.log, "features")
	return nil
}
func (d *full) Pause() Pause { return d.pause }
func (d *full) SetPause(_ context.Context, p Pause) error {
	d.pause, d.log = p, append(d.log, "pause")
	return nil
}
func (d *full) Coalesce() Coalesce { return d.coalesce }
func (d *full) SetCoalesce(_ context.Context, c Coalesce) error {
	d.coalesce, d.log = c, append(d.log, "coalesce")
	return nil
}
func (d *full) SetMTU(ctx context.Context, mtu int) error {
	d.log = append(d.log, "mtu")
	return d.tunable.SetMTU(ctx, mtu)
}
func (d *full) SetRxMode(ctx context.Context, m RxMode) error {
	d.log = append(d.log, "rxmode")
	return d.tunable.SetRxMode(ctx, m)
}

func newFull() *full {
	return &full{tunable: tunable{dev: newDev("eth0"), mtu: 1500}, on: TxCsum | RxCsum, pause: Pause{Autoneg: true, Rx: true, Tx: true}, coalesce: Coalesce{Adaptive: true, RxUsecs: 50}}
}

// TestRestoreSettings takes settings from one device to another, through JSON.
func TestRestoreSettings(t *testing.T) {
	a, b := newFull(), newFull()
	group := net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}
	a.mtu, a.on, a.pause, a.coalesce = 9000, RxVLAN|TxCsum, Pause{Rx: true}, Coalesce{RxUsecs: 120}
	a.mode = RxMode{Promisc: true, Multicast: []net.HardwareAddr{{1, 0, 0x5e, 0, 0, 2}, group}}
	a.napi = NAPI{Weight: 16, DeferHardIRQs: 3, GROFlushTimeout: 200 * time.Microsecond}
	text, err := json.Marshal(SaveSettings(a))
	if err != nil {
		t.Fatal(err)
	}
	var s Settings
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time nothing is left to do
		if err := RestoreSettings(context.Background(), b, s); err != nil {
			t.Fatal(err)
		}
	}
	if got := SaveSettings(b); !reflect.DeepEqual(got, s) {
		t.Errorf("restored %+v, want %+v", got, s)
	}
	if got, want := strings.Join(b.log, " "), "mtu features pause coalesce rxmode"; got != want {
		t.Errorf("set %q, want %q", got, want)
	}
	if err := RestoreSettings(context.Background(), b, Settings{}); err != nil || len(b.log) != 5 {
		t.Errorf("restoring nothing = %v, and set %v", err, b.log)
	}
}

// TestRestoreRefused has settings that the device does not have, or cannot have: they are told, and the others are set.
func TestRestoreRefused(t *testing.T) {
	d := newFull()
	s := Settings{
		MTU: 10, Features: &[]string{"tx-checksumming", "receive-hashing", "rx-gro-hw"},
		Receive: &ReceiveSettings{Multicast: []string{"nonsense"}}, NAPI: &PollSettings{Weight: 8},
	}
	err := RestoreSettings(context.Background(), d, s)
	for _, want := range []string{"eth0: restoring the MTU: 10, want 68 to 9000", "no rx-gro-hw, receive-hashing", "eth0: restoring address filters: address nonsense"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("RestoreSettings = %v, want %q", err, want)
		}
	}
	if d.mtu != 1500 || d.on != TxCsum || d.napi.Weight != 8 {
		t.Errorf("MTU %d, features %s, weight %d: want 1500, tx-checksumming, 8", d.mtu, d.on, d.napi.Weight)
	}
	err = RestoreSettings(context.Background(), newDev("eth1"), SaveSettings(newFull()))
	if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "eth1: restoring flow control") {
		t.Errorf("RestoreSettings of a device without any = %v", err)
	}
	if got := SaveSettings(newDev("eth1")); !reflect.DeepEqual(got, Settings{}) {
		t.Errorf("SaveSettings of a device without any = %+v", got)
	}
}
