package campaign

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ring3dev/ring3/host"
	"github.com/ring3dev/ring3/internal/child"
	"github.com/ring3dev/ring3/internal/instance"
)

// Operations of the control socket, as package host has them.
const (
	opDevices = "devices"
	opFault   = "fault"
	opPlug    = "plug"
	opUnplug  = "unplug"
	opReload  = "reload"
)

// hangError: something is not answered within upBound.
type hangError struct{ error }

// upInstance is a `ring3 up` of the groups whose drivers fail, and of a pair of controllers beside, which must see nothing of it.
type upInstance struct {
	group   *upGroup
	dir     string // all that is its
	info    instance.Info
	process *child.Process
	metrics string
	lanes   []*upLane
	macs    map[string]string
	broken  atomic.Bool // no further run in it

	beside     int // the worker of the pair beside, which stays
	rounds     atomic.Int64
	stopBeside func() error // nil: a lane's own starts are the pair's
	turn       sync.Mutex   // held while the pair beside sends by itself
	first      upUse        // at rest, before any run
	last       upUse
	closed     bool
}

// upLane is a group of an instance that fails, and how it is used. One goroutine has it at a time.
type upLane struct {
	in      *upInstance
	n       int
	client  *instance.Client
	devices []string // in service while it is at rest
	use     func(ctx context.Context) error
	undone  <-chan struct{} // of a use that was not done in time; nil: there is none
}

// full is a use that wants everything to be right.
func (l *upLane) full(ctx context.Context) error { return l.use(ctx) }

// name is a device of this lane: its number stands for a %d.
func (l *upLane) name(device string) string {
	return strings.ReplaceAll(device, "%d", strconv.Itoa(l.n))
}

// Names of the pair beside.
const (
	besideTx = "bys0"
	besideRx = "bys1"
)

