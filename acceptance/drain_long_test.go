package acceptance

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// SIGTERM while a receiver needs longer than a drain may take: the router ends at its deadline all the same, and whatever was
// not answered by then is delivered after the next start, each under the webhook-id of its first try.
func TestDrainDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	const deadline = 25 * time.Second
	release := make(chan struct{})
	var once sync.Once
	free := func() { once.Do(func() { close(release) }) }
	t.Cleanup(free)
	begun := make(chan string, 100)
	rc := newReceiver(t, func(d delivery, _ int) int {
		begun <- d.webhookID
		<-release // 30 s and more
		return http.StatusNoContent
	})
	dir := t.TempDir()
	rules, data := filepath.Join(dir, "rules.yaml"), filepath.Join(dir, "data")
	write(t, rules, strings.Replace(drainRules, "timeout: 20s", "timeout: 60s", 1))
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
	first, second := <-begun, <-begun
	took := r.stop(deadline + 10*time.Second) // a machine that runs other tests at the same time is given more
	t.Logf("ended %s after SIGTERM", took.Round(time.Millisecond))
	if took < deadline/2 {
		t.Errorf("the router ended %s after SIGTERM, while a receiver was at work that might have answered", took)
	}
	free()

	r = serve(t, data, env, "--rules", rules)
	eventually(t, 30*time.Second, func() error {
		if missing := rc.missing("/slow", ids); missing != nil {
			return fmt.Errorf("lost: %v", missing)
		}
		return nil
	})
	r.settled(20*time.Second, "slow")
	for _, id := range []string{first, second} {
		if n := rc.triesOf(id); n != 2 {
			t.Errorf("%s was under way and came %d times; want 2, before the stop and after", id, n)
		}
	}
	if n := r.count("work"); n != len(ids) {
		t.Errorf("the topic holds %d events; want %d", n, len(ids))
	}
	r.stop(20 * time.Second)
}
