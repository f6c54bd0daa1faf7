//go:build vm

package guest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

const dbg = `
cd $1
t() { read -r up _ </proc/uptime; echo "$1 $up"; }
cat /proc/stat | head -1
t start
echo add_device eth0 > kpktgend_0
t added
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do echo count $i > eth0; done
t echo20
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do mapfile -t l < eth0; done
t read20
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do mapfile -t l < $1/eth0; done
t readabs20
for i in 1 2 3 4 5 6 7 8 9 10 ; do echo start >pgctrl; done
t start10
for i in 1 2 3 4 5 6 7 8 9 10 ; do cat /proc/uptime >/dev/null; done
t cat10
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do mapfile -t l < /proc/meminfo; done
t procread20
cat /proc/stat | head -1
`

func TestRootDebugPktgen(t *testing.T) {
	addr := Address(t, "nic0")
	Bind(t, addr, "vfio-pci")
	in := up(t, "eth0=vfio:"+addr, "--profile", "6.1")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := AsNobody(exec.CommandContext(ctx, "bash", "-c", dbg, "x", in.tree+"/proc/net/pktgen"))
	out, err := cmd.CombinedOutput()
	t.Logf("%v\n%s", err, out)
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", in.cmd.Process.Pid))
	t.Logf("%s", b)
	in.end(syscall.SIGINT)
	t.Log(in.said, in.stderr())
	t.Fail()
}
