//go:build vm

package guest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/integration/tpmseen"
	"github.com/ring3dev/ring3/integration/vm/wire"
)

// TestRootTPM12Files is TestRootTPMFiles for a TPM 1.2 that is new: what its files say before it has an endorsement
// key, all files when it has one, and what they say when it has an owner.
func TestRootTPM12Files(t *testing.T) {
	said12(t, "no-ek")
	tpmseen.CreateEK(t)
	filesOfTPM(t)
	tpmseen.TakeOwnership(t)
	said12(t, "owned")
}

// TestRootTPM12Off is for a TPM 1.2 that is disabled or deactivated, which only the host can have made it: the firmware
// locks physical presence.
func TestRootTPM12Off(t *testing.T) { said12(t, "") }

// said12 writes down what the files of a TPM 1.2 say that depend on its state, and the kernel's log about them.
func said12(t *testing.T, name string) {
	t.Helper()
	before := KernelLog(t)
	b := tpmseen.State12(t)
	b += fmt.Sprintf("== kernel's log before, lines about it\n%s", tpmseen.Lines(before))
	b += fmt.Sprintf("== kernel's log meanwhile, lines about it\n%s", tpmseen.Lines(strings.TrimPrefix(KernelLog(t), before)))
	keepTPM(t, name, b)
}

// TestRootTPM12Raw gives the host what the files of a TPM 1.2 say that has an endorsement key, so that it can read them
// with ring3 from the same TPM.
func TestRootTPM12Raw(t *testing.T) {
	tpmseen.CreateEK(t)
	ask(t, wire.OpHost+"tpm-raw", tpmseen.Raw12(t), nil)
}
