package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/iova"
)

// Memory of other processes is given to the machine as DIMMs that are plugged in while it runs: each
// file is one, whichever parts of it devices reach, and the IOMMU puts those where they are wanted.

// dimmSlots is how many there may be at once, QEMU's most; dimmSpace is what they may have together.
const (
	dimmSlots = 256
	dimmSpace = 256 << 30
)

// Registers of QEMU's ACPI memory hot-plug (docs/specs/acpi_mem_hotplug): what a guest's
// firmware writes to let a DIMM go. There is no guest, so this bus does it.
const (
	memHotplug      = 0x0a00
	memHotplugSlot  = memHotplug + 0x00 // selects a slot, 32 bits
	memHotplugState = memHotplug + 0x14 // of the slot, 8 bits
	memHotplugEject = 1 << 3
)

// dimm is a file that the machine has as memory.
type dimm struct {
	id     string
	base   uint64 // where it is for the machine
	size   uint64
	slot   uint64
	places int // that use it
}

// fileID tells files apart.
type fileID struct{ dev, ino uint64 }

// dimms are those that are plugged in.
type dimms struct {
	mu     sync.Mutex // before the IOMMU's
	files  map[fileID]*dimm
	serial int
}

// plug gives the machine a file, or one place more in one that it has.
func (m *Machine) plug(f *os.File) (fileID, *dimm, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fileID{}, nil, fmt.Errorf("looking at the file: %w", err)
	}
	id := fileID{st.Dev, st.Ino}
	if d := m.dimms.files[id]; d != nil {
		if d.size != uint64(st.Size) {
			return id, nil, fmt.Errorf("the file has %d bytes, and had %d: %w", st.Size, d.size, bus.ErrNotSupported)
		}
		d.places++
		return id, d, nil
	}
	if st.Size == 0 || st.Size&(pageSize-1) != 0 {
		return id, nil, fmt.Errorf("the file has %d bytes, want whole pages: %w", st.Size, bus.ErrNotSupported)
	}
	d, err := m.addDIMM(f, uint64(st.Size))
	if err != nil {
		return id, nil, err
	}
	d.places = 1
	if m.dimms.files == nil {
		m.dimms.files = map[fileID]*dimm{}
	}
	m.dimms.files[id] = d
	return id, d, nil
}

// addDIMM passes a file to QEMU and plugs it in. It takes some 5 ms.
func (m *Machine) addDIMM(f *os.File, size uint64) (*dimm, error) {
	m.dimms.serial++
	n := m.dimms.serial
	d := &dimm{id: fmt.Sprintf("dimm%d", n), size: size}
	memory := fmt.Sprintf("mem%d", n)
	r, err := m.own.qmp.executeWith("add-fd", map[string]any{"fdset-id": n}, f)
	if err != nil {
		return nil, err
	}
	var got struct {
		FD *int `json:"fd"`
	}
	if err := json.Unmarshal(r, &got); err != nil || got.FD == nil {
		return nil, fmt.Errorf("qemu: qmp add-fd: %s: %w", r, bus.ErrProtocol)
	}
	_, err = m.Execute("object-add", map[string]any{"qom-type": "memory-backend-file", "id": memory, "mem-path": fmt.Sprintf("/dev/fd/%d", *got.FD), "size": size, "share": true})
	// QEMU has opened it once more.
	_, _ = m.Execute("remove-fd", map[string]any{"fdset-id": n})
	if err != nil {
		return nil, err
	}
	if _, err = m.Execute("device_add", map[string]any{"driver": "pc-dimm", "id": d.id, "memdev": memory}); err == nil {
		err = m.findDIMM(d)
	}
	if err != nil {
		_, _ = m.Execute("object-del", map[string]any{"id": memory})
		return nil, err
	}
	return d, nil
}

// findDIMM asks where QEMU put it.
func (m *Machine) findDIMM(d *dimm) error {
	r, err := m.Execute("query-memory-devices", nil)
	if err != nil {
		return err
	}
	var all []struct {
		Data struct {
			ID               string
			Addr, Size, Slot uint64
		}
	}
	if err := json.Unmarshal(r, &all); err != nil {
		return fmt.Errorf("qemu: qmp query-memory-devices: %w (%w)", err, bus.ErrProtocol)
	}
	for _, x := range all {
		if x.Data.ID == d.id && x.Data.Size == d.size {
			d.base, d.slot = x.Data.Addr, x.Data.Slot
			return nil
		}
	}
	return fmt.Errorf("qemu: qmp query-memory-devices: %s is not among %d: %w", d.id, len(all), bus.ErrProtocol)
}

