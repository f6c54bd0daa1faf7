package frame

import (
	"bytes"
	"slices"
	"testing"
)

func TestBuildDecodeTCP(t *testing.T) {
	for name, s := range specs() {
		for _, want := range []TCP{{Seq: 1, Ack: 2, Flags: ACK, Window: 3, ChecksumOK: true}, {Seq: 1 << 31, Flags: FIN | PSH | ACK, Timestamps: true, ChecksumOK: true}} {
			f, err := BuildTCP(s, want)
			if err != nil {
				t.Errorf("%s: BuildTCP: %v", name, err)
				continue
			}
			p, got, err := DecodeTCP(f.Bytes)
			if err != nil || got != want {
				t.Errorf("%s: DecodeTCP(BuildTCP(s, %+v)) = %+v, %v", name, want, got, err)
			}
			if p.SrcIP != s.SrcIP || p.DstPort != s.DstPort || !p.IPChecksumOK || !bytes.Equal(p.Payload, s.Payload) || !slices.Equal(p.VLANs, s.VLANs) {
				t.Errorf("%s: DecodeTCP(BuildTCP(s)) = %+v, want the fields of %+v", name, p, s)
			}
			f.Bytes[f.L4+17] ^= 1
			if _, got, err = DecodeTCP(f.Bytes); err != nil || got.ChecksumOK {
				t.Errorf("%s: DecodeTCP with a wrong checksum = %+v, %v", name, got, err)
			}
		}
	}
	u, err := Build(specs()["v4"])
	if err != nil {
		t.Fatal(err)
	}
	if _, got, err := DecodeTCP(u.Bytes); err == nil {
		t.Errorf("DecodeTCP of UDP = %+v, want an error", got)
	}
}
