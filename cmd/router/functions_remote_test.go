package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

const emitAnswer = `{"results":[
  {"verdict":"emit","event":{"specversion":"1.0","id":"a~1","source":"/s","type":"t\u001b[2J","time":"2026-01-01T00:00:00Z","data":{"x":1}},"topic":"audit"},
  {"verdict":"reject","code":422,"reason":"no\ntotal"},{"verdict":"retry","delay":"1.5s"},{"verdict":"drop"}],
  "fuel":812,"time":"12µs"}`

func TestInvoke(t *testing.T) {
	status, kind, body, policy := 200, "application/json", emitAnswer, ""
	var asked, sent, media string
	url := serveHandler(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		asked, sent, media = r.Method+" "+r.URL.RequestURI(), string(b), r.Header.Get("Content-Type")
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Content-Security-Policy", policy)
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	})
	code, stdout, stderr := runAt(t, url, "invoke", "redact", `{"total":1}`, "--type", "order.created", "--version", "sha256:ab")
	if code != 0 || asked != "POST /v1/functions/redact/invoke?type=order.created&version=sha256%3Aab" || sent != `{"total":1}` || media != "application/json" {
		t.Errorf("exit %d, asked %s with %s as %s", code, asked, sent, media)
	}
	want := "emit to audit  2026-01-01T00:00:00Z  t\\x1b[2J  a~1  {\"x\":1}\nreject  422 no\\ntotal\nretry  1.5s\ndrop\n"
	if stdout != want || stderr != "12µs, fuel 812\n" {
		t.Errorf("got  %q\nwant %q\nand %q", stdout, want, stderr)
	}
	if _, stdout, _ = runAt(t, url, "invoke", "redact", `{"specversion":"1.0"}`, "-o", "json"); !strings.Contains(stdout, `"fuel":812`) || media != "application/cloudevents+json" {
		t.Errorf("as JSON, sent as %s:\n%s", media, stdout)
	}

	// A reply is printed as it is, whatever its status and type.
	policy = "sandbox; default-src 'none'"
	status, kind, body = 404, "text/plain", "no such order"
	code, stdout, stderr = runAt(t, url, "invoke", "redact", "x")
	if code != 0 || stdout != "no such order" || stderr != "status 404\n" {
		t.Errorf("a reply: exit %d, %q, %q", code, stdout, stderr)
	}
	status, kind, body = 200, "application/json", `{"total":250}`
	if code, stdout, _ = runAt(t, url, "invoke", "redact", "x"); code != 0 || stdout != `{"total":250}` {
		t.Errorf("a reply in JSON: exit %d, %q", code, stdout)
	}

	status, kind, body = 409, "application/problem+json", `{"title":"Taken"}`
	if code, stdout, _ = runAt(t, url, "invoke", "redact", "x"); code != 0 || stdout != body {
		t.Errorf("a reply that is a problem: exit %d, %q", code, stdout)
	}
	policy = ""
	status, kind, body = 200, "text/html", "hello"
	if code, _, stderr = runAt(t, url, "invoke", "redact", "x"); code != exitFailed || !strings.Contains(stderr, "is it a router?") {
		t.Errorf("another server: exit %d, %q", code, stderr)
	}

	// A call that failed is an error, with its reason.
	status, kind, body = 502, "application/problem+json", `{"title":"Bad Gateway","detail":"the function failed","errors":[{"at":"trap","detail":"unreachable"}]}`
	code, stdout, stderr = runAt(t, url, "invoke", "redact", "x")
	if code != exitFailed || stdout != "" || stderr != "router: 502 Bad Gateway: the function failed\n  trap: unreachable\n" {
		t.Errorf("a failed call: exit %d, %q, %q", code, stdout, stderr)
	}
	if code, _, _ = runAt(t, url, "invoke", "redact", "x", "--file", "y"); code != exitUsage {
		t.Errorf("data twice: exit %d", code)
	}
}

func TestRollback(t *testing.T) {
	var asked, sent string
	url := serveHandler(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		asked, sent = r.Method+" "+r.URL.Path, string(b)
		fmt.Fprint(w, `{"name":"redact","state":{"digest":"sha256:old"}}`)
	})
	for _, c := range []struct {
		args []string
		sent string
	}{
		{[]string{"fn", "rollback", "redact"}, `{}`},
		{[]string{"functions", "rollback", "redact", "--to", "sha256:old"}, `{"to":"sha256:old"}`},
	} {
		code, stdout, stderr := runAt(t, url, c.args...)
		if code != 0 || asked != "POST /v1/functions/redact/rollback" || sent != c.sent || stdout != "redact is sha256:old\n" {
			t.Errorf("%v: exit %d, asked %s with %s: %s%s", c.args, code, asked, sent, stdout, stderr)
		}
	}
}

// Following comes back after a lost connection, without the lines that it has shown, and ends when it is refused.
func TestLogs(t *testing.T) {
	n := 0
	var asked []string
	url := serveHandler(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RawQuery)
		switch n++; n {
		case 1:
			fmt.Fprint(w, `{"time":"2026-01-01T10:11:12.5Z","function":"redact","level":"info","message":"a\u001b[2J"}`+"\n\n")
			fmt.Fprint(w, `{"time":"2026-01-01T10:11:13Z","level":"call","events":3,"fuel":900,"duration":"1.2ms","results":{"pass":1,"emit":1},"failed":1,"failures":[{"reason":"trap","detail":"no"}]}`+"\n")
		case 2:
			fmt.Fprint(w, `{"time":"2026-01-01T10:11:14Z","level":"warn","message":"b"}`+"\n")
			fmt.Fprint(w, `{"time":"2026-01-01T10:11:15Z","level":"call","shadow":true,"calls":7,"events":70,"fuel":0,"duration":"2ms","results":{"drop":70}}`+"\n")
		default:
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(404)
			fmt.Fprint(w, `{"title":"Not Found"}`)
		}
	})
	code, stdout, stderr := runAt(t, url, "fn", "logs", "redact", "-f", "--limit", "5")
	want := "10:11:12.500 info  a\\x1b[2J\n" +
		"10:11:13.000 call  3 events, 1.2ms, fuel 900: emit 1, pass 1, failed 1\n                   trap: no\n" +
		"10:11:14.000 warn  b\n" +
		"10:11:15.000 calls 7 with 70 events, 2ms, in the shadow: drop 70\n"
	if code != exitFailed || stdout != want || !strings.Contains(stderr, "404 Not Found") {
		t.Errorf("exit %d\ngot\n%swant\n%sand %s", code, stdout, want, stderr)
	}
	if len(asked) != 3 || asked[0] != "follow=true&limit=5" || asked[1] != "follow=true&limit=0" {
		t.Errorf("asked for %q", asked)
	}
	if code, _, _ := runAt(t, url, "fn", "logs", "redact", "--limit", "-1"); code != exitUsage {
		t.Errorf("a negative limit: exit %d", code)
	}
}
