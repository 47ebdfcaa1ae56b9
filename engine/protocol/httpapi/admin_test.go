package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

func TestPull(t *testing.T) {
	f := newFake("workers")
	f.put(t, "workers", "job", 3)
	_, base := serve(t, Options{Backend: f})
	u := base + "/v1/subscriptions/workers/"
	js := []string{"Content-Type", "application/json"}
	resp, body := do(t, "POST", u+"pull", `{"max": 2, "wait": "10s"}`, js...)
	var got struct {
		Deliveries []struct {
			Lease    string
			Attempt  int
			Deadline time.Time
			Event    map[string]any
		}
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || resp.StatusCode != 200 || len(got.Deliveries) != 2 {
		t.Fatalf("%d %s %v", resp.StatusCode, body, err)
	}
	d := got.Deliveries[1]
	if d.Lease != "workers/1" || d.Attempt != 1 || !d.Deadline.Equal(f.epoch.Add(10*time.Second)) || d.Event["millraceposition"] != "0-1" || d.Event["type"] != "job" {
		t.Errorf("%+v", d)
	}
	if _, body = do(t, "POST", u+"pull", ""); !strings.Contains(body, "workers/2") {
		t.Errorf("an empty body: %s", body)
	}
	if _, body = do(t, "POST", u+"pull", "{}", js...); body != `{"deliveries":[]}`+"\n" {
		t.Errorf("nothing left: %s", body)
	}
	for verb, extra := range map[string]string{"ack": "", "nack": `, "delay": "30s"`, "extend": `, "deadline": "60s"`} {
		resp, body := do(t, "POST", u+verb, `{"leases": ["workers/0", "gone"]`+extra+`}`, js...)
		if resp.StatusCode != 200 || body != `{"lost":["gone"],"reasons":["expired"]}`+"\n" {
			t.Errorf("%s: %d %s", verb, resp.StatusCode, body)
		}
		if want := map[string]time.Duration{"nack": 30 * time.Second, "extend": time.Minute}[verb]; verb != "ack" && f.waited != want {
			t.Errorf("%s: %s, want %s", verb, f.waited, want)
		}
		if _, body := do(t, "POST", u+verb, `{"leases": ["workers/0"]`+extra+`}`, js...); body != `{"lost":[]}`+"\n" {
			t.Errorf("%s: %s", verb, body)
		}
	}
	for _, tt := range []struct {
		verb, body string
		status     int
		words      string
	}{
		{"pull", `{"max": 0}`, 400, "1 to 1000"}, {"pull", `{"max": 1001}`, 400, "1 to 1000"}, {"pull", `{"wait": "31s"}`, 400, "0s to 30s"},
		{"pull", `{"maximum": 3}`, 400, "maximum"}, {"pull", `{`, 400, "broken JSON"}, {"pull", `{"max":"x"}`, 400, "max"},
		{"ack", `{}`, 400, "leases"}, {"ack", `{"leases":["a"],"delay":"1s"}`, 400, "nack"}, {"ack", `{"leases":["a"],"deadline":"1s"}`, 400, "extend"},
		{"nack", `{"leases":["a"],"reply":{"status":200}}`, 400, "goes with ack alone"},
		{"ack", `{"leases":["a"],"reply":{"status":199}}`, 400, "want 200 to 599"},
		{"ack", `{"leases":["a"],"reply":{"status":"200"}}`, 400, "cannot unmarshal"},
		{"ack", `{"leases":["a"],"reply":{"state":1}}`, 400, "unknown field"},
		{"ack", `{"leases":["a"],"reply":[]}`, 400, "cannot unmarshal"},
		{"ack", `{"leases":["a"],"reply":{"contentType":"text/plain\r\nx: y"}}`, 400, "a header cannot carry"},
		{"ack", `{"leases":["a"],"reply":{"data":1,"data_base64":"eA=="}}`, 400, "stands beside data_base64"},
		{"ack", `{"leases":["a"],"reply":{"data_base64":"?"}}`, 400, "is not base64"},
		{"ack", `{"leases":["a"],"reply":{"contentType":"text/plain","data":{}}}`, 400, "want a string"},
		{"nack", `{"leases":["a"],"delay":"25h"}`, 400, "24h"}, {"extend", `{"leases":["a"]}`, 400, "10s to 10m"}, {"extend", `{"leases":["a"],"deadline":"9s"}`, 400, "10s"},
		{"extend", `{"leases":["a"],"deadline":"601s"}`, 400, `deadline: is \"601s\"; want a duration from now of 10s to 10m0s, or 0s`}, {"extend", `{"leases":["a"],"deadline":"-1s"}`, 400, "deadline"},
		{"nack", `{"leases":["a"],"delay":"-1s"}`, 400, `delay: is \"-1s\"; want a duration of 0s to 24h`}, {"nack", `{"leases":["a"],"delay":"NaN"}`, 400, "delay"},
		{"nack", `{"leases":["a"],"delay":"99999999999h"}`, 400, "delay"}, {"nack", `{"leases":["a"],"delay":"1e9s"}`, 400, "delay"}, {"nack", `{"leases":["a"],"delay":-5}`, 400, "delay"},
		{"pull", `{"wait": "-1s"}`, 400, "wait"}, {"pull", `{"wait": "NaN"}`, 400, "wait"}, {"pull", `{"max": -9223372036854775809}`, 400, "max"},
		{"ack", `{"leases":[` + strings.Repeat(`"x",`, 10_000) + `"x"]}`, 413, "leases: has 10001 entries; one request may have 10000"},
	} {
		resp, body := do(t, "POST", u+tt.verb, tt.body, js...)
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.words) {
			t.Errorf("%s %s: %d %s", tt.verb, tt.body, resp.StatusCode, body)
		}
	}
	if resp, body := do(t, "POST", base+"/v1/subscriptions/none/pull", "{}", js...); resp.StatusCode != 404 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestDefinitions(t *testing.T) {
	f := newFake()
	_, base := serve(t, Options{Backend: f})
	js := []string{"Content-Type", "application/json"}
	for _, kind := range []string{"topics", "subscriptions"} {
		u := base + "/v1/" + kind
		if _, body := do(t, "GET", u, ""); body != `{"`+kind+`":[]}`+"\n" {
			t.Errorf("%s: %s", kind, body)
		}
		resp, body := do(t, "POST", u, `{"name": "a"}`, js...)
		if resp.StatusCode != 201 || resp.Header.Get("Location") != "/v1/"+kind+"/a" {
			t.Errorf("%s: %d %v %s", kind, resp.StatusCode, resp.Header, body)
		}
		if resp, body = do(t, "POST", u, `{"name": "a"}`, js...); resp.StatusCode != 409 || !strings.Contains(body, "millrace.yaml:7") {
			t.Errorf("%s: %d %s", kind, resp.StatusCode, body)
		}
		if resp, body = do(t, "PATCH", u+"/a", `{"x": 1}`, "Content-Type", "application/merge-patch+json"); resp.StatusCode != 200 || body != `{"name":"a","x":1}` {
			t.Errorf("%s: %d %s", kind, resp.StatusCode, body)
		}
		if resp, body = do(t, "GET", u+"/a", ""); resp.StatusCode != 200 || body != `{"name":"a","x":1}` {
			t.Errorf("%s: %d %s", kind, resp.StatusCode, body)
		}
		if resp, body = do(t, "POST", u, `name: b`, "Content-Type", "application/yaml"); resp.StatusCode != 415 {
			t.Errorf("%s: %d %s", kind, resp.StatusCode, body)
		}
		if resp, body = do(t, "POST", u, `{`, js...); resp.StatusCode != 400 {
			t.Errorf("%s: %d %s", kind, resp.StatusCode, body)
		}
		if resp, _ = do(t, "DELETE", u+"/a", ""); resp.StatusCode != 204 {
			t.Errorf("%s: %d", kind, resp.StatusCode)
		}
		for _, method := range []string{"GET", "PATCH", "DELETE"} {
			if resp, body = do(t, method, u+"/a", `{}`, js...); resp.StatusCode != 404 {
				t.Errorf("%s %s: %d %s", method, kind, resp.StatusCode, body)
			}
		}
	}
	u := base + "/v1/functions/redact"
	if resp, body := do(t, "PUT", u, "\x00asm\x01\x00\x00\x00", "Content-Type", "application/wasm"); resp.StatusCode != 200 || !strings.Contains(body, `"bytes":8`) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, body := do(t, "PUT", u, "x", "Content-Type", "text/plain"); resp.StatusCode != 415 || !strings.Contains(body, "curl -T") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, body := do(t, "GET", u, ""); resp.StatusCode != 200 || !strings.Contains(body, "application/wasm") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if _, body := do(t, "GET", base+"/v1/functions", ""); !strings.Contains(body, `{"functions":[{"name":"redact"`) {
		t.Error(body)
	}
	if resp, _ := do(t, "DELETE", u, ""); resp.StatusCode != 204 {
		t.Errorf("%d", resp.StatusCode)
	}
}

func TestOperate(t *testing.T) {
	f := newFake()
	var broken error
	_, base := serve(t, Options{Backend: f, Version: "v9", Metrics: func(w io.Writer) error {
		fmt.Fprintln(w, "millrace_fake 1")
		return broken
	}})
	js := []string{"Content-Type", "application/json"}
	sub := base + "/v1/subscriptions/w/"
	do(t, "POST", base+"/v1/subscriptions", `{"name":"w"}`, js...)
	for _, tt := range []struct {
		to   string
		want event.Start
	}{
		{"earliest", event.Start{At: event.Earliest}}, {"latest", event.Start{At: event.Latest}}, {"c7", event.Start{At: event.AtCursor, Cursor: "c7"}},
		{"2026-01-02T03:04:05Z", event.Start{At: event.AtTime, Time: f.epoch}},
	} {
		resp, body := do(t, "POST", sub+"seek", fmt.Sprintf(`{"to":%q}`, tt.to), js...)
		if resp.StatusCode != 204 || len(f.seeks) == 0 || f.seeks[len(f.seeks)-1] != tt.want {
			t.Errorf("%s: %d %s %v", tt.to, resp.StatusCode, body, f.seeks)
		}
	}
	if resp, _ := do(t, "POST", sub+"seek", `{"to":"1h"}`, js...); resp.StatusCode != 204 || f.seeks[len(f.seeks)-1].At != event.AtTime ||
		time.Since(f.seeks[len(f.seeks)-1].Time).Round(time.Minute) != time.Hour {
		t.Errorf("an hour back: %d %v", resp.StatusCode, f.seeks[len(f.seeks)-1])
	}
	if resp, body := do(t, "POST", sub+"seek", "{}", js...); resp.StatusCode != 400 || !strings.Contains(body, "earliest") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	for _, verb := range []string{"pause", "resume"} {
		if resp, body := do(t, "POST", sub+verb, ""); resp.StatusCode != 204 {
			t.Errorf("%s: %d %s", verb, resp.StatusCode, body)
		}
		if resp, body := do(t, "POST", base+"/v1/subscriptions/none/"+verb, ""); resp.StatusCode != 404 {
			t.Errorf("%s: %d %s", verb, resp.StatusCode, body)
		}
	}
	if resp, body := do(t, "POST", sub+"pause", `{"reason":"they move house"}`, js...); resp.StatusCode != 204 || f.paused[len(f.paused)-1] != "they move house" {
		t.Errorf("%d %s %q", resp.StatusCode, body, f.paused)
	}
	if resp, body := do(t, "POST", sub+"pause", `{"why":"x"}`, js...); resp.StatusCode != 400 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if _, body := do(t, "GET", base+"/v1/rules", ""); !strings.HasPrefix(body, `{"version":1`) {
		t.Error(body)
	}
	if _, body := do(t, "POST", base+"/v1/rules/validate", "version: 1\n", "Content-Type", "application/yaml"); body != `{"valid":true}`+"\n" {
		t.Error(body)
	}
	if resp, body := do(t, "POST", base+"/v1/rules/validate", "webhok", "Content-Type", "application/yaml"); resp.StatusCode != 400 || !strings.Contains(body, `"at":"rules.yaml:7:5"`) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if _, body := do(t, "GET", base+"/healthz", ""); !strings.Contains(body, `"version":"v9"`) {
		t.Error(body)
	}
	if resp, body := do(t, "GET", base+"/readyz", ""); resp.StatusCode != 200 || body != `{"status":"a fake"}` {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	f.notWell = fmt.Errorf("the store is read-only: %w", event.ErrUnavailable)
	if resp, body := do(t, "GET", base+"/readyz", ""); resp.StatusCode != 503 || !strings.Contains(body, `"details":{"status":"a fake"}`) || !strings.Contains(body, "read-only") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, body := do(t, "GET", base+"/metrics", ""); resp.StatusCode != 200 || body != "millrace_fake 1\n" || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	broken = errors.New("no metrics")
	if resp, body := do(t, "GET", base+"/metrics", ""); resp.StatusCode != 500 || strings.Contains(body, "no metrics") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// panics is a fake that breaks.
type panics struct{ *fake }

func (panics) Rules(context.Context) ([]byte, error) { panic("broken backend") }

func TestAPanicEndsOneRequest(t *testing.T) {
	_, base := serve(t, Options{Backend: panics{newFake()}})
	for range 2 {
		if resp, body := do(t, "GET", base+"/v1/rules", ""); resp.StatusCode != 500 || strings.Contains(body, "broken") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}
}
