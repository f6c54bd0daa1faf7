package measure

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/ring3dev/ring3/tpmdd"
)

func u32(v ...uint32) (p []byte) {
	for _, v := range v {
		p = binary.BigEndian.AppendUint32(p, v)
	}
	return p
}

// handlePW is TPM_RS_PW.
const handlePW = 0x40000009

// password is an authorization area with an empty password.
var password = append(u32(9, handlePW), 0, 0, 0, 0, 0)

func join(p ...[]byte) []byte { return bytes.Join(p, nil) }

func TestRefuse20(t *testing.T) {
	cmd := func(code uint32, params ...[]byte) []byte {
		return tpmdd.Command(tpmdd.TagSessions, code, join(params...)...)
	}
	extend := func(pcr uint32) []byte {
		return cmd(tpmdd.CCPCRExtend, u32(pcr), password, u32(1), []byte{0, 4}, make([]byte, 20))
	}
	policy := func(pcr uint32) []byte {
		return cmd(tpmdd.CCPCRSetAuthPolicy, u32(0x4000000c), password, []byte{0, 2, 0xaa, 0xbb, 0, 0xb}, u32(pcr))
	}
	for _, c := range []struct {
		name string
		cmd  []byte
		want bool
	}{
		{"PCR_Extend", extend(10), true},
		{"PCR_Extend of another", extend(11), false},
		{"PCR_Event", cmd(tpmdd.CCPCREvent, u32(10), password, []byte{0, 1, 'x'}), true},
		{"PCR_Event of another", cmd(tpmdd.CCPCREvent, u32(16), password, []byte{0, 1, 'x'}), false},
		{"PCR_Reset", cmd(tpmdd.CCPCRReset, u32(10), password), true},
		{"EventSequenceComplete", cmd(tpmdd.CCEventSequenceComplete, u32(10, 0x80000001), password, password, []byte{0, 0}), true},
		{"EventSequenceComplete of none", cmd(tpmdd.CCEventSequenceComplete, u32(0x40000007, 0x80000001), password, password, []byte{0, 0}), false},
		{"PCR_SetAuthValue", cmd(tpmdd.CCPCRSetAuthValue, u32(10), password, []byte{0, 0}), true},
		{"PCR_SetAuthPolicy", policy(10), true},
		{"PCR_SetAuthPolicy of another", policy(20), false},
		{"PCR_Allocate", cmd(tpmdd.CCPCRAllocate, u32(0x4000000c), password, u32(1), []byte{0, 0xb, 3, 0xff, 0xff, 0xff}), true},
		{"PCR_Read", cmd(tpmdd.CCPCRRead, u32(1), []byte{0, 0xb, 3, 0, 4, 0}), false},
		{"cut", extend(10)[:13], false},
		{"empty", nil, false},
	} {
		got := Refuse(10, tpmdd.TPM20)(c.cmd)
		if want := []byte{0x80, 1, 0, 0, 0, 10, 0, 0x0b, 1, 0x43}; c.want && !bytes.Equal(got, want) || !c.want && got != nil {
			t.Errorf("%s: %x, want refused: %v (%x)", c.name, got, c.want, want)
		}
	}
}

func TestRefuse12(t *testing.T) {
	cmd := func(ord uint32, params ...[]byte) []byte {
		return tpmdd.Command(tpmdd.TagRequest12, ord, join(params...)...)
	}
	extend := cmd(tpmdd.OrdExtend, u32(10), make([]byte, 20))
	for _, c := range []struct {
		name string
		cmd  []byte
		want bool
	}{
		{"TPM_Extend", extend, true},
		{"TPM_Extend of another", cmd(tpmdd.OrdExtend, u32(11), make([]byte, 20)), false},
		{"TPM_SHA1CompleteExtend", cmd(tpmdd.OrdSHA1CompleteExtend, u32(10), u32(0)), true},
		{"TPM_PCR_Reset", cmd(tpmdd.OrdPCRReset, []byte{0, 3, 0, 4, 0}), true},
		{"TPM_PCR_Reset of another", cmd(tpmdd.OrdPCRReset, []byte{0, 3, 0xff, 0xfb, 0xff}), false},
		{"TPM_PCR_Reset of few", cmd(tpmdd.OrdPCRReset, []byte{0, 1, 0xff, 0xff}), false},
		{"TPM_ExecuteTransport of TPM_Extend", cmd(tpmdd.OrdExecuteTransport, u32(uint32(len(extend))), extend), true},
		{"TPM_ExecuteTransport of TPM_PCRRead", cmd(tpmdd.OrdExecuteTransport, u32(14), cmd(tpmdd.OrdPCRRead, u32(10))), false},
		{"TPM_PCRRead", cmd(tpmdd.OrdPCRRead, u32(10)), false},
		{"cut", extend[:13], false},
		{"empty", nil, false},
	} {
		got := Refuse(10, tpmdd.TPM12)(c.cmd)
		if want := []byte{0, 0xc4, 0, 0, 0, 10, 0, 0, 0, 8}; c.want && !bytes.Equal(got, want) || !c.want && got != nil {
			t.Errorf("%s: %x, want refused: %v (%x)", c.name, got, c.want, want)
		}
	}
}

