package userns

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestInside(t *testing.T) {
	each(t, func(t *testing.T, in *instance) {
		for _, c := range []struct{ script, want string }{
			{`id -u; [ $EUID = 0 ] && echo root`, "0\nroot\n"},
			{`[ -d /proc/net/pktgen ] && echo dir; echo start > /proc/net/pktgen/pgctrl && cat /proc/net/pktgen/pgctrl`, "dir\nsaid start\n"},
			{`grep -c -e lo: -e ring0: /proc/net/dev; grep -c lo: /proc/self/net/dev; readlink /proc/net/route`, "2\n1\n/proc/self/net/route\n"},
			{`ls /proc/net | grep -cx -e pktgen -e route -e unix; cat /proc/net/unix | head -1 | cut -c1-3`, "3\nNum\n"},
			{`tail -1 /proc/interrupts; head -1 /proc/interrupts | grep -c CPU0`, "900:          7   RING3  ring0-rx\n1\n"},
			{`cat /proc/irq/900/smp_affinity_list; ls /proc/irq | grep -cx -e 900 -e default_smp_affinity; cat /proc/irq/default_smp_affinity > /dev/null && echo kept`, "0\n2\nkept\n"},
			{`cat /sys/class/net/ring0/address; cat /sys/class/net/ring0/device/vendor; realpath /sys/class/net/ring0`,
				"52:54:00:00:00:01\n0x8086\n/sys/devices/pci1000:00/1000:00:03.0/net/ring0\n"},
			{`cat /sys/class/net/lo/address; ls /sys/class/net | grep -cx lo`, "52:54:00:00:00:01\n1\n"},
			{`cat /sys/bus/pci/devices/1000:00:03.0/vendor; realpath /sys/bus/pci/drivers/ring3test/1000:00:03.0 /sys/bus/pci/devices/1000:00:03.0/driver /sys/bus/pci/devices/1000:00:03.0/subsystem`,
				"0x8086\n/sys/devices/pci1000:00/1000:00:03.0\n/sys/bus/pci/drivers/ring3test\n/sys/bus/pci\n"},
			{`cat /sys/devices/virtual/ring3test/deep/file; realpath /sys/devices/virtual/net/lo; cat /sys/devices/virtual/net/lo/mtu > /dev/null && echo kept`, "deep\n/sys/devices/virtual/net/lo\nkept\n"},
			{`readlink /sys/bus/ring3test/devices/x; ls /sys/bus/platform/devices > /dev/null && echo kept`, "y\nkept\n"},
			{`cd /sys/class/net && pwd -P && cd /proc/irq && pwd -P && cd /sys/devices/pci1000:00 && pwd -P`, "/sys/class/net\n/proc/irq\n/sys/devices/pci1000:00\n"},
			{`mkdir /sys/devices/x 2>&1 | grep -o 'Read-only'`, "Read-only\n"},
			{`ip -o link show lo | grep -c LOOPBACK; ps -p $$ -o comm=; ls /proc/self/fd | head -1`, "1\nbash\n0\n"},
			{`cat <(echo substituted) <<< here; cat <<< here; read x < /proc/sys/kernel/ostype; echo $x`, "substituted\nhere\nLinux\n"},
			{`for n in 1 2 3; do echo $n > >(cat); done; wait; echo $(( $(ls /proc/$$/task | wc -l) ))`, ""},
			{`ls -la /proc/net/ /sys/class/net/ /sys/devices/ /sys/bus/pci/devices/ /sys/bus/pci/drivers/ /proc/irq/ > /dev/null && echo listed`, "listed\n"},
			{`find -L /sys/class/net -maxdepth 1 -type l; find -L /sys/bus/pci -maxdepth 2 -type l`, ""},
			{`bash -c 'bash -c "cat /sys/class/net/ring0/address"'`, "52:54:00:00:00:01\n"},
			{`kill -l > /dev/null; exit 7`, "exit 7"},
			{`kill -TERM $$`, "exit 143"},
		} {
			got, status := in.sh(c.script)
			if status != 0 {
				got += fmt.Sprintf("exit %d", status)
			}
			if c.want != "" && got != c.want || c.want == "" && status != 0 {
				t.Errorf("%s\n got %q\nwant %q", c.script, got, c.want)
			}
		}
	})
}

// TestMachineLinks compares what every link of the machine leads to, inside and outside.
func TestMachineLinks(t *testing.T) {
	script := `for f in /sys/class/net/* /sys/class/*/* /sys/bus/*/devices/* /sys/block/*; do [ -e $f ] && echo $f $(realpath $f); done | grep -v -e ring -e 1000:00 -e '/bdi/' -e '^/sys/class/net/lo '`
	lines := func(s string) map[string]bool {
		m := make(map[string]bool)
		for _, l := range strings.Split(s, "\n") {
			m[l] = true
		}
		return m
	}
	each(t, func(t *testing.T, in *instance) {
		// Devices come and go while other tests run: those there before and after count.
		before, err := exec.Command("bash", "-c", script).Output()
		if err != nil {
			t.Fatal(err)
		}
		got, _ := in.sh(script)
		after, err := exec.Command("bash", "-c", script).Output()
		if err != nil {
			t.Fatal(err)
		}
		b, g, a := lines(string(before)), lines(got), lines(string(after))
		for l := range b {
			if a[l] && !g[l] {
				t.Errorf("outside there is %q, not inside", l)
			}
		}
		for l := range g {
			if !a[l] && !b[l] {
				t.Errorf("inside there is %q, not outside", l)
			}
		}
	})
}

