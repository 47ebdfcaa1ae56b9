package acceptance

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const drainRules = `version: 1
topics:
  work: {}
subscriptions:
  slow:
    topic: work
    concurrency: 2
    deliver: {webhook: {url: "${env:HOOK_URL}/slow", secrets: ["${env:HOOK_SECRET}"], timeout: 20s}}
`

// SIGTERM while a request is half sent, a receiver takes 3 s and a stream is open: the router ends with 0 before its
// deadline of 25 s, what the receiver took is not sent again after the next start, and what it did not take is sent then.
func TestDrain(t *testing.T) {
	t.Parallel()
	const slow = 3 * time.Second
	begun := make(chan struct{}, 100)
	rc := newReceiver(t, func(delivery, int) int {
		begun <- struct{}{}
		<-time.After(slow) // a receiver that works for long
		return http.StatusNoContent
	})
	dir := t.TempDir()
	rules, data := filepath.Join(dir, "rules.yaml"), filepath.Join(dir, "data")
	write(t, rules, drainRules)
	env := []string{"HOOK_URL=" + rc.URL, "HOOK_SECRET=" + secret}
	r := serve(t, data, env, "--rules", rules)

	stream, err := http.Get(r.url + "/v1/topics/work/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	half := r.dial()
	if _, err := fmt.Fprintf(half, "POST /v1/topics/work/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"half\":"); err != nil {
		t.Fatal(err)
	}
	var body strings.Builder
	var ids []string
	for i := range 5 {
		ids = append(ids, fmt.Sprintf("w-%d", i))
		fmt.Fprintf(&body, `{"specversion":"1.0","id":%q,"source":"/w","type":"t","data":%d}`+"\n", ids[i], i)
	}
	r.publish("work", "application/x-ndjson", []byte(body.String()))
	<-begun
	<-begun

	var lines []string
	var reading sync.WaitGroup
	reading.Go(func() {
		for s := bufio.NewScanner(stream.Body); s.Scan(); {
			lines = append(lines, s.Text())
		}
	})
	took := r.stop(25 * time.Second)
	reading.Wait()
	if took < slow/2 {
		t.Errorf("the router ended %s after SIGTERM, while sends of %s were under way", took, slow)
	}
	if got := strings.Join(lines, "\n"); strings.Count(got, "data:") != len(ids) || !strings.Contains(got, "id:") {
		t.Errorf("the stream ended with\n%s", got)
	}
	answer, err := io.ReadAll(half)
	if len(answer) > 0 && strings.HasPrefix(string(answer), "HTTP/1.1 2") {
		t.Errorf("half a request was answered with %s (%v)", answer, err)
	}
	before := map[string]int{}
	for _, id := range ids {
		before[id] = rc.taken("/slow", id)
	}
	t.Logf("ended %s after SIGTERM; taken before: %v", took.Round(time.Millisecond), before)

	r = serve(t, data, env, "--rules", rules)
	eventually(t, 30*time.Second, func() error {
		if missing := rc.missing("/slow", ids); missing != nil {
			return fmt.Errorf("lost: %v", missing)
		}
		return nil
	})
	r.settled(20*time.Second, "slow")
	for _, id := range ids {
		if n := rc.taken("/slow", id); n != 1 {
			t.Errorf("%s was taken %d times (%d before the stop); a drain writes what was settled", id, n, before[id])
		}
	}
	if n := r.count("work"); n != len(ids) {
		t.Errorf("the topic holds %d events; want %d", n, len(ids))
	}
	r.stop(20 * time.Second)
}

// While it drains a router refuses new events in words, and answers where it is asked how it is.
func TestDrainRefuses(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var once sync.Once
	free := func() { once.Do(func() { close(release) }) }
	t.Cleanup(free)
	begun := make(chan struct{}, 10)
	rc := newReceiver(t, func(delivery, int) int {
		begun <- struct{}{}
		<-release
		return http.StatusNoContent
	})
	dir := t.TempDir()
	rules, data := filepath.Join(dir, "rules.yaml"), filepath.Join(dir, "data")
	write(t, rules, drainRules)
	env := []string{"HOOK_URL=" + rc.URL, "HOOK_SECRET=" + secret}
	r := serve(t, data, env, "--rules", rules)
	r.publish("work", "application/json", []byte(`{}`), "ce-specversion", "1.0", "ce-id", "a", "ce-source", "/w", "ce-type", "t")
	<-begun
	r.signal(syscall.SIGTERM)
	stored := 1
	eventually(t, 10*time.Second, func() error {
		status, text, err := r.try("POST", "/v1/topics/work/events", "application/json", []byte(`{}`))
		switch {
		case err != nil: // not listening any more refuses, too
			return nil
		case status == 202:
			stored++
			return fmt.Errorf("publishing is still answered with 202")
		case status != 503:
			return fmt.Errorf("publishing is answered with %d %s", status, text)
		}
		return nil
	})
	free()
	r.wait(25 * time.Second)
	r = serve(t, data, env, "--rules", rules)
	if n := r.count("work"); n != stored {
		t.Errorf("the topic holds %d events; %d were acknowledged", n, stored)
	}
	r.settled(20*time.Second, "slow")
	if n := rc.taken("/slow", "a"); n != 1 {
		t.Errorf("event a was taken %d times; want once", n)
	}
}
