package chardev

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// gated is a chip that says nothing before gate is closed.
func gated(gate chan struct{}) func([]byte) ([]byte, error) {
	return func(cmd []byte) ([]byte, error) {
		<-gate
		return echo(cmd)
	}
}

func TestNonblock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		f := openTPM(t, gated(gate), Options{})
		wantWrite(t, f, one, unix.O_NONBLOCK, nil)
		_, changed := f.Poll()
		wantPoll(t, f, 0)
		wantWrite(t, f, two, unix.O_NONBLOCK, unix.EBUSY)
		wantWrite(t, f, two, 0, unix.EBUSY)
		read := make(chan struct{})
		go func() {
			defer close(read)
			wantRead(t, f, 99, one, nil)
		}()
		synctest.Wait()
		select {
		case <-read:
			t.Error("Read returned before the command was done")
		case <-changed:
			t.Error("Poll: changed before the command was done")
		default:
		}
		close(gate)
		<-changed
		<-read
		wantPoll(t, f, writable)

		// An errno is there to be read like an answer.
		f = openTPM(t, fails(unix.ETIME), Options{})
		wantWrite(t, f, one, unix.O_NONBLOCK, nil)
		synctest.Wait()
		wantPoll(t, f, readable)
		wantWrite(t, f, one, 0, unix.EBUSY)
		wantRead(t, f, 99, nil, unix.ETIME)
	})
}

// Two threads, one file, blocking: the second waits, and finds an answer that was not read.
func TestSecondWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		f := openTPM(t, gated(gate), Options{})
		go wantWrite(t, f, one, 0, nil)
		synctest.Wait()
		go wantWrite(t, f, two, 0, unix.EBUSY)
		synctest.Wait()
		close(gate)
		synctest.Wait()
		wantRead(t, f, 99, one, nil)
	})
}

func TestInterrupts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		f := openTPM(t, gated(gate), Options{})
		ctx, cancel := context.WithCancel(t.Context())
		wrote := make(chan error, 1)
		go func() {
			_, err := f.Write(ctx, one, 0)
			wrote <- err
		}()
		synctest.Wait()
		cancel() // it has begun: nothing happens
		synctest.Wait()
		if len(wrote) != 0 {
			t.Errorf("Write, interrupted after the command began = %v, want it to go on", <-wrote)
		}
		if n, err := f.Read(ctx, make([]byte, 9), 0); n != 0 || !isErrno(err, unix.EINTR) {
			t.Errorf("Read(interrupted) = %d, %v, want EINTR", n, err)
		}
		if n, err := f.Write(ctx, two, 0); n != 0 || !isErrno(err, unix.EINTR) {
			t.Errorf("Write(interrupted) beside another = %d, %v, want EINTR", n, err)
		}
		close(gate)
		if err := <-wrote; err != nil {
			t.Errorf("Write = %v, want nil", err)
		}
		wantRead(t, f, 99, one, nil)

		// While it waits for the chip, an interrupt ends it, and leaves nothing behind.
		c := f.d.chip.(*chip)
		c.turn <- struct{}{}
		if n, err := f.Write(ctx, two, 0); n != 0 || !isErrno(err, unix.EINTR) {
			t.Errorf("Write(interrupted, chip busy) = %d, %v, want EINTR", n, err)
		}
		<-c.turn
		wantRead(t, f, 99, nil, nil)
		wantWrite(t, f, two, 0, nil)
	})
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		f := openTPM(t, echo, Options{Warn: func(line string) { said = append(said, line) }})
		after := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		wantWrite(t, f, one, 0, nil)
		after(119 * time.Second)
		wantPoll(t, f, readable)
		kept := f.answer
		_, changed := f.Poll()
		after(time.Second)
		<-changed
		wantPoll(t, f, writable)
		wantRead(t, f, 99, nil, nil)
		if !bytes.Equal(kept, make([]byte, len(kept))) {
			t.Errorf("kept after 120 s = % x, want zeros", kept)
		}
		if want := "TPM user space timeout is deprecated (pid=0)"; len(said) != 1 || said[0] != want {
			t.Errorf("warnings = %q, want %q", said, want)
		}

		// A part that was read does not prolong it; a new answer has its own time.
		wantWrite(t, f, one, 0, nil)
		after(100 * time.Second)
		wantRead(t, f, 4, one[:4], nil)
		after(20 * time.Second)
		wantRead(t, f, 99, nil, nil)
		wantWrite(t, f, one, 0, nil)
		after(100 * time.Second)
		wantRead(t, f, 4, one[:4], nil)
		wantWrite(t, f, two, 0, nil)
		after(119 * time.Second)
		wantRead(t, f, 99, two, nil)
		after(time.Hour)
		if len(said) != 2 {
			t.Errorf("warnings = %q, want two", said)
		}
		if err := f.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
	})
}

// An errno that nobody reads is discarded too.
func TestErrnoExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openTPM(t, fails(unix.EIO), Options{})
		wantWrite(t, f, one, unix.O_NONBLOCK, nil)
		time.Sleep(keep)
		synctest.Wait()
		wantRead(t, f, 99, nil, nil)
		f.Close()
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		d := New(newChip(gated(gate)), nil, Options{})
		f, err := d.OpenTPM(0)
		if err != nil {
			t.Fatal(err)
		}
		if g, err := d.OpenTPM(0); g != nil || !isErrno(err, unix.EBUSY) {
			t.Errorf("OpenTPM() again = %v, %v, want EBUSY", g, err)
		}
		wantWrite(t, f, one, unix.O_NONBLOCK, nil)
		closed := make(chan error, 1)
		go func() { closed <- f.Close() }()
		synctest.Wait()
		if _, err := d.OpenTPM(0); len(closed) != 0 || !isErrno(err, unix.EBUSY) {
			t.Errorf("OpenTPM() while a command runs = %v, want EBUSY", err)
		}
		close(gate)
		if err := <-closed; err != nil {
			t.Errorf("Close() = %v", err)
		}
		wantWrite(t, f, one, 0, unix.EBADF)
		wantRead(t, f, 9, nil, unix.EBADF)
		if err := f.Close(); !isErrno(err, unix.EBADF) {
			t.Errorf("Close() again = %v, want EBADF", err)
		}
		if g, err := d.OpenTPM(0); err != nil {
			t.Errorf("OpenTPM() after Close = %v", err)
		} else {
			wantRead(t, g, 9, nil, nil)
		}
	})
}
