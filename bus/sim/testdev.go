package sim

import (
	"encoding/binary"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

var testdevModel = model{
	name: "pci-testdev", aliases: []string{"testdev"}, about: "QEMU's test device: a counter in memory space and one in I/O space",
	make: newTestdev,
}

// Layout of pci-testdev (QEMU's docs/specs/pci-testdev): a header of bytes, the same in both
// regions, that tells of the test that runs.
const (
	testSelect = 0  // which test: a write starts one, and ends the one before; RW
	testWidth  = 1  // bytes of an access that counts, RO
	testOffset = 4  // where to write, 32 bits, RO
	testData   = 8  // what to write, RO
	testCount  = 12 // how often that was done, 32 bits, RO
	testName   = 16 // text, RO

	testsEach = 3 // tests of a region: those of the I/O region come second
	testMatch = 0xfa
	testAny   = 0xce
	testMem   = 4096
	testIO    = 256
)

var (
	testTypes = [...]string{"mmio", "portio"}
	testNames = [testsEach]string{"no-eventfd", "wildcard-eventfd", "datamatch-eventfd"}
)

// testdev is QEMU's test device. The tests with an eventfd do not count an access that signals
// the eventfd, which nobody else looks at; wider ones that include the place do not signal it.
type testdev struct {
	hdr     []byte // of the test that runs; nil: none
	region  int    // the test's
	kind    byte   // of the test: an index of testNames
	current [testName + 32]byte
}

func newTestdev(slot, options) (chip, header, error) {
	return &testdev{}, header{
		id: pci.FunctionID{Vendor: 0x1b36, Device: 0x0005, SubVendor: 0x1af4, SubDevice: 0x1100, Class: 0x00ff00},
		regions: []bus.RegionInfo{
			{Index: 0, Size: testMem},
			{Index: 1, Kind: bus.RegionIO, Size: testIO},
		},
		widths: map[int]int{0: 1 | 2 | 4 | 8, 1: 1 | 2 | 4},
	}, nil
}

func (d *testdev) reset() { d.hdr = nil }

// Wider accesses are as many of a byte.

func (d *testdev) read(_ int, off bus.Off, width int) (v uint64) {
	for i := range width {
		if at := int(off) + i; at < len(d.hdr) {
			v |= uint64(d.hdr[at]) << (8 * i)
		}
	}
	return v
}

func (d *testdev) write(region int, off bus.Off, width int, v uint64) {
	for i := range width {
		d.write8(region, int(off)+i, byte(v>>(8*i)), width == 1)
	}
}

func (d *testdev) write8(region, off int, v byte, alone bool) {
	if off == testSelect {
		d.start(region, v)
		return
	}
	if d.hdr == nil || off != int(binary.LittleEndian.Uint32(d.hdr[testOffset:])) {
		return
	}
	const plain, wildcard = 0, 1
	if d.kind != wildcard && v != testMatch || d.kind != plain && alone && region == d.region {
		return
	}
	n := d.hdr[testCount:]
	binary.LittleEndian.PutUint32(n, binary.LittleEndian.Uint32(n)+1)
}

func (d *testdev) start(region int, v byte) {
	d.hdr = nil
	if v >= testsEach {
		return
	}
	t := region*testsEach + int(v)
	base, data := testMem/2, byte(testMatch)
	if region == 1 {
		base = testIO / 2
	}
	if v == 1 {
		data = testAny
	}
	d.current = [len(d.current)]byte{testSelect: byte(t), testWidth: 1, testData: data}
	binary.LittleEndian.PutUint32(d.current[testOffset:], uint32(base+t))
	copy(d.current[testName:], testTypes[region]+"-"+testNames[v])
	d.hdr, d.region, d.kind = d.current[:], region, v
}
