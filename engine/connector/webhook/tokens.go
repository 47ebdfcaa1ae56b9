package webhook

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/event"
)

const (
	refreshAhead = time.Minute // a token is renewed when that much of its life is left, or a quarter of it, if that is less
	dropPause    = time.Minute // that a token which follows a refused one lives for at least; it doubles
	maxDropPause = 15 * time.Minute
	failurePause = time.Second // after a failure nobody asks again: deliveries fail at once with the same words
)

// tokens keeps one bearer token for all deliveries of a sink and renews it ahead of its end. However many deliveries
// want one, one request for it is under way. It has no goroutine of its own: a delivery renews it.
type tokens struct {
	fetch func(ctx context.Context) (token string, life time.Duration, err error)
	now   func() time.Time

	mu     sync.Mutex
	header string // "Bearer …"; "" for none
	renew  time.Time
	ends   time.Time
	flight chan struct{} // closed when the request under way has ended; nil: none is
	failed error         // of the last request
	pause  time.Time     // until then the last failure stands
	again  time.Time     // until then no other token is dropped
	wait   time.Duration // before again; 0 once a token was taken
}

func (t *tokens) value(ctx context.Context) (string, error) {
	for {
		t.mu.Lock()
		now := t.now()
		good := t.header != "" && now.Before(t.ends)
		switch {
		case good && (now.Before(t.renew) || t.flight != nil || now.Before(t.pause)):
			defer t.mu.Unlock()
			return t.header, nil
		case t.flight == nil && t.failed != nil && now.Before(t.pause):
			defer t.mu.Unlock()
			return "", t.failed
		case t.flight == nil:
			t.flight = make(chan struct{})
			t.mu.Unlock()
			if err := t.refresh(ctx); err != nil && !good {
				return "", err
			}
			continue
		}
		flight := t.flight
		t.mu.Unlock()
		select {
		case <-flight:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// refresh asks for a token. Whoever calls it has made t.flight.
func (t *tokens) refresh(ctx context.Context) error {
	token, life, err := t.fetch(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.flight)
	t.flight = nil
	now := t.now()
	t.failed, t.pause = nil, time.Time{}
	if err != nil {
		if ctx.Err() == nil { // an end of this delivery says nothing to the others
			t.failed, t.pause = err, now.Add(failurePause)
		}
		return err
	}
	t.header, t.ends = "Bearer "+token, now.Add(life)
	t.renew = t.ends.Add(-min(refreshAhead, life/4))
	return nil
}

// answered drops a token that the receiver refuses. The next one lives for a minute at least, the one after it for two: a
// receiver that refuses every token does not make the router ask for one at each attempt, and one that takes tokens again
// gets a fresh one soon.
func (t *tokens) answered(value string, status int) {
	if status != http.StatusUnauthorized && status >= 300 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case status < 300:
		t.again, t.wait = time.Time{}, 0
	case t.header == value && !t.now().Before(t.again):
		t.wait = min(max(2*t.wait, dropPause), maxDropPause)
		t.header, t.again = "", t.now().Add(t.wait)
	}
}

// retryable is an error of a token endpoint that says when to come again.
func retryable(err error, resp *http.Response, now time.Time) error {
	return &event.RetryAfter{Err: err, Code: 0, Wait: retryAfter(resp.Header.Get("Retry-After"), now)}
}
