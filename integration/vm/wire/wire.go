// Package wire is what the host, the VM's init and a test in the VM say to each other: one
// JSON object a line. Host and init speak over a virtio-serial port, init and a test over a
// socket that the test inherits.
package wire

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Port is the name of the virtio-serial port.
const Port = "ring3"

// FD names the environment variable with the number of the test's socket.
const FD = "RING3_GUEST_FD"

// Nobody is the user and group that tests run as.
const Nobody = 65534

// Where things are in the VM.
const (
	TestDir    = "/tests"             // the test binaries
	ModulesDep = "/lib/modules/%s"    // modules.dep and the modules of a kernel release
	BootList   = "/etc/ring3-modules" // modules that init loads, one a line
	Early      = "/etc/ring3-early"   // those that the port needs
)

// ShellArg begins the kernel's argument that has init run a program on the console, in place
// of what the host asks.
const ShellArg = "ring3.shell="

// SizeArg begins the kernel's argument with that console's size, as ROWSxCOLUMNS.
const SizeArg = "ring3.size="

// Message is any message. Which of its fields are set says what it is.
type Message struct {
	ID int `json:"id,omitempty"`

	Hello  *Hello   `json:"hello,omitempty"`  // init to host: ready
	Run    *Command `json:"run,omitempty"`    // host to init: start this
	Kill   bool     `json:"kill,omitempty"`   // host to init: kill what ID started
	Output []byte   `json:"output,omitempty"` // init to host: what it says
	Exit   *Exit    `json:"exit,omitempty"`   // init to host: it ended
	Ask    *Ask     `json:"ask,omitempty"`    // a test to init, and on to the host
	Answer *Answer  `json:"answer,omitempty"` // back
}

// Hello is init's first message.
type Hello struct {
	Release string `json:"release"` // of the kernel
}

// Command is a program to run.
type Command struct {
	Argv    []string `json:"argv"`
	Env     []string `json:"env,omitempty"` // beside init's own
	Dir     string   `json:"dir,omitempty"` // where; "": its home, or /tmp for root
	Root    bool     `json:"root,omitempty"`
	Memlock uint64   `json:"memlock,omitempty"` // bytes; 0: DefaultMemlock
}

// DefaultMemlock is the limit that Debian gives an ordinary user.
const DefaultMemlock = 8 << 20

// Exit is how a program ended.
type Exit struct {
	Code int    `json:"code"`           // -1: not by itself
	Err  string `json:"err,omitempty"`  // what is not plain from Code
	Left string `json:"left,omitempty"` // what it left behind, or could not be put back
}

// Ask is a request of a test: what init does as root, or the host does.
type Ask struct {
	Op   string          `json:"op"`
	Args json.RawMessage `json:"args,omitempty"`
}

// Answer is the answer to it.
type Answer struct {
	Err    string          `json:"err,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// The requests, their arguments and results.
const (
	OpModprobe = "modprobe"          // Modprobe
	OpBind     = "bind"              // Bind -> Bound
	OpUnbind   = "unbind"            // Bind
	OpRead     = "read"              // File -> File
	OpWrite    = "write"             // File
	OpMemlock  = "memlock"           // uint64
	OpRun      = "run"               // Command -> Ran
	OpHost     = "host."             // a prefix: the host does it
	OpAddress  = OpHost + "address"  // string, the id of a device -> string, its PCI address
	OpQMP      = OpHost + "qmp"      // QMP -> its result
	OpGone     = OpHost + "gone"     // string, the id of a device -> bool: QEMU let it go
	OpCapture  = OpHost + "capture"  // string, the id of a netdev: begin
	OpCaptured = OpHost + "captured" // string: end -> []byte, a pcap file
)

// Modprobe names a module and its parameters.
type Modprobe struct {
	Name   string   `json:"name"`
	Params []string `json:"params,omitempty"`
}

// Bind names a PCI device and the driver that shall have it.
type Bind struct {
	Addr   string `json:"addr"`
	Driver string `json:"driver,omitempty"` // "": none
	Owner  int    `json:"owner,omitempty"`  // who may open it
}

// Bound is what became of it.
type Bound struct {
	Driver string `json:"driver"`
	Group  string `json:"group,omitempty"` // the number of its IOMMU group, "" without one
	Path   string `json:"path,omitempty"`  // what stands for it in /dev
}

// File is a file and its contents.
type File struct {
	Path string `json:"path"`
	Data []byte `json:"data,omitempty"`
}

// Ran is how a program ended and what it said.
type Ran struct {
	Exit
	Output []byte `json:"output,omitempty"`
}

// QMP is a command of the QEMU Machine Protocol.
type QMP struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
}

// Conn sends and receives messages. Send is safe for concurrent use; Receive is for one
// goroutine.
type Conn struct {
	r  *bufio.Reader
	mu sync.Mutex
	w  io.Writer
}

// NewConn makes a Conn of a stream.
func NewConn(rw io.ReadWriter) *Conn {
	return &Conn{r: bufio.NewReaderSize(rw, 64<<10), w: rw}
}

// Send sends a message.
func (c *Conn) Send(m Message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("sending a message: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("sending a message: %w", err)
	}
	return nil
}

// Receive waits for a message.
func (c *Conn) Receive() (Message, error) {
	var m Message
	line, err := c.r.ReadBytes('\n')
	if err != nil {
		return m, fmt.Errorf("receiving a message: %w", err)
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("receiving a message: %w: %.200q", err, line)
	}
	return m, nil
}

// Call is for a test: it asks and waits for the answer. result may be nil.
func (c *Conn) Call(op string, args, result any) error {
	b, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := c.Send(Message{Ask: &Ask{Op: op, Args: b}}); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	m, err := c.Receive()
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", op, err)
	case m.Answer == nil:
		return fmt.Errorf("%s: an answer was wanted, not %+v", op, m)
	case m.Answer.Err != "":
		return fmt.Errorf("%s: %s", op, m.Answer.Err)
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(m.Answer.Result, result); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}
