package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/hwbind"
	"github.com/ring3dev/ring3/internal/kernfs"
	"github.com/ring3dev/ring3/uio"
	"github.com/ring3dev/ring3/vfio"
)

// sudo ring3 up --as USER is two programs, one after the other in the same process. The first is
// root: it opens what only root may, starts a mounter, gives up every privilege and starts
// the second, by exec, with those descriptors. The second is the user's, and works as ever.

// passedEnv tells the second program which descriptors are what.
const passedEnv = "RING3_INTERNAL_PASSED"

// passed is what the first program leaves to the second.
type passed struct {
	UID     int                       `json:"uid"`
	Files   map[string]map[string]int `json:"files"`   // device: file: descriptor
	Mounter int                       `json:"mounter"` // its socket; 0 if there is none
}

// takePassed is what was left to this process, which is the second program then; nil in
// any other. It is called before any process is started.
func takePassed() (*passed, error) {
	text, ok := os.LookupEnv(passedEnv)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(passedEnv)
	var p passed
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return nil, fmt.Errorf("--as: reading what was passed: %w", err)
	}
	for _, files := range p.Files {
		for _, fd := range files {
			unix.CloseOnExec(fd)
		}
	}
	if p.Mounter > 0 {
		unix.CloseOnExec(p.Mounter)
	}
	return &p, checkPlain(p.UID)
}

// forAnother says whether a command is root's for somebody else's sake: the run folder that the
// environment names may be that user's then, and is none of root's business.
func (a *app) forAnother(c *cobra.Command) bool {
	as := c.Flags().Lookup("as")
	return c.Name() == "bind" || c.Name() == "unbind" || as != nil && as.Changed && a.passed == nil
}

// files are the open files of each device.
func (p *passed) files() map[string]map[string]*os.File {
	if p == nil {
		return nil
	}
	out := map[string]map[string]*os.File{}
	one := map[int]*os.File{} // devices of one IOMMU group share some
	for name, files := range p.Files {
		out[name] = map[string]*os.File{}
		for file, fd := range files {
			if one[fd] == nil {
				one[fd] = os.NewFile(uintptr(fd), file)
			}
			out[name][file] = one[fd]
		}
	}
	return out
}

// closePassed closes what files opened. Some are in it more than once.
func closePassed(files map[string]map[string]*os.File) {
	for _, named := range files {
		for _, f := range named {
			_ = f.Close()
		}
	}
}

// mounter is who mounts, nil if nobody was left to.
func (p *passed) mounter() *kernfs.Mounter {
	if p == nil || p.Mounter <= 0 {
		return nil
	}
	return kernfs.MounterOf(os.NewFile(uintptr(p.Mounter), "mounter"))
}

// becomeUser is the first program. It returns only with an error.
func becomeUser(name string, plan Plan, mount bool) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("--as %s: only root may become another user: begin the command with sudo", name)
	}
	a, err := hwbind.FindAccount(name)
	if err != nil {
		return fmt.Errorf("--as: %w", err)
	}
	u := account{a}
	if u.UID == 0 {
		return usagef("--as %s: that is root; without --as it stays root", name)
	}
	opened, err := openDevices(plan)
	if err != nil {
		return err
	}
	plan.grantRT()
	p := passed{UID: u.UID, Files: map[string]map[string]int{}}
	for device, files := range opened {
		p.Files[device] = map[string]int{}
		for file, f := range files {
			p.Files[device][file] = int(f.Fd())
		}
	}
	if mount {
		m, err := kernfs.StartMounter(u.UID, u.GID)
		if err != nil {
			return err
		}
		p.Mounter = int(m.File().Fd())
	}
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	err = u.exec(p, append(u.env(), passedEnv+"="+string(text)))
	runtime.KeepAlive(opened) // their descriptors were in use
	return fmt.Errorf("--as %s: %w", name, err)
}

