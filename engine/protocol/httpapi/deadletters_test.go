package httpapi

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// fakeLetters answers with one dead letter and notes what was asked.
type fakeLetters struct {
	query   event.LetterQuery
	after   string
	limit   int
	redrive event.Redrive
	purge   event.Purge
	bounded bool // the last call had a deadline
}

func (f *fakeLetters) letter() event.DeadLetter {
	ev := event.Event{ID: "o-1", Source: "/topics/orders", Type: "order.created", Data: []byte(`{"n":1}`), Extensions: []event.Attribute{{Name: "deadlettersub", Value: "s"}}}
	rec := event.Record(ev.AppendRecord(nil))
	rec.SetPlace(event.Position{Offset: 12}, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	return event.DeadLetter{Position: rec.Position(), At: rec.ReceivedAt(), Origin: "orders/0-42", ID: "o-1", Type: "order.created", Reason: "attempts", Code: 503, Attempts: 10,
		Detail: "no <b>", Story: json.RawMessage(`[{"at":"2026-01-02T03:04:05Z","code":503,"detail":"no"}]`), Event: rec}
}

func (f *fakeLetters) DeadLetters(_ context.Context, sub string, q event.LetterQuery, after string, limit int) (event.LetterPage, error) {
	f.query, f.after, f.limit = q, after, limit
	if sub != "s" {
		return event.LetterPage{}, event.Bad(event.ErrNotFound, "subscription", "none")
	}
	return event.LetterPage{Letters: []event.DeadLetter{f.letter()}, Next: "0-13", Total: 7}, nil
}

func (f *fakeLetters) done(ctx context.Context, dry bool) event.LettersDone {
	_, f.bounded = ctx.Deadline()
	d := event.LettersDone{Done: 3, Left: 4, Skipped: 1, Why: "a fake", Stopped: "time", Until: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)}
	if dry {
		l := f.letter()
		l.Condensed = true
		d.First = []event.DeadLetter{l}
	}
	return d
}

func (f *fakeLetters) Redrive(ctx context.Context, _ string, r event.Redrive) (event.LettersDone, error) {
	f.redrive = r
	return f.done(ctx, r.DryRun), nil
}

func (f *fakeLetters) Purge(ctx context.Context, _ string, p event.Purge) (event.LettersDone, error) {
	f.purge = p
	if !p.All && p.LetterQuery == (event.LetterQuery{}) {
		return event.LettersDone{}, event.Invalid("all", "say what")
	}
	return f.done(ctx, p.DryRun), nil
}

func TestDeadLetters(t *testing.T) {
	f := newFake("orders")
	_, base := serve(t, Options{Backend: f})
	u := base + "/v1/subscriptions/s/"
	resp, body := do(t, "GET", u+"deadletters?limit=5&after=0-3&filter=type+%3D%3D+%22x%22&since=2026-01-02T00:00:00Z&topic=dead", "")
	var page struct {
		DeadLetters []map[string]any
		Next        string
		Total       int
	}
	if err := json.Unmarshal([]byte(body), &page); err != nil || resp.StatusCode != 200 || page.Next != "0-13" || page.Total != 7 || len(page.DeadLetters) != 1 {
		t.Fatalf("%d %s %v", resp.StatusCode, body, err)
	}
	l := page.DeadLetters[0]
	if ev, _ := l["event"].(map[string]any); l["position"] != "0-12" || l["code"] != 503.0 || l["origin"] != "orders/0-42" || l["detail"] != "no <b>" || ev["id"] != "o-1" || ev["millraceposition"] != "0-12" {
		t.Errorf("%s", body)
	}
	if f.limit != 5 || f.after != "0-3" || f.query.Filter != `type == "x"` || f.query.Topic != "dead" || !f.query.Since.Equal(time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("asked %+v, after %s, limit %d", f.query, f.after, f.limit)
	}

	js := []string{"Content-Type", "application/json"}
	_, body = do(t, "POST", u+"redrive", `{"filter":"true","since":"1h","before":"2026-01-02T00:00:00Z","function":"f@sha256:00000000","rate":2.5,"limit":9,"dryRun":true}`, js...)
	if r := f.redrive; r.Filter != "true" || r.Function != "f@sha256:00000000" || r.Rate != 2.5 || r.Limit != 9 || !r.DryRun || r.Since.IsZero() || r.Before.IsZero() || !f.bounded {
		t.Errorf("asked %+v", r)
	}
	for _, want := range []string{`"redriven":3`, `"left":4`, `"skipped":1,"why":"a fake"`, `"stopped":"time"`, `"until":"2026-01-02T03:04:05.000000006Z"`, `"dryRun":true`, `"id":"o-1"`} {
		if !strings.Contains(body, want) || strings.Contains(body, `"event"`) || strings.Contains(body, "purged") {
			t.Errorf("no %s in %s", want, body)
		}
	}
	if _, body = do(t, "POST", u+"redrive", ""); !strings.Contains(body, `"redriven":3`) || f.redrive != (event.Redrive{}) {
		t.Errorf("%s, asked %+v", body, f.redrive)
	}
	if _, body = do(t, "POST", u+"purge", `{"all":true,"topic":"dead"}`, js...); !strings.Contains(body, `"purged":3`) || !f.purge.All || f.purge.Topic != "dead" || strings.Contains(body, "redriven") {
		t.Errorf("%s, asked %+v", body, f.purge)
	}
	for _, x := range []struct {
		method, path, body string
		status             int
		words              string
	}{
		{"GET", "deadletters?limit=0", "", 400, "1 to 1000"}, {"GET", "deadletters?since=yesterday", "", 400, "RFC 3339"},
		{"POST", "redrive", `{"rate":"fast"}`, 400, "rate"}, {"POST", "redrive", `{"before":"x"}`, 400, "before"}, {"POST", "redrive", `{"all":true}`, 400, "all"},
		{"POST", "purge", `{}`, 400, "say what"}, {"POST", "purge", `{"rate":1}`, 400, "rate"},
	} {
		resp, body := do(t, x.method, u+x.path, x.body, js...)
		if resp.StatusCode != x.status || !strings.Contains(body, x.words) {
			t.Errorf("%s %s: %d %s, want %d with %q", x.path, x.body, resp.StatusCode, body, x.status, x.words)
		}
	}
	if resp, _ := do(t, "GET", base+"/v1/subscriptions/t/deadletters", ""); resp.StatusCode != 404 {
		t.Errorf("%d of a subscription that is not there", resp.StatusCode)
	}
}
