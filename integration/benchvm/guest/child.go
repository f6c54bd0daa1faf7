//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/integration/vm/wire"
)

// child makes of a function the main function of a process: argument on stdin, result on stdout. A
// child that serves calls serve, which answers each line on stdin with what look returns, until
// stdin ends.
func child[A, R any](f func(a A, serve func(look func() uint64) error) (R, error)) func(io.Reader, io.Writer) error {
	return func(stdin io.Reader, out io.Writer) error {
		in := bufio.NewReader(stdin)
		line, err := in.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("argument: %w", err)
		}
		var a A
		if err := json.Unmarshal(line, &a); err != nil {
			return fmt.Errorf("argument: %w", err)
		}
		enc := json.NewEncoder(out)
		serve := func(look func() uint64) error {
			for {
				if err := enc.Encode(look()); err != nil {
					return err
				}
				if _, err := in.ReadBytes('\n'); err != nil {
					return nil
				}
			}
		}
		r, err := f(a, serve)
		if err != nil {
			return err
		}
		return enc.Encode(r)
	}
}

// who runs a child.
type who struct {
	nobody bool
	cpu    int // the only one; -1: any
}

// process is a child that runs.
type process struct {
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
	err  bytes.Buffer
}

// start starts a child.
func start(w who, name string, arg any) (*process, error) {
	p := &process{name: name, cmd: exec.Command("/proc/self/exe", name)}
	p.cmd.Env = os.Environ()
	p.cmd.Stderr = &p.err
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if w.nobody {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: wire.Nobody, Gid: wire.Nobody}
	}
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = json.NewDecoder(out)
	if err := startOn(p.cmd, w.cpu); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := json.NewEncoder(p.in).Encode(arg); err != nil {
		return nil, p.fail(err)
	}
	return p, nil
}

// startOn starts a program that may use one CPU only. The parent-death signal comes when the thread
// ends that started it: run keeps to one.
func startOn(cmd *exec.Cmd, cpu int) error {
	if cpu < 0 {
		return cmd.Start()
	}
	var old, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		return err
	}
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	err := cmd.Start()
	return errors.Join(err, unix.SchedSetaffinity(0, &old))
}

// look waits until the child serves, or has answered, and returns what it said.
func (p *process) look() (n uint64, err error) {
	if err := p.out.Decode(&n); err != nil {
		return 0, p.fail(err)
	}
	return n, nil
}

// again asks a child that serves.
func (p *process) again() (uint64, error) {
	if _, err := io.WriteString(p.in, "\n"); err != nil {
		return 0, p.fail(err)
	}
	return p.look()
}

// result tells the child to stop, if it serves, and waits for what it has to say.
func (p *process) result(r any) error {
	if err := p.in.Close(); err != nil {
		return p.fail(err)
	}
	if err := p.out.Decode(r); err != nil {
		return p.fail(err)
	}
	if err := p.cmd.Wait(); err != nil {
		return p.fail(err)
	}
	return nil
}

// fail ends the child and says why.
func (p *process) fail(err error) error {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	if said := strings.TrimSpace(p.err.String()); said != "" {
		err = errors.New(said)
	}
	return fmt.Errorf("%s: %w", p.name, err)
}

// ask runs a child to its end.
func ask(w who, name string, arg, result any) error {
	p, err := start(w, name, arg)
	if err != nil {
		return err
	}
	return p.result(result)
}
