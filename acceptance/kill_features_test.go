package acceptance

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// hooks answers the webhooks of the kill test: some first tries fail, and what is broken stays so until it is mended.
type hooks struct {
	mended atomic.Bool

	mu     sync.Mutex
	failed map[string]bool // events that have failed once, by path and id
	early  []string
}

func (h *hooks) answer(d delivery, try int) int {
	if at, ok := d.doc["deliverat"].(string); ok {
		if due, err := time.Parse(time.RFC3339Nano, at); err != nil || time.Now().Before(due) {
			h.mu.Lock()
			h.early = append(h.early, fmt.Sprintf("%s %s, due %s (%v)", d.path, d.id, at, err))
			h.mu.Unlock()
		}
	}
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(d.path + d.id))
	luck := sum.Sum32() % 100
	switch {
	case d.path == "/broken" && !h.mended.Load():
		return http.StatusUnprocessableEntity
	case d.path == "/keyed" && luck < 2, d.path == "/batched" && luck < 5:
		h.mu.Lock()
		defer h.mu.Unlock()
		if key := d.path + " " + d.id; !h.failed[key] {
			h.failed[key] = true
			return http.StatusServiceUnavailable
		}
	}
	return http.StatusNoContent
}

// check looks for what ordered, batched and broken deliveries promise.
func (h *hooks) check(t *testing.T, r *router, rc *receiver, l *ledger) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		for _, path := range []string{"/keyed", "/batched"} {
			if missing := rc.missing(path, l.acked); missing != nil {
				return fmt.Errorf("%s lacks %v", path, missing)
			}
		}
		return nil
	})
	for _, e := range h.early {
		t.Errorf("came too early: %s", e)
	}
	if len(h.failed) == 0 {
		t.Error("no try failed: the test shows less than it says")
	}
	last, seen := map[string][2]int{}, map[string]bool{}
	for _, d := range rc.deliveries() {
		if _, delayed := d.doc["deliverat"]; d.path != "/keyed" || delayed || seen[d.id] {
			continue
		}
		seen[d.id] = true
		var p, n, i int
		if _, err := fmt.Sscanf(d.id, "p%d-%d-%d", &p, &n, &i); err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprint(d.doc["partitionkey"])
		if now := [2]int{n, i}; now[0] < last[key][0] || now[0] == last[key][0] && now[1] < last[key][1] {
			t.Errorf("%s came after p%d-%d-%d of the same key", d.id, p, last[key][0], last[key][1])
		} else {
			last[key] = now
		}
	}

	// What was broken is mended now, and redriven: no dead letter is left, and each event is taken once.
	var broken []string
	for _, e := range r.events("load") {
		data, _ := e["data"].(map[string]any)
		if n, err := data["n"].(json.Number).Int64(); err == nil && n%7 == 0 {
			broken = append(broken, e["id"].(string))
		}
	}
	h.mended.Store(true)
	eventually(t, time.Minute, func() error {
		r.call("POST", "/v1/subscriptions/broken/redrive", "application/json", []byte(`{}`), nil)
		if missing := rc.missing("/broken", broken); missing != nil {
			return fmt.Errorf("broken lacks %v of %d", missing, len(broken))
		}
		return nil
	})
	r.settled(time.Minute, "broken", "keyed", "batched", "hook")
	for _, id := range broken {
		if n := rc.taken("/broken", id); n != 1 {
			t.Errorf("%s was redriven and taken %d times", id, n)
		}
	}
	var left struct{ DeadLetters []any }
	if r.call("GET", "/v1/subscriptions/broken/deadletters?limit=10", "", nil, &left); len(left.DeadLetters) != 0 {
		t.Errorf("dead letters are left after all were redriven: %v", left.DeadLetters)
	}
	t.Logf("%d events in order, %d redriven", len(seen), len(broken))
}

// redriveLoad redrives what fails again at once, until stop: so there is always a redrive that the kill meets.
func redriveLoad(l *ledger, current *atomic.Pointer[router], stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(100 * time.Millisecond):
		}
		status, text, err := current.Load().try("POST", "/v1/subscriptions/broken/redrive", "application/json", []byte(`{"limit": 50}`))
		if err == nil && status/100 != 2 && status != http.StatusServiceUnavailable {
			l.wrong("redriving: %d %s", status, text)
		}
	}
}

// follower reads the topic's stream of events and goes on where it was after each kill.
type follower struct {
	cursor string
	ids    []string
	seen   map[string]bool
	twice  []string
	forget bool // only count, and look for what comes twice in a row
	count  int
}

func (f *follower) follow(current *atomic.Pointer[router], stop <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-stop
		cancel()
	}()
	for ctx.Err() == nil {
		f.read(ctx, current.Load())
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// read reads until the stream ends.
func (f *follower) read(ctx context.Context, r *router) {
	query := "?since=1h"
	if f.cursor != "" {
		query = ""
	}
	req, err := http.NewRequestWithContext(ctx, "GET", r.url+"/v1/topics/load/stream"+query, nil)
	if err != nil {
		return
	}
	if f.cursor != "" {
		req.Header.Set("Last-Event-ID", f.cursor)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	cursor, data := "", ""
	for lines.Scan() {
		switch line := lines.Text(); {
		case strings.HasPrefix(line, "id:"):
			cursor = strings.TrimSpace(line[3:])
		case strings.HasPrefix(line, "data:"):
			data = line[5:]
		case line == "" && data != "": // what the kill cut off is not an event
			var e struct{ ID string }
			if json.Unmarshal([]byte(data), &e) == nil && e.ID != "" {
				if f.seen[e.ID] {
					f.twice = append(f.twice, e.ID)
				}
				f.count++
				if f.forget {
					f.seen = map[string]bool{e.ID: true}
				} else {
					f.seen[e.ID] = true
					f.ids = append(f.ids, e.ID)
				}
			}
			f.cursor, data = cursor, ""
		}
	}
}

// check holds what was streamed against the topic: the same events in the same order, without gap or repeat.
func (f *follower) check(t *testing.T, r *router) {
	t.Helper()
	events := r.events("load")
	if len(f.twice) > 0 {
		t.Errorf("the stream repeated %d events, such as %s", len(f.twice), f.twice[0])
	}
	if len(f.ids) < len(events)/4 || len(f.ids) > len(events) {
		t.Errorf("the stream had %d of %d events", len(f.ids), len(events))
	}
	for i, id := range f.ids {
		if i < len(events) && events[i]["id"] != id {
			t.Fatalf("event %d of the stream is %s, of the topic %v", i, id, events[i]["id"])
		}
	}
	t.Logf("%d of %d events streamed", len(f.ids), len(events))
}