// startUp starts an instance, has each group be used and replaced once, so that what is only made once is made, and looks what it uses.
func startUp(ctx context.Context, g *upGroup, b Backend) (_ *upInstance, err error) {
	in := &upInstance{group: g}
	defer func() {
		if err != nil {
			_, _, e := in.close()
			err = errors.Join(fmt.Errorf("ring3 up for %s: %w", g.name, err), e)
		}
	}()
	if in.dir, err = os.MkdirTemp("", "ring3-fault-"); err != nil {
		return nil, err
	}
	base := filepath.Join(in.dir, "run")
	if err := os.Mkdir(base, 0o700); err != nil {
		return nil, err
	}
	in.info = instance.Info{Name: "up", Dir: filepath.Join(base, "up")}
	if err := in.start(ctx, b); err != nil {
		return nil, err
	}
	for n := range max(g.lanes, 1) {
		l := &upLane{in: in, n: n}
		if l.client, err = instance.Dial(in.info); err != nil {
			return nil, err
		}
		in.lanes = append(in.lanes, l)
	}
	if err := in.prepare(ctx); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	errs := make([]error, len(in.lanes))
	for k, l := range in.lanes {
		wg.Go(func() { errs[k] = l.warm(ctx) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return in, in.settle(ctx)
}

// start starts the process, and reads what it says until it is ready.
func (in *upInstance) start(ctx context.Context, b Backend) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"up", "-i", in.info.Name, "--fault-arm", "--deaths", "1000000", "--metrics", "127.0.0.1:0", "--supervise=on"}
	args = append(args, besideTx+"=sim:e1000e", besideRx+"=sim:e1000e", "--wire", besideTx+"-"+besideRx)
	cmd := exec.Command(self, append(args, in.group.arguments()...)...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(s string) bool {
		return strings.HasPrefix(s, instance.BaseEnv+"=") || strings.HasPrefix(s, "XDG_STATE_HOME=")
	}), instance.BaseEnv+"="+filepath.Dir(in.info.Dir), "XDG_STATE_HOME="+filepath.Join(in.dir, "state"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	in.process, err = child.Start(cmd, func(line string) bool {
		if b.Log != nil {
			b.Log.Debug(line)
		}
		return true
	})
	if err != nil {
		return err
	}
	ready := make(chan string, 1)
	go func() {
		metrics := ""
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if v, ok := strings.CutPrefix(lines.Text(), "metrics: "); ok {
				metrics = v
			}
			if strings.Contains(lines.Text(), " is ready ") {
				ready <- metrics
			}
		}
		_, _ = io.Copy(io.Discard, out)
	}()
	select {
	case in.metrics = <-ready:
		return nil
	case <-in.process.Done():
		return fmt.Errorf("it ended: %s", in.process.End())
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(upBound):
		return errors.New("it does not come up")
	}
}

// prepare has the pair beside begin.
func (in *upInstance) prepare(ctx context.Context) error {
	var all []host.DeviceInfo
	if err := in.lanes[0].call(ctx, opDevices, nil, &all); err != nil {
		return err
	}
	in.macs = map[string]string{}
	for _, d := range all {
		in.macs[d.Name] = d.MAC
		if d.Name == besideTx {
			in.beside = d.Worker
		}
	}
	if in.beside == 0 {
		return errors.New("no worker has the pair beside")
	}
	if err := in.generator(ctx, 0, besideTx, besideRx, upBesideFrames); err != nil {
		return err
	}
	for _, l := range in.lanes {
		if err := in.group.lane(ctx, l); err != nil {
			return err
		}
	}
	if in.group.sends {
		return nil
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() {
		var err error
		for ctx.Err() == nil && err == nil {
			in.turn.Lock()
			err = in.send(context.WithoutCancel(ctx))
			in.turn.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(upRetry):
			}
		}
		if err != nil {
			in.broken.Store(true)
		}
		done <- err
	}()
	in.stopBeside = sync.OnceValue(func() error { cancel(); return <-done })
	return nil
}

// warm uses the group, has it replaced, and uses it again.
func (l *upLane) warm(ctx context.Context) error {
	for end := time.Now().Add(upMute); ; time.Sleep(upRetry) {
		err := l.use(ctx)
		if err == nil {
			break
		}
		if time.Now().After(end) || errors.As(err, new(hangError)) || ctx.Err() != nil {
			return fmt.Errorf("before any fault: %w", err)
		}
	}
	err := l.renew(ctx)
	for end := time.Now().Add(upMute); err == nil; time.Sleep(upRetry) {
		if err = l.use(ctx); err == nil {
			return nil
		}
		if time.Now().Before(end) && !errors.As(err, new(hangError)) {
			err = nil
		}
	}
	return fmt.Errorf("after one death: %w", err)
}

// renew takes the worker away, and waits for another one: with it ends what may come yet of faults.
func (l *upLane) renew(ctx context.Context) error {
	st, err := l.awaitUp(ctx)
	if err != nil {
		return err
	}
	if err := syscall.Kill(st.worker, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) { // it may have died of them just now
		return err
	}
	return l.awaitRestart(ctx, st.restarts+1)
}

// finish closes an instance that had faults. A driver that finds just now what was wrong with its device a moment ago would say so as it is closed, and `ring3 up`
// with it; so it is not asked.
func (in *upInstance) finish(ctx context.Context) (rounds int, rest []upRests, err error) {
	for _, l := range in.lanes {
		if in.broken.Load() || err != nil || ctx.Err() != nil {
			break
		}
		err = l.renew(ctx)
	}
	rounds, rest, e := in.close()
	return rounds, rest, errors.Join(err, e)
}

// close ends the instance in order, and looks that nothing is left. It returns how often the pair beside sent.
func (in *upInstance) close() (rounds int, rest []upRests, err error) {
	if in.closed {
		return 0, nil, nil
	}
	in.closed = true
	if in.stopBeside != nil {
		if e := in.stopBeside(); e != nil && !in.broken.Load() {
			err = e
		}
	}
	if in.process != nil {
		select {
		case <-in.process.Done():
			err = errors.Join(err, fmt.Errorf("it ended by itself: %s", in.process.End()))
		default:
			_ = in.process.Signal(syscall.SIGTERM)
		}
		select {
		case <-in.process.Done():
			if e := in.process.End(); err == nil && !strings.HasPrefix(e, "exit status 0") {
				err = fmt.Errorf("ending it: %s", e)
			}
		case <-time.After(upBound):
			in.process.Kill()
			<-in.process.Done()
			err = errors.Join(err, fmt.Errorf("it does not end within %v", upBound))
		}
	}
	for _, l := range in.lanes {
		if l.client != nil {
			_ = l.client.Close()
		}
	}
	if _, e := os.Lstat(in.info.Dir); in.process != nil && e == nil {
		err = errors.Join(err, fmt.Errorf("its folder %s is left", in.info.Dir))
		return int(in.rounds.Load()), nil, err // for who wants to look
	}
	if in.dir != "" {
		if e := os.RemoveAll(in.dir); err == nil {
			err = e
		}
	}
	if in.first.Descriptors > 0 {
		rest = []upRests{{Group: in.group.name, First: in.first, Last: in.last}}
	}
	return int(in.rounds.Load()), rest, err
}

// muteError: what has no bound of its own, as a run of pktgen's and a command of a TPM's, is not done within upMute.
type muteError struct {
	error
	done <-chan struct{} // closed when it is
}

// unbounded is bounded for that.
func unbounded(ctx context.Context, what string, f func() error) error {
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = f()
	}()
	limit := time.NewTimer(upMute)
	defer limit.Stop()
	select {
	case <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-limit.C:
		return muteError{fmt.Errorf("%s: not done after %v", what, upMute), done}
	}
}

// bounded does what may hang, in this process at least: what it waits for ends with the instance.
func bounded[T any](ctx context.Context, what string, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	limit := time.NewTimer(upBound)
	defer limit.Stop()
	var zero T
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		return zero, context.Cause(ctx)
	case <-limit.C:
		return zero, hangError{fmt.Errorf("%s: no answer within %v", what, upBound)}
	}
}

// call does an operation of the control socket.
func (l *upLane) call(ctx context.Context, op string, args, result any) error {
	_, err := bounded(ctx, op, func() (struct{}, error) { return struct{}{}, l.client.Call(ctx, op, args, result) })
	return err
}

// path is a file of the tree.
func (in *upInstance) path(name string) string { return filepath.Join(in.info.Dir, "tree", name) }

// read reads a file of the tree.
func (in *upInstance) read(ctx context.Context, name string) (string, error) {
	b, err := bounded(ctx, "reading "+name, func() ([]byte, error) { return os.ReadFile(in.path(name)) })
	return string(b), err
}

// write writes a line to a file of the tree.
func (in *upInstance) write(ctx context.Context, name, line string) error {
	_, err := bounded(ctx, "writing "+name, func() (struct{}, error) { return struct{}{}, in.echo(name, line) })
	return err
}

func (in *upInstance) echo(name, line string) error {
	f, err := os.OpenFile(in.path(name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Close())
}

// goroutines asks the instance's figures.
func (in *upInstance) goroutines() (int, error) {
	client := &http.Client{Timeout: upBound, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(in.metrics)
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	for lines := bufio.NewScanner(io.LimitReader(r.Body, 1<<20)); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), "go_goroutines "); ok {
			return strconv.Atoi(v)
		}
	}
	return 0, errors.New("its metrics have no go_goroutines")
}
