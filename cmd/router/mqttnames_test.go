package main

import (
	"strings"
	"testing"
)

// Names follow the rules and the API: each change puts others in force as a whole, and a refused one changes nothing.
func TestNamesFollowDefinitions(t *testing.T) {
	const rules = "topics: {readings: {}}\nmqtt:\n  s/+: {topic: readings, subject: \"{1}\"}\n"
	p := startProcess(t, rules)
	sources := func() string {
		var ids []string
		for _, s := range p.r.defs.MQTT().Sources() {
			ids = append(ids, s.ID)
		}
		return strings.Join(ids, " ")
	}
	if got := sources(); got != "topic:readings" {
		t.Fatal(got)
	}
	first := p.r.defs.MQTT()
	if m, _, ok := first.Route("s/1", nil); !ok || m.Topic != "readings" {
		t.Fatal("s/1 leads nowhere")
	}
	hot := p.must(201, "POST", "/v1/subscriptions", "application/json", `{"name": "hot", "topic": "readings", "deliver": {"mqtt": {"topic": "alerts/{subject}"}}}`)
	if !strings.Contains(hot, `"mqtt":{"topic":"alerts/{subject}"`) {
		t.Error(hot)
	}
	if got := sources(); got != "subscription:hot topic:readings" {
		t.Error(got)
	}
	select {
	case <-first.Changed():
	default:
		t.Error("the change is not told")
	}
	p.must(202, "POST", "/v1/topics/readings/events", "application/json", `{"a": 1}`)
	if got := p.must(200, "GET", "/v1/topics/hot.out", "application/json", ""); !strings.Contains(got, `"hot.out"`) { // it is a stream as well
		t.Error(got)
	}
	p.must(400, "POST", "/v1/subscriptions", "application/json", `{"name": "bad", "topic": "readings", "deliver": {"mqtt": {"topic": "alerts/{1}"}}}`)
	p.write(strings.Replace(rules, "s/+", "s/#/+", 1))
	until(t, "bad rules are refused", func() bool { counts, _, _ := p.r.defs.loadStats(); return counts.refused > 0 })
	if got := sources(); got != "subscription:hot topic:readings" {
		t.Error(got)
	}
	p.write("topics: {readings: {}}\n")
	until(t, "the mapping goes", func() bool { return sources() == "subscription:hot" })
	p.must(204, "DELETE", "/v1/subscriptions/hot", "application/json", "")
	if got := sources(); got != "" {
		t.Error(got)
	}
}
