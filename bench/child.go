package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A child is a process that this one started. It ends with the context that it was started under, and with this
// process.
type child struct {
	cmd    *exec.Cmd
	name   string
	addr   string // host:port it listens on
	cancel context.CancelFunc
	stdin  io.Closer
	done   chan struct{} // closed when it has ended
	said   *tail
}

// startChild starts a program and returns once address has found, in a line of its standard output, where it
// listens. SIGTERM ends it, after five seconds SIGKILL.
func startChild(ctx context.Context, name string, address func(line string) (string, bool), path string, args ...string) (*child, error) {
	ctx, cancel := context.WithCancel(ctx)
	c := &child{name: name, cancel: cancel, done: make(chan struct{}), said: &tail{}}
	c.cmd = exec.CommandContext(ctx, path, args...)
	c.cmd.Cancel = func() error { return c.cmd.Process.Signal(syscall.SIGTERM) }
	c.cmd.WaitDelay = 5 * time.Second
	c.cmd.Stderr = c.said
	c.cmd.SysProcAttr = withParent()
	fail := func(err error) (*child, error) {
		cancel()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		return fail(err)
	}
	c.stdin = stdin
	read, write, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer write.Close()
	c.cmd.Stdout = write
	if err := c.cmd.Start(); err != nil {
		_ = read.Close()
		return fail(err)
	}
	found := make(chan string, 1)
	go func() {
		defer read.Close()
		lines := bufio.NewScanner(read)
		for lines.Scan() {
			if a, ok := address(lines.Text()); ok {
				select {
				case found <- a:
				default:
				}
			}
		}
	}()
	go func() {
		_ = c.cmd.Wait() // how it ended matters only while it should not have: see gone
		close(c.done)
	}()
	late := time.NewTimer(30 * time.Second)
	defer late.Stop()
	select {
	case c.addr = <-found:
		return c, nil
	case <-c.done:
		return fail(fmt.Errorf("it ended (%s): %s", c.cmd.ProcessState, c.said))
	case <-ctx.Done():
		err = ctx.Err()
	case <-late.C:
		err = fmt.Errorf("it did not say within 30 s where it listens: %s", c.said)
	}
	cancel()
	<-c.done
	return fail(err)
}

// gone says how a child ended that should be running; nil while it runs.
func (c *child) gone() error {
	select {
	case <-c.done:
		return fmt.Errorf("%s has ended (%s): %s", c.name, c.cmd.ProcessState, c.said)
	default:
		return nil
	}
}

// stop ends the child and waits for it.
func (c *child) stop() {
	c.cancel()
	_ = c.stdin.Close()
	<-c.done
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if n := len(t.b); n > 4<<10 {
		t.b = append(t.b[:0], t.b[n-2<<10:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.b) == 0 {
		return "it wrote nothing to standard error"
	}
	return strings.TrimSpace(string(t.b))
}
