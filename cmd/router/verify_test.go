package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/connector/webhook"
)

// A liar is a router that acknowledges everything and delivers as lie says: what comes back for a line of a request is sent
// on, in its order.
type liar struct {
	lie func(way string, lines []string) []string

	mu     sync.Mutex
	hooks  map[string]string // way: URL
	secret string
	queue  []string // of the pull subscription
}

func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch path := r.URL.Path; {
	case path == "/v1/subscriptions":
		var doc struct {
			Name    string
			Deliver struct {
				Webhook struct {
					URL     string
					Secrets []string
				}
			}
		}
		_ = json.Unmarshal(body, &doc)
		if hook := doc.Deliver.Webhook; hook.URL != "" {
			l.hooks[doc.Name[strings.LastIndex(doc.Name, "-")+1:]], l.secret = hook.URL, hook.Secrets[0]
		}
		fmt.Fprint(w, `{}`)
	case strings.HasSuffix(path, "/pull"):
		answer := `{"deliveries":[`
		for i, e := range l.queue {
			if i > 0 {
				answer += ","
			}
			answer += fmt.Sprintf(`{"lease":"l%d","attempt":1,"event":%s}`, i, e)
		}
		l.queue = nil
		fmt.Fprint(w, answer+"]}")
	case strings.HasSuffix(path, ".dead/events"):
		fmt.Fprint(w, `{"events":[],"next":""}`)
	case strings.HasSuffix(path, "/events"):
		lines := strings.Split(strings.TrimSpace(string(body)), "\n")
		for way, url := range l.hooks {
			for _, line := range l.lie(way, lines) {
				l.post(url, line)
			}
		}
		l.queue = append(l.queue, l.lie(wayPull, lines)...)
		fmt.Fprintf(w, `{"accepted":%d}`, len(lines))
	default:
		fmt.Fprint(w, `{}`)
	}
}

// post delivers until it is taken.
func (l *liar) post(url, line string) {
	for range 3 {
		req, _ := http.NewRequest("POST", url, strings.NewReader(line))
		now := time.Now()
		req.Header.Set("Webhook-Id", "m")
		req.Header.Set("Webhook-Timestamp", fmt.Sprint(now.Unix()))
		req.Header.Set("Webhook-Signature", webhook.Sign(l.secret, "m", now.Unix(), []byte(line)))
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return
		}
		res.Body.Close()
		if res.StatusCode < 300 {
			return
		}
	}
}

// verify finds each kind of lie out, names what it is about, and exits with 1.
func TestVerifyFindsLiars(t *testing.T) {
	t.Parallel()
	honest := func(_ string, lines []string) []string { return lines }
	without := func(id string) func(string, []string) []string {
		return func(way string, lines []string) []string {
			return slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return way == wayPull && strings.Contains(line, id) })
		}
	}
	tests := []struct {
		name string
		lie  func(way string, lines []string) []string
		want string // "" for none
	}{
		{"an honest one", honest, ""},
		{"one that drops", without(`-k3-2"`), "pull: 1 acknowledged and not delivered: RUN-k3-2"},
		{"one that reorders", func(way string, lines []string) []string {
			if way == wayOrdered {
				lines = slices.Clone(lines)
				slices.Reverse(lines)
			}
			return lines
		}, "ordered: N first delivered after a later one of their key: RUN-"},
		{"one that alters", func(way string, lines []string) []string {
			lines = slices.Clone(lines)
			for i := range lines {
				if way == wayHook {
					lines[i] = strings.Replace(lines[i], `"n":1,`, `"n":2,`, 1)
				}
			}
			return lines
		}, "webhook: N delivered with other content: RUN-"},
		{"one that invents", func(way string, lines []string) []string {
			if way == wayHook {
				return append(slices.Clone(lines), `{"id":"other","data":1}`)
			}
			return lines
		}, "webhook: N delivered and never published"},
	}
	runIDs := regexp.MustCompile(`[0-9a-f]{8}-k`)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(&liar{lie: tt.lie, hooks: map[string]string{}})
			defer s.Close()
			var out, errs bytes.Buffer
			code := run(t.Context(), "", []string{"verify", "--server", s.URL, "--events", "300", "--connections", "2", "--kills", "0", "--patience", "1s", "-o", "json"},
				strings.NewReader(""), &out, &errs, func(string) string { return "" })
			var d verdict
			if err := json.Unmarshal(out.Bytes(), &d); err != nil {
				t.Fatalf("%v: %s%s", err, out.String(), errs.String())
			}
			if tt.want == "" {
				if code != exitDone || !d.OK || len(d.Faults) > 0 {
					t.Errorf("exit %d, %q", code, d.Faults)
				}
				return
			}
			before, after, _ := strings.Cut(tt.want, "N")
			found := slices.ContainsFunc(d.Faults, func(f string) bool {
				f = runIDs.ReplaceAllString(f, "RUN-k")
				return f == tt.want || after != "" && strings.HasPrefix(f, before) && strings.Contains(f, after)
			})
			if code != exitFailed || d.OK || !found {
				t.Errorf("exit %d, %q; want 1 and %q", code, d.Faults, tt.want)
			}
		})
	}
}
