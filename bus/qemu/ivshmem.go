package qemu

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/ioctl"
)

// The ivshmem server's protocol (QEMU docs/specs/ivshmem-spec, "Client-Server
// protocol"): 8-byte little-endian signed messages, some with a descriptor.
const (
	ivVersion  = 0
	ivShmem    = -1 // carries the shared memory
	peerSelf   = 0  // this process; a 16-bit MSI datum can select no other peer
	peerDevice = 1  // QEMU's device
)

// regDoorbell of ivshmem's BAR 0: peer in bits 31:16, vector in 15:0, WO.
const regDoorbell bus.Off = 0x0c

// doorbell is the machine's supply of eventfds that an interrupt message can signal.
type doorbell struct {
	addr uint64 // of the register on the bus
	fds  []int  // eventfd by vector
	used []bool
}

// newDoorbell makes n eventfds.
func newDoorbell(n int) (*doorbell, error) {
	d := &doorbell{used: make([]bool, n)}
	for range n {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		if err != nil {
			d.close()
			return nil, fmt.Errorf("qemu: creating eventfd %d of %d: %w", len(d.fds)+1, n, err)
		}
		d.fds = append(d.fds, fd)
	}
	return d, nil
}

func (d *doorbell) close() {
	for _, fd := range d.fds {
		unix.Close(fd)
	}
	d.fds = nil
}

// serve plays the ivshmem server: it hands QEMU's device our eventfds. QEMU reads them
// when it gets to it; ready tells when.
func (d *doorbell) serve(sock int) error {
	shm, err := memfd("ring3-ivshmem", 4096)
	if err != nil {
		return err
	}
	defer shm.Close()
	send := func(v int64, fd int) error {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(v))
		var oob []byte
		if fd >= 0 {
			oob = unix.UnixRights(fd)
		}
		if err := unix.Sendmsg(sock, b[:], oob, nil, unix.MSG_NOSIGNAL); err != nil {
			return fmt.Errorf("qemu: handing over interrupt eventfds: %w (%w)", err, bus.ErrGone)
		}
		return nil
	}
	if err := send(ivVersion, -1); err != nil {
		return err
	}
	if err := send(peerDevice, -1); err != nil {
		return err
	}
	if err := send(ivShmem, int(shm.Fd())); err != nil {
		return err
	}
	for _, fd := range d.fds {
		if err := send(peerSelf, fd); err != nil {
			return err
		}
	}
	// Nobody signals the device's own vectors, but it must be given that many. Not ours:
	// QEMU reads those.
	own, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("qemu: creating an eventfd: %w", err)
	}
	defer unix.Close(own)
	for range d.fds {
		if err := send(peerDevice, own); err != nil {
			return err
		}
	}
	return nil
}

// ready waits until QEMU knows all eventfds: a message before that would vanish. It
// rings the last vector until its eventfd fires.
func (d *doorbell) ready(q *qtest) error {
	last := len(d.fds) - 1
	deadline := time.Now().Add(AnswerTimeout)
	var b [8]byte
	for {
		q.post(cmdWrite[4], d.addr, uint64(peerSelf<<16|last))
		if _, ok := q.ask(cmdRead[4], d.addr-uint64(regDoorbell)); !ok {
			return fmt.Errorf("qemu: waiting for interrupts to work: %w", bus.ErrGone)
		}
		if _, err := ioctl.ReadNow(d.fds[last], b[:]); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("qemu: waiting for interrupts to work: ivshmem vector %d did not fire within %v: %w", last, AnswerTimeout, bus.ErrTimeout)
		}
	}
}

// message is the datum that signals a vector's eventfd.
func (d *doorbell) message(vector int) uint32 { return uint32(peerSelf<<16 | vector) }

// take reserves n vectors in a row, the first a multiple of align. It returns -1 where
// there are not so many.
func (d *doorbell) take(n, align int) int {
	for base := 0; base+n <= len(d.used); base += align {
		free := true
		for i := base; i < base+n; i++ {
			free = free && !d.used[i]
		}
		if !free {
			continue
		}
		for i := base; i < base+n; i++ {
			d.used[i] = true
		}
		return base
	}
	return -1
}

func (d *doorbell) give(base, n int) {
	for i := base; i < base+n; i++ {
		d.used[i] = false
	}
}

// available is the most vectors that take would give now.
func (d *doorbell) available() int {
	best, run := 0, 0
	for _, u := range d.used {
		if run++; u {
			run = 0
		}
		best = max(best, run)
	}
	return best
}

// findDoorbell locates the ivshmem device among the enumerated functions.
func findDoorbell(t *pci.Topology) (uint64, error) {
	for _, f := range t.Functions {
		if f.ID.Vendor != 0x1af4 || f.ID.Device != 0x1110 || f.Addr.Bus != 0 || f.Addr.Dev != ivshmemSlot {
			continue
		}
		for _, b := range f.BARs {
			if b.Index == 0 && b.Addr != 0 {
				return b.Addr + uint64(regDoorbell), nil
			}
		}
		return 0, fmt.Errorf("qemu: ivshmem at %s has no BAR 0: %w", f.Addr, bus.ErrProtocol)
	}
	return 0, fmt.Errorf("qemu: no ivshmem device in slot %d: %w", ivshmemSlot, bus.ErrProtocol)
}
