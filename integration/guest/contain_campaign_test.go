//go:build vm

package guest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// TestRootContainCampaign has drivers of real functions live with faults: RING3_FAULTS of them, or of these the slice RING3_SLICE, as 2/5; 500 belong to the project's proof. In a virtual
// machine slices save what was done: now and then QEMU's 82574L aborts QEMU.
func TestRootContainCampaign(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("RING3_FAULTS"))
	if err != nil {
		t.Skip("RING3_FAULTS, how many faults, is not set")
	}
	slice, part, parts := cmp.Or(os.Getenv("RING3_SLICE"), "1/1"), 0, 0
	if _, err := fmt.Sscanf(slice, "%d/%d", &part, &parts); err != nil || part < 1 || part > parts {
		t.Fatalf("RING3_SLICE=%s: want I/K", slice)
	}
	nic0, nic1, edu := bindContained(t)
	for _, c := range []struct {
		name, backend string
		n             int
	}{{"edu", "vfio:" + edu, n - n*3/5}, {"e1000e", "vfio:" + nic0 + "," + nic1, n * 3 / 5}} {
		cmd := AsNobody(exec.Command(ring3, "fault", "campaign", "--backend", c.backend, "-n", strconv.Itoa(c.n), "--seed", "10", "--slice", slice, "-json"))
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		var r struct {
			Runs int `json:"runs"`
		}
		if jerr := json.Unmarshal(out, &r); err != nil || jerr != nil || r.Runs != (c.n-part+parts)/parts {
			t.Errorf("%s: %v, %v, %d runs of slice %s of %d: %s", c.name, err, jerr, r.Runs, slice, c.n, out)
			continue
		}
		t.Logf("%s: %s", c.name, out)
	}
}
