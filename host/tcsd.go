package host

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/internal/child"
)

// TPM 1.2's programs (Debian's tpm-tools) speak to a daemon, trousers' tcsd, which has the TPM for itself. `ring3
// shell --tcsd` has one of its own: with its own configuration, at a port of its own, for as long as the command runs.
// Its key store, without which an owned TPM's storage root key cannot be used, is kept beside the TPM's state (state=).
// tcsd wants to become the user tss, who inside is who the caller is.

// tcsdUser and tcsdGroup are lines for passwd(5) and group(5).
const (
	tcsdUser  = "tss:x:0:0:tcsd of ring3 shell:/:/usr/sbin/nologin"
	tcsdGroup = "tss:x:0:"
)

// withUser is an account file of the machine's in which line's account is line.
func withUser(path, line string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	name, _, _ := strings.Cut(line, ":")
	var out strings.Builder
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if !strings.HasPrefix(sc.Text(), name+":") {
			fmt.Fprintln(&out, sc.Text())
		}
	}
	if err := sc.Err(); err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	fmt.Fprintln(&out, line)
	return out.String(), nil
}

// tcsdFiles are the account files that the daemon reads.
func tcsdFiles() (map[string]string, error) {
	files := map[string]string{}
	for path, line := range map[string]string{"/etc/passwd": tcsdUser, "/etc/group": tcsdGroup} {
		text, err := withUser(path, line)
		if err != nil {
			return nil, fmt.Errorf("shell: --tcsd: %w", err)
		}
		files[path] = text
	}
	return files, nil
}

// tcsdPath finds the daemon, which stands where a user's PATH may not look.
func tcsdPath() (string, error) {
	path, err := exec.LookPath("tcsd")
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/tcsd")
	}
	if err != nil {
		return "", errors.New("shell: --tcsd: there is no tcsd: install it (Debian, Ubuntu: apt-get install trousers tpm-tools)")
	}
	return path, nil
}

// tcsdArg is the hidden command that runs inside.
const tcsdArg = "tcsd-run"

// storeName is a folder in the state directory of a TPM, which swtpm leaves alone.
const storeName = "tcsd"

// tcsdStore is the folder of the daemon's key store; "": the TPM is not kept, and neither are keys. devices are as an
// instance tells them, with absolute paths.
func tcsdStore(devices []string) string {
	for _, s := range devices {
		if d, err := ParseDevice(s); err == nil && isTPM(d) && d.Bus["tpm"] == "1.2" && d.Bus["state"] != "" {
			return filepath.Join(d.Bus["state"], storeName)
		}
	}
	return ""
}

// underTCSD is the command line that starts the daemon, then argv.
func underTCSD(store string, argv []string) ([]string, error) {
	if _, err := tcsdPath(); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("shell: --tcsd: %w", err)
	}
	if len(argv) == 0 {
		argv = []string{os.Getenv("SHELL")}
		if argv[0] == "" {
			argv[0] = "/bin/sh"
		}
	}
	return append([]string{self, tcsdArg, "--store=" + store, "--"}, argv...), nil
}

func (a *app) tcsdCmd() *cobra.Command {
	store := ""
	c := &cobra.Command{
		Use: tcsdArg + " -- COMMAND...", Hidden: true, Args: cobra.MinimumNArgs(1),
		Short: "Run a command with a tcsd of its own; for 'ring3 shell --tcsd'",
		RunE:  func(_ *cobra.Command, args []string) error { return runTCSD(store, args) },
	}
	c.Flags().StringVar(&store, "store", "", "keep its keys in `DIR`")
	return c
}

// tcsdWait is how long the daemon may take until it listens.
const tcsdWait = 20 * time.Second

// runTCSD starts the daemon, runs the command, and ends the daemon. store "": its keys end with it.
func runTCSD(store string, argv []string) error {
	path, err := tcsdPath()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "ring3-tcsd-")
	if err != nil {
		return fmt.Errorf("tcsd: %w", err)
	}
	defer os.RemoveAll(dir)
	if store == "" {
		store = dir
	} else if err := os.MkdirAll(store, 0o700); err != nil {
		return fmt.Errorf("tcsd: %w", err)
	}
	port, err := freePort()
	if err != nil {
		return fmt.Errorf("tcsd: finding a port: %w", err)
	}
	conf := filepath.Join(dir, "tcsd.conf")
	text := fmt.Sprintf("port = %d\nsystem_ps_file = %s\n", port, filepath.Join(store, "system.data"))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return fmt.Errorf("tcsd: %w", err)
	}
	if err := os.Chmod(conf, 0o640); err != nil { // it takes no other mode
		return fmt.Errorf("tcsd: %w", err)
	}
	p, err := child.Start(exec.Command(path, "-f", "-c", conf), nil)
	if err != nil {
		return fmt.Errorf("tcsd: starting %s: %w", path, err)
	}
	defer func() {
		_ = p.Signal(syscall.SIGTERM)
		select {
		case <-p.Done():
		case <-time.After(time.Second):
			p.Kill()
			<-p.Done()
		}
	}()
	if err := listens(p, port); err != nil {
		return err
	}
	return runUnder(argv, "TSS_TCSD_PORT="+strconv.Itoa(port), "TSS_TCSD_HOSTNAME=localhost")
}

// freePort is a port that nobody listens at now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// listens waits until the daemon takes connections.
func listens(p *child.Process, port int) error {
	for end := time.Now().Add(tcsdWait); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", fmt.Sprintf("localhost:%d", port))
		if err == nil {
			return c.Close()
		}
		select {
		case <-p.Done():
			return fmt.Errorf("tcsd: it ended: %s: is there a TPM 1.2 (tpm0=qemu:tpm-tis,tpm=1.2), and has nothing else opened it?", p.End())
		default:
		}
		if time.Now().After(end) {
			return fmt.Errorf("tcsd: it does not listen after %v: %w", tcsdWait, err)
		}
	}
}

// runUnder runs a command with more in its environment; its status is ours.
func runUnder(argv []string, env ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// The terminal's signals reach the command too; others are passed on.
	sigs := make(chan os.Signal, 16)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(sigs)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", argv[0], errors.Unwrap(err))
	}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-sigs:
				if s == syscall.SIGTERM || s == syscall.SIGHUP {
					_ = cmd.Process.Signal(s)
				}
			case <-done:
				return
			}
		}
	}()
	err := cmd.Wait()
	close(done)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status := exit.Sys().(syscall.WaitStatus)
		if status.Signaled() {
			return exitError(128 + int(status.Signal()))
		}
		return exitError(status.ExitStatus())
	}
	return err
}
