package pciehp

import "testing"

func TestEventsString(t *testing.T) {
	names := map[int]string{0: "button", 1: "fault", 3: "presence", 4: "command", 8: "link", 16: "disable"}
	for bit := range 32 {
		e, want := events(1)<<bit, names[bit]
		if want == "" {
			want = hexOf(uint32(e))
		}
		if got := e.String(); got != want {
			t.Errorf("events(1<<%d).String() = %q, want %q", bit, got, want)
		}
	}
	for _, c := range []struct {
		e    events
		want string
	}{{0, "0x0"}, {evButton | evPresence | evLink, "button|presence|link"}, {evFault | 1<<31, "fault|0x80000000"}} {
		if got := c.e.String(); got != c.want {
			t.Errorf("events(%#x).String() = %q, want %q", uint32(c.e), got, c.want)
		}
	}
}

// hexOf is plain arithmetic.
func hexOf(v uint32) (s string) {
	for ; v != 0; v >>= 4 {
		s = string("0123456789abcdef"[v&15]) + s
	}
	return "0x" + s
}

func TestStateString(t *testing.T) {
	for s, want := range map[state]string{off: "off", blinkingOn: "blinking on", blinkingOff: "blinking off", poweringOn: "powering on", poweringOff: "powering off", on: "on", 9: "state 0x9"} {
		if got := s.String(); got != want {
			t.Errorf("state(%d).String() = %q, want %q", uint8(s), got, want)
		}
	}
}

func TestHex(t *testing.T) {
	for v, want := range map[uint16]string{0: "000000", 1: "0x0001", 0x2000: "0x2000", 0x15f1: "0x15f1"} {
		if got := hex(v); got != want {
			t.Errorf("hex(%#x) = %q, want %q", v, got, want)
		}
	}
}

func TestNumber8(t *testing.T) {
	for s, want := range map[string]uint8{"": 0, "0": 0, "1\n": 1, "1x": 1, "x1": 0, " 1": 0, "-1": 0, "0x1": 0, "255": 255, "256": 0, "257": 1, "12345678901234567890123": 0xcb} {
		if got := number8([]byte(s)); got != want {
			t.Errorf("number8(%q) = %d, want %d", s, got, want)
		}
	}
}
