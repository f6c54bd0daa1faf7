package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTPMNames has a TPM of each family, with names of the user's, in a run folder with a long one: what stands in /dev and /sys,
// and that the files are the TPMs'.
func TestTPMNames(t *testing.T) {
	t.Parallel()
	dir := tpmDir(t)
	dir = filepath.Join(dir, strings.Repeat("d", 91-len(dir))) // of 92 characters; a socket's address has 107
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	const script = `set -e
cd /dev
echo *tpm* hwrng
[ -f hwrng ] && [ -f tpm5 ] && [ -f tpm7 ] && [ -f tpmrm7 ] && echo files
[ -S tpm5.sock ] && [ -S tpm7.sock ] && [ -S tpmrm7.sock ] && echo sockets
cd /sys/class
echo tpm/* tpmrm/* misc/hw_random
for n in tpm/tpm5 tpm/tpm7 tpmrm/tpmrm7; do
	readlink $n
	cat $n/dev
	grep DEVNAME $n/uevent
done
cat tpm/tpm5/tpm_version_major tpm/tpm7/tpm_version_major tpm/tpm5/enabled misc/hw_random/rng_current
ls tpm/tpm5/pcr-sha1 tpm/tpm7/pcr-sha256 | wc -w
wc -c </sys/class/tpm/tpm7/pcr-sha256/23
head -c 64 /dev/hwrng | wc -c
! head -c 64 /dev/hwrng | cmp -s - /dev/zero && echo random
`
	const want = `tpm5 tpm5.sock tpm7 tpm7.sock tpmrm7 tpmrm7.sock hwrng
files
sockets
tpm/tpm5 tpm/tpm7 tpmrm/tpmrm7 misc/hw_random
../../devices/pnp0/00:eb/tpm/tpm5
253:5
DEVNAME=tpm5
%[1]s/tpm/tpm7
253:7
DEVNAME=tpm7
%[1]s/tpmrm/tpmrm7
253:65543
DEVNAME=tpmrm7
1
2
1
tpm-rng-5
50
65
64
random
`
	got := tpmRun(t, nil, dir, "tpm5=sim:tpm-tis,sim.family=1.2", "tpm7=sim:tpm-crb", "--", "sh", "-c", script)
	at := "../../devices/LNXSYSTM:00/LNXSYBUS:00/MSFT0101:00"
	if owned, _ := filepath.Glob("/sys/bus/*/devices/MSFT0101:00"); owned != nil {
		at = strings.TrimSuffix(at, "0") + "1" // the machine has a TPM itself
	}
	if want := fmt.Sprintf(want, at); got != want {
		t.Errorf("ring3 run sees\n%swant\n%s", got, want)
	}
}
