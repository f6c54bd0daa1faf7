package kernfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/mounts"
)

// fuseDev is the kernel's side of every FUSE mount.
const fuseDev = "/dev/fuse"

// Bounds for things that hang when somebody else's mount does.
const (
	statWait       = 2 * time.Second
	fusermountWait = 5 * time.Second
)

// Probe says why mounting would be refused, in one line with the remedy; nil if it looks
// possible.
func Probe() error {
	fd, err := openDev()
	if err != nil {
		return err
	}
	unix.Close(fd)
	if os.Geteuid() == 0 {
		return nil
	}
	bin, err := fusermount()
	if err != nil {
		return err
	}
	if fi, err := os.Stat(bin); err == nil && fi.Mode()&os.ModeSetuid == 0 {
		return fmt.Errorf("%s is not set-uid root, so users cannot mount: reinstall the package fuse3, or `sudo chmod u+s %s`", bin, bin)
	}
	return nil
}

// openDev opens /dev/fuse or says what is missing.
func openDev() (int, error) {
	fd, err := unix.Open(fuseDev, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, syscall.ENOENT):
		return -1, fmt.Errorf("opening %s: %w: load the module (`sudo modprobe fuse`), or in a container add `--device %s`", fuseDev, err, fuseDev)
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return -1, fmt.Errorf("opening %s: %w: the kernel has no FUSE, load it with `sudo modprobe fuse`", fuseDev, err)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return -1, fmt.Errorf("opening %s: %w: let users in with `sudo chmod 0666 %s`, or in a container add `--device %s`", fuseDev, err, fuseDev, fuseDev)
	}
	return -1, fmt.Errorf("opening %s: %w", fuseDev, err)
}

// fusermount finds the set-uid program that mounts for users.
func fusermount() (string, error) {
	for _, name := range []string{"fusermount3", "/usr/bin/fusermount3", "/bin/fusermount3", "fusermount", "/bin/fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("fusermount3 is not installed: `sudo apt-get install fuse3`")
}

// checkDir makes dir absolute and says why it is no place for a mount.
func checkDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("mount point %s: %w", dir, err)
	}
	// The parent may be reached through links; dir itself may hang, so it is not touched yet.
	if parent, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(parent, filepath.Base(abs))
	}
	if m, ok := mounts.At(abs); ok {
		err := ping(abs)
		switch {
		case errors.Is(err, syscall.ENOTCONN), errors.Is(err, syscall.ECONNABORTED):
			return "", fmt.Errorf("mount point %s: a dead mount of type %s is there (%w): remove it with `fusermount3 -u -z %s`", abs, m.FSType, err, abs)
		case err != nil && !errors.Is(err, syscall.EACCES):
			return "", fmt.Errorf("mount point %s: a mount of type %s is there and does not answer (%w): remove it with `fusermount3 -u -z %s`", abs, m.FSType, err, abs)
		}
		advice := "choose another"
		if m.IsFuse() {
			advice += fmt.Sprintf(", or unmount it with `fusermount3 -u %s`", abs)
		}
		return "", fmt.Errorf("mount point %s: already a mount, of type %s: %s", abs, m.FSType, advice)
	}
	fi, err := os.Stat(abs)
	switch {
	case errors.Is(err, syscall.ENOENT):
		return "", fmt.Errorf("mount point %s: does not exist: `mkdir -p %s`", abs, abs)
	case err != nil:
		return "", fmt.Errorf("mount point %s: %w", abs, bare(err))
	case !fi.IsDir():
		return "", fmt.Errorf("mount point %s: not a directory: choose another", abs)
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && os.Geteuid() != 0 && int(st.Uid) != os.Geteuid() {
		return "", fmt.Errorf("mount point %s: belongs to uid %d, not to %d: choose a directory of your own", abs, st.Uid, os.Geteuid())
	}
	ent, err := os.ReadDir(abs)
	if err != nil {
		return "", fmt.Errorf("mount point %s: %w", abs, bare(err))
	}
	if len(ent) > 0 {
		return "", fmt.Errorf("mount point %s: not empty (%s): choose an empty directory", abs, ent[0].Name())
	}
	return abs, nil
}

// bare is the errno of a path error, whose path the message has already.
func bare(err error) error {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}

// ping asks a file system for an answer, which stat may get from the kernel's memory. It
// takes no longer than statWait: the server may be stopped.
func ping(path string) error {
	done := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		done <- unix.Statfs(path, &st)
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(statWait):
		return syscall.ETIMEDOUT
	}
}

