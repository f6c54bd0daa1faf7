package kernfs

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// interruptAfter runs a command, sends it SIGINT after a while, and says whether it ended within a second
// of that; if not, it is killed. out is what it wrote.
func (s *server) interruptAfter(wait time.Duration, argv ...string) (ended bool, out string) {
	s.t.Helper()
	var b bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "D="+s.dir, "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = &b, &b
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	time.Sleep(wait)
	select {
	case <-done:
		s.t.Errorf("%q did not wait for the stopped server: %s", argv, b.String())
		return true, b.String()
	default:
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-done:
		return true, b.String()
	case <-time.After(10 * time.Second):
		_ = cmd.Process.Kill()
		_ = s.cmd.Process.Signal(syscall.SIGCONT)
		<-done
		return false, b.String()
	}
}

// TestStoppedServer is Ctrl-C while the server is stopped: programs that die of it do so, and with a
// guard also those that catch it.
func TestStoppedServer(t *testing.T) {
	for _, c := range []struct {
		name  string
		guard bool
		argv  []string
		want  string // all that it writes
	}{
		{"cat", true, []string{"cat", "$D/proc/hello"}, ""},
		{"cat alone", false, []string{"cat", "$D/proc/hello"}, ""},
		{"ls", true, []string{"ls", "-l", "$D/proc"}, ""},
		{"echo", true, []string{"bash", "-c", `echo x > $D/proc/cmd; echo after`}, ""},
		{"open before", true, []string{"bash", "-c", `exec 3> $D/proc/cmd; sleep 0.5; echo x >&3; echo after`}, ""},
		{"read", true, []string{"bash", "-c", `read -r x < $D/proc/hello; echo after`}, ""},
		{"test", true, []string{"bash", "-c", `[ -d $D/proc/net ]; echo after`}, ""},
		{"cd", true, []string{"bash", "-c", `cd $D/sys/class; echo after`}, ""},
		{"glob", true, []string{"bash", "-c", `echo $D/sys/*; echo after`}, ""},
		{"trap", true, []string{"bash", "-c", `trap 'echo trapped' INT; [ -d $D/proc/net ]; echo status $?`}, "trapped\nstatus 1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			s := serve(t, os.Geteuid() == 0, c.guard)
			var as []string
			if os.Geteuid() == 0 {
				as = asUser()
			}
			s.sh(`cat $D/proc/hello > /dev/null`, as...)
			argv := append([]string{}, c.argv...)
			for i := range argv {
				if argv[0] != "bash" {
					argv[i] = strings.Replace(argv[i], "$D", s.dir, 1)
				}
			}
			if c.name == "open before" { // the write waits, not the open
				time.AfterFunc(250*time.Millisecond, func() { _ = s.cmd.Process.Signal(syscall.SIGSTOP) })
			} else {
				s.pause()
			}
			ended, out := s.interruptAfter(900*time.Millisecond, append(as, argv...)...)
			_ = s.cmd.Process.Signal(syscall.SIGCONT)
			if !ended {
				t.Errorf("SIGINT did not end %q; output %q", argv, out)
			}
			if out != c.want {
				t.Errorf("%q wrote %q, want %q", argv, out, c.want)
			}
			if got := s.sh(`cat $D/proc/hello; echo y > $D/proc/cmd; ls $D/proc/dyn | wc -l`, as...); got != "hello\n3000\n" {
				t.Errorf("after the server goes on: %q", got)
			}
		})
	}
}

// TestServerDies leaves clients with an error, not a wait.
func TestServerDies(t *testing.T) {
	for _, guard := range []bool{false, true} {
		s := serve(t, false, guard)
		cmd := exec.Command("bash", "-c", `echo start > $D/proc/ctrl`)
		cmd.Env = append(os.Environ(), "D="+s.dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		_ = s.cmd.Process.Kill()
		killed := time.AfterFunc(5*time.Second, func() {
			t.Error("a client waits for a dead server")
			_ = cmd.Process.Kill()
		})
		_ = cmd.Wait()
		killed.Stop()
		for s.out.Scan() {
		}
		if got := s.sh(`cat $D/proc/hello`); !strings.Contains(got, "Transport endpoint is not connected") {
			t.Errorf("guard %v: reading a dead mount: %q, want ENOTCONN", guard, got)
		}
		if _, err := checkDir(s.dir); err == nil || !strings.Contains(err.Error(), "dead mount") {
			t.Errorf("guard %v: checkDir of a dead mount = %v", guard, err)
		}
		if err := Detach(s.dir); err != nil {
			t.Error(err)
		}
		if err := Detach(s.dir); err != nil {
			t.Errorf("second Detach = %v", err)
		}
	}
}
