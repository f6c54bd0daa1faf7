package kernfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// both runs f on a tree mounted by root and on one mounted by a plain user.
func both(t *testing.T, f func(t *testing.T, s *server, as []string)) {
	for _, c := range []struct {
		name        string
		user, guard bool
	}{{"direct", false, false}, {"fusermount", true, false}, {"guard", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, c.user, c.guard)
			var as []string
			if c.user {
				as = asUser()
			}
			f(t, s, as)
		})
	}
}

func TestHabits(t *testing.T) {
	both(t, func(t *testing.T, s *server, as []string) {
		for _, c := range []struct{ script, want string }{
			{`cat $D/proc/hello; stat -c '%s %a %F %h' $D/proc/hello`, "hello\n0 444 regular empty file 1\n"},
			{`stat -c '%s %a' $D/sys/attr $D/sys/config; stat -c '%a %F %h' $D/sys $D/sys/class`, "4096 644\n5000 644\n755 directory 3\n755 directory 3\n"},
			{`stat -c '%i' $D/proc/hello > /tmp/i.$$; stat -c '%i' $D/proc/hello | diff - /tmp/i.$$; ls -i $D/proc/hello | cut -d' ' -f1 | diff - /tmp/i.$$; rm /tmp/i.$$`, ""},
			{`echo one > $D/proc/cmd && cat $D/proc/cmd`, "1 4 \"one\\n\"\n"},
			{`echo two >> $D/proc/cmd && cat $D/proc/cmd`, "2 4 \"two\\n\"\n"},
			{`exec 3>$D/proc/cmd; echo a >&3; echo bcd >&3; exec 3>&-; cat $D/proc/cmd`, "4 4 \"bcd\\n\"\n"},
			{`touch $D/proc/cmd; truncate -s 0 $D/proc/cmd; cat $D/proc/cmd`, "4 4 \"bcd\\n\"\n"},
			{`head -c 5000 /dev/zero | tr '\0' z | dd of=$D/proc/cmd bs=8192 iflag=fullblock status=none; cut -c1-9 $D/proc/cmd`, "5 5000 \"z\n"},
			{`head -c 5000 /dev/zero | dd of=$D/sys/attr bs=8192 iflag=fullblock 2>&1 | grep -c .; cut -c1-7 $D/sys/attr`, "3\n7 904 \"\n"},
			{`cat $D/sys/long | wc -c`, "4096\n"},
			{`exec 3<$D/proc/once; head -c 8 <&3; exec 3<$D/proc/once; head -c 8 <&3; wc -c < $D/proc/once`, "0000000100000002300009\n"},
			{`cat $D/proc/once | head -c 300009 | tail -c 1; tail -c 3 $D/proc/once`, "xxxx"},
			{`cmp $D/proc/hello <(echo hello); grep -c hello $D/proc/hello; [[ -w $D/proc/cmd ]] && echo writable`, "1\nwritable\n"},
			{`od -An -tx1 -j 4094 -N 4 $D/sys/config; cat $D/sys/config | wc -c; tail -c 2 $D/sys/config | od -An -tx1`, " fe ff 00 01\n5000\n 86 87\n"},
			{`printf '\x11\x22' | dd of=$D/sys/config bs=1 seek=6 conv=notrunc status=none; od -An -tx1 -j 5 -N 4 $D/sys/config`, " 05 11 22 08\n"},
			{`printf x | dd of=$D/sys/config bs=1 seek=5000 conv=notrunc status=none`, "dd: error writing '" + s.dir + "/sys/config': File too large\n[exit status 1]"},
			{`readlink $D/sys/class/x/sub/back; cat $D/sys/class/x/sub/back > /dev/null && realpath $D/sys/class/x/sub/back`, "../../../attr\n" + s.dir + "/sys/attr\n"},
			{`readlink $D/merged/dev; cat $D/merged/dev | grep -c lo:; ls $D/merged | diff - <(ls /proc/self/net)`, "/proc/self/net/dev\n1\n"},
			{`cd $D/sys/class/x; stat sub > /dev/null; cat $D/sys/class/x/sub/back > /dev/null; ls $D/sys/class > /dev/null; pwd -P; cd sub; pwd -P; cd ..; /bin/pwd`,
				s.dir + "/sys/class/x\n" + s.dir + "/sys/class/x/sub\n" + s.dir + "/sys/class/x\n"},
			{`stat -f -c %l $D; df $D > /dev/null && grep -c "^ring3 $D fuse.ring3 .*nosuid,nodev,noexec" /proc/mounts`, "255\n1\n"},
			{`find $D/sys -type f | wc -l; cp $D/proc/hello /tmp/c.$$; cat /tmp/c.$$; rm /tmp/c.$$`, "5\nhello\n"},
		} {
			if got := s.sh(c.script, as...); got != c.want {
				t.Errorf("%s\n got %q\nwant %q", c.script, got, c.want)
			}
		}
	})
}

