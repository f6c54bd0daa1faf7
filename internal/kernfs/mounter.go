package kernfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// mounterArg is the hidden first argument that makes a program built on this package a
// mounter.
const mounterArg = "--internal-fuse-mounter"

// mounterFD is the mounter's socket, one message a packet.
const mounterFD = 3

// mounterWait bounds one answer.
const mounterWait = 5 * time.Second

// A Mounter mounts and unmounts for a process that gave up root, and with it every way to do so:
// set-uid programs such as fusermount3 too. It is a small process of root's, which makes one
// mount, for one user, on a directory of that user's, and takes it away when it is told to or
// the last process that has its socket ends.
type Mounter struct {
	sock *os.File
}

// StartMounter starts a mounter for a user. It runs this same binary, whose main must call
// MounterMain first of all. The caller is root; it, or the process that it passes File to,
// mounts with Options.Mounter, and closes it.
func StartMounter(uid, gid int) (*Mounter, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("starting the mounter: socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "mounter"), os.NewFile(uintptr(pair[1]), "mounter")
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		ours.Close()
		return nil, err
	}
	defer null.Close()
	cmd := &exec.Cmd{
		Path:        "/proc/self/exe", // also after the file was replaced by a new build
		Args:        []string{filepath.Base(os.Args[0]), mounterArg, strconv.Itoa(uid), strconv.Itoa(gid)},
		Env:         []string{},
		Dir:         "/",
		Stdin:       null,
		Stdout:      null,
		Stderr:      null,
		ExtraFiles:  []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true}, // neither Ctrl-C nor Ctrl-Z reach it
	}
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("starting the mounter: %w", err)
	}
	go func() { _ = cmd.Wait() }() // how it ended changes nothing
	return &Mounter{sock: ours}, nil
}

// MounterOf is the mounter whose socket was passed.
func MounterOf(sock *os.File) *Mounter { return &Mounter{sock: sock} }

// File is the mounter's socket. It stays the Mounter's.
func (m *Mounter) File() *os.File { return m.sock }

// Close ends the mounter, which takes away what it mounted.
func (m *Mounter) Close() error { return m.sock.Close() }

// mount has dir mounted on, and returns the descriptor to serve.
func (m *Mounter) mount(dir string, opts Options) (int, error) {
	// The directory itself, so that no other can take its name meanwhile.
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening the directory: %w", err)
	}
	defer unix.Close(at)
	fds, err := m.ask(opts.Source, at)
	if err != nil {
		return -1, err
	}
	if len(fds) != 1 {
		return -1, fmt.Errorf("the mounter sent %d descriptors, want 1", len(fds))
	}
	return fds[0], nil
}

// unmount has the mount taken away.
func (m *Mounter) unmount() error {
	_, err := m.ask("")
	return err
}

// ask sends a message and takes the answer: a text, which is an error unless it is empty, and
// descriptors.
func (m *Mounter) ask(text string, fds ...int) ([]int, error) {
	rc, err := m.sock.SyscallConn()
	if err != nil {
		return nil, err
	}
	var said string
	var got []int
	var op error
	err = rc.Control(func(s uintptr) {
		tv := unix.NsecToTimeval(int64(mounterWait))
		_ = unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		if op = sendPacket(int(s), text, fds...); op == nil {
			said, got, op = recvPacket(int(s))
		}
	})
	switch {
	case err != nil || op != nil:
		return nil, fmt.Errorf("asking the mounter: %w", errors.Join(err, op))
	case said != "":
		return nil, errors.New(said)
	}
	return got, nil
}

// A packet has one byte more than its text, since an empty one is the end.
func sendPacket(sock int, text string, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	return unix.Sendmsg(sock, append([]byte{0}, text...), oob, nil, unix.MSG_NOSIGNAL)
}

func recvPacket(sock int) (string, []int, error) {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, o, _, _, err := unix.Recvmsg(sock, buf, oob, unix.MSG_CMSG_CLOEXEC)
	for errors.Is(err, unix.EINTR) {
		n, o, _, _, err = unix.Recvmsg(sock, buf, oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return "", nil, err
	}
	if n == 0 {
		return "", nil, fmt.Errorf("the other side is gone: %w", unix.EPIPE)
	}
	var fds []int
	msgs, err := unix.ParseSocketControlMessage(oob[:o])
	if err != nil {
		return "", nil, err
	}
	for i := range msgs {
		f, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return "", nil, err
		}
		fds = append(fds, f...)
	}
	return string(buf[1:n]), fds, nil
}

