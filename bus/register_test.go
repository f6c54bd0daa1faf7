package bus

import "testing"

func TestRegisterFind(t *testing.T) {
	one := Register{Region: 1, Off: 0x10, Name: "CTRL"}
	arr := Register{Off: 0x5400, Name: "RAL", Count: 16, Stride: 8}
	packed := Register{Off: 0x20, Name: "B", Width: 1, Count: 4}
	for _, c := range []struct {
		r      *Register
		region int
		off    Off
		i      int
		ok     bool
	}{
		{&one, 1, 0x10, 0, true},
		{&one, 1, 0x13, 0, true},
		{&one, 1, 0x14, 0, false},
		{&one, 0, 0x10, 0, false},
		{&one, 1, 0xf, 0, false},
		{&arr, 0, 0x5400, 0, true},
		{&arr, 0, 0x5404, 0, false},
		{&arr, 0, 0x5478, 15, true},
		{&arr, 0, 0x5480, 0, false},
		{&packed, 0, 0x23, 3, true},
		{&packed, 0, 0x24, 0, false},
		{&arr, 0, ^Off(0), 0, false},
	} {
		i, ok := c.r.Find(c.region, c.off)
		if i != c.i || ok != c.ok {
			t.Errorf("%s.Find(%d, %#x) = %d, %t, want %d, %t", c.r.Name, c.region, c.off, i, ok, c.i, c.ok)
		}
		if ok && c.r.At(i) > c.off {
			t.Errorf("%s.At(%d) = %#x, above %#x", c.r.Name, i, c.r.At(i), c.off)
		}
	}
	if got := arr.Label(3); got != "RAL[3]" {
		t.Errorf("Label(3) = %q, want RAL[3]", got)
	}
	if got := one.Label(0); got != "CTRL" {
		t.Errorf("Label(0) = %q, want CTRL", got)
	}
}