func TestNewNamesShowLater(t *testing.T) {
	each(t, func(t *testing.T, in *instance) {
		cmd := in.command("shell", "bash", "-c", `read x; cat /sys/class/net/late/address`)
		stdin, _ := cmd.StdinPipe()
		time.AfterFunc(300*time.Millisecond, func() {
			fmt.Fprintln(in.in, "late")
			in.out.Scan()
			fmt.Fprintln(stdin, "go")
		})
		if got, _ := in.bounded(cmd); got != "52:54:00:00:00:01\n" {
			t.Errorf("a name that came later shows %q", got)
		}
	})
}

// mountsOf lists the mounts that this process sees, without those of other tests that run at
// the same time: file systems of ours that are not the instance's.
func mountsOf(t *testing.T, in *instance) string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var own strings.Builder
	for line := range strings.Lines(string(b)) {
		_, rest, _ := strings.Cut(line, " - ")
		if strings.HasPrefix(rest, "fuse.ring3 ") && !strings.Contains(line, " "+in.run+"/") {
			continue
		}
		own.WriteString(line)
	}
	return own.String()
}

func TestNothingOutside(t *testing.T) {
	each(t, func(t *testing.T, in *instance) {
		before := mountsOf(t, in)
		cmd := in.command("shell", "bash", "-c", `echo in; read x`)
		stdin, _ := cmd.StdinPipe()
		go func() {
			defer stdin.Close()
			time.Sleep(400 * time.Millisecond)
			if during := mountsOf(t, in); during != before {
				t.Errorf("mounts changed outside:\n%s\nwere\n%s", during, before)
			}
			if ent, err := os.ReadDir(in.run + "/old"); err != nil || len(ent) != 0 {
				t.Errorf("the folder for the originals has %v, %v outside, want nothing", ent, err)
			}
		}()
		in.bounded(cmd)
	})
}

func TestCommandErrors(t *testing.T) {
	each(t, func(t *testing.T, in *instance) {
		for _, c := range []struct {
			argv   []string
			want   string
			status int
		}{
			{[]string{"no-such-command"}, "no-such-command: command not found", 127},
			{[]string{"/no/such/command"}, "/no/such/command: command not found", 127},
			{[]string{"/etc/passwd"}, "/etc/passwd: permission denied", 126},
		} {
			got, status := in.bounded(in.command("shell", c.argv...))
			if !strings.Contains(got, c.want) || status != c.status || strings.Count(got, "\n") != 1 {
				t.Errorf("%q = %q, %d, want one line with %q, %d", c.argv, got, status, c.want, c.status)
			}
		}
	})
}

func TestSignals(t *testing.T) {
	each(t, func(t *testing.T, in *instance) {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1} {
			cmd := in.command("shell", "bash", "-c", fmt.Sprintf(`trap 'echo got; exit 3' TERM INT USR1; echo in; kill -%d $PPID; for i in {1..100}; do sleep 0.1; done`, sig))
			if got, status := in.bounded(cmd); got != "in\ngot\n" || status != 3 {
				t.Errorf("%v: %q, %d, want the trap and 3", sig, got, status)
			}
		}
		// The command goes when the parent is killed.
		cmd := in.command("shell", "bash", "-c", `echo $$; exec sleep 30`)
		out, _ := cmd.StdoutPipe()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Fscan(out, &pid); err != nil {
			t.Fatal(err)
		}
		for { // bash may lose a signal while it becomes sleep
			if p, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(p) == "sleep\n" {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for end := time.Now().Add(20 * time.Second); alive(pid); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				st, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
				_ = syscall.Kill(pid, syscall.SIGKILL)
				t.Fatalf("the command outlives its killed parent:\n%s", st)
			}
		}
	})
}

// alive says whether a process runs; one that ended and waits for init to take note does not.
func alive(pid int) bool {
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(p), ") Z ")
}

func TestCollisions(t *testing.T) {
	each(t, func(t *testing.T, in *instance) {
		if in.hidden != "lo" {
			t.Errorf("Hidden() = %q, want lo", in.hidden)
		}
		if len(in.as) > 0 {
			return // its tree is closed to us
		}
		if got, err := Collisions(in.run + "/tree"); err != nil || !reflect.DeepEqual(got, []string{"lo"}) {
			t.Errorf("Collisions() = %q, %v, want lo", got, err)
		}
	})
}