func TestRefusals(t *testing.T) {
	both(t, func(t *testing.T, s *server, as []string) {
		root := len(as) == 0 && os.Geteuid() == 0
		for _, c := range []struct {
			script, want string
			rootOnly     bool // for a plain user the kernel says EACCES without asking us
		}{
			{`cat $D/proc/none`, "No such file or directory", false},
			{`cat $D/proc/hello/x`, "Not a directory", false},
			{`cat $D/proc`, "Is a directory", false},
			{`echo > $D/proc/hello`, "Permission denied", false},
			{`echo > $D/sys/ro`, "Permission denied", false},
			{`cat $D/sys/wo`, "Permission denied", false},
			{`echo x > $D/proc/none`, "No such file or directory", true},
			{`echo x > $D/sys/none`, "Permission denied", false},
			{`mkdir $D/proc/none`, "No such file or directory", true},
			{`mkdir $D/sys/none`, "Operation not permitted", false},
			{`ln -s a $D/sys/none`, "Operation not permitted", false},
			{`ln $D/sys/ro $D/sys/none`, "Operation not permitted", false},
			{`mknod $D/proc/none p`, "No such file or directory", true},
			{`mv $D/proc/hello $D/proc/none`, "No such file or directory", true},
			{`rm -f $D/proc/hello`, "Operation not permitted", true},
			{`rmdir $D/sys/class`, "Operation not permitted", false},
			{`chmod 777 $D/proc/hello`, "Operation not permitted", false},
			{`echo x > $D/proc/err/busy`, "Device or resource busy", false},
			{`cat $D/proc/err/busy`, "Device or resource busy", false},
			{`echo x > $D/proc/err/wrapped`, "No such device", false},
			{`echo x > $D/proc/err/plain`, "Input/output error", false},
			{`echo x > $D/proc/err/many`, "Input/output error", false}, // took more than there was
			{`echo x > $D/proc/err/nothing`, "Input/output error", false},
			{`cat $D/proc/err/nothing`, "Input/output error", false},
			{`cat $D/proc/panic`, "Input/output error", false},
			{`echo x > $D/proc/panic`, "Input/output error", false},
		} {
			want := c.want
			if c.rootOnly && !root {
				want = "Permission denied"
			}
			if got := s.sh(c.script, as...); !strings.Contains(got, want) || !strings.Contains(got, "exit status") {
				t.Errorf("%s\n got %q\nwant an error with %q", c.script, got, want)
			}
		}
		if got := s.ask("log"); !strings.Contains(got, "show is broken") || !strings.Contains(got, "store is broken") {
			t.Errorf("log = %s, want both panics", got)
		}
		if got := s.sh(`cat $D/proc/hello`, as...); got != "hello\n" {
			t.Errorf("after the panics hello = %q", got)
		}
	})
}

func TestOtherUsersStayOut(t *testing.T) {
	s := serve(t, false, false)
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	if got := s.sh(`cat $D/proc/hello`, asUser()...); !strings.Contains(got, "Permission denied") {
		t.Errorf("another user reads %q, want Permission denied", got)
	}
}

