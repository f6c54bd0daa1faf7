// Package dmafault reads from the kernel's log what an IOMMU stopped: DMA of a device outside of what is mapped for it. VFIO tells nobody of it, so the
// log is the only place that has it, and it is for those who may read that: root, or everybody where kernel.dmesg_restrict is 0.
//
//	f, err := dmafault.Open("")
//	go f.Follow(func(x dmafault.Fault) { ... })
//	...
//	f.Close()
//
// The lines are those of intel-iommu (drivers/iommu/intel/dmar.c), amd_iommu (drivers/iommu/amd/iommu.c) and, from Linux 6.15 on, arm-smmu-v3. They are no
// interface: what is not understood is left out, and a kernel that words them differently tells nothing. Intel's leave the PCI domain out; it is taken to be 0.
// The kernel says no more than some ten of them in five seconds.
//
// A line may be read long after it was written, where the machine has much to do: [File.Skip] is for who has stopped the devices, and does not want to take what was
// written until then for the doing of whoever has them next.
//
// Concurrency: Follow is for one goroutine, Skip and Close for any.
package dmafault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/pci"
)

// Fault is DMA that was stopped.
type Fault struct {
	Addr  pci.Addr
	IOVA  uint64
	Write bool   // false: a read, or it is not said
	Text  string // the kernel's line
}

// lines are what the kernels write; the device, whether it is a write, and the address are named groups.
var lines = []*regexp.Regexp{
	regexp.MustCompile(`^DMAR: (?:DRHD: handling fault.*)?\[DMA (?P<what>Write|Read)[^\]]*\] Request device \[(?:0x)?(?P<dev>[0-9a-f]{2}:(?:0x)?[0-9a-f]{2}\.[0-7])\](?: PASID [0-9a-f]+)? fault addr (?:0x)?(?P<addr>[0-9a-f]{1,16})\b`),
	regexp.MustCompile(`^(?:\S+ (?P<dev>[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]): )AMD-Vi: Event logged \[IO_PAGE_FAULT domain=\S+ address=0x(?P<addr>[0-9a-f]{1,16}) flags=0x(?P<flags>[0-9a-f]{1,8})\]`),
	regexp.MustCompile(`^AMD-Vi: Event logged \[IO_PAGE_FAULT device=(?P<dev>(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) domain=\S+ address=0x(?P<addr>[0-9a-f]{1,16}) flags=0x(?P<flags>[0-9a-f]{1,8})\]`),
	regexp.MustCompile(`^arm-smmu-v3 \S+: event: F_\w+ client: (?P<dev>[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) sid: .*\biova: 0x(?P<addr>[0-9a-f]{1,16})\b`),
}

// amdWrite is RW in the flags of an event of AMD's (48882, 2.5.3): the access was a write.
const amdWrite = 1 << 5

// Parse reads a line of the log's, without what stands before the text. It says no where the line tells of no such fault.
func Parse(line string) (f Fault, ok bool) {
	for _, r := range lines {
		m := r.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		part := func(name string) string {
			if i := r.SubexpIndex(name); i >= 0 {
				return m[i]
			}
			return ""
		}
		dev := strings.ReplaceAll(part("dev"), "0x", "")
		if strings.Count(dev, ":") == 1 {
			dev = "0000:" + dev
		}
		addr, err := pci.ParseAddr(dev)
		if err != nil {
			return f, false
		}
		f = Fault{Addr: addr, Write: part("what") == "Write", Text: line}
		if f.IOVA, err = strconv.ParseUint(part("addr"), 16, 64); err != nil {
			return Fault{}, false
		}
		if flags, err := strconv.ParseUint(part("flags"), 16, 32); err == nil {
			f.Write = flags&amdWrite != 0
		}
		return f, true
	}
	return f, false
}

// File is the kernel's log, from now on.
type File struct {
	f      *os.File
	closed atomic.Bool        // or about to be: os.File has several errors for that
	skip   chan chan struct{} // wants what is there left out; closed when that is so
	ended  chan struct{}      // closed when Follow has ended
}

