//go:build vm

package guest

import (
	"bytes"
	"context"
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What is asked of each packet generator, and how.
var (
	//go:embed testdata/pktgen.sh
	pktgenScript string
	//go:embed testdata/pktgen.txt
	pktgenCases string
	//go:embed testdata/pktgen_random.txt
	pktgenRandom string
)

// pktgenMAC is nic0's address, which the guest-less NIC is given too.
const pktgenMAC = "52:54:00:12:34:56"

// TestRootPktgen gives the same commands, by echo, to the kernel's pktgen and e1000e, to ring3 on
// the host, without a guest, and, fewer of them, to nobody's ring3 by VFIO on the NIC that the kernel
// had. Under --profile 6.1 all say the same, but for times and rates, and the same frames leave
// the NIC, seen on QEMU's side. What the kernel sends is kept in pktgen/testdata, for a test without a VM.
func TestRootPktgen(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the script wants bash, which this machine cannot give to a VM of another architecture")
	}
	addr := Address(t, "nic0")
	kernel, random := kernelPktgen(t, addr)
	t.Run("the kernel as it was", func(t *testing.T) { kernel.keep(t, random) })
	vfio := vfioPktgen(t, addr)
	guestless := guestlessPktgen(t)
	t.Run("guest-less as the kernel", func(t *testing.T) { guestless.compare(t, kernel.cases) })
	t.Run("VFIO as the kernel", func(t *testing.T) { vfio.compare(t, kernel.named(vfio)) })
	t.Run("VFIO as guest-less", func(t *testing.T) { vfio.compare(t, guestless.named(vfio)) })
}

// byVFIO are the cases that begin with "===".
func byVFIO(cases string) string {
	var b strings.Builder
	in := false
	for line := range strings.Lines(cases) {
		if strings.HasPrefix(line, "==") {
			in = strings.HasPrefix(line, "===")
		}
		if in {
			b.WriteString(line)
		}
	}
	return b.String()
}

// pktgenFiles writes the script and cases where everybody may read them.
func pktgenFiles(t *testing.T, cases string) (script, file string) {
	t.Helper()
	dir := t.TempDir()
	script, file = filepath.Join(dir, "pktgen.sh"), filepath.Join(dir, "pktgen.txt")
	for file, text := range map[string]string{script: pktgenScript, file: cases} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for d := dir; d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return script, file
}

// pktgenTime is how long one of them may take; on a quiet machine without KVM it is half a minute.
const pktgenTime = 3 * time.Minute

// runPktgen runs cases on the files in dir, and captures what nic0 sends meanwhile.
func runPktgen(t *testing.T, who, dir, cases string, prepare func(*exec.Cmd) *exec.Cmd) *transcript {
	t.Helper()
	script, file := pktgenFiles(t, cases)
	ctx, cancel := context.WithTimeout(t.Context(), pktgenTime)
	defer cancel()
	cmd := prepare(exec.CommandContext(ctx, "bash", script, dir, file))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stop := Capture(t, "net0")
	begin := time.Now()
	out, err := cmd.Output()
	pcap := stop()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%s: %v: %s; it ends after\n%s", who, err, &stderr, out[max(0, len(out)-1000):])
	}
	tr := parsePktgen(t, string(out), pcap)
	t.Logf("%s: %d cases, %d frames in %.1fs", who, len(tr.cases), tr.frames, time.Since(begin).Seconds())
	return tr
}

// kernelPktgen runs the cases on the kernel's pktgen and e1000e, and with RING3_GOLDEN those with random fields.
func kernelPktgen(t *testing.T, addr string) (fixed, random *transcript) {
	t.Helper()
	const noIPv6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6" // nothing but pktgen shall send
	write := func(text string) {
		if err := os.WriteFile(noIPv6, []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	write("1")
	defer write("0")
	Bind(t, addr, "e1000e")
	Modprobe(t, "pktgen")
	ip := func(args ...string) {
		if out, err := exec.Command("ip", append([]string{"link", "set"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("ip link set %v: %v: %s", args, err, out)
		}
	}
	if name := iface(t, addr); name != "eth0" {
		if _, err := os.Stat("/sys/class/net/eth0"); err == nil { // another NIC's, that a test before left with its driver
			ip("eth0", "down")
			ip("eth0", "name", "other0")
		}
		ip(name, "name", "eth0")
	}
	ip("eth0", "up")
	carrier := func() bool {
		b, _ := os.ReadFile("/sys/class/net/eth0/carrier")
		return strings.TrimSpace(string(b)) == "1"
	}
	for begin := time.Now(); !carrier(); time.Sleep(20 * time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("the kernel's eth0 has no carrier after 20 s")
		}
	}
	run := func(cases string) *transcript {
		return runPktgen(t, "the kernel", "/proc/net/pktgen", cases, func(cmd *exec.Cmd) *exec.Cmd { return cmd })
	}
	fixed, random = run(pktgenCases), &transcript{}
	if os.Getenv("RING3_GOLDEN") != "" {
		random = run(pktgenRandom)
	}
	return fixed, random
}

// keep compares what the kernel sent with what it did before, or has the host keep it: see goldenPktgen.
func (tr *transcript) keep(t *testing.T, random *transcript) {
	t.Helper()
	var differences []string
	AskHost(t, "pktgen-golden", map[string]any{"fixed": tr.runs(), "random": random.runs()}, &differences)
	for _, d := range differences {
		t.Error(d)
	}
}

// runs are the frames of each start, by case.
func (tr *transcript) runs() map[string][][][]byte {
	runs := map[string][][][]byte{}
	for _, c := range tr.cases {
		for _, s := range c.steps {
			if s.command == "start" {
				runs[c.name] = append(runs[c.name], s.frames)
			}
		}
	}
	return runs
}

// vfioPktgen runs some on ring3 up by VFIO, all as nobody.
func vfioPktgen(t *testing.T, addr string) *transcript {
	t.Helper()
	Bind(t, addr, "vfio-pci")
	in := up(t, "eth0=vfio:"+addr, "--profile", "6.1")
	tr := runPktgen(t, "ring3 by VFIO", in.tree+"/proc/net/pktgen", byVFIO(pktgenCases), AsNobody)
	if code := in.end(syscall.SIGINT); code != 0 || in.stderr() != "" {
		t.Errorf("ring3 up ends with %d: %s", code, in.stderr())
	}
	return tr
}

// guestlessPktgen has the host run them on ring3's e1000e on QEMU's model.
func guestlessPktgen(t *testing.T) *transcript {
	t.Helper()
	var result map[string][]byte
	AskHost(t, "pktgen", map[string]string{"script": pktgenScript, "cases": pktgenCases, "mac": pktgenMAC}, &result)
	return parsePktgen(t, string(result["text"]), result["pcap"])
}
