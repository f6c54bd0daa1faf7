package host

import (
	"errors"
	"strings"
	"testing"
)

// TestMeasurePCR takes the PCRs that a list of can prove something.
func TestMeasurePCR(t *testing.T) {
	for option, want := range map[string]string{
		"": "", ",pcr=10": "", ",pcr=15": "", ",pcr=9": "the firmware's", ",pcr=16": "any program can reset", ",pcr=17": "dynamic launch",
		",pcr=23": "any program can reset", ",pcr=24": "want 10 to 15", ",pcr=x": "want pcr=N, 10 to 15", ",bank=sha1": "want pcr=N, 10 to 15",
	} {
		_, err := (&upFlags{measure: "tpm0" + option}).plan([]string{"tpm0=sim:tpm-tis"})
		var u *usageError
		if (err == nil) != (want == "") || err != nil && (!errors.As(err, &u) || !strings.Contains(err.Error(), want)) {
			t.Errorf("--measure tpm0%s: %v, want a usage error with %q", option, err, want)
		}
	}
}
