package acceptance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// The npm packages ws and eventsource are clients of the router: they publish, read, pull and settle, and come back after
// a restart without gap or repeat.
func TestJavaScriptStreams(t *testing.T) {
	t.Parallel()
	modules := npm(t)
	data := filepath.Join(t.TempDir(), "data")
	r := serve(t, data, nil)
	for _, doc := range []string{`{"name":"plain"}`, `{"name":"jobs"}`} {
		r.call("POST", "/v1/topics", "application/json", []byte(doc), nil)
	}
	r.call("POST", "/v1/subscriptions", "application/json", []byte(`{"name":"workers","topic":"jobs","deliver":{"pull":{}}}`), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	node := exec.CommandContext(ctx, "node", filepath.Join("testdata", "sockets.cjs"), r.addr, "100")
	node.Env = append(os.Environ(), "NODE_PATH="+modules)
	node.Stderr = os.Stderr
	out, err := node.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	lines, said := bufio.NewScanner(out), ""
	for lines.Scan() {
		if lines.Text() == "restart" {
			r.stop(20 * time.Second)
			r = serve(t, data, nil, "--listen", r.addr)
			continue
		}
		said += lines.Text() + "\n"
	}
	if err := node.Wait(); err != nil || said != "ok\n" {
		t.Errorf("%v: the script says %s", err, said)
	}
	r.stop(20 * time.Second)
}

// The example of docs/websocket.md does what it says.
func TestWebSocketExample(t *testing.T) {
	t.Parallel()
	modules := npm(t)
	r := serve(t, filepath.Join(t.TempDir(), "data"), nil)
	r.call("POST", "/v1/topics", "application/json", []byte(`{"name":"orders"}`), nil)
	doc, err := os.ReadFile(filepath.Join("..", "docs", "websocket.md"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```js\n(.*?)```").FindSubmatch(doc)
	if m == nil {
		t.Fatal("docs/websocket.md has no example")
	}
	script := "globalThis.WebSocket = require('ws');\n" + strings.ReplaceAll(string(m[1]), "127.0.0.1:8080", r.addr)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	node := exec.CommandContext(ctx, "node", "-e", script)
	node.Env = append(os.Environ(), "NODE_PATH="+modules)
	out, err := node.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	node.Stderr = os.Stderr
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"ok orders": true, "ok mine": true, "event 250": true} // and the answer to credit
	for lines := bufio.NewScanner(out); len(want) > 0 && lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "error") {
			t.Error(lines.Text())
		}
		delete(want, lines.Text())
	}
	if _, text, err := r.try("GET", "/metrics", "", nil); err != nil || !bytes.Contains(text, []byte("\nmillrace_ws_connections 1\n")) {
		t.Errorf("/metrics does not count the socket (%v)", err)
	}
	cancel()
	_ = node.Wait() // it was ended
	if len(want) > 0 {
		t.Errorf("the example did not print %v", want)
	}
}

// A walk is what a reader of a topic has received: of every partition each offset once, in order.
type walk struct {
	mu   sync.Mutex
	next map[string]int // by partition
	n    int
	bad  string
}

func (w *walk) take(doc []byte) {
	var e struct {
		ID               string
		Millraceposition string
	}
	err := json.Unmarshal(doc, &e)
	partition, offset, _ := strings.Cut(e.Millraceposition, "-")
	w.mu.Lock()
	defer w.mu.Unlock()
	if want := fmt.Sprint(w.next[partition]); (err != nil || offset != want) && w.bad == "" {
		w.bad = fmt.Sprintf("event %d, %.60s at %s; want offset %s (%v)", w.n, e.ID, e.Millraceposition, want, err)
	}
	w.next[partition]++
	w.n++
}

func (w *walk) seen() (int, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n, w.bad
}

// streamOnce reads server-sent events from the last id until the connection ends, and returns the new last id.
func (w *walk) streamOnce(body *bufio.Reader, last string) string {
	var id string
	for {
		line, err := body.ReadString('\n')
		if err != nil {
			return last // an event without its empty line does not count
		}
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "" && id != "":
			last, id = id, ""
		case strings.HasPrefix(line, "id: "):
			id = line[4:]
		case strings.HasPrefix(line, "data: "):
			// The empty line follows in the same write, or the connection ends and nobody was told: look.
			if end, err := body.Peek(1); err != nil || end[0] != '\n' {
				return last
			}
			w.take([]byte(line[6:]))
		}
	}
}

