package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// guestlessPktgen runs pktgen's cases for a test in the VM (guest.TestRootPktgen) on QEMU's e1000e without a
// guest. args are the script, its cases, and the NIC's address; the result is what the script
// printed, and a capture.
func guestlessPktgen(args json.RawMessage) (any, error) {
	var a struct{ Script, Cases, MAC string }
	if err := json.Unmarshal(args, &a); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "ring3-pktgen-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	script, cases, pcap := filepath.Join(dir, "pktgen.sh"), filepath.Join(dir, "pktgen.txt"), filepath.Join(dir, "eth0.pcap")
	for file, text := range map[string]string{script: a.Script, cases: a.Cases} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, ring3, "run", "eth0=qemu:e1000e,mac="+a.MAC, "--profile", "6.1", "--pcap", "eth0="+pcap,
		"--", "bash", script, "/proc/net/pktgen", cases)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir)
	text, err := cmd.Output()
	if err != nil {
		var said []byte
		if e, ok := err.(*exec.ExitError); ok {
			said = e.Stderr
		}
		return nil, fmt.Errorf("ring3 run: %w\n%s", err, said)
	}
	frames, err := os.ReadFile(pcap)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{"text": text, "pcap": frames}, nil
}
