package integration

import (
	"bufio"
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

// serveModels serves models of package sim, one for each of the devices.
func serveModels(t *testing.T, devices []vm.Served, models ...string) {
	t.Helper()
	argv := append([]string{"serve"}, models...)
	for _, d := range devices {
		argv = append(argv, "--socket", d.Socket)
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
			return
		}
	case <-time.After(20 * time.Second):
	}
	t.Fatal("ring3 serve is not ready after 20 s, or ended")
}

// TestVMVFIOUser runs tests in a VM whose devices are models in Go, in a process of their own.
func TestVMVFIOUser(t *testing.T) {
	t.Parallel()
	vm.Need(t, vmArch)
	c := vm.Config{Arch: vmArch, Image: image(t)}
	dir := t.TempDir()
	var devices []vm.Served
	for _, n := range []string{"nic0", "nic1", "edu0"} {
		devices = append(devices, vm.Served{ID: n, Socket: filepath.Join(dir, n+".sock")})
	}
	if err := c.VFIOUser(devices...); err != nil {
		t.Skip(err)
	}
	serveModels(t, devices, "nic0=sim:e1000e", "nic1=sim:e1000e", "edu0=sim:edu,sim.dma_mask=0xffffffff", "--wire", "nic0-nic1")
	s := vm.Suite{
		Package: "integration/guest", Dir: filepath.Dir(ring3),
		Config:  c,
		Timeout: 5 * time.Minute,
		Want:    func(name string) bool { return strings.HasPrefix(name, "TestRoot"+vfioUserTests) },
	}
	s.Run(t)
}
