// Package tap makes a network device a kernel interface: the kernel's IP stack, and with it
// ping, ssh and iperf3, work over a driver that is an ordinary process.
//
//	b, err := tap.Attach(eth0, tap.Config{Name: "rt0"})
//	...
//	defer b.Close()
//
// [Attach] creates a TAP interface, with the device's station address and MTU, and carries
// frames both ways between it and the device's queues, one goroutine a queue and direction.
// It owns the queues until [Bridge.Close]. On the command line: ring3 up --tap eth0=rt0.
//
// # The interface
//
// As with any NIC, the administrator brings it up (`ip link set rt0 up`) and gives it
// addresses; Config.Up does the first. It is gone when the program ends.
//
// Creating one takes CAP_NET_ADMIN. Without it, an administrator makes one for the user, which
// stays, and is taken over:
//
//	sudo ip tuntap add dev rt0 mode tap user $USER multi_queue vnet_hdr
//
// or the program runs in namespaces of the user's own (unshare -Urn), where he is root.
// Either way /dev/net/tun must be open to him, as distributions ship it (0666).
//
// # What follows what
//
// The device follows the interface, through netlink: its MTU ([netdev.MTUSetter]; one that the
// device cannot do is set back), promiscuous mode, also tcpdump's ([netdev.RxModer]). The
// device receives all multicasts, of which the kernel takes what it wants. A station address
// that is changed makes the device promiscuous, since its own filter is for its own address;
// a device without filters keeps its address, and the interface's is set back.
//
// The interface follows the device, within 200 ms: its MTU, its link as the carrier, and
// the offloads that are on.
//
// The interface may be moved to another network namespace (`ip link set rt0 netns X`) or renamed.
// To look into that namespace takes CAP_SYS_ADMIN over it and here; without, frames go on,
// and the device stops following.
//
// # Who holds the interface
//
// What takes rights is a [Holder]'s: making the interface, netlink, its settings. A bridge makes its own, or is given one that outlives it ([Config.Lender]), also in
// another process ([Request] and [Reply] can be sent). It gets duplicates of the queues' descriptors, so frames go between the bridge and the kernel as before. When a bridge
// dies, the interface keeps its address, routes, name and link, and the next bridge's device follows what it finds: MTU, promiscuous mode, station address. What the kernel sends
// meanwhile waits in the queues; after 5 s without a bridge the link goes down.
//
// # Kernel to device
//
// A frame is read, behind a virtio network header, straight into the DMA buffer that it is sent
// from; up to 64 that are there become one [netdev.TxQueue.Burst]. What the header asks for
// goes into the frame's [dma.Meta]: checksum and segmentation as the device has them on
// ([netdev.Offloader]). The kernel is only told to leave to the device what it can do; a
// frame that comes late, after a feature was switched off, gets its checksum in software, or
// is dropped where it wanted segmentation, and TCP sends it again.
//
// While the device's ring is full the TAP is not read. The kernel keeps up to txqueuelen
// frames then (1000), and drops what comes after, visible as the interface's TX drops.
//
// # Device to kernel
//
// [netdev.Poll] hands over up to 64 frames. TCP segments among them that follow each other
// in one flow are joined into one frame of up to 64 KiB, as the kernel's GRO would do, but
// before they cross into the kernel: one system call, one pass through its stack. Only
// segments whose checksums are right are joined (the device has verified them, or it is done
// here), with the same headers but for what must differ. Frames stay in their buffers; the
// kernel gathers the pieces (writev). A frame that the device verified is marked so
// (VIRTIO_NET_HDR_F_DATA_VALID), and a VLAN tag that it stripped is put back.
//
// What the kernel does not take is dropped and counted: while the interface is down,
// everything.
//
// Nothing is allocated for a frame.
//
// # Sources
//
// virtio 1.2, 5.1.6 (the header); Documentation/networking/tuntap.rst; RFC 1071, 791, 8200,
// 9293. Needs Linux 4.20 or newer for the carrier; 3.8 for queues.
package tap
