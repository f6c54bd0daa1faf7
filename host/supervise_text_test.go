package host

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/netdev"
)

func TestJoinThreads(t *testing.T) {
	got := string(joinThreads([][]byte{
		[]byte("Running: \nStopped: eth0 \nResult: OK: add_device=eth0\n"),
		[]byte("Running: eth2 eth3 \nStopped: eth4 \nResult: OK: add_device=eth4\n"),
		[]byte("garbage\n"),
	}, 1))
	if want := "Running: eth2 eth3 \nStopped: eth0 eth4 \nResult: OK: add_device=eth4\n"; got != want {
		t.Errorf("joinThreads = %q, want %q", got, want)
	}
}

func TestMergeNetDev(t *testing.T) {
	line := func(name string, rx uint64) string {
		var b bytes.Buffer
		netdev.ProcLine(&b, name, netdev.Stats{RxBytes: rx})
		return b.String()
	}
	kernel := netdev.ProcHeader + line("lo", 1) + line("eth0", 2) + line("wlan0", 3)
	ours := netdev.ProcHeader + line("lo", 11) + line("eth0", 12) + line("eth1", 13)
	var b bytes.Buffer
	mergeNetDev(&b, []byte(kernel), []byte(ours))
	want := netdev.ProcHeader + line("lo", 11) + line("eth0", 2) + line("wlan0", 3) + line("eth0", 12) + line("eth1", 13)
	want = strings.Replace(want, line("eth0", 2), "", 1) // the name is ours
	if b.String() != want {
		t.Errorf("mergeNetDev =\n%s\nwant\n%s", &b, want)
	}
	if got := string(joinNetDev(nil, [][]byte{[]byte(ours), []byte(netdev.ProcHeader + line("eth2", 9))})); got != ours+line("eth2", 9) {
		t.Errorf("joinNetDev =\n%s", got)
	}
	if got := string(joinInterrupts(nil, [][]byte{[]byte("  CPU0\n 1: a\n"), []byte("  CPU0\n 2: b\n"), nil})); got != "  CPU0\n 1: a\n 2: b\n" {
		t.Errorf("joinInterrupts = %q", got)
	}
	if got := string(joinValues(nil, [][]byte{[]byte("1\n"), []byte("2,3\n")})); got != "1,2,3\n" {
		t.Errorf("joinValues = %q", got)
	}
}

// A worker that logs without end is cut short, and may say more later.
func TestBucket(t *testing.T) {
	b := bucket{burst: 3, rate: 2}
	now := time.Now()
	for i := range 5 {
		if ok, missed := b.take(now); ok != (i < 3) || missed != 0 {
			t.Errorf("take %d = %v, %d", i, ok, missed)
		}
	}
	if ok, missed := b.take(now.Add(time.Second)); !ok || missed != 2 {
		t.Errorf("take after a second = %v, %d, want true, 2", ok, missed)
	}
}

func TestStartError(t *testing.T) {
	ch := &charge{}
	err := ch.startError(&link.RemoteError{Text: usagePrefix + "eth0: no option\neth1: it is gone"})
	all := flatten(err)
	var usage *usageError
	if len(all) != 2 || !errors.As(all[0], &usage) || all[0].Error() != "eth0: no option" || errors.As(all[1], &usage) {
		t.Errorf("startError = %q, want a usage error and another", all)
	}
}

// The next attempt comes at once, then after longer and longer.
func TestDelay(t *testing.T) {
	ch := &charge{}
	for early, want := range []time.Duration{1: 0, 2: firstDelay, 3: 2 * firstDelay, 4: 4 * firstDelay, 40: lastDelay} {
		if ch.deaths.early = early; early > 0 && want > 0 && ch.delay() != want {
			t.Errorf("delay after %d deaths = %v, want %v", early, ch.delay(), want)
		}
	}
}

func TestReports(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	var first string
	for i := range maxReports + 3 {
		path, err := writeReport(strings.Repeat("0", i/50)+string(rune('a'+i/50))+"-"+time.Duration(i).String()+".txt", "x")
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = path
		}
	}
	all, err := filepath.Glob(filepath.Join(filepath.Dir(first), "*.txt"))
	if err != nil || len(all) != maxReports {
		t.Errorf("%d reports are kept, %v, want %d", len(all), err, maxReports)
	}
	if fi, err := os.Stat(filepath.Dir(first)); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the folder of reports: %v, %v, want it private", fi, err)
	}
}