// MounterMain turns the process into a mounter if it was started as one, and then does not
// return. A main function calls it first of all.
func MounterMain() {
	if len(os.Args) != 4 || os.Args[1] != mounterArg {
		return
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	uid, err1 := strconv.ParseUint(os.Args[2], 10, 32)
	gid, err2 := strconv.ParseUint(os.Args[3], 10, 32)
	if err1 != nil || err2 != nil {
		os.Exit(2) // started by hand
	}
	syscall.CloseOnExec(mounterFD)
	serveMounts(mounterFD, uint32(uid), uint32(gid))
	os.Exit(0)
}

// serveMounts mounts once, and unmounts at the next message or the end.
func serveMounts(sock int, uid, gid uint32) {
	source, fds, err := recvPacket(sock)
	if err != nil {
		return
	}
	dev, mnt, err := -1, -1, error(nil)
	if len(fds) != 1 {
		err = errors.New("want one directory")
	} else {
		dev, mnt, err = mountFor(fds[0], source, uid, gid)
		_ = unix.Close(fds[0])
	}
	if err != nil {
		_ = sendPacket(sock, err.Error())
		return
	}
	err = sendPacket(sock, "", dev)
	_ = unix.Close(dev) // the server's alone: its end is the file system's
	if err == nil {
		_, _, err = recvPacket(sock)
	}
	// By descriptor: what the user's directories are called now does not matter.
	gone := unix.Unmount("/proc/self/fd/"+strconv.Itoa(mnt), unix.MNT_DETACH)
	_ = unix.Close(mnt) // it keeps the file system
	switch {
	case err != nil: // nobody to tell
	case gone != nil && !errors.Is(gone, unix.EINVAL): // EINVAL: somebody else was faster
		_ = sendPacket(sock, "unmounting: "+gone.Error())
	default:
		_ = sendPacket(sock, "")
	}
}

// mountFor mounts a user's FUSE file system on a directory of his, and returns the descriptor to
// serve and that of the mount.
func mountFor(dir int, source string, uid, gid uint32) (dev, mnt int, err error) {
	if err := mayMount(dir, uid); err != nil {
		return -1, -1, err
	}
	if dev, err = openDev(); err != nil {
		return -1, -1, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(dev)
		}
	}()
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, -1, fmt.Errorf("mount: fsopen: %w", err)
	}
	defer unix.Close(fs)
	for _, o := range [][2]string{
		{"source", source}, {"subtype", "ring3"}, {"fd", strconv.Itoa(dev)}, {"rootmode", strconv.FormatUint(syscall.S_IFDIR, 8)},
		{"user_id", strconv.FormatUint(uint64(uid), 10)}, {"group_id", strconv.FormatUint(uint64(gid), 10)}, {"max_read", strconv.Itoa(maxIO)},
	} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, -1, fmt.Errorf("mount: option %s=%s: %w", o[0], o[1], err)
		}
	}
	if err := unix.FsconfigSetFlag(fs, "default_permissions"); err != nil {
		return -1, -1, fmt.Errorf("mount: option default_permissions: %w", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, -1, fmt.Errorf("mount: %w", err)
	}
	if mnt, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV); err != nil {
		return -1, -1, fmt.Errorf("mount: fsmount: %w", err)
	}
	if err := unix.MoveMount(mnt, "", dir, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		_ = unix.Close(mnt)
		return -1, -1, fmt.Errorf("mount: move_mount: %w", err)
	}
	return dev, mnt, nil
}

// mayMount holds a user to what fusermount3 would let him do: directories of his own, and
// none of the kernel's, whose contents others trust.
func mayMount(dir int, uid uint32) error {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(dir, &st), unix.Fstatfs(dir, &fs)); err != nil {
		return fmt.Errorf("mount: looking at the directory: %w", err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return errors.New("mount: it is no directory")
	case st.Uid != uid:
		return fmt.Errorf("mount: the directory belongs to uid %d, not to %d", st.Uid, uid)
	case fs.Type == unix.PROC_SUPER_MAGIC, fs.Type == unix.SYSFS_MAGIC, fs.Type == unix.CGROUP2_SUPER_MAGIC, fs.Type == unix.CGROUP_SUPER_MAGIC:
		return errors.New("mount: the directory is the kernel's")
	}
	return nil
}