// TestRefusedKeepsPCR sends what a program would, through Refuse, to a TPM.
func TestRefusedKeepsPCR(t *testing.T) {
	for _, family := range families {
		m, tpm := begin(t, family, Options{})
		refuse := Refuse(m.PCR(), family)
		device := func(cmd []byte) {
			if refuse(cmd) != nil {
				return
			}
			if _, err := tpm.Transmit(t.Context(), cmd); err != nil {
				t.Fatal(err)
			}
		}
		tag, codes := uint16(tpmdd.TagSessions), []uint32{tpmdd.CCPCRExtend, tpmdd.CCPCREvent, tpmdd.CCPCRReset}
		if family == tpmdd.TPM12 {
			tag, codes = tpmdd.TagRequest12, []uint32{tpmdd.OrdExtend}
		}
		for _, code := range codes {
			params := map[uint32][]byte{
				tpmdd.CCPCRExtend: join(u32(10), password, u32(1), []byte{0, 4}, make([]byte, 20)),
				tpmdd.CCPCREvent:  join(u32(10), password, []byte{0, 1, 'x'}),
				tpmdd.CCPCRReset:  join(u32(10), password),
				tpmdd.OrdExtend:   join(u32(10), make([]byte, 20)),
			}
			device(tpmdd.Command(tag, code, params[code]...))
		}
		if !replays(t, m, m.Log().Entries()) {
			t.Errorf("TPM %s: the PCR changed", family)
		}
		// The same command changes the PCR where nobody refuses it.
		if family == tpmdd.TPM12 {
			if _, err := tpm.Transmit(t.Context(), tpmdd.Command(tag, tpmdd.OrdExtend, join(u32(10), make([]byte, 20))...)); err != nil {
				t.Fatal(err)
			}
		} else if _, err := tpm.Transmit(t.Context(), tpmdd.Command(tag, tpmdd.CCPCREvent, join(u32(10), password, []byte{0, 1, 'x'})...)); err != nil {
			t.Fatal(err)
		}
		if replays(t, m, m.Log().Entries()) {
			t.Errorf("TPM %s: the PCR did not change without Refuse", family)
		}
	}
}

func FuzzRefuse(f *testing.F) {
	f.Add(uint8(10), true, tpmdd.Command(tpmdd.TagSessions, tpmdd.CCPCRSetAuthPolicy, join(u32(0x4000000c), password, []byte{0, 0, 0, 0xb}, u32(10))...))
	f.Add(uint8(10), false, tpmdd.Command(tpmdd.TagRequest12, tpmdd.OrdPCRReset, 0, 3, 0, 4, 0))
	f.Add(uint8(10), false, tpmdd.Command(tpmdd.TagRequest12, tpmdd.OrdExecuteTransport, u32(34, 0xc1, 0, tpmdd.OrdExtend)...))
	f.Fuzz(func(t *testing.T, pcr uint8, v20 bool, cmd []byte) {
		family := tpmdd.TPM12
		if v20 {
			family = tpmdd.TPM20
		}
		before := bytes.Clone(cmd)
		if got := Refuse(int(pcr%24), family)(cmd); got != nil && len(got) != tpmdd.HeaderSize {
			t.Fatalf("answer %x", got)
		}
		if !bytes.Equal(before, cmd) {
			t.Fatal("the command was changed")
		}
	})
}
