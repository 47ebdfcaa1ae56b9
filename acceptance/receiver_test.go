package acceptance

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// A delivery is one webhook request whose signature the official library verified.
type delivery struct {
	path      string
	webhookID string
	id        string         // of the event
	doc       map[string]any // the structured event, or for the binary format its data
	header    http.Header
}

// A receiver verifies and keeps what it gets. It serves many requests at once.
type receiver struct {
	*httptest.Server
	verifier *standardwebhooks.Webhook
	answer   func(d delivery, try int) int // called without the lock; nil: 204

	mu    sync.Mutex
	got   []delivery     // answered with 2xx
	ids   map[string]int // how often each event was taken, by path and id
	tries map[string]int // by webhook-id
	wrong []string       // what was not as it must be

	forget bool // keep nothing of what comes: it would grow for hours
}

func newReceiver(t *testing.T, answer func(d delivery, try int) int) *receiver {
	t.Helper()
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	rc := &receiver{verifier: verifier, answer: answer, ids: map[string]int{}, tries: map[string]int{}}
	rc.Server = httptest.NewServer(rc)
	t.Cleanup(rc.Close)
	t.Cleanup(func() {
		rc.mu.Lock()
		defer rc.mu.Unlock()
		for _, w := range rc.wrong {
			t.Error(w)
		}
	})
	return rc
}

func (rc *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil { // the router was killed while it sent
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	d := delivery{path: req.URL.Path, webhookID: req.Header.Get("webhook-id"), id: req.Header.Get("ce-id"), header: req.Header}
	if err := rc.verifier.Verify(body, req.Header); err != nil {
		rc.fail(w, "signature of "+d.webhookID+": "+err.Error())
		return
	}
	if strings.HasPrefix(req.Header.Get("Content-Type"), "application/cloudevents-batch+json") {
		rc.batch(w, d, body)
		return
	}
	if err := decode(body, &d.doc); err != nil {
		rc.fail(w, "body of "+d.webhookID+": "+err.Error())
		return
	}
	if id, ok := d.doc["id"].(string); ok && d.id == "" {
		d.id = id
	}
	rc.mu.Lock()
	if !rc.forget {
		rc.tries[d.webhookID]++
	}
	try := rc.tries[d.webhookID]
	rc.mu.Unlock()
	status := http.StatusNoContent
	if rc.answer != nil {
		status = rc.answer(d, try)
	}
	if status/100 == 2 && !rc.forget {
		rc.mu.Lock()
		rc.got = append(rc.got, d)
		rc.ids[d.path+" "+d.id]++
		rc.mu.Unlock()
	}
	w.WriteHeader(status)
}

// batch answers for each event of a batch.
func (rc *receiver) batch(w http.ResponseWriter, whole delivery, body []byte) {
	var docs []map[string]any
	if err := decode(body, &docs); err != nil || len(docs) == 0 {
		rc.fail(w, fmt.Sprintf("body of batch %s: %d events, %v", whole.webhookID, len(docs), err))
		return
	}
	rc.mu.Lock()
	rc.tries[whole.webhookID]++
	try := rc.tries[whole.webhookID]
	rc.mu.Unlock()
	failed := []int{}
	for i, doc := range docs {
		d := whole
		d.doc = doc
		d.id, _ = doc["id"].(string)
		if rc.answer != nil && rc.answer(d, try)/100 != 2 {
			failed = append(failed, i)
			continue
		}
		rc.mu.Lock()
		rc.got = append(rc.got, d)
		rc.ids[d.path+" "+d.id]++
		rc.mu.Unlock()
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusMultiStatus)
	_ = json.NewEncoder(w).Encode(map[string]any{"failed": failed}) // the router may be gone
}

func (rc *receiver) fail(w http.ResponseWriter, what string) {
	rc.mu.Lock()
	rc.wrong = append(rc.wrong, what)
	rc.mu.Unlock()
	w.WriteHeader(http.StatusUnauthorized)
}

// taken is how often an event was answered with 2xx at a path.
func (rc *receiver) taken(path, id string) int {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return rc.ids[path+" "+id]
}

// triesOf is how often a delivery came.
func (rc *receiver) triesOf(webhookID string) int {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return rc.tries[webhookID]
}

// missing lists those of the ids that were never taken at a path, at most ten.
func (rc *receiver) missing(path string, ids []string) []string {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	var out []string
	for _, id := range ids {
		if rc.ids[path+" "+id] == 0 {
			if out = append(out, id); len(out) == 10 {
				break
			}
		}
	}
	return out
}

func (rc *receiver) deliveries() []delivery {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return append([]delivery(nil), rc.got...)
}

// same tells whether two values are the same JSON.
func same(a, b any) bool {
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(b)
	return errA == nil && errB == nil && string(x) == string(y)
}
