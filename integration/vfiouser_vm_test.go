package integration

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/integration/vm"
)

// vfioUserTests is how the names of tests begin, after Root, that want devices which ring3 serves.
const vfioUserTests = "VFIOUser"

// userQEMU is a QEMU with vfio-user-pci: the machine's own, or one that is fetched. A test skips where
// there is none.
func userQEMU(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "../hack/qemu")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("no QEMU with vfio-user-pci (10.1 or later) here: %v\n%s", err, said.String())
	}
	return strings.TrimSpace(string(out))
}

// serveModels serves models of package sim at sockets, which it returns by name.
func serveModels(t *testing.T, args []string, names ...string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	argv := append([]string{"serve"}, args...)
	sockets := map[string]string{}
	for _, n := range names {
		sockets[n] = filepath.Join(dir, n+".sock")
		argv = append(argv, "--socket", sockets[n])
	}
	cmd := exec.Command(ring3, argv...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // it is this thread whose death kills the server
		err := cmd.Start()
		started <- err
		if err == nil {
			<-t.Context().Done()
			_ = cmd.Process.Signal(syscall.SIGTERM)
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // t.Context() is done by now
		if err := <-ended; err != nil {
			t.Errorf("ring3 serve ended with %v", err)
		}
	})
	ready := make(chan bool, 1)
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			if strings.HasPrefix(s.Text(), "ready") {
				ready <- true
			}
		}
		close(ready)
	}()
	select {
	case ok := <-ready:
		if ok {
			return sockets
		}
	case <-time.After(20 * time.Second):
	}
	t.Fatal("ring3 serve is not ready after 20 s, or ended")
	return nil
}

// TestVMVFIOUser runs tests in a VM whose devices are models in Go, in a process of their own.
func TestVMVFIOUser(t *testing.T) {
	if vmArch != "" && vmArch != "amd64" {
		t.Skipf("the QEMU that is fetched is one for amd64, and the VM is %s", vmArch)
	}
	vm.Need(t, vmArch)
	qemu := userQEMU(t)
	sockets := serveModels(t, []string{"nic0=sim:e1000e", "nic1=sim:e1000e", "edu0=sim:edu,sim.dma_mask=0xffffffff", "--wire", "nic0-nic1"}, "nic0", "nic1", "edu0")
	// The server maps the VM's memory, which must be a file for that.
	devices := []string{"-object", "memory-backend-memfd,id=ram0,size=1024M,share=on", "-machine", "memory-backend=ram0"}
	for i, n := range []string{"nic0", "nic1", "edu0"} {
		devices = append(devices, "-device", fmt.Sprintf(`{"driver":"vfio-user-pci","id":"%s","addr":"%x","socket":{"type":"unix","path":"%s"}}`, n, 4+i, sockets[n]))
	}
	s := vm.Suite{
		Package: "integration/guest", Dir: filepath.Dir(ring3),
		Config:  vm.Config{QEMU: qemu, Devices: devices, Image: image(t), NoIOMMU: true},
		Timeout: 5 * time.Minute,
		Want:    func(name string) bool { return strings.HasPrefix(name, "TestRoot"+vfioUserTests) },
	}
	s.Run(t)
}
