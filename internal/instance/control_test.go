package instance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/node"
)

// testTree is what a host might export: a note, a command that runs until interrupted, a
// file that takes 4 bytes at a time.
func testTree(started chan<- struct{}) (*node.Dir, *bytes.Buffer) {
	var mu sync.Mutex
	var note bytes.Buffer
	root := &node.Dir{}
	net := root.MkdirAll("proc/net/pktgen")
	net.Put("note", &node.File{Mode: 0o644,
		Show: func(w *bytes.Buffer) error { mu.Lock(); defer mu.Unlock(); w.Write(note.Bytes()); return nil },
		Store: func(_ context.Context, p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			if bytes.HasPrefix(p, []byte("bad")) {
				return 0, fmt.Errorf("no such command: %w", syscall.EINVAL)
			}
			n, _ := note.Write(p[:min(len(p), 4)])
			return n, nil
		}})
	net.Put("pgctrl", &node.File{Mode: 0o600,
		Store: func(ctx context.Context, p []byte) (int, error) {
			started <- struct{}{}
			<-ctx.Done()
			return len(p), nil
		}})
	net.Put("crash", &node.File{Mode: 0o644, Show: func(*bytes.Buffer) error { var d *node.Dir; d.Put("x", nil); return nil }})
	net.Put("lies", &node.File{Mode: 0o200, Store: func(context.Context, []byte) (int, error) { return 1 << 40, nil }})
	net.Put("link", &node.Link{Target: "note"})
	return root, &note
}

func serveTest(t *testing.T, ops Handlers) (*Instance, *Client) {
	t.Helper()
	newBase(t)
	in, err := Create(Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := in.Serve(ops)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing the server: %v", err)
		}
		if exists(in.Sock()) {
			t.Error("socket still there")
		}
		if err := errors.Join(s.Close(), in.Close()); err != nil {
			t.Error(err)
		}
	})
	return in, dialTest(t, in)
}

func dialTest(t *testing.T, in *Instance) *Client {
	t.Helper()
	c, err := Dial(in.Info())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestTree(t *testing.T) {
	root, note := testTree(make(chan struct{}, 1))
	_, c := serveTest(t, TreeHandlers(root))
	ctx := t.Context()
	if err := c.Set(ctx, "/proc/net/pktgen/note", []byte("count 1000\n")); err != nil {
		t.Fatal(err)
	}
	if got := note.String(); got != "count 1000\n" {
		t.Errorf("stored %q", got)
	}
	if b, err := c.Get(ctx, "proc/net/pktgen/link"); err != nil || string(b) != "count 1000\n" {
		t.Errorf("Get = %q, %v", b, err)
	}
	for _, e := range []struct {
		op, path, value string
		want            syscall.Errno
	}{
		{"get", "/proc/none", "", syscall.ENOENT},
		{"get", "/proc/net", "", syscall.EISDIR},
		{"get", "/proc/net/pktgen/note/x", "", syscall.ENOTDIR},
		{"get", "/proc/net/pktgen/lies", "", syscall.EACCES},
		{"get", "/proc/net/pktgen/crash", "", syscall.EIO},
		{"get", "a\x00b", "", syscall.EINVAL},
		{"set", "/proc/net/pktgen/note", "bad", syscall.EINVAL},
		{"set", "/proc/net/pktgen/lies", "x", syscall.EIO},
		{"set", "", "x", syscall.EISDIR},
	} {
		var err error
		if e.op == "get" {
			_, err = c.Get(ctx, e.path)
		} else {
			err = c.Set(ctx, e.path, []byte(e.value))
		}
		if !errors.Is(err, e.want) {
			t.Errorf("%s %s = %v, want %v", e.op, e.path, err, e.want)
		}
	}
	ents, err := c.Readdir(ctx, "/proc/net/pktgen")
	if err != nil || len(ents) != 5 || ents[2].Name != "link" || ents[2].Target != "note" || ents[3].Mode != 0o644 {
		t.Errorf("Readdir = %v, %v", ents, err)
	}
	if ents, err := c.Readdir(ctx, "/"); err != nil || len(ents) != 1 || ents[0] != (DirEntry{Name: "proc", Type: "dir", Mode: 0o555}) {
		t.Errorf("Readdir(/) = %v, %v", ents, err)
	}
	if err := c.Call(ctx, "no-such", nil, nil); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("unknown operation = %v, want %v", err, syscall.EOPNOTSUPP)
	}
}

