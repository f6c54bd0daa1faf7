package fabricd

import (
	"bufio"
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestQEMU: QEMU's own ivshmem-doorbell takes what the daemon sends, with as many vectors as it needs or less, alone and beside those
// that it trusts; the machine's end is the node's.
func TestQEMU(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skipf("needs QEMU: %v", err)
	}
	leakless(t)
	for _, vectors := range []int{1, 8} {
		t.Run(fmt.Sprint(vectors), func(t *testing.T) {
			s, c := start(t, trustTopology)
			friend := joinAs(t, s.path, "pe0")
			var said bytes.Buffer
			cmd := exec.Command(qemu, "-machine", "q35", "-nodefaults", "-display", "none", "-S", "-monitor", "none", "-serial", "none", "-qmp", "stdio",
				"-chardev", "socket,id=rio,path="+filepath.Join(s.path+".d", "pe1"),
				"-device", fmt.Sprintf("ivshmem-doorbell,chardev=rio,vectors=%d", vectors))
			cmd.Stderr = &said
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			answers := bufio.NewReader(out)
			ask := func(command string) { // it answers once its devices are there
				t.Helper()
				_, werr := fmt.Fprintf(in, "{%q: %q}\n", "execute", command)
				for {
					line, err := answers.ReadString('\n')
					if err != nil || werr != nil || strings.Contains(line, `"error"`) {
						t.Fatalf("QEMU answers %q, %v, %v, and says: %s", line, err, werr, said.String())
					}
					if strings.HasPrefix(line, `{"return"`) {
						return
					}
				}
			}
			ask("qmp_capabilities")
			for range len(friend.own) { // it is introduced once all is sent
				if v, _, err := friend.recv(); v != 2 || err != nil {
					t.Fatalf("the machine's friend was told of %d, %v, want 2", v, err)
				}
			}
			f, err := c.Show(t.Context())
			if err != nil || !f.Nodes[1].Joined || f.Nodes[1].PID != cmd.Process.Pid || !f.Nodes[1].QEMU || !f.Nodes[1].Up {
				t.Errorf("Show = %+v, %v, want QEMU's process %d as pe1", f, err, cmd.Process.Pid)
			}
			third := joinAs(t, s.path, "pe2") // QEMU is told of another
			ask("query-status")
			third.close()
			ask("query-pci")
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if vectors > 1 && said.Len() > 0 {
				t.Errorf("QEMU said: %s", said.String())
			}
			eventually(t, "the node of a machine that was killed to be gone", func() bool {
				f, err := c.Show(t.Context())
				return err == nil && !f.Nodes[1].Joined
			})
		})
	}
}
