package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every command that the pages on replays and schedules show is run by replay.txtar, with their rules.
func TestReplayAndSchedulePages(t *testing.T) {
	script, err := os.ReadFile(filepath.Join("testdata", "script", "replay.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for page, least := range map[string]int{"replay.md": 6, "schedules.md": 2} {
		text, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range blocksOf(string(text)) {
			switch x.kind {
			case "sh":
				for line := range strings.SplitSeq(tutorialCommands(x.text), "\n") {
					if least--; !strings.Contains(string(script), "\n"+line+"\n") {
						t.Errorf("docs/%s shows what replay.txtar does not run: %s", page, line)
					}
				}
			case "yaml":
				_, rules, _ := strings.Cut(x.text, "schedules:\n")
				if rules == "" || !strings.Contains(string(script), rules) {
					t.Errorf("docs/%s has rules that replay.txtar has not:\n%s", page, x.text)
				}
			}
		}
		if least > 0 {
			t.Errorf("docs/%s shows %d commands too few", page, least)
		}
	}
}

// --wait asks until the replay ends; one that failed makes the command fail.
func TestReplayWaits(t *testing.T) {
	answers := []string{
		`{"id":"01R","state":"running","looked":0,"matched":0,"done":0,"left":9}`, `{"id":"01R","state":"running","reason":"its rate","looked":9,"matched":7,"done":3,"left":4,"unread":1}`,
		`{"id":"01R","state":"failed","reason":"it \u001b[2J","looked":9,"matched":7,"done":3,"left":0,"lost":2,"unread":1}`,
	}
	asked := ""
	url := serveHandler(t, func(w http.ResponseWriter, r *http.Request) {
		asked += r.Method + " " + r.URL.Path + "\n"
		fmt.Fprint(w, answers[0])
		answers = answers[1:]
	})
	code, stdout, stderr := runAt(t, url, "replay", "s", "--since", "1h", "--wait")
	if code != exitFailed || stdout != "replay 01R of s: failed; 3 done, 0 left\n" || !strings.Contains(stderr, "2 events had left the topic") ||
		!strings.Contains(stderr, "1 event of the range") || !strings.Contains(stderr, `the replay failed: it \x1b[2J`) {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
	if want := "POST /v1/subscriptions/s/replay\nGET /v1/subscriptions/s/replay\nGET /v1/subscriptions/s/replay\n"; asked != want {
		t.Errorf("asked\n%s", asked)
	}
}

// Replays and schedules show in metrics.
func TestReplaysAndSchedulesAreCounted(t *testing.T) {
	p := startProcess(t, `
subscriptions:
  copy: {topic: orders, deliver: {topic: copies}}
schedules:
  tick: {topic: ticks, every: 1s}
`)
	p.must(202, "POST", "/v1/topics/orders/events", "application/json", "{}")
	until(t, "it is copied", func() bool {
		return strings.Contains(p.must(200, "GET", "/v1/subscriptions/copy", "", ""), `"delivered":1`)
	})
	p.must(202, "POST", "/v1/subscriptions/copy/replay", "application/json", `{"since":"earliest"}`)
	until(t, "it is counted", func() bool {
		text := p.must(200, "GET", "/metrics", "", "")
		for _, line := range []string{`millrace_replay_events_total{subscription="copy"} 1`, `millrace_schedule_fired_total{schedule="tick"} `, `millrace_schedule_skipped_total{schedule="tick"} 0`,
			`millrace_schedule_last_timestamp_seconds{schedule="tick"} `, `millrace_schedule_next_timestamp_seconds{schedule="tick"} `} {
			if !strings.Contains(text, "\n"+line) {
				return false
			}
		}
		return strings.Contains(p.must(200, "GET", "/v1/subscriptions/copy", "", ""), `"state":"done"`)
	})
}
