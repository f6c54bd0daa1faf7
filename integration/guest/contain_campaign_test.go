//go:build vm

package guest

import (
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// TestRootContainCampaign has drivers of real functions live with faults: RING3_FAULTS of them; 500 belong to the project's proof.
func TestRootContainCampaign(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("RING3_FAULTS"))
	if err != nil {
		t.Skip("RING3_FAULTS, how many faults, is not set")
	}
	nic0, nic1, edu := bindContained(t)
	for _, c := range []struct {
		name, backend string
		n             int
	}{{"edu", "vfio:" + edu, n - n*3/5}, {"e1000e", "vfio:" + nic0 + "," + nic1, n * 3 / 5}} {
		cmd := AsNobody(exec.Command(ring3, "fault", "campaign", "--backend", c.backend, "-n", strconv.Itoa(c.n), "--seed", "10", "-json"))
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		var r struct {
			Runs int `json:"runs"`
		}
		if jerr := json.Unmarshal(out, &r); err != nil || jerr != nil || r.Runs != c.n {
			t.Errorf("%s: %v, %v, %d runs of %d: %s", c.name, err, jerr, r.Runs, c.n, out)
			continue
		}
		t.Logf("%s: %s", c.name, out)
	}
}
