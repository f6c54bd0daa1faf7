package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/osthread"
)

// portsRun is a `ring3 up` with ports, its tree, and its messages as they come.
type portsRun struct {
	*station
	up   *running
	tree string

	mu   sync.Mutex
	said []said
}

// said is a message of the instance's.
type said struct {
	Seq  uint64 `json:"seq"`
	NS   int64  `json:"ns"`
	Text string `json:"text"`
}

// startPorts starts devices; those of QEMU's where it is there.
func startPorts(t *testing.T, args ...string) *portsRun {
	t.Helper()
	if strings.Contains(strings.Join(args, " "), "=qemu:") {
		if _, err := exec.LookPath("qemu-system-x86_64"); err != nil && os.Getenv("RING3_NEED_QEMU") == "" {
			t.Skip(err)
		}
	}
	run := folder(t)
	p := &portsRun{station: &station{dir: run, env: append(os.Environ(), "LC_ALL=C", "XDG_RUNTIME_DIR="+run, "XDG_STATE_HOME="+run, "TMPDIR="+run)}, tree: filepath.Join(run, "tree")}
	p.up = startRing3(t, nil, p.env, append([]string{"up", "--mount", p.tree}, args...)...)
	cmd := p.command(t, "dmesg", "-w", "-json")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go p.listen(out)
	t.Cleanup(func() {
		p.end(t)
		_ = cmd.Wait()
	})
	return p
}

func (p *portsRun) listen(r io.Reader) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var s said
		if json.Unmarshal(lines.Bytes(), &s) == nil {
			p.mu.Lock()
			p.said = append(p.said, s)
			p.mu.Unlock()
		}
	}
}

// end ends the instance, which is to end well whatever was logged; and nothing in that is a bug of ring3's.
func (p *portsRun) end(t *testing.T) {
	t.Helper()
	if p.up.ended {
		return
	}
	p.up.ended = true
	_ = p.up.cmd.Process.Signal(unix.SIGTERM)
	stuck := time.AfterFunc(20*time.Second, func() { _ = p.up.cmd.Process.Kill() })
	defer stuck.Stop()
	err := p.up.cmd.Wait()
	text := p.up.stderr.String()
	if err != nil || regexp.MustCompile(`panic|goroutine |leak|still mapped`).MatchString(text) {
		t.Errorf("ring3 up ended with %v and said %.4000s", err, text)
	}
	if left, _ := filepath.Glob(filepath.Join(p.dir, "ring3", "r*")); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

// ring3 runs a command that is to succeed.
func (p *portsRun) ring3(t *testing.T, args ...string) string {
	t.Helper()
	out, err := p.command(t, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ring3 %s: %v, %s\n%s", strings.Join(args, " "), err, out, p.lastWords())
	}
	return string(out)
}

// lastWords are the messages that came last.
func (p *portsRun) lastWords() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	for _, s := range p.said[max(0, len(p.said)-40):] {
		fmt.Fprintf(&b, "%12.6f %s\n", float64(s.NS)/1e9, s.Text)
	}
	return b.String()
}

// mark is where the messages are now.
func (p *portsRun) mark() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.said)
}

// hear waits for a message that came after a mark, and returns it and the mark after it.
func (p *portsRun) hear(t *testing.T, mark int, text string) (said, int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		p.mu.Lock()
		for i := mark; i < len(p.said); i++ {
			if strings.Contains(p.said[i].Text, text) {
				s := p.said[i]
				p.mu.Unlock()
				return s, i + 1
			}
		}
		p.mu.Unlock()
	}
	t.Fatalf("no message with %q came within 20 s; the last ones:\n%s", text, p.lastWords())
	return said{}, 0
}

// get is a file of the tree, without its last newline.
func (p *portsRun) get(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(p.tree, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(b), "\n")
}

// set writes a file of the tree, as the shell's echo does.
func (p *portsRun) set(t *testing.T, file, text string) {
	t.Helper()
	if err := p.write(file, []byte(text+"\n")); err != nil {
		t.Fatalf("%s: %v\n%s", text, err, p.lastWords())
	}
}

// A signal would end the wait for some files, and the write be begun anew.
func (p *portsRun) write(file string, b []byte) error {
	return osthread.Undisturbed(func() error {
		f, err := os.OpenFile(filepath.Join(p.tree, file), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		if e := f.Close(); err == nil {
			err = e
		}
		return err
	})
}

// number finds one in a file.
func (p *portsRun) number(t *testing.T, file, pattern string) int {
	t.Helper()
	text := p.get(t, file)
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("%s has no %s: %s", file, pattern, text)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// stat is a counter of an interface.
func (p *portsRun) stat(t *testing.T, device, name string) int {
	t.Helper()
	return p.number(t, "sys/class/net/"+device+"/statistics/"+name, `^(\d+)$`)
}

// inject has a function report an error.
func (p *portsRun) inject(t *testing.T, addr string, uncorrectable, correctable uint32) {
	t.Helper()
	rec, err := recordOf(addr, fmt.Sprint(uncorrectable), fmt.Sprint(correctable))
	if err == nil {
		err = p.write("dev/aer_inject", rec)
	}
	if err != nil {
		t.Fatalf("injecting %#x, %#x into %s: %v\n%s", uncorrectable, correctable, addr, err, p.lastWords())
	}
}

// pktgen has a thread of pktgen's send from a device; count 0 is without end.
func (p *portsRun) pktgen(t *testing.T, thread int, device, mac string, count int) {
	t.Helper()
	p.set(t, fmt.Sprintf("proc/net/pktgen/kpktgend_%d", thread), "add_device "+device)
	for _, c := range []string{fmt.Sprintf("count %d", count), "burst 32", "pkt_size 60", "dst_mac " + mac} {
		p.set(t, "proc/net/pktgen/"+device, c)
	}
}

// start starts pktgen; the channel gives what became of that when it is over.
func (p *portsRun) start() <-chan error {
	done := make(chan error, 1)
	go func() { done <- p.write("proc/net/pktgen/pgctrl", []byte("start\n")) }()
	return done
}

// long is a number for those who have time, or a smaller one.
func long(n, short int) int {
	if os.Getenv("RING3_LONG") != "" {
		return n
	}
	return short
}