// mountFuse mounts and returns the descriptor to serve: directly where the kernel lets
// root do it, else through fusermount3.
func mountFuse(dir string, opts Options) (int, error) {
	if opts.Mounter != nil {
		return opts.Mounter.mount(dir, opts)
	}
	if os.Geteuid() == 0 {
		fd, err := mountDirect(dir, opts)
		if err == nil || !errors.Is(err, syscall.EPERM) {
			return fd, err
		}
		// root without CAP_SYS_ADMIN, as in most containers: a set-uid program has no more
		// rights than we, unless it is outside.
		fd, second := mountUser(dir, opts)
		if second == nil {
			return fd, nil
		}
		return -1, fmt.Errorf("mount: %w: root here may not mount; a container needs `--cap-add SYS_ADMIN --device %s`", syscall.EPERM, fuseDev)
	}
	return mountUser(dir, opts)
}

func mountDirect(dir string, opts Options) (int, error) {
	fd, err := openDev()
	if err != nil {
		return -1, err
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,default_permissions,max_read=%d", fd, syscall.S_IFDIR, os.Geteuid(), os.Getegid(), maxIO)
	if opts.AllowOther {
		data += ",allow_other"
	}
	if err := unix.Mount(opts.Source, dir, "fuse.ring3", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data); err != nil {
		unix.Close(fd)
		if errors.Is(err, syscall.ENODEV) {
			return -1, fmt.Errorf("mount: %w: the kernel has no FUSE, load it with `sudo modprobe fuse`", err)
		}
		return -1, fmt.Errorf("mount: %w", err)
	}
	return fd, nil
}

// mountUser has fusermount3 mount for us; it sends the descriptor over a socket.
func mountUser(dir string, opts Options) (int, error) {
	dev, err := openDev() // fusermount3's own words about this are obscure
	if err != nil {
		return -1, err
	}
	unix.Close(dev)
	bin, err := fusermount()
	if err != nil {
		return -1, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := pair[0], os.NewFile(uintptr(pair[1]), "fusermount")
	defer unix.Close(ours)
	defer theirs.Close()
	o := fmt.Sprintf("fsname=%s,subtype=ring3,noexec,default_permissions,max_read=%d", strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(opts.Source), maxIO)
	if opts.AllowOther {
		o += ",allow_other"
	}
	ctx, cancel := context.WithTimeout(context.Background(), fusermountWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "-o", o, "--", dir)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return -1, userError(bin, said.String(), err)
	}
	theirs.Close()
	return receiveFd(ours)
}

// userError puts what fusermount3 said into one line with the remedy.
func userError(bin, said string, err error) error {
	line, _, _ := strings.Cut(strings.TrimSpace(said), "\n")
	line = strings.TrimPrefix(line, filepath.Base(bin)+": ")
	remedy := ""
	switch {
	case strings.Contains(line, "user_allow_other"):
		remedy = ": put the line user_allow_other into /etc/fuse.conf"
	case strings.Contains(line, "too many FUSE"):
		remedy = ": raise mount_max in /etc/fuse.conf"
	case strings.Contains(line, "Operation not permitted"):
		remedy = ": " + bin + " must be set-uid root (`sudo chmod u+s " + bin + "`), and in a container also needs `--cap-add SYS_ADMIN`"
	}
	return fmt.Errorf("%s: %s (%w)%s", filepath.Base(bin), line, err, remedy)
}

// receiveFd takes the one descriptor that fusermount3 sends.
func receiveFd(sock int) (int, error) {
	buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("taking the descriptor from fusermount3: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, errors.New("fusermount3 sent no descriptor")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.New("fusermount3 sent no descriptor")
	}
	return fds[0], nil
}

// Detach takes the mount at dir away, also a busy or dead one; files that are open keep
// their connection until it closes. No mount at dir is no error.
func Detach(dir string) error {
	if _, ok := mounts.At(dir); !ok {
		return nil
	}
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil {
		return nil
	}
	bin, lookErr := fusermount()
	if lookErr != nil {
		return fmt.Errorf("unmounting %s: %w (%w)", dir, err, lookErr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), fusermountWait)
	defer cancel()
	out, err := exec.CommandContext(ctx, bin, "-u", "-z", "--", dir).CombinedOutput()
	if _, still := mounts.At(dir); err != nil && still {
		return fmt.Errorf("unmounting %s: %s (%w)", dir, bytes.TrimSpace(out), err)
	}
	return nil
}
