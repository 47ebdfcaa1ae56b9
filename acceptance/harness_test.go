package acceptance

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// secret signs every webhook of these tests.
const secret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="

// routerBinary and keepModule are what TestMain builds: the router, and by it the function in functions/keep.
var routerBinary, keepModule string

// long tells whether the long forms run.
var long = os.Getenv("MILLRACE_LONG") == "1"

func TestMain(m *testing.M) {
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "millrace-acceptance-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	routerBinary, keepModule = filepath.Join(dir, "router"), filepath.Join(dir, "keep.wasm")
	for _, args := range [][]string{
		{"go", "build", "-trimpath", "-o", routerBinary, "../cmd/router"},
		{routerBinary, "functions", "build", "functions/keep", "--out", keepModule},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return 1, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return m.Run(), nil
}

// A logText collects what a process writes.
type logText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A router is one router process.
type router struct {
	t     *testing.T
	cmd   *exec.Cmd
	url   string
	addr  string
	log   *logText
	first []string      // its first lines
	ready time.Duration // from its start to the first 200 of /readyz
	ended chan error    // has what Wait said, once
	over  bool
}

// client does not keep connections to processes that are killed, and does not wait for ever.
func newClient() *http.Client {
	return &http.Client{Timeout: 40 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
}

var client = newClient()

// serve starts a router and waits until it is ready. It is killed when the test ends, if it still runs.
func serve(t *testing.T, dir string, env []string, args ...string) *router {
	t.Helper()
	r, err := start(t, dir, env, args...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// start is serve for routers that may be refused. dir is the data directory.
func start(t *testing.T, dir string, env []string, args ...string) (*router, error) {
	t.Helper()
	begin := time.Now()
	r := &router{t: t, log: &logText{}, ended: make(chan error, 1)}
	r.cmd = exec.Command(routerBinary, append([]string{"serve", "--data", dir, "--listen", "127.0.0.1:0", "--allow-private-targets"}, args...)...)
	r.cmd.Env = append(os.Environ(), env...)
	r.cmd.Stderr = r.log
	stdout, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if !r.over {
			_ = r.cmd.Process.Kill() // it may have ended by itself
			<-r.ended
		}
		if t.Failed() {
			text := r.log.String()
			if n := len(text); n > 8000 {
				text = "…" + text[n-8000:]
			}
			t.Logf("the log of the router at %s:\n%s", r.url, text)
		}
	})
	lines := bufio.NewScanner(stdout)
	for r.url == "" && lines.Scan() {
		line := lines.Text()
		r.first = append(r.first, line)
		if strings.HasPrefix(line, "listen ") {
			r.url = strings.TrimSpace(strings.TrimPrefix(line, "listen "))
		}
	}
	go func() {
		_, copyErr := io.Copy(io.Discard, stdout)
		r.ended <- errors.Join(r.cmd.Wait(), copyErr)
	}()
	if r.url == "" {
		err := <-r.ended
		r.over = true
		return nil, fmt.Errorf("the router ended before it listened: %v\n%s", err, r.log)
	}
	if admin := r.says("admin"); len(admin) > 0 { // which speaks plain HTTP here, whatever the other one does
		r.url = admin[0]
	}
	r.addr = strings.TrimPrefix(r.url, "http://")
	eventually(t, time.Minute, func() error {
		status, body, err := r.try("GET", "/readyz", "", nil)
		if err == nil && status != 200 {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
	r.ready = time.Since(begin)
	return r, nil
}

// says is what the first lines have under a word, such as listen.
func (r *router) says(word string) (all []string) {
	for _, line := range r.first {
		if rest, ok := strings.CutPrefix(line, word+" "); ok {
			all = append(all, strings.TrimSpace(rest))
		}
	}
	return all
}

// kill is kill -9.
func (r *router) kill() {
	r.t.Helper()
	if err := r.cmd.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	<-r.ended
	r.over = true
}

// stop sends SIGTERM and wants exit code 0 within the time; it returns how long that took.
func (r *router) stop(within time.Duration) time.Duration {
	r.t.Helper()
	r.signal(syscall.SIGTERM)
	return r.wait(within)
}

// wait is stop for a router that was signalled already: a second SIGTERM would end it at once.
func (r *router) wait(within time.Duration) time.Duration {
	r.t.Helper()
	begin := time.Now()
	select {
	case err := <-r.ended:
		r.over = true
		if err != nil {
			r.t.Fatalf("after SIGTERM: %v; want exit code 0\n%s", err, r.log)
		}
	case <-time.After(within):
		r.t.Fatalf("the router still runs %s after SIGTERM", within)
	}
	return time.Since(begin)
}

func (r *router) signal(s syscall.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

// request makes one HTTP request; headers are pairs. An error is one of the connection.
func (r *router) request(method, path, contentType string, body []byte, headers ...string) (int, http.Header, []byte, error) {
	req, err := http.NewRequest(method, r.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	text, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return 0, nil, nil, err
	}
	return resp.StatusCode, resp.Header, text, nil
}

func (r *router) try(method, path, contentType string, body []byte, headers ...string) (int, []byte, error) {
	status, _, text, err := r.request(method, path, contentType, body, headers...)
	return status, text, err
}

// call wants a 2xx and decodes the answer into it, unless answer is nil.
func (r *router) call(method, path, contentType string, body []byte, answer any, headers ...string) {
	r.t.Helper()
	status, text, err := r.try(method, path, contentType, body, headers...)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	if status/100 != 2 {
		r.t.Fatalf("%s %s: %d %s", method, path, status, text)
	}
	if answer == nil {
		return
	}
	if err := json.Unmarshal(text, answer); err != nil {
		r.t.Fatalf("%s %s: %v in %s", method, path, err, text)
	}
}

// An accepted is the answer to publishing.
type accepted struct {
	Accepted int
	Events   []struct{ ID, Position string }
}

// publish wants everything accepted.
func (r *router) publish(topic, contentType string, body []byte, headers ...string) accepted {
	r.t.Helper()
	var a accepted
	r.call("POST", "/v1/topics/"+topic+"/events", contentType, body, &a, headers...)
	return a
}

// count is how many events a topic holds.
func (r *router) count(topic string) int {
	r.t.Helper()
	var doc struct{ State struct{ Events int } }
	r.call("GET", "/v1/topics/"+topic, "", nil, &doc)
	return doc.State.Events
}

// events reads a whole topic; headers are pairs.
func (r *router) events(topic string, headers ...string) []map[string]any {
	r.t.Helper()
	var all []map[string]any
	query := "?limit=1000"
	for {
		status, text, err := r.try("GET", "/v1/topics/"+topic+"/events"+query, "", nil, headers...)
		if err != nil || status != 200 {
			r.t.Fatalf("reading topic %s: %v %d %s", topic, err, status, text)
		}
		var page struct {
			Events []map[string]any
			Next   string
		}
		if err := decode(text, &page); err != nil {
			r.t.Fatal(err)
		}
		if len(page.Events) == 0 {
			return all
		}
		all = append(all, page.Events...)
		query = "?limit=1000&after=" + page.Next
	}
}

// state is the read-only part of a subscription.
type state struct {
	State                                                                     string
	Lag, Outstanding, Parked, Matched, Delivered, DeadLettered, Dropped, Lost int
}

func (r *router) subscription(name string) state {
	r.t.Helper()
	var doc struct{ State state }
	r.call("GET", "/v1/subscriptions/"+name, "", nil, &doc)
	return doc.State
}

// settled waits until subscriptions have nothing left to do.
func (r *router) settled(within time.Duration, names ...string) {
	r.t.Helper()
	eventually(r.t, within, func() error {
		for _, name := range names {
			if s := r.subscription(name); s.Lag != 0 || s.Outstanding != 0 || s.Parked != 0 {
				return fmt.Errorf("subscription %s: %+v", name, s)
			}
		}
		return nil
	})
}

// eventually calls f until it returns nil.
func eventually(t *testing.T, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", within, err)
		}
		<-tick.C
	}
}

// decode reads JSON and keeps numbers as they were written.
func decode(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return d.Decode(into)
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}

// write makes a file appear whole: the router may look at any time.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// dial opens a raw connection to a router.
func (r *router) dial() net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() }) // closed by the test or by the router already
	return c
}
