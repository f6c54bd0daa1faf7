package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// nobody is who runs the end-to-end test: no privileges, no home, no XDG_RUNTIME_DIR.
const nobody = "65534"

// TestUnprivileged runs the classic script on two wired NICs as an ordinary user.
func TestUnprivileged(t *testing.T) {
	script, err := os.ReadFile("../examples/pktgen.sh")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "ring3-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	argv := []string{"env", "-i", "PATH=" + os.Getenv("PATH"), "TMPDIR=" + dir}
	if os.Geteuid() == 0 {
		argv = append([]string{"setpriv", "--reuid=" + nobody, "--regid=" + nobody, "--clear-groups"}, argv...)
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "pktgen.sh")
	if err := os.WriteFile(file, script, 0o755); err != nil {
		t.Fatal(err)
	}
	const inside = `set -e
id -u
sh ./pktgen.sh eth0 52:54:00:12:34:57 10000
grep -A1 '^Result:' /proc/net/pktgen/eth0
for i in 1 2 3 4 5 6 7 8 9 10; do
	rx=$(cat /sys/class/net/eth1/statistics/rx_packets)
	[ "$rx" = 10000 ] && break
	sleep 0.1
done
echo received $rx`
	cmd := exec.Command(argv[0], append(argv[1:], ring3, "run", "--pcap", "eth1=eth1.pcap", "--", "sh", "-c", inside)...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("ring3 run as uid %s: %v\n%s", nobody, err, out)
	}
	for _, want := range []string{"0\n", "Result: OK: ", "errors: 0", "received 10000"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("ring3 run as uid %s printed %q, want %q in it", nobody, out, want)
		}
	}
	if fi, err := os.Stat(filepath.Join(dir, "eth1.pcap")); err != nil || fi.Size() != 24+10000*(16+60) {
		t.Errorf("capture: %v, %v, want %d bytes", fi, err, 24+10000*(16+60))
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "ring3-"+nobody, "*")); len(left) > 0 {
		t.Errorf("left over in the run folder: %v", left)
	}
}
