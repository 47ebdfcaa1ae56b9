package httpapi

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// fakeReplays notes what was asked; s has a replay, t had none, and u runs one.
type fakeReplays struct{ replay event.Replay }

func (f *fakeReplays) info() event.ReplayInfo {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return event.ReplayInfo{ID: "01R", State: event.ReplayRunning, Reason: "its rate", Started: at, Since: at, Rate: 2.5, Filter: "true", Looked: 9, Matched: 7, Done: 5, Left: 3, Lost: 1, Unread: 2}
}

func (f *fakeReplays) Replay(_ context.Context, name string, r event.Replay) (event.ReplayInfo, error) {
	f.replay = r
	x := f.info()
	switch {
	case name == "u":
		return event.ReplayInfo{}, event.Bad(event.ErrConflict, "subscription", "replay 01R runs")
	case r.DryRun:
		x.ID, x.State, x.Reason, x.First = "", "", "", []event.Record{(&fakeLetters{}).letter().Event}
	}
	return x, nil
}

func (f *fakeReplays) ReplayInfo(name string) (event.ReplayInfo, error) {
	if name != "s" {
		return event.ReplayInfo{}, event.Bad(event.ErrNotFound, "subscription", "had no replay")
	}
	return f.info(), nil
}

func (f *fakeReplays) CancelReplay(_ context.Context, name string) (event.ReplayInfo, error) {
	x, err := f.ReplayInfo(name)
	x.State, x.Ended = event.ReplayCancelled, x.Started.Add(time.Second)
	return x, err
}

// fakeSchedules has two.
type fakeSchedules struct{}

func (fakeSchedules) ScheduleList() []Schedule {
	at := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	return []Schedule{
		{Schedule: event.Schedule{Name: "a", Topic: "jobs", Cron: "0 3 * * *", Data: []byte(`{"n":1}`)}.WithDefaults(), OwnerText: "r.yaml:3", Next: at, Last: at.AddDate(0, 0, -1), Fired: 1},
		{Schedule: event.Schedule{Name: "b", Topic: "jobs", Every: 90 * time.Second, Missed: event.MissedSkip}.WithDefaults(), OwnerText: "r.yaml:9", Next: at, Skipped: 4, Fault: "full"},
	}
}

func TestReplays(t *testing.T) {
	f := newFake("orders")
	_, base := serve(t, Options{Backend: f})
	u := func(name string) string { return base + "/v1/subscriptions/" + name + "/replay" }
	js := []string{"Content-Type", "application/json"}
	resp, body := do(t, "POST", u("s"), `{"since":"1h","until":"2026-01-02T00:00:00Z","from":"0-1","to":"0-9","filter":"true","rate":"150/m","function":"f@sha256:00000000"}`, js...)
	if r := f.replay; resp.StatusCode != 202 || r.Since.IsZero() || r.Until.Day() != 2 || r.From != "0-1" || r.To != "0-9" || r.Filter != "true" || r.Rate != 2.5 || r.Function != "f@sha256:00000000" || r.DryRun {
		t.Errorf("%d, asked %+v", resp.StatusCode, r)
	}
	want := `{"id":"01R","state":"running","reason":"its rate","started":"2026-01-02T03:04:05Z","since":"2026-01-02T03:04:05Z","filter":"true","rate":2.5,"looked":9,"matched":7,"done":5,"left":3,"lost":1,"unread":2}`
	if strings.TrimSpace(body) != want {
		t.Errorf("got  %s\nwant %s", body, want)
	}
	resp, body = do(t, "POST", u("s"), `{"since":"earliest","rate":2,"dryRun":true}`, js...)
	if resp.StatusCode != 200 || !f.replay.DryRun || f.replay.From != "earliest" || f.replay.Rate != 2 || !strings.Contains(body, `"dryRun":true`) || !strings.Contains(body, `"millraceposition":"0-12"`) || strings.Contains(body, "started") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, body = do(t, "GET", u("s"), ""); resp.StatusCode != 200 || strings.TrimSpace(body) != want {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, body = do(t, "DELETE", u("s"), ""); resp.StatusCode != 200 || !strings.Contains(body, `"state":"cancelled"`) || !strings.Contains(body, `"ended":"2026-01-02T03:04:06Z"`) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	for _, x := range []struct {
		method, name, body string
		status             int
		words              string
	}{
		{"POST", "u", `{"since":"1h"}`, 409, "01R"}, {"GET", "t", "", 404, "no replay"}, {"DELETE", "t", "", 404, "no replay"},
		{"POST", "s", `{"since":"soon"}`, 400, "since"}, {"POST", "s", `{"until":"soon"}`, 400, "until"}, {"POST", "s", `{"rate":"fast"}`, 400, "500/s"},
		{"POST", "s", `{"rate":[]}`, 400, "rate"}, {"POST", "s", `{"before":"1h"}`, 400, "before"},
	} {
		resp, body := do(t, x.method, u(x.name), x.body, js...)
		if resp.StatusCode != x.status || !strings.Contains(body, x.words) {
			t.Errorf("%s %s %s: %d %s, want %d with %q", x.method, x.name, x.body, resp.StatusCode, body, x.status, x.words)
		}
	}
}

func TestSchedules(t *testing.T) {
	_, base := serve(t, Options{Backend: newFake()})
	resp, body := do(t, "GET", base+"/v1/schedules", "")
	want := `{"schedules":[` +
		`{"name":"a","topic":"jobs","cron":"0 3 * * *","timezone":"UTC","missed":"once","type":"schedule","source":"/schedules/a","data":{"n":1},"owner":"r.yaml:3","state":{"next":"2026-01-02T03:00:00Z","last":"2026-01-01T03:00:00Z","fired":1,"skipped":0}},` +
		`{"name":"b","topic":"jobs","every":"1m30s","missed":"skip","type":"schedule","source":"/schedules/b","owner":"r.yaml:9","state":{"next":"2026-01-02T03:00:00Z","fired":0,"skipped":4,"fault":"full"}}]}`
	if resp.StatusCode != 200 || strings.TrimSpace(body) != want {
		t.Errorf("%d %s\nwant %s", resp.StatusCode, body, want)
	}
	if resp, _ := do(t, "POST", base+"/v1/schedules", `{}`, "Content-Type", "application/json"); resp.StatusCode != 405 {
		t.Errorf("%d: schedules are made in rules alone", resp.StatusCode)
	}
}
