package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/integration/vm/wire"
	"github.com/ring3dev/ring3/internal/swtpm"
)

// BootTimeout is how long a VM may take from QEMU's start to init's first word, unless Config
// says otherwise. Without KVM it takes about 8 s on a quiet machine, and minutes on a busy one.
const BootTimeout = 4 * time.Minute

// kvmTimeout is the same for a boot with KVM, which takes a second or two where KVM works.
const kvmTimeout = 30 * time.Second

// Machine is a running VM.
type Machine struct {
	Release string        // of its kernel
	Accel   string        // "kvm" or "tcg"
	Took    time.Duration // its boot

	dir     string // private, for the initramfs and captures
	cmd     *exec.Cmd
	exited  chan struct{} // closed when QEMU ended
	console *console
	swtpm   *swtpm.Process // nil: no TPM
	qmp     *qmp
	conn    *wire.Conn
	files   []*os.File // our ends of the channels

	mu    sync.Mutex
	runs  map[int]*run // by number
	last  int
	ended error // why nothing comes any more

	captures map[string]string // of a netdev: its file

	host map[string]func(json.RawMessage) (any, error) // Config.Host
}

// ErrEnded is wrapped by errors of a VM that ended.
var ErrEnded = errors.New("the VM ended")

// kvmFails is set when KVM was found not to work here.
var kvmFails atomic.Bool

// Start boots a VM and waits until its init is ready. It is safe for concurrent use.
func Start(ctx context.Context, c Config) (*Machine, error) {
	c = c.withDefaults()
	accel, err := c.accel()
	if err != nil {
		return nil, err
	}
	limit := c.BootTimeout
	if limit == 0 {
		limit = BootTimeout
	}
	if accel == "kvm" && os.Getenv(accelEnv) == "" {
		// Some machines have a KVM that refuses, or never runs anything.
		m, kvmErr := start(ctx, c, "kvm", min(limit, kvmTimeout))
		if kvmErr == nil {
			return m, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("vm: booting: %w", ctx.Err())
		}
		if m, err = start(ctx, c, "tcg", limit); err == nil { // else it is not KVM that is wrong
			kvmFails.Store(true)
			c.logf("KVM does not work here, so it is done without: %.300v", kvmErr)
		}
		return m, err
	}
	return start(ctx, c, accel, limit)
}

func start(ctx context.Context, c Config, accel string, limit time.Duration) (*Machine, error) {
	dir, err := os.MkdirTemp("", "ring3-vm-") // 0700
	if err != nil {
		return nil, fmt.Errorf("vm: %w", err)
	}
	m := &Machine{Accel: accel, dir: dir, exited: make(chan struct{}), console: &console{also: c.Console},
		runs: map[int]*run{}, captures: map[string]string{}, host: c.Host}
	if err := m.boot(ctx, &c, limit); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Machine) boot(ctx context.Context, c *Config, limit time.Duration) error {
	argv, err := prepare(c, m.Accel, m.dir)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := m.launch(c, argv); err != nil {
		return fmt.Errorf("vm: starting %s: %w\n%s", argv[0], err, m.Tail())
	}
	hello := make(chan error, 1)
	go func() {
		msg, err := m.conn.Receive()
		if err == nil && msg.Hello == nil {
			err = errors.New("init's first word is no greeting")
		}
		if err == nil {
			m.Release = msg.Hello.Release
		}
		hello <- err
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err = <-hello:
	case <-timer.C:
		err = fmt.Errorf("init has not said a word after %v", limit)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("vm: booting: %w\n%s", err, m.Tail())
	}
	m.Took = time.Since(begin)
	_ = os.Remove(filepath.Join(m.dir, initrdName))
	go m.receive()
	return nil
}

// Close ends the VM.
func (m *Machine) Close() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		<-m.exited
	}
	_ = m.swtpm.Close()
	for _, f := range m.files {
		f.Close()
	}
	_ = os.RemoveAll(m.dir)
}

// Tail is the end of what the console said, for a message.
func (m *Machine) Tail() string {
	return "the end of the VM's console:\n" + m.console.tail(80)
}