// openDevices opens the files of the devices that are real hardware.
func openDevices(plan Plan) (map[string]map[string]*os.File, error) {
	out := map[string]map[string]*os.File{}
	shared := map[string]*os.File{}
	for _, d := range plan.Devices {
		switch d.Backend {
		case "uio":
			f, err := uio.OpenFiles(d.Device, uio.Options{})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", d.Name, err)
			}
			out[d.Name] = f.Named()
		case "vfio":
			a, err := vfio.Look(d.Device, vfioOptions(d))
			if err == nil && a.Err != nil {
				err = fmt.Errorf("%s: %w", d.Device, a.Err)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", d.Name, err)
			}
			out[d.Name] = map[string]*os.File{}
			for _, path := range a.Paths {
				// Devices of one group share their files; every group has a container of its own.
				key := fmt.Sprint(a.Group, path)
				if shared[key] == nil {
					if shared[key], err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
						return nil, fmt.Errorf("%s: %s: %w", d.Name, d.Device, err)
					}
				}
				out[d.Name][path] = shared[key]
			}
		}
	}
	return out, nil
}

// account is a user to become.
type account struct{ *hwbind.Account }

// keptEnv are the variables that a user's process has from root's.
var keptEnv = []string{"PATH", "TERM", "COLORTERM", "NO_COLOR", "LANG", "LANGUAGE", "TZ"}

// env is the user's environment.
func (u account) env() []string {
	out := []string{"USER=" + u.Name, "LOGNAME=" + u.Name, "HOME=" + u.Home}
	for _, e := range os.Environ() {
		k, _, _ := strings.Cut(e, "=")
		for _, kept := range keptEnv {
			if k == kept || strings.HasPrefix(k, "LC_") {
				out = append(out, e)
				break
			}
		}
	}
	// Where the user's own commands look for running instances.
	run := filepath.Join("/run/user", strconv.Itoa(u.UID))
	if fi, err := os.Stat(run); err == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && int(st.Uid) == u.UID {
			out = append(out, "XDG_RUNTIME_DIR="+run)
		}
	}
	return out
}

// exec gives up all privileges and starts this program again, which keeps what p lists and
// no other descriptor. The thread that does it is the one that remains.
func (u account) exec(p passed, env []string) error {
	runtime.LockOSThread()
	// Before the descriptors are closed to the rest: exec itself needs none.
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("closing other descriptors: %w", err)
	}
	keep := []int{}
	if p.Mounter > 0 {
		keep = append(keep, p.Mounter)
	}
	for _, files := range p.Files {
		for _, fd := range files {
			keep = append(keep, fd)
		}
	}
	for _, fd := range keep {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("passing descriptor %d: %w", fd, err)
		}
	}
	if err := u.become(); err != nil {
		return err
	}
	err := unix.Exec("/proc/self/exe", os.Args, env)
	if errors.Is(err, fs.ErrPermission) {
		exe, _ := os.Readlink("/proc/self/exe")
		return fmt.Errorf("starting %s as that user: %w: make it executable for all (chmod a+x)", exe, err)
	}
	return fmt.Errorf("starting itself as that user: %w", err)
}

// become makes the calling thread the user's, for good: no capability, no way to get one.
func (u account) become() error {
	for c := uintptr(0); ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel knows no more
		}
		if err != nil {
			return fmt.Errorf("dropping capability %d from the bounding set: %w", c, err)
		}
	}
	if err := syscall.Setgroups(u.Groups); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setresgid(u.GID, u.GID, u.GID); err != nil {
		return fmt.Errorf("setresgid(%d): %w", u.GID, err)
	}
	if err := syscall.Setresuid(u.UID, u.UID, u.UID); err != nil {
		return fmt.Errorf("setresuid(%d): %w", u.UID, err)
	}
	// A change of user clears the others; that it did is looked at below.
	var none [2]unix.CapUserData
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("clearing the ambient capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_NO_NEW_PRIVS): %w", err)
	}
	return checkPlain(u.UID)
}

// checkPlain says what privileges the calling thread still has; nil if it is a user's.
func checkPlain(uid int) error {
	if r, e, s := unix.Getresuid(); r != uid || e != uid || s != uid {
		return fmt.Errorf("--as: the process's users are %d, %d, %d; want %d", r, e, s, uid)
	}
	b, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return fmt.Errorf("--as: looking for privileges that are left: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch {
		case strings.HasPrefix(name, "Cap") && strings.Trim(value, "0") != "":
			return fmt.Errorf("--as: capabilities are left: %s %s", name, value)
		case name == "NoNewPrivs" && value != "1":
			return errors.New("--as: the process could gain privileges (NoNewPrivs 0)")
		}
	}
	return nil
}
