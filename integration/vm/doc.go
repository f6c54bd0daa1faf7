// Package vm boots Debian's kernel in QEMU and runs Go tests inside, as tests of the host's
// go test.
//
// # Running
//
//	go test ./integration -run TestVM -v             # the whole suite, one boot (and one without an IOMMU)
//	go test ./integration -run 'TestVM$/TestBind' -v # one test
//	go test ./integration -run 'TestVM$/TestBind/nic0' -v
//
// QEMU must be installed, and the kernel is fetched the first time (hack/kernel, no root). Where
// that is not possible the tests are skipped, or fail where RING3_NEED_VM is set, as make test
// does. A boot takes 10 s without KVM; RING3_VM_CONSOLE=1 shows the console while it runs.
//
// # Writing a test
//
// Tests that run in the VM stand in integration/guest, one file for each subject, with the
// build tag vm; helpers for them are there too:
//
//	//go:build vm
//
//	package guest
//
//	func TestVFIO(t *testing.T) { // runs as uid 65534, without capabilities
//		addr := Address(t, "nic0")      // by its id in integration/vm_test.go: "0000:00:04.0"
//		b := Bind(t, addr, "vfio-pci")  // init does it, as root; undone at the end
//		f, err := os.OpenFile(b.Path, os.O_RDWR, 0) // /dev/vfio/GROUP, which nobody now owns
//		...
//	}
//
// Each top-level test runs in a process of its own. It runs as nobody, uid and gid 65534 with
// no other groups and no capabilities, with Debian's limit of locked memory, 8 MiB. A test
// whose name begins with TestRoot runs as root, and may start a program as nobody (AsNobody). A test
// whose name begins with TestNoIOMMU runs, as nobody, in a second VM without an IOMMU, and one
// with TestNoIOMMURoot there as root.
// Nobody's tests have what only root may do done by init: Bind, Modprobe, ReadRoot, WriteRoot,
// RunRoot, Memlock, KernelLog; and what only the host can by the host: QMP, Plug, Unplug,
// WaitUnplugged, Capture, and what integration/vm_test.go has in Config.Host (AskHost). They speak over a socket that no program inherits that a test starts.
// Whatever Bind bound is given back when the process has ended, however it did.
//
// The program under test is /usr/bin/ring3. What else the VM has is in integration/vm_test.go:
// its devices, with their ids, and the programs of this machine that are put into it (with
// their shared libraries; Image.AddProgram). Modules that can be loaded are those in Config.Modules and
// in config.go's lists, with what they need.
//
// A test ends with the VM's console where its process died, hung, or took the kernel with it. A
// kernel that complains (BUG, WARNING, a stall) fails the test that ran. After that the VM is
// booted anew for the next one.
package vm
