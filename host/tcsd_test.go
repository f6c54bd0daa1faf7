package host

import "testing"

func TestTCSDStore(t *testing.T) {
	for _, c := range []struct {
		devices []string
		want    string
	}{
		{nil, ""},
		{[]string{"tpm0=qemu:tpm-tis,tpm=1.2"}, ""},
		{[]string{"tpm0=qemu:tpm-tis,state=/s", "tpm1=qemu:tpm-crb,state=/t"}, ""}, // of TPM 2.0
		{[]string{"eth0=sim:e1000e", "tpm0=qemu:tpm-tis,tpm=1.2,state=/s/t"}, "/s/t/tcsd"},
		{[]string{"tpm0=qemu:tpm-tis,state=/s", "tpm1=qemu:tpm-tis,tpm=1.2,state=/t"}, "/t/tcsd"},
	} {
		if got := tcsdStore(c.devices); got != c.want {
			t.Errorf("tcsdStore(%q) = %q, want %q", c.devices, got, c.want)
		}
	}
}