func TestStopOvertakesStart(t *testing.T) {
	both(t, func(t *testing.T, s *server, as []string) {
		got := s.sh(`echo start > $D/proc/ctrl & sleep 0.3; cat $D/proc/ctrl; a=$(date +%s%N); echo stop > $D/proc/ctrl; b=$(date +%s%N)
			wait $!; echo $?; echo $(( (b-a)/1000000 < 200 )); cat $D/proc/ctrl`, as...)
		if want := "1\n0\n1\n0\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestInterrupt(t *testing.T) {
	both(t, func(t *testing.T, s *server, as []string) {
		// A store that minds its context answers as it likes, here with the full count, as pktgen.
		if got := s.sh(`echo start > $D/proc/ctrl & p=$!; sleep 0.3; cat $D/proc/ctrl; kill -TERM $p; sleep 0.3; cat $D/proc/ctrl`, as...); !strings.HasPrefix(got, "1\n0\n") {
			t.Errorf("interrupted start: %q, want running 1, then 0", got)
		}
		// A trapped signal: the write ends in success, the trap runs.
		if got := s.sh(`bash -c 'trap "echo trapped" USR1; echo start > $D/proc/ctrl; echo status $?' & p=$!; sleep 0.4; kill -USR1 $p; wait $p`, as...); got != "trapped\nstatus 0\n" && got != "status 0\ntrapped\n" {
			t.Errorf("trapped signal: %q, want the trap and status 0", got)
		}
		// Signals that are for something else end nothing, and one that comes after them does.
		got := s.sh(`bash -c 'trap "echo aside" WINCH URG; trap "echo meant" USR1; echo start > $D/proc/ctrl; echo status $?' & p=$!
			until [ "$(cat $D/proc/ctrl)" = 1 ]; do sleep 0.05; done; kill -WINCH $p; kill -URG $p; kill -CHLD $p; sleep 0.3; cat $D/proc/ctrl; kill -USR1 $p; wait $p; cat $D/proc/ctrl`, as...)
		if !strings.HasPrefix(got, "1\n") || strings.Count(got, "aside\n") != 2 || !strings.Contains(got, "meant\n") || !strings.HasSuffix(got, "0\n") || !strings.Contains(got, "status 0\n") {
			t.Errorf("signals for something else, then one that is not: %q, want that it runs (1), two traps, the third, status 0, and that it does not run (0)", got)
		}
		// Code that does not return is left to itself after the grace time.
		if got := s.sh(`timeout -s INT 0.3 cat $D/proc/deaf; echo $?`, as...); got != "124\n" {
			t.Errorf("a deaf show: %q, want 124", got)
		}
		if got := s.sh(`bash -c 'trap "echo trapped" USR1; echo x > $D/proc/deaf; echo status $?' 2>&1 & p=$!; sleep 0.4; kill -USR1 $p; wait $p`, as...); !strings.Contains(got, "Interrupted system call") || !strings.Contains(got, "status 1") {
			t.Errorf("a deaf store: %q, want EINTR", got)
		}
	})
}

// stopEnv makes the test binary a client that writes "start" to a file from another thread than its main one.
const stopEnv = "KERNFS_TEST_STOP"

// TestInterruptStop stops a client of several threads, of which another one than that in the call gets the signal: it stops, as it would in a kernel's call.
func TestInterruptStop(t *testing.T) {
	both(t, func(t *testing.T, s *server, as []string) {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		argv := append(slices.Clone(as), exe)
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), stopEnv+"="+filepath.Join(s.dir, "proc/ctrl"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		running := func(want string) {
			t.Helper()
			for end := time.Now().Add(patience); s.sh("cat $D/proc/ctrl", as...) != want; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("the store does not say %q", want)
				}
			}
		}
		running("1\n")
		if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			var ws unix.WaitStatus
			if pid, err := unix.Wait4(cmd.Process.Pid, &ws, unix.WUNTRACED|unix.WNOHANG, nil); pid != 0 || err != nil {
				if err != nil || !ws.Stopped() {
					t.Fatalf("wait = %d, %v, %#x, want that it stopped", pid, err, ws)
				}
				break
			}
			if time.Now().After(end) {
				t.Fatal("SIGSTOP does not stop the client")
			}
		}
		running("0\n")
	})
}

