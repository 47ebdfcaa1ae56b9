package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// An outage is one time that the router was away.
type outage struct {
	Ready   time.Duration // from its start, or where verify did not start it from when it was found gone, until it was ready
	Killed  bool          // it went without draining
	Started bool          // verify started it
}

// disturb has the router killed as often as it should be, each time at a random moment of the load.
func (v *verification) disturb(ctx context.Context, began time.Time) error {
	for i := range v.o.kills {
		moment := (float64(i) + 0.1 + 0.8*mathrand.Float64()) / float64(v.o.kills)
		for v.share(began) < moment {
			if err := sleep(ctx, time.Millisecond); err != nil {
				return err
			}
		}
		if v.child != nil {
			ready, err := v.child.killAndStart(ctx, v.o.patience)
			if err != nil {
				return err
			}
			v.kills = append(v.kills, outage{Ready: ready, Killed: true, Started: true})
			continue
		}
		gone, err := v.watchKill(ctx, i)
		if err != nil || gone == nil {
			return err
		}
		v.kills = append(v.kills, *gone)
	}
	return nil
}

// watchKill asks for a kill and watches the router go and come back. It returns nil if the router does not go in time.
func (v *verification) watchKill(ctx context.Context, i int) (*outage, error) {
	say(v.p.stderr, "kill the router at %s with kill -9 now, and start it again (%d of %d; waiting %s)", v.c.base.Host, i+1, v.o.kills, v.o.patience)
	asked, drained := time.Now(), false
	for {
		err := v.ready(ctx)
		var p *problem
		if errors.As(err, &p) {
			drained = true // it says itself that it ends, or something before it answers for it
		} else if err != nil {
			break
		}
		if time.Since(asked) > v.o.patience {
			say(v.p.stderr, "it was not killed within %s; going on without", v.o.patience)
			return nil, nil
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return nil, err
		}
	}
	gone := time.Now()
	say(v.p.stderr, "the router is gone")
	for v.ready(ctx) != nil {
		if time.Since(gone) > v.o.patience {
			return nil, fmt.Errorf("the router went and did not come back within %s", v.o.patience)
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return nil, err
		}
	}
	how := "without draining"
	if drained {
		how = "but it was stopped in order, not killed"
	}
	say(v.p.stderr, "the router is back, %s", how)
	return &outage{Ready: time.Since(gone), Killed: !drained}, nil
}

func (v *verification) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := v.c.call(ctx, "GET", v.c.base.JoinPath("readyz"), nil)
	return err
}

// A servedRouter is a router process that verify started on a directory of its own.
type servedRouter struct {
	self, dir  string
	url, token string
	cmd        *exec.Cmd
	ended      chan error // of the process; read once
	log        tailText
}

func (v *verification) startRouter(ctx context.Context) error {
	if v.p.self == "" {
		return errors.New("cannot find the program's own file to start a router with; start one, and name it with --server")
	}
	dir, err := os.MkdirTemp(v.o.dir, "millrace-verify-")
	if err != nil {
		return err
	}
	v.child = &servedRouter{self: v.p.self, dir: dir, token: rand.Text()}
	// A file of rules of its own keeps it from those of the place where verify runs.
	if err := os.WriteFile(filepath.Join(dir, "rules.yaml"), []byte("version: 1\n"), 0o600); err != nil {
		return err
	}
	_, err = v.child.start(ctx, v.o.patience)
	return err
}

// start starts the process and returns how long it took to be ready.
func (r *servedRouter) start(ctx context.Context, patience time.Duration) (time.Duration, error) {
	begin := time.Now()
	listen := "127.0.0.1:0"
	if r.url != "" {
		listen = strings.TrimPrefix(r.url, "http://") // the same after a kill: its clients stay
	}
	r.cmd = exec.Command(r.self, "serve", "--rules", filepath.Join(r.dir, "rules.yaml"), "--data", filepath.Join(r.dir, "data"),
		"--listen", listen, "--allow-private-targets")
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "MILLRACE_") {
			r.cmd.Env = append(r.cmd.Env, kv)
		}
	}
	r.cmd.Env = append(r.cmd.Env, "MILLRACE_TOKEN="+r.token)
	r.cmd.SysProcAttr = apart() // Ctrl-C is verify's to act on
	r.cmd.Stderr = &r.log
	stdout, err := r.cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := r.cmd.Start(); err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if url, ok := strings.CutPrefix(lines.Text(), "listen "); ok {
			r.url = strings.TrimSpace(url)
			break
		}
	}
	ended := make(chan error, 1)
	r.ended = ended
	go func() {
		_, _ = io.Copy(io.Discard, stdout) // until the process closes it
		ended <- r.cmd.Wait()
	}()
	for {
		if r.url != "" && isReady(ctx, r.url) {
			return time.Since(begin), nil
		}
		select {
		case err := <-ended:
			r.ended = nil
			return 0, fmt.Errorf("the router ended (%v) before it was ready:\n%s", err, r.log.String())
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
		if time.Since(begin) > patience {
			return 0, fmt.Errorf("the router was not ready within %s:\n%s", patience, r.log.String())
		}
	}
}

func isReady(ctx context.Context, base string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", base+"/readyz", nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	return res.Body.Close() == nil && res.StatusCode == http.StatusOK
}

// killAndStart is kill -9 and another start. It returns how long the start took.
func (r *servedRouter) killAndStart(ctx context.Context, patience time.Duration) (time.Duration, error) {
	if err := r.cmd.Process.Kill(); err != nil {
		return 0, fmt.Errorf("the router ended by itself: %w\n%s", err, r.log.String())
	}
	<-r.ended
	r.ended = nil
	return r.start(ctx, patience)
}

// end stops the process in order, and by force where that takes longer than ctx.
func (r *servedRouter) end(ctx context.Context) error {
	if r.ended == nil {
		return nil
	}
	if err := askToEnd(r.cmd.Process); err != nil {
		return err
	}
	select {
	case err := <-r.ended:
		r.ended = nil
		if err != nil {
			return fmt.Errorf("%w:\n%s", err, r.log.String())
		}
		return nil
	case <-ctx.Done():
		_ = r.cmd.Process.Kill()
		<-r.ended
		r.ended = nil
		return errors.New("it did not drain in time and was killed")
	}
}

// tailText keeps the last lines of a log.
type tailText struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 4 << 10

// Write never fails.
func (t *tailText) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.buf = append(t.buf, b...); len(t.buf) > 2*tailSize {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailSize:]...)
	}
	return len(b), nil
}

func (t *tailText) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.buf[max(0, len(t.buf)-tailSize):]))
}
