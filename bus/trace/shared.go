package trace

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// Memory is words that another process has too, and has still when this one was killed: an Area of a ledger.
type Memory interface {
	Len() int
	Load(i int) uint64
	Store(i int, v uint64) // a store, in the order of the program
}

// Words of shared memory: the writer's epoch, then a ring of records. The first word of a record is 0 while it is written, and written last: so a record that was
// being written at the end of its writer is none.
const (
	sharedRecords = 256
	sharedHead    = 1
	sharedSize    = 16 // words of a record: see share

	// SharedWords is how much Memory Options.Shared takes.
	SharedWords = sharedHead + sharedRecords*sharedSize
)

// The first word of a record: 32 bits of its number, then kind, width, region, mode and operation; sharedMore says that there are more words than the
// time, the offset and the value.
const (
	sharedSeq    = 32
	sharedKind   = 24
	sharedWidth  = 16
	sharedRegion = 8
	sharedMode   = 4
	sharedMore   = 1 << 3
	sharedOp     = 0b111
)

// prepareShared makes shared memory empty, and says when Time began.
func prepareShared(m Memory) error {
	if m.Len() < SharedWords {
		return fmt.Errorf("sharing a trace: %d words, want %d: %w", m.Len(), SharedWords, bus.ErrNotSupported)
	}
	for i := range sharedRecords {
		m.Store(sharedHead+i*sharedSize, 0)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("sharing a trace: %w", err)
	}
	m.Store(0, uint64(now.Nano()-int64(time.Since(epoch))))
	return nil
}

// share puts a record that is complete into shared memory. Called with mu held.
func (t *recorder) share(r *Record) {
	m, at := t.shared, sharedHead+int(r.Seq%sharedRecords)*sharedSize
	m.Store(at, 0)
	m.Store(at+1, uint64(r.Time))
	m.Store(at+2, uint64(r.Off))
	m.Store(at+3, r.Value)
	first := uint64(uint32(r.Seq))<<sharedSeq | uint64(r.Kind)<<sharedKind | uint64(r.Width)<<sharedWidth | uint64(uint8(r.Region))<<sharedRegion |
		uint64(r.Mode&0xf)<<sharedMode | uint64(r.Op)&sharedOp
	if r.Aux|uint64(r.Count) != 0 || r.n != 0 || r.failed {
		first |= sharedMore
		more := uint64(r.Count)<<32 | uint64(r.desc)<<8 | uint64(r.n)
		if r.failed {
			more |= 1 << 16
		}
		m.Store(at+4, r.Aux)
		m.Store(at+5, more)
		for i := 0; i < int(r.n); i += 8 {
			m.Store(at+6+i/8, binary.LittleEndian.Uint64(r.data[i:i+8]))
		}
	}
	m.Store(at, first)
}

// Recover is what Options.Shared of a process that has died holds: its last n records, oldest first. Nothing in it is believed: a record may be nonsense, and
// then says nonsense. Time counts from this process's Epoch.
func Recover(m Memory, n int) []Record {
	if m.Len() < SharedWords {
		return nil
	}
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) != nil {
		return nil
	}
	mine := now.Nano() - int64(time.Since(epoch))
	shift := int64(m.Load(0)) - mine
	var all []Record
	for i := range sharedRecords {
		if r, ok := recoverOne(m, sharedHead+i*sharedSize); ok {
			r.Time = max(r.Time+shift, 0)
			all = append(all, r)
		}
	}
	// By the numbers, which are of 32 bits.
	slices.SortStableFunc(all, func(a, b Record) int { return int(int32(uint32(a.Seq) - uint32(b.Seq))) })
	return all[max(0, len(all)-max(n, 0)):]
}

func recoverOne(m Memory, at int) (r Record, ok bool) {
	first := m.Load(at)
	r.Seq, r.Kind, r.Width = first>>sharedSeq, Kind(first>>sharedKind), uint8(first>>sharedWidth)
	r.Region, r.Mode, r.Op = int8(first>>sharedRegion), bus.IRQMode(first>>sharedMode&0xf), Op(first&sharedOp)
	if r.Kind == 0 || r.Kind > lastKind || r.Region < NoRegion {
		return r, false
	}
	r.Time, r.Off, r.Value = int64(m.Load(at+1)), bus.Off(m.Load(at+2)), m.Load(at+3)
	if first&sharedMore != 0 {
		r.Aux = m.Load(at + 4)
		more := m.Load(at + 5)
		r.Count, r.desc, r.n, r.failed = uint32(more>>32), uint8(more>>8), uint8(min(more&0xff, maxData)), more&(1<<16) != 0
		for i := 0; i < int(r.n); i += 8 {
			binary.LittleEndian.PutUint64(r.data[i:i+8], m.Load(at+6+i/8))
		}
		if r.Kind == Doorbell && r.Count > 0 && r.Aux>>32 == 0 { // the ring's size
			r.Count = 0
		}
	}
	return r, m.Load(at) == first
}

// Entries names the records of a device that this process does not have, with o's Name and Registers, as [Device.Entries] does.
func (o Options) Entries(address string, rs []Record) (es []Entry) {
	n := namer{name: o.Name, address: address, regs: slices.Concat(o.Registers, configRegisters)}
	for i := range rs {
		es = n.entries(es, &rs[i])
	}
	return es
}
