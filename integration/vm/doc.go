// Package vm boots Debian's kernel in QEMU and runs Go tests inside, as tests of the host's
// go test.
//
// # Running
//
//	make vm-test                                     # the whole suite
//	make vm-test RUN=TestBind                        # one test
//	make vm-test-arm64                               # on an emulated arm64 machine with an SMMUv3
//	make vm                                          # a shell in such a VM
//	go test -count=1 ./integration -run 'TestVM$/TestBind/nic0' -v
//
// With -count=1, since go test does not see what is built for the VM and would take an old
// result for good.
//
// QEMU must be installed, and the kernel is fetched the first time (hack/kernel, no root). Where
// that is not possible the tests are skipped, or fail where RING3_NEED_VM is set, as make test
// does. KVM is used where it works. Without it a boot takes 8 s on a quiet machine; each suite
// boots once.
//
//	RING3_VM_CONSOLE=1     shows the console while the VM runs
//	RING3_VM_ACCEL=tcg     does without KVM; kvm insists on it
//	RING3_VM_ARCH=arm64    is another architecture
//	RING3_KERNEL=DIR       is another kernel: a folder with vmlinuz and lib/modules/RELEASE
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
// Each top-level test runs in a process of its own, with testdata where go test has it. Its
// name says who it is and where it runs:
//
//	Test...               nobody: uid and gid 65534, no other groups, no capabilities
//	TestRoot...           root, which may start a program as nobody (AsNobody)
//	TestNoIOMMU...        nobody, in a second VM, which has no IOMMU
//	TestNoIOMMURoot...    root there
//
// All have Debian's limit of locked memory, 8 MiB. Privileges can be gained as on an ordinary
// system, by fusermount3; NoNewPrivs forbids it. Environment variables that begin with RING3_,
// and -short, are passed on.
//
// Nobody's tests have what only root may do done by init: Bind, Modprobe, ReadRoot, WriteRoot,
// RunRoot, Memlock, KernelLog; and what only the host can by the host: QMP, Plug, Unplug,
// WaitUnplugged, Capture, and what integration/vm_test.go has in Config.Host (AskHost). They
// speak over a socket, which no program inherits that a test starts. Whatever Bind bound is
// given back when the process has ended, however it did.
//
// The program under test is /usr/bin/ring3. What else the VM has is in integration/vm_test.go:
// its devices, with their ids, and the programs of this machine that are put into it, with
// their shared libraries (Image.AddProgram); Debian's take their place in a VM of another
// architecture ([Programs]). Modules that can be loaded are those in Config.Modules and in
// config.go's lists, with what they need.
//
// # A TPM
//
// Config.TPM gives the VM one, with swtpm behind it. integration/tpm_vm_test.go boots VMs with TPM 2.0 and 1.2 for tests
// whose names begin with TestRootTPM: they write down what the kernel's files and devices do, which is kept below
// tpmdd/class/testdata and tpmdd/chardev/testdata (make golden) and compared every time. What looks is package tpmseen, which integration/tpm_tables_test.go and
// tpm_tree_test.go run on ring3's files and devices too, to compare these with the kernel's. A TPM's state directory is
// the caller's, so what a VM did to a TPM can be looked at afterwards without one, and the other way round.
//
// # PCI Express ports
//
// integration/ports_vm_test.go boots a VM with root ports, a switch and native hot-plug, in which TestRootPorts plays 30 events to the
// kernel's pcieport, pciehp and aer. What is seen is kept in integration/testdata/ports (make golden) and compared every time.
// The events, and what looks, are package portseen, which does the same with ring3's ports. In the same VM TestRootPortsUIO plays those of them
// that concern two root ports to ring3, which has the two by UIO, and compares with what is kept.
//
// # Two VMs and a fabric
//
// integration/fabric_vm_test.go boots two VMs at a time, which are nodes of a RapidIO fabric on the host, by QEMU's ivshmem-doorbell; a process of the host's is
// the third. ring3 drives the device in each, over VFIO and as nobody, and the kernels speak to each other over its rionet. TestRootFabricServer runs in one VM,
// TestRootFabricClient in the other, whose root file system is in the end the first's, by 9P over rionet. Where they wait for each other the host keeps them
// together.
//
//	go test -count=1 ./integration -run 'TestVMFabric/vm./TestRootFabric./ping' -v
//
// # What fails a test
//
// Besides itself: a process or a mount that it left behind (both are then removed), a device
// that could not be given back, and a kernel that complains (BUG, WARNING, a stall). A test
// that runs longer than Suite.Timeout ends with the stacks of its goroutines. One that then
// does not end, or that took the kernel with it, fails with the end of the VM's console, and
// the VM is booted anew for the next one. Package bad has such tests, and TestVMFailures looks
// at what is said of them.
//
// # How it works
//
// [Start] makes an initramfs (u-root's cpio; init, modules in the order of what they need, the
// Image) and starts QEMU, with everything that they share inherited: QMP and a virtio-serial
// port are socket pairs, the console is a pipe. Files are in a folder that only this user can
// enter. QEMU ends with this process, however that ends. Over the port package wire's messages
// pass; the guest's init starts programs, passes on what they say, and asks the host for what
// tests ask it. [Suite] starts each test with -test.v=test2json and replays that as subtests.
package vm
