// Benchvm measures ring3 over VFIO beside the kernel's own driver and DPDK's testpmd, in a VM:
//
//	make bench-vm
//	go run ./integration/benchvm [-json] [-only REGEXP] [-time 500ms] [-reps 5]
//
// # What is measured
//
// All of it runs in one VM of 2 CPUs with a virtual IOMMU (the kernel's pktgen once more in a second one
// without), on QEMU's e1000e: absolute figures are those of QEMU's model and, without
// KVM, of an emulated CPU. What can be compared is rows of one run. Machines are noisy, so ways to do a
// thing are measured in turn, -reps times; a row is the median with the lowest and highest, and a ratio the
// median of the ratios within a turn.
//
// tx: packets a second of 60 bytes, from one NIC that nobody listens to, from the second CPU.
//
//   - kernel: its e1000e and pktgen. iommu=on is as the VM was booted (intel_iommu=on iommu=nopt),
//     iommu=pt the same boot with the NIC in an identity domain, past the IOMMU, iommu=off the second
//     VM. clone_skb=100000 sends one packet again and again, clone_skb=0 builds each burst anew. Rings
//     are the driver's own size, 256; interrupts are served where the kernel has them served.
//   - testpmd: DPDK's, forward mode txonly, on vfio-pci, which builds each packet from a template. Huge
//     pages, and a ring of its own choice. Skipped, with the reason, where Debian's packages cannot be had.
//   - ring3: pktgen and drivers/e1000 over package vfio, as uid 65534 without capabilities, with the commands
//     that the kernel's got. With clone_skb=0 each packet, not each burst, is built anew, with its
//     own sequence number; one reading of the clock serves a burst. A ring of its own size, 1024; small pages.
//   - the model alone: a loop that only rings the doorbell: what QEMU can do.
//
// size: the same at burst 32 over the size of frames, in Mb/s of frame bytes. 9000 has the MTU that it takes.
//
// load: UDP frames of 1024 bytes at rising rates from a second NIC, wired to the first, which the kernel's pktgen
// has (past the IOMMU, served by the first CPU): what is delivered to a program that counts datagrams, of
// what was sent (less than was offered, where the generator could not), and how busy the second CPU is, which has everything that receives. kernel is e1000e, the
// kernel's stack and a socket; ring3 is the driver and a sink in the same process; ring3+tap is the driver, a
// TAP, the kernel's stack and a socket. These are the three curves of "User Mode Drivers" (UNSW, 2004).
//
// irq: from the register write that makes a device (edu) interrupt to the first instruction of the handler:
// ring3's over VFIO, on an ordinary thread, wherever that runs, and with --rt 50 on the first CPU, and the
// kernel's own handler of the same interrupt, as the tracepoint irq:irq_handler_entry has it. The
// kernel is interrupted on the first CPU. With nothing else to do (idle), and with an ordinary program
// running on each CPU (busy). By CLOCK_MONOTONIC, whose reading takes some microseconds where it is the
// HPET's, as in a VM without KVM.
//
// map: mapping memory for the device and unmapping it again, against a buffer from a pool; sending from 64
// buffers and from 4096 of 2 KiB, which are more pages of 4 KiB than QEMU's IOTLB has entries (1024), and the same
// in pages of 2 MiB.
//
// config: a read of 32 bits of config space (the ID) and a write of 16 (Device Control, as it is) of the first NIC: over VFIO, as nobody, and over
// UIO (uio_pci_generic), as root, which is who may. The rows of `ring3 bench` of that name are the other backends'.
//
// tpm: a command of TPM 2.0 by the kernel's tpm_tis, on QEMU's tpm-tis and swtpm: the time of a write and a read of
// /dev/tpm0, the mean of 20, and how often the driver reads and writes registers for it, as QEMU counts them, from
// taking the locality to giving it back. Skipped without swtpm.
package main
