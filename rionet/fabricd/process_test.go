package fabricd

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// childEnv has the test binary be a node, by a role; its arguments are the socket and the endpoint.
const childEnv = "RING3_FABRICD_CHILD"

func TestMain(m *testing.M) {
	if role := os.Getenv(childEnv); role != "" {
		runChild(role, os.Args[1], os.Args[2])
	}
	os.Exit(m.Run())
}

// command is another process in a role.
func command(t testing.TB, role, path, name string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, path, name)
	cmd.Env = append(os.Environ(), childEnv+"="+role)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// launch starts it, waits until it is ready, and ends it with the test. It returns what it prints.
func launch(t testing.TB, cmd *exec.Cmd) io.Reader {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		t.Fatalf("the process %v ended early: %v", cmd.Args, err)
	}
	return out
}

// child does both.
func child(t testing.TB, role, path, name string) *exec.Cmd {
	t.Helper()
	cmd := command(t, role, path, name)
	launch(t, cmd)
	return cmd
}

// outside is a testing.TB of a process that is no test: it ends on the first error.
type outside struct{ testing.TB }

func (outside) Helper()                  {}
func (outside) Cleanup(func())           {}
func (outside) Context() context.Context { return context.Background() }
func (outside) Fatal(args ...any)        { fmt.Fprintln(os.Stderr, args...); os.Exit(1) }
func (o outside) Error(args ...any)      { o.Fatal(args...) }
func (o outside) Fatalf(format string, args ...any) {
	o.Fatal(fmt.Sprintf(format, args...))
}
func (o outside) Errorf(format string, args ...any) { o.Fatalf(format, args...) }

// runChild never returns.
func runChild(role, path, name string) {
	t := outside{}
	switch role {
	case "scribble":
		scribble(t, path, name)
	case "sit":
		joinAs(t, path, name, 4096).open()
		fmt.Print("+")
		select {}
	case "serve":
		topo, err := fabric.Parse("t", []byte(starTopology))
		if err != nil {
			t.Fatal(err)
		}
		err = Serve(t.Context(), Config{Topology: topo, Socket: path, Ready: func() { fmt.Print("+") }})
		t.Fatal(err)
	case "take":
		takeAll(joinAs(t, path, name).open())
	case "flood":
		flood(joinAs(t, path, name).open())
	case "drain":
		drainSocket()
	}
	t.Fatalf("no role %q", role)
}

// scribble joins again and again and fills its memory with nonsense, while signalling the daemon.
func scribble(t testing.TB, path, name string) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := 0; ; round++ {
		conn, _, err := Join(t.Context(), path, Request{Node: name})
		if err != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		p := handshake(t, conn)
		if round == 0 {
			fmt.Print("+")
		}
		if round%3 > 0 {
			reset(p)
		}
		for i := range 5000 {
			// Often in the header page and the control words, which are at the beginning of pages; few bits at a time.
			at := rng.IntN(len(p.mem)/4) * 4
			if i%2 == 0 {
				at = at&^4095 + rng.IntN(256)*4
			}
			if i%3 > 0 {
				at %= 64 << 10 // the sending ring
			}
			v := rng.Uint32() >> (rng.IntN(4) * 8)
			binary.LittleEndian.PutUint32(p.mem[at:], v)
			if i%16 == 0 {
				p.kick()
			}
		}
		var b [8]byte
		for _, fd := range p.own {
			_, _ = unix.Read(fd, b[:])
		}
		p.close()
	}
}

// reset begins as a good node does, if the daemon lets it.
func reset(p *peer) {
	n, err := shm.OpenNode(shm.Mapped(p.mem), p.id)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = n.Reset(ctx, shm.NumVectors, p.kick)
}

// TestKill: a node that is killed is gone for the others, and its successor may join.
func TestKill(t *testing.T) {
	leakless(t)
	s, c := start(t, starTopology)
	a := joinAs(t, s.path, "pe0").open()
	a.setID(5)
	a.route(5, 0)
	// The switch reports to us.
	a.mustCall(shm.Header{Kind: shm.KindMaint, Peer: 0xff, Off: uint32(rapidio.RegComponentTag), Width: 4, Write: true, Value: 0x123})
	cmd := child(t, "sit", s.path, "pe1")
	f, err := c.Show(t.Context())
	if err != nil || !f.Nodes[1].Joined || f.Nodes[1].PID != cmd.Process.Pid || !f.Nodes[1].Up {
		t.Fatalf("Show = %+v, %v, want pe1 to be process %d", f, err, cmd.Process.Pid)
	}
	_, _, err = Join(t.Context(), s.path, Request{Node: "pe1"})
	oneLine(t, "Join", err, fmt.Sprintf("pe1: joined already by process %d", cmd.Process.Pid), nil)
	w, err := os.OpenFile(must(c.Windows(t.Context()))(t)[0].Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	mem, err := unix.Mmap(int(w.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the link of a node that was killed to be down", func() bool {
		f, err := c.Show(t.Context())
		return err == nil && !f.Nodes[1].Joined && !f.Nodes[1].Up && !f.Links[1].Up
	})
	eventually(t, "the window of a node that was killed to read ones", func() bool { return mem[0] == 0xff && mem[4095] == 0xff })
	next := child(t, "sit", s.path, "pe1")
	f, err = c.Show(t.Context())
	if err != nil || f.Nodes[1].PID != next.Process.Pid || !f.Nodes[1].Up {
		t.Errorf("Show = %+v, %v, want pe1 to be process %d", f, err, next.Process.Pid)
	}
}
