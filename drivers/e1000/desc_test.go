package e1000

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestDescriptors(t *testing.T) {
	ring := bytes.Repeat([]byte{0xff}, 4*descSize)
	putTx(ring, 2, 0x1122334455667788, txEOP|txIFCS|60)
	want := []byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 60, 0, 0, 0x03, 0, 0, 0, 0}
	if got := ring[2*descSize:][:descSize]; !bytes.Equal(got, want) {
		t.Errorf("putTx = % x, want % x", got, want)
	}
	reportTx(ring, 2, txRS)
	want[11] = 0x0b
	if got := ring[2*descSize:][:descSize]; !bytes.Equal(got, want) {
		t.Errorf("reportTx = % x, want % x", got, want)
	}
	if doneTx(ring, 2) {
		t.Error("doneTx of a new descriptor = true")
	}
	ring[2*descSize+12] = 1
	if !doneTx(ring, 2) {
		t.Error("doneTx with DD = false")
	}
	putRx(ring, 1, 0x0102)
	if got := ring[descSize:][:descSize]; !bytes.Equal(got, append([]byte{2, 1}, make([]byte, 14)...)) {
		t.Errorf("putRx = % x", got)
	}
	for _, i := range []int{0, 3} {
		if !bytes.Equal(ring[i*descSize:][:descSize], bytes.Repeat([]byte{0xff}, descSize)) {
			t.Errorf("descriptor %d was touched", i)
		}
	}
}

func TestDecode(t *testing.T) {
	const ok = rxDD | rxEOP
	for _, c := range []struct {
		v       rxStat
		n       int
		verdict rxVerdict
	}{
		{ok | 60, 60, rxGood},
		{ok | 14, 14, rxGood},
		{ok | 2048, 2048, rxGood},
		{ok | 13, 0, rxLength},
		{ok, 0, rxLength},
		{ok | 2049, 0, rxLength},
		{ok | 0xffff, 0, rxLength},
		{rxDD | 60, 0, rxLength},
		{ok | 60 | rxCE, 0, rxCRC},
		{ok | 60 | rxSE, 0, rxFrame},
		{ok | 60 | rxSEQ, 0, rxFrame},
		{ok | 60 | rxCXE, 0, rxFrame},
		{ok | 60 | rxRXE, 0, rxFrame},
		{ok | 60 | 1<<45, 60, rxGood}, // TCPE: a wrong checksum is for the program to find
		{ok | 60 | 1<<46, 60, rxGood}, // IPE
		{^rxStat(0), 0, rxGarbage},
	} {
		n, v := c.v.decode(2048)
		if v != c.verdict || v == rxGood && n != c.n {
			t.Errorf("(%s).decode() = %d, %d, want %d, %d", c.v, n, v, c.n, c.verdict)
		}
	}
}

// FuzzDecode: whatever a descriptor holds, a good frame lies inside its buffer.
func FuzzDecode(f *testing.F) {
	f.Add(make([]byte, descSize))
	f.Add(bytes.Repeat([]byte{0xff}, descSize))
	f.Add(binary.LittleEndian.AppendUint64(make([]byte, 8), uint64(rxDD|rxEOP|60)))
	f.Fuzz(func(t *testing.T, d []byte) {
		if len(d) < descSize {
			return
		}
		ring := make([]byte, descSize)
		copy(ring, d)
		st := statRx(ring, 0)
		n, v := st.decode(2048)
		if v == rxGood && (n < minFrame || n > 2048) || v != rxGood && v > rxGarbage {
			t.Errorf("(%s).decode() = %d, %d", st, n, v)
		}
		if v == rxGood && (st&rxEOP == 0 || st&rxErrs != 0) {
			t.Errorf("(%s).decode() took a frame with errors", st)
		}
	})
}

func TestRing(t *testing.T) {
	for n := -1; n <= 2*maxRing; n++ {
		want := false
		for p := minRing; p <= maxRing; p *= 2 {
			want = want || n == p
		}
		if got := validRing(n); got != want {
			t.Errorf("validRing(%d) = %v, want %v", n, got, want)
		}
		if want && (refillChunk(n) < 1 || n%refillChunk(n) != 0 || n%reportEvery != 0) {
			t.Errorf("ring %d: refilled by %d, reports every %d: want divisors", n, refillChunk(n), reportEvery)
		}
	}
	// Every position of head and tail, over two turns of the ring.
	const size = 8
	for head := uint64(0); head < 2*size; head++ {
		for used := range uint64(size) {
			c := counters{head: head, tail: head + used, mask: size - 1}
			if c.used() != int(used) || c.room() != size-1-int(used) || c.at(c.tail) != uint32((head+used)%size) {
				t.Errorf("%+v: used, room, at = %d, %d, %d", c, c.used(), c.room(), c.at(c.tail))
			}
			if got := freeAhead(c.tail, c.at(head), c.mask); got != int(used) {
				t.Errorf("freeAhead(%d, %d) = %d, want %d", c.tail, c.at(head), got, used)
			}
		}
	}
}