// Readers of a topic of three partitions, by SSE and by long polling, see every event once and in order while the router
// is stopped and killed under them; one that stops reading is dropped within its bound, and resumes likewise.
func TestStreamsResume(t *testing.T) {
	t.Parallel()
	const third, total = 250, 750
	data := filepath.Join(t.TempDir(), "data")
	r := serve(t, data, nil)
	r.call("POST", "/v1/topics", "application/json", []byte(`{"name":"many","partitions":3}`), nil)
	base := r.url
	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	defer readers.Wait()
	defer stop()

	open := func(last string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, "GET", base+"/v1/topics/many/stream?since=1h", nil)
		if err != nil {
			return nil, err
		}
		if last != "" {
			req.Header.Set("Last-Event-ID", last)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err == nil && resp.StatusCode != 200 {
			resp.Body.Close()
			return nil, fmt.Errorf("%s", resp.Status)
		}
		return resp, err
	}
	streamed, polled, slow := &walk{next: map[string]int{}}, &walk{next: map[string]int{}}, &walk{next: map[string]int{}}
	stream := func(w *walk, last string) {
		for ctx.Err() == nil {
			if resp, err := open(last); err == nil {
				last = w.streamOnce(bufio.NewReader(resp.Body), last)
				resp.Body.Close()
			} else {
				pause(ctx)
			}
		}
	}
	readers.Go(func() { stream(streamed, "") })
	readers.Go(func() {
		for after := ""; ctx.Err() == nil; {
			req, err := http.NewRequestWithContext(ctx, "GET", base+"/v1/topics/many/events?wait=5s&limit=7&after="+after, nil)
			if err != nil {
				return
			}
			var page struct {
				Events []json.RawMessage
				Next   string
			}
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err == nil {
				err = json.NewDecoder(resp.Body).Decode(&page)
				resp.Body.Close()
			}
			if err != nil || resp.StatusCode != 200 {
				pause(ctx)
				continue
			}
			for _, e := range page.Events {
				polled.take(e)
			}
			after = page.Next
		}
	})
	lazy, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer lazy.Close()
	_ = lazy.(*net.TCPConn).SetReadBuffer(64 << 10)
	fmt.Fprintf(lazy, "GET /v1/topics/many/stream?since=1h HTTP/1.1\r\nHost: localhost\r\n\r\n")

	publish := func(from int) {
		pad := strings.Repeat("x", 10<<10)
		for at := from; at < from+third; at += 10 {
			var b bytes.Buffer
			for i := at; i < at+10; i++ {
				fmt.Fprintf(&b, `{"specversion":"1.0","id":"e-%d","source":"/s","type":"t","partitionkey":"k%d","data":"%s"}`+"\n", i, i%17, pad)
			}
			r.publish("many", "application/x-ndjson", b.Bytes())
		}
	}
	reached := func(n int, ws ...*walk) {
		t.Helper()
		for _, w := range ws {
			eventually(t, time.Minute, func() error {
				if got, bad := w.seen(); got != n && bad == "" {
					return fmt.Errorf("it has %d events of %d", got, n)
				}
				return nil
			})
			if got, bad := w.seen(); bad != "" || got != n {
				t.Fatalf("%d events of %d: %s", got, n, bad)
			}
		}
	}
	publish(0)
	reached(third, streamed, polled)
	eventually(t, time.Minute, func() error {
		_, text, err := r.try("GET", "/metrics", "", nil)
		if err == nil && !bytes.Contains(text, []byte("\nmillrace_sse_dropped_total 1\n")) {
			err = fmt.Errorf("the slow reader is not dropped")
		}
		return err
	})
	_ = lazy.SetReadDeadline(time.Now().Add(20 * time.Second))
	body := bufio.NewReader(lazy)
	if _, err := http.ReadResponse(body, nil); err != nil {
		t.Fatal(err)
	}
	last := slow.streamOnce(body, "")
	if got, bad := slow.seen(); got == 0 || got >= third || bad != "" {
		t.Fatalf("the slow reader had received %d of %d events: %s", got, third, bad)
	}

	r.stop(20 * time.Second)
	r = serve(t, data, nil, "--listen", r.addr)
	publish(third)
	reached(2*third, streamed, polled)
	r.kill()
	r = serve(t, data, nil, "--listen", r.addr)
	publish(2 * third)
	readers.Go(func() { stream(slow, last) })
	reached(total, streamed, polled, slow)
	if n := r.count("many"); n != total {
		t.Errorf("the topic holds %d events, not %d", n, total)
	}
	stop()
	readers.Wait()
	r.stop(20 * time.Second)
}

// pause keeps a client that is refused from asking all the time.
func pause(ctx context.Context) {
	select {
	case <-time.After(20 * time.Millisecond):
	case <-ctx.Done():
	}
}
