package bustest

import (
	"bytes"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

// Memory checks a region that is memory, all of which may be written: copies of any length from and to anywhere are what single
// accesses make of it, and reach nothing outside. Its content is lost.
func Memory(t *testing.T, r bus.Region) {
	t.Helper()
	if size := r.Info().Size; size < 16<<10 {
		t.Fatalf("region %d has %d bytes, want 16 KiB for this", r.Info().Index, size)
	}
	want := make([]byte, 12<<10)
	for i := range want {
		want[i] = byte(i*7 + i>>8)
	}
	for _, n := range []int{0, 1, 3, 4, 7, 8, 9, 63, 64, 1000, 4096, 4099, len(want)} {
		for _, at := range []bus.Off{0, 1, 4, 8, 13, 2048, bus.Off(r.Info().Size) - bus.Off(n)} {
			bus.WriteBytes(r, at, want[:n])
			for i := range n {
				if i > 20 && i < n-20 {
					continue
				}
				if got := r.Read8(at + bus.Off(i)); got != want[i] {
					t.Fatalf("byte %d of %d written at %#x = %#x, want %#x", i, n, at, got, want[i])
				}
			}
			got := make([]byte, n)
			if bus.ReadBytes(r, at, got); !bytes.Equal(got, want[:n]) {
				t.Fatalf("%d bytes read at %#x are not what was written", n, at)
			}
		}
	}
	// What single accesses write, in order with copies.
	r.Write32(64, 0x11223344)
	r.Write8(68, 0x55)
	got := make([]byte, 5)
	if bus.ReadBytes(r, 64, got); !bytes.Equal(got, []byte{0x44, 0x33, 0x22, 0x11, 0x55}) {
		t.Errorf("ReadBytes after single writes = % x", got)
	}
	bus.WriteBytes(r, 64, []byte{1, 2, 3, 4})
	r.Write8(65, 9)
	if v := r.Read32(64); v != 0x04030901 {
		t.Errorf("Read32 after WriteBytes and a Write8 = %#x, want 0x4030901", v)
	}
	memoryOutside(t, r)
}

func memoryOutside(t *testing.T, r bus.Region) {
	t.Helper()
	end := bus.Off(r.Info().Size)
	r.Write64(end-8, 0)
	for _, at := range []bus.Off{end, end - 7, end + 4096, ^bus.Off(0), ^bus.Off(0) - 7} {
		p := make([]byte, 8)
		bus.WriteBytes(r, at, []byte{1, 1, 1, 1, 1, 1, 1, 1})
		if bus.ReadBytes(r, at, p); !bytes.Equal(p, bytes.Repeat([]byte{0xff}, 8)) {
			t.Errorf("ReadBytes at %#x of %#x = % x, want all-ones", at, end, p)
		}
	}
	if v := r.Read64(end - 8); v != 0 {
		t.Errorf("the last 8 bytes = %#x after writes that are not inside as a whole, want 0", v)
	}
}
