package vm

import (
	"bytes"
	"io"
	"strings"
	"sync"
)

// console keeps what the VM's console and QEMU say.
type console struct {
	mu      sync.Mutex
	buf     []byte
	dropped int // bytes before buf
	also    io.Writer
}

// maxConsole is how much of it is kept, at least half.
const maxConsole = 4 << 20

func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.also != nil {
		_, _ = c.also.Write(b)
	}
	c.buf = append(c.buf, bytes.ReplaceAll(b, []byte("\r"), nil)...)
	if n := len(c.buf) - maxConsole; n > 0 {
		n += maxConsole / 2
		c.buf = append([]byte(nil), c.buf[n:]...)
		c.dropped += n
	}
	return len(b), nil
}

// mark is where the console is now, for since.
func (c *console) mark() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped + len(c.buf)
}

// since is what the console said since a mark, as far as it is kept.
func (c *console) since(mark int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.buf[max(0, mark-c.dropped):])
}

// tail is the last n lines.
func (c *console) tail(n int) string {
	lines := strings.Split(strings.TrimRight(c.since(0), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