// stopClient is the client.
func stopClient(path string) {
	runtime.LockOSThread() // the main thread, which the kernel gives a signal first, waits elsewhere
	done := make(chan error)
	go func() { done <- os.WriteFile(path, []byte("start"), 0) }()
	if err := <-done; err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func TestBigAndChangingDir(t *testing.T) {
	s := serve(t, false, false)
	if got := s.sh(`ls -1 $D/proc/dyn | wc -l; ls -1 $D/proc/dyn | sort | uniq -d | wc -l; ls -la $D/proc/dyn | wc -l`); got != "3000\n0\n3003\n" {
		t.Errorf("listing: %q, want 3000, 0, 3003", got)
	}
	d, err := os.Open(filepath.Join(s.dir, "proc/dyn"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	first, err := d.Readdirnames(100)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range first[:50] {
		s.ask("del " + name)
	}
	for i := range 50 {
		s.ask(fmt.Sprintf("add aaa%d", i))
	}
	rest, err := d.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]int)
	for _, n := range append(first, rest...) {
		seen[n]++
	}
	if len(seen) != 3000 {
		t.Errorf("a listing during changes has %d names, want the 3000 of its beginning", len(seen))
	}
	if _, err := d.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	again, err := d.Readdirnames(-1)
	if err != nil || len(again) != 3000 {
		t.Errorf("after rewinding: %d names, %v, want 3000", len(again), err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "proc/dyn", first[0])); !os.IsNotExist(err) {
		t.Errorf("stat of a removed entry = %v, want ENOENT", err)
	}
}

func TestOpenFileOutlivesItsEntry(t *testing.T) {
	s := serve(t, false, false)
	f, err := os.Open(filepath.Join(s.dir, "proc/dyn/entry-with-a-rather-long-name-00007"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s.ask("del entry-with-a-rather-long-name-00007")
	buf := make([]byte, 10)
	if n, err := f.Read(buf); n != 2 || err != nil {
		t.Errorf("reading a removed file = %d, %v, want 2 bytes", n, err)
	}
}

func TestNothingLeaks(t *testing.T) {
	s := serve(t, false, false)
	before := s.ask("left")
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 1250 {
				p, err := os.ReadFile(fmt.Sprintf("%s/proc/dyn/entry-with-a-rather-long-name-%05d", s.dir, i))
				if err != nil || string(p) != "x\n" {
					t.Errorf("ReadFile = %q, %v", p, err)
					return
				}
			}
		}()
	}
	wg.Wait()
	s.sh(`ls -lR $D > /dev/null; for i in {1..500}; do echo x > $D/proc/cmd; done`)
	// The kernel says what it drops when it drops it; emptying its cache, as root, drops all. Else what it
	// keeps is at most the tree, though each of the lookups of cmd made an entry.
	most := 3100
	if os.Geteuid() == 0 {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err == nil {
			most = 1
		}
	}
	var entries, placed, open, lists int
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if _, err := fmt.Sscanf(s.ask("counts"), "entries=%d placed=%d open=%d lists=%d", &entries, &placed, &open, &lists); err != nil {
			t.Fatal(err)
		}
		if entries <= most && placed < most && open == 0 && lists == 0 {
			break
		}
	}
	if entries > most || placed >= most && most > 1 || placed > entries || open != 0 || lists != 0 {
		t.Errorf("tables after 10000 lookups: %d entries, %d placed, %d open, %d lists, want at most %d and nothing open", entries, placed, open, lists, most)
	}
	if after := s.ask("left"); after != before {
		t.Errorf("after: %s, want %s", after, before)
	}
}