// TestStoppedServer: only our own files wait, and Ctrl-C ends the wait, also in a builtin.
func TestStoppedServer(t *testing.T) {
	each(t, func(t *testing.T, in *instance) {
		// The kernel's own files, also those in merged directories, then ours, in a builtin.
		server := serverPid(t, in)
		cmd := in.command("shell", "bash", "-c", fmt.Sprintf(`kill -STOP %d
			cat /proc/net/route /proc/irq/default_smp_affinity /sys/devices/virtual/net/lo/mtu /sys/class/net/%s/mtu > /dev/null
			readlink /sys/bus/pci/devices/0000:00:00.0 > /dev/null; ps -p $$ > /dev/null; ls /proc/self/fd /sys/devices > /dev/null; cat <(echo sub)
			(sleep 2; kill -INT 0) & echo x > /proc/net/pktgen/pgctrl; echo after`, server, other(t)))
		start := time.Now()
		got, status := in.bounded(cmd)
		took := time.Since(start)
		_ = syscall.Kill(server, syscall.SIGCONT)
		if got != "sub\n" || status != 130 || took < 2*time.Second {
			t.Errorf("got %q, %d, after %v, want the kernel's files to answer and the end at SIGINT", got, status, took)
		}
	})
}

// other is an interface of the machine that the test's tree does not have.
func other(t *testing.T) string {
	t.Helper()
	names, err := filepath.Glob("/sys/class/net/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if _, err := os.Stat(n + "/mtu"); err == nil && filepath.Base(n) != "lo" {
			return filepath.Base(n)
		}
	}
	return "../../devices/virtual/net/lo"
}

// serverPid is the server's own pid: setpriv has become it.
func serverPid(t *testing.T, in *instance) int {
	t.Helper()
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", in.cmd.Process.Pid))
	if err != nil || filepath.Base(exe) != "test" {
		t.Fatalf("the server's program is %q, %v", exe, err)
	}
	return in.cmd.Process.Pid
}

func TestProbe(t *testing.T) {
	each(t, func(t *testing.T, in *instance) {
		if got, _ := in.bounded(in.command("probe")); got != "possible\n" {
			t.Errorf("Probe: %q, want possible", got)
		}
	})
}

// TestProbeRefused switches off what is needed, in user namespaces that root makes: there the settings are
// the namespace's own.
func TestProbeRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can switch things off")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	copyTo := filepath.Join("/tmp", fmt.Sprintf("userns%d.test", os.Getpid())) // the build's own folder may be closed to others
	if out, err := exec.Command("cp", exe, copyTo).CombinedOutput(); err != nil {
		t.Fatalf("cp: %s", out)
	}
	defer os.Remove(copyTo)
	for _, c := range []struct{ setting, as, want string }{
		{"max_user_namespaces", "setpriv --reuid=65534 --regid=65534 --clear-groups", "`sudo sysctl -w user.max_user_namespaces=15000`"},
		{"max_mnt_namespaces", "setpriv --reuid=65534 --regid=65534 --clear-groups", "`sudo sysctl -w user.max_mnt_namespaces=15000`"},
		{"max_mnt_namespaces", "", "`sudo sysctl -w user.max_mnt_namespaces=15000`"},
	} {
		cmd := exec.Command("bash", "-c", `echo 0 > /proc/sys/user/`+c.setting+` && exec `+c.as+` `+copyTo)
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}, {ContainerID: 65534, HostID: 65534, Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true}
		cmd.Env = append(os.Environ(), roleEnv+"=probe", "TMPDIR=/tmp")
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%s=0 as %q: %q, %v, want one line with %s", c.setting, c.as, out, err, c.want)
		}
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		file, content string
		err           error
		want          string
	}{
		{"sys/user/max_user_namespaces", "0\n", syscall.ENOSPC, "user.max_user_namespaces"},
		{"sys/kernel/unprivileged_userns_clone", "0\n", syscall.EPERM, "kernel.unprivileged_userns_clone=1"},
		{"sys/kernel/apparmor_restrict_unprivileged_userns", "1\n", syscall.EACCES, "AppArmor"},
		{"self/status", "Name:\tx\nSeccomp:\t2\n", syscall.EPERM, "seccomp=unconfined"},
		{"self/status", "Name:\tx\nSeccomp:\t0\n", syscall.EPERM, "CONFIG_USER_NS"},
		{"self/ns/user", "", syscall.EPERM, "policy"},
		{"self/ns/user", "", syscall.ENOSPC, "too many namespaces"},
	} {
		proc := t.TempDir()
		path := filepath.Join(proc, c.file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(c.content), 0o644); err != nil {
			t.Fatal(err)
		}
		got := explain(proc, 1000, c.err)
		if got == nil || !strings.Contains(got.Error(), c.want) || strings.Contains(got.Error(), "\n") {
			t.Errorf("explain with %s = %v, want one line with %q", c.file, got, c.want)
		}
	}
	if err := explain("/proc", 0, nil); err != nil {
		t.Errorf("explain(nil) = %v", err)
	}
	if err := explain("/nowhere", 0, syscall.ENOENT); err != syscall.ENOENT {
		t.Errorf("explain of another error = %v, want it unchanged", err)
	}
}