// unplug takes one place away, and the file with the last of them.
func (m *Machine) unplug(id fileID, d *dimm) {
	if d.places--; d.places > 0 {
		return
	}
	delete(m.dimms.files, id)
	m.qt.post(cmdOut[4], memHotplugSlot, d.slot)
	m.qt.post(cmdOut[1], memHotplugState, memHotplugEject)
	m.qt.flush()
	if _, err := m.Execute("object-del", map[string]any{"id": "mem" + d.id[len("dimm"):]}); err != nil && m.Err() == nil {
		m.log.Warn(fmt.Sprintf("qemu: taking a process's memory away: %v", err))
	}
}

// Place lets a device behind the IOMMU reach memory of another process; bus.Placer.
func (a dmaOf) Place(w bus.Window) (release func(), err error) {
	d, m := a.d, a.d.m
	fail := func(format string, args ...any) (func(), error) {
		return nil, fmt.Errorf("%s: placing DMA memory: %#x bytes at %#x: %w", d.Address(), w.Size, uint64(w.IOVA), fmt.Errorf(format, args...))
	}
	if err := d.Err(); err != nil {
		return nil, fmt.Errorf("placing DMA memory: %w", err)
	}
	base, end := uint64(w.IOVA), uint64(w.IOVA)+w.Size
	switch {
	case m.own == nil:
		return fail("a QEMU of another process's takes no memory of this one's: %w", bus.ErrNotSupported)
	case d.domain == nil:
		return fail("a QEMU device reaches such memory with iommu=on only: %w", bus.ErrNotSupported)
	case w.File == nil || w.Bytes == nil:
		return fail("QEMU maps the memory, so it must be a memfd that is sealed against shrinking: %w", bus.ErrNotSupported)
	case w.Size == 0 || (base|w.Size|uint64(w.Off))&(pageSize-1) != 0 || end < base || end > 1<<39:
		return fail("want whole pages below 512 GiB: %w", bus.ErrNotSupported)
	}
	m.dimms.mu.Lock()
	defer m.dimms.mu.Unlock()
	id, file, err := m.plug(w.File)
	if err != nil {
		return fail("%w", err)
	}
	if w.Off < 0 || uint64(w.Off) > file.size || file.size-uint64(w.Off) < w.Size {
		m.unplug(id, file)
		return fail("the file ends before: %w", bus.ErrNotSupported)
	}
	if err := m.iommu.enterAt(d, base, file.base+uint64(w.Off), w); err != nil {
		m.unplug(id, file)
		return fail("%w", err)
	}
	return sync.OnceFunc(func() {
		m.dimms.mu.Lock()
		defer m.dimms.mu.Unlock()
		m.iommu.leaveAt(d, base)
		m.unplug(id, file)
	}), nil
}

// enterAt maps a window for a device.
func (u *iommu) enterAt(d *device, base, phys uint64, w bus.Window) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return bus.ErrClosed
	}
	if d.domain.left {
		return bus.ErrGone
	}
	s := iova.Span{Base: base, End: base + w.Size}
	bell := u.m.bell.addr &^ (pageSize - 1)
	taken := s.Base < bell+pageSize && bell < s.End
	for _, x := range u.live {
		taken = taken || x.dev == d && x.Base < s.End && s.Base < x.End
	}
	if taken {
		return fmt.Errorf("the device has something there: %w", bus.ErrBusy)
	}
	if err := d.domain.enter(base, phys, w.Size, permission(w.Dir), u.forget(d.domain)); err != nil {
		return err
	}
	u.live = append(u.live, mapping{s, d, w.Dir})
	return nil
}

// leaveAt takes it away: when it returns the device cannot reach it.
func (u *iommu) leaveAt(d *device, base uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	i := slices.IndexFunc(u.live, func(m mapping) bool { return m.dev == d && m.Base == base })
	if u.closed || i < 0 {
		return
	}
	m := u.live[i]
	u.live = slices.Delete(u.live, i, i+1)
	u.vacate(m)
	u.retire(d)
}