// TestInterrupted: set .../pgctrl start runs until Ctrl-C, and answers then; a client
// that is killed ends it too.
func TestInterrupted(t *testing.T) {
	started := make(chan struct{}, 1)
	root, _ := testTree(started)
	in, c := serveTest(t, TreeHandlers(root))
	ctx, cancel := context.WithCancel(t.Context())
	res := make(chan error, 1)
	go func() { res <- c.Set(ctx, "/proc/net/pktgen/pgctrl", []byte("start\n")) }()
	<-started
	// Another client is served meanwhile.
	if err := dialTest(t, in).Set(t.Context(), "/proc/net/pktgen/note", []byte("x")); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-res; err != nil {
		t.Errorf("interrupted Set = %v, want nil: the command did run", err)
	}
	if err := c.Set(ctx, "/proc/net/pktgen/pgctrl", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Set with an ended context = %v", err)
	}
	c2 := dialTest(t, in)
	go func() { res <- c2.Set(t.Context(), "/proc/net/pktgen/pgctrl", []byte("start\n")) }()
	<-started
	c2.Close()
	if err := <-res; err == nil {
		t.Error("Set on a closed client = nil")
	}
}

// TestCloseEndsOperations: an instance that ends does not wait for its clients.
func TestCloseEndsOperations(t *testing.T) {
	started := make(chan struct{}, 1)
	root, _ := testTree(started)
	newBase(t)
	in, err := Create(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	s, err := in.Serve(TreeHandlers(root))
	if err != nil {
		t.Fatal(err)
	}
	c := dialTest(t, in)
	idle := dialTest(t, in)
	res := make(chan error, 1)
	go func() { res <- c.Set(t.Context(), "/proc/net/pktgen/pgctrl", []byte("start\n")) }()
	<-started
	begin := time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("Close took %v", d)
	}
	<-res
	if err := idle.Set(t.Context(), "/proc/net/pktgen/note", []byte("x")); err == nil {
		t.Error("Set after the server's end = nil")
	}
}

