package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// An open circuit shows in metrics and in the subscription's state, limits of hosts with the rules.
func TestCircuitIsShown(t *testing.T) {
	p := startProcess(t, `
hosts:
  Gone.example: {concurrency: 2}
subscriptions:
  hook:
    topic: orders
    rate: 5000/s
    retry: {attempts: unlimited, schedule: [1ms]}
    deliver: {webhook: {url: "http://127.0.0.1:1/"}}
`)
	p.must(202, "POST", "/v1/topics/orders/events", "application/json", "{}")
	until(t, "the circuit is open", func() bool {
		text := p.must(200, "GET", "/metrics", "", "")
		return strings.Contains(text, `millrace_subscription_circuit_open{subscription="hook"} 1`) &&
			strings.Contains(text, `millrace_subscription_stopped{subscription="hook"} 1`) &&
			strings.Contains(text, `millrace_subscription_rate_waits_total{subscription="hook"} 0`) &&
			strings.Contains(text, `millrace_subscription_host_waits_total{subscription="hook"} 0`)
	})
	var doc struct {
		State struct {
			State, Reason, Since string
			Circuit              struct {
				State, Next, Reason string
				Failures            int
			}
		}
	}
	if err := json.Unmarshal([]byte(p.must(200, "GET", "/v1/subscriptions/hook", "", "")), &doc); err != nil {
		t.Fatal(err)
	}
	if s := doc.State; s.State != "open" || s.Since == "" || s.Circuit.State != "open" || s.Circuit.Failures != 10 || s.Circuit.Next == "" || !strings.Contains(s.Reason, s.Circuit.Reason) {
		t.Errorf("%+v", s)
	}
	if text := p.must(200, "GET", "/v1/rules", "", ""); !strings.Contains(text, `"hosts":{"gone.example":{"concurrency":2,"rate":"unlimited"}}`) {
		t.Error(text)
	}
	p.must(204, "POST", "/v1/subscriptions/hook/pause", "application/json", `{"reason":"they move house"}`)
	if text := p.must(200, "GET", "/v1/subscriptions/hook", "", ""); !strings.Contains(text, `"reason":"they move house"`) {
		t.Error(text)
	}
}