// maxRecord is how long a record is at most, in bytes (CONSOLE_EXT_LOG_MAX).
const maxRecord = 8192

// newFile is a File of a log that is open, does not block, and is read from where it stands.
func newFile(f *os.File) *File {
	return &File{f: f, skip: make(chan chan struct{}, 1), ended: make(chan struct{})}
}

// maxSkipped bounds how many records Skip reads, where somebody writes without end.
const maxSkipped = 1 << 16

// Open opens the log at path; "" is /dev/kmsg. It fails with fs.ErrPermission where this process may not read it.
func Open(path string) (*File, error) {
	if path == "" {
		path = "/dev/kmsg"
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("the kernel's log: %w", err)
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		return nil, errors.Join(fmt.Errorf("the kernel's log: finding its end: %w", err), f.Close())
	}
	return newFile(f), nil
}

// Close ends Follow.
func (f *File) Close() error {
	f.closed.Store(true)
	return f.f.Close()
}

// Skip leaves out what is in the log now: when it returns nil, Follow has told all that it will ever tell of that. It waits for Follow, and for what that calls, until ctx
// ends. A log that is not pollable fails with os.ErrNoDeadline: its reader sleeps until there is a record.
func (f *File) Skip(ctx context.Context) error {
	// Once to see whether it can be done: what is asked for of a reader that cannot be woken would be in the way of who asks next.
	if err := f.wake(); err != nil {
		return err
	}
	done := make(chan struct{})
	select {
	case f.skip <- done:
	case <-f.ended:
		return nil
	case <-ctx.Done():
		return f.late(ctx)
	}
	if err := f.wake(); err != nil {
		return err
	}
	select {
	case <-done:
	case <-f.ended:
	case <-ctx.Done():
		return f.late(ctx)
	}
	return nil
}

// wake has the reader look at skip. Where the log is closed, that ends.
func (f *File) wake() error {
	if err := f.f.SetReadDeadline(time.Unix(1, 0)); err != nil && !f.closed.Load() {
		return fmt.Errorf("the kernel's log: waking its reader: %w", err)
	}
	return nil
}

func (f *File) late(ctx context.Context) error {
	return fmt.Errorf("the kernel's log: leaving out what is there: %w", context.Cause(ctx))
}

// skipped does what Skip wants.
func (f *File) skipped() error {
	if err := f.f.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	select {
	case done := <-f.skip: // not before the deadline is gone: one that comes now sets its own
		defer close(done)
		raw, err := f.f.SyscallConn()
		if err != nil {
			return err
		}
		return raw.Read(func(fd uintptr) bool {
			b := make([]byte, maxRecord)
			for range maxSkipped {
				if n, err := unix.Read(int(fd), b); err != unix.EPIPE && (err != nil || n == 0) {
					break // nothing is there; an error is the next reader's to see
				}
			}
			return true
		})
	default:
		return nil
	}
}

// Follow calls each for every fault that is logged, until Close, which gives nil, or an error. Records that were overwritten before they were read are left out. It is
// called once.
func (f *File) Follow(each func(Fault)) error {
	defer close(f.ended)
	b := make([]byte, maxRecord)
	for {
		n, err := f.f.Read(b)
		again := errors.Is(err, unix.EPIPE)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = f.skipped()
			again = err == nil
		}
		switch {
		case again:
			continue
		case err != nil && f.closed.Load():
			return nil
		case err != nil:
			return fmt.Errorf("the kernel's log: %w", err)
		}
		if x, ok := Parse(text(string(b[:n]))); ok {
			each(x)
		}
	}
}

// text is what a record of /dev/kmsg says: "6,339,5140900,-;NET: ...\n DEVICE=...\n" (Documentation/ABI/testing/dev-kmsg).
func text(record string) string {
	_, s, _ := strings.Cut(record, ";")
	s, _, _ = strings.Cut(s, "\n")
	return s
}