func TestStream(t *testing.T) {
	_, c := serveTest(t, Handlers{"count": func(ctx context.Context, args json.RawMessage, send func(any) error) (any, error) {
		var n int
		if err := parseArgs("count", args, &n); err != nil {
			return nil, err
		}
		for i := range n {
			if err := send(i); err != nil {
				return nil, err
			}
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	if err := c.Stream(t.Context(), "count", "three", nil); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("wrong arguments = %v, want %v", err, syscall.EINVAL)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []string
	err := c.Stream(ctx, "count", 3, func(b json.RawMessage) error {
		if got = append(got, string(b)); len(got) == 3 {
			cancel()
		}
		return nil
	})
	if strings.Join(got, "") != "012" || !errors.Is(err, syscall.EINTR) {
		t.Errorf("stream = %v, %v, want 0 1 2 and %v", got, err, syscall.EINTR)
	}
}

// TestBadClients: nothing a client sends or does not do hurts the server or the others.
func TestBadClients(t *testing.T) {
	root, _ := testTree(make(chan struct{}, 1))
	in, c := serveTest(t, TreeHandlers(root))
	for _, line := range []string{
		"", "\n", "hello\n", "{}\n", `{"v":2,"op":"get"}` + "\n", `{"v":1,"op":""}` + "\n", `{"v":1,"op":"GET"}` + "\n",
		`{"v":1,"op":"get","args":7}` + "\n", `{"v":1,"op":"get","args":{"path":"/","data":"!"}}` + "\n",
		strings.Repeat("[", 100000) + "\n", strings.Repeat("x", maxRequest+10), `{"v":1,"op":"get"`, "\x00\xff\n",
	} {
		conn := rawDial(t, in)
		if _, err := io.WriteString(conn, line); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%.30q: %v", line, err)
		}
		conn.CloseWrite()
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		out, err := io.ReadAll(conn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%.30q: no end of the connection", line)
		}
		if strings.HasSuffix(line, "\n") && !strings.Contains(string(out), `"error":"`) {
			t.Errorf("%.30q answered %q, want an error", line, out)
		}
		conn.Close()
	}
	// Many that ask and never read do not keep others waiting.
	for range maxConns - 2 {
		conn := rawDial(t, in)
		io.WriteString(conn, `{"v":1,"op":"readdir","args":{"path":"/"}}`+"\n")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.Set(ctx, "/proc/net/pktgen/note", []byte("x")); err != nil {
		t.Errorf("beside silent clients: %v", err)
	}
	// One too many is told so.
	var err error
	for range 5 {
		if _, err = dialTest(t, in).Get(ctx, "/proc/net/pktgen/note"); err != nil {
			break
		}
	}
	if !errors.Is(err, syscall.EBUSY) {
		t.Errorf("connection %d = %v, want %v", maxConns+1, err, syscall.EBUSY)
	}
}

func rawDial(t *testing.T, in *Instance) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: in.Sock(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestLongPath: a run folder deeper than a socket's address is long.
func TestLongPath(t *testing.T) {
	deep := filepath.Join(t.TempDir(), strings.Repeat("d", 100), strings.Repeat("e", 100))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv(BaseEnv, deep)
	in, err := Create(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	root, _ := testTree(nil)
	s, err := in.Serve(TreeHandlers(root))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := dialTest(t, in).Readdir(t.Context(), "/"); err != nil {
		t.Error(err)
	}
	st, err := os.Lstat(in.Sock())
	if err != nil || st.Mode().Perm() != 0o600 || st.Mode().Type() != os.ModeSocket {
		t.Errorf("socket: %v, %v, want mode 0600", st, err)
	}
}

// TestStranger: the folder's mode keeps others out, and so does the server itself.
func TestStranger(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	root, _ := testTree(make(chan struct{}, 1))
	in, _ := serveTest(t, TreeHandlers(root))
	base := filepath.Dir(in.Dir())
	for path, mode := range map[string]os.FileMode{filepath.Dir(filepath.Dir(base)): 0o711, base: 0o711, in.Dir(): 0o711, in.Sock(): 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for uid, want := range map[uint32]string{65534: "uid 65534 calls, want 0", 0: `"data"`} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{helperEnv + "=dial=" + in.Sock()}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("uid %d is answered %q, %v, want %q", uid, out, err, want)
		}
	}
}

// TestUnprivileged runs the tests of life and death as an ordinary user, for whom
// fusermount3 mounts and unmounts.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else; the tests themselves ran unprivileged")
	}
	needFuse(t)
	tmp, err := os.MkdirTemp("", "ring3-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chown(tmp, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^(TestWatcher|TestKilled|TestCreateAndClose|TestTree)$", "-test.v")
	cmd.Dir = tmp
	cmd.Env = []string{"TMPDIR=" + tmp, "PATH=" + os.Getenv("PATH")} // no HOME, no XDG_RUNTIME_DIR
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestWatcher/SIGKILL") {
		t.Errorf("as uid 65534: %v\n%s", err, out)
	}
}

func TestDialDead(t *testing.T) {
	newBase(t)
	in, err := Create(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := Dial(in.Info()); !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("Dial before Serve = %v", err)
	}
}

func TestStrerror(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&RemoteError{Msg: "x", Errno: syscall.EINVAL}, "Invalid argument"},
		{&RemoteError{Msg: "eth7: no such device"}, "eth7: no such device"},
		{fmt.Errorf("a: %w", syscall.ENOENT), "No such file or directory"},
		{syscall.Errno(9999), "Errno 9999"},
	} {
		if got := Strerror(c.err); got != c.want {
			t.Errorf("Strerror(%v) = %q, want %q", c.err, got, c.want)
		}
	}
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{`{"v":1,"op":"get","args":{"path":"/proc"}}` + "\n", "\n", "{", `{"v":1,"op":"set","args":null}` + "\n\n"} {
		f.Add([]byte(s))
	}
	root, note := testTree(make(chan struct{}, 1))
	for _, name := range []string{"pgctrl", "crash"} { // block and panic on purpose
		d, _ := root.Walk("proc/net/pktgen")
		d.(*node.Dir).Remove(name)
	}
	ops, ctx := TreeHandlers(root), context.Background()
	f.Fuzz(func(t *testing.T, b []byte) {
		note.Reset()
		line, err := readLine(bufio.NewReaderSize(bytes.NewReader(b), 16), 4096)
		if (line != nil) == (err != nil) && len(line) > 0 {
			t.Fatalf("readLine = %q, %v", line, err)
		}
		q, err := parseRequest(line)
		if err != nil {
			if q.Op != "" {
				t.Fatalf("parseRequest = %+v, %v", q, err)
			}
			return
		}
		h := ops[q.Op]
		if h == nil {
			return
		}
		v, err := h(ctx, q.Args, func(any) error { return nil })
		if err != nil && v != nil {
			t.Fatalf("%s = %v, %v", q.Op, v, err)
		}
		if _, err := json.Marshal(v); err != nil {
			t.Fatal(err)
		}
	})
}

// TestStreamsAreRefused: get and set are an open each, which a device with state has no use for.
func TestStreamsAreRefused(t *testing.T) {
	root := &node.Dir{}
	root.MkdirAll("dev").Put("tpm0", &node.File{Mode: 0o600, Open: func(int) (node.Stream, error) {
		t.Error("the device was opened")
		return nil, syscall.EBUSY
	}})
	_, c := serveTest(t, TreeHandlers(root))
	_, err := c.Get(t.Context(), "/dev/tpm0")
	for _, err := range []error{err, c.Set(t.Context(), "/dev/tpm0", []byte("x")), c.Set(t.Context(), "/dev/tpm0", nil)} {
		if !errors.Is(err, syscall.EOPNOTSUPP) || !strings.Contains(err.Error(), "use `ring3 shell`") {
			t.Errorf("get or set of a device = %v, want EOPNOTSUPP and what to use", err)
		}
	}
}
