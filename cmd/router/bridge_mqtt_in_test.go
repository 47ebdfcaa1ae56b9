package main

import (
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// publish has mosquitto_pub send a message for each line of text, in order.
func (b *mosquitto) publish(name, text string, args ...string) {
	b.t.Helper()
	host, port, _ := net.SplitHostPort(b.addr)
	cmd := exec.Command("mosquitto_pub", append([]string{"-h", host, "-p", port, "-u", "bridge", "-P", "broker-password", "-q", "1", "-V", "5", "-t", name, "-l"}, args...)...)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("%v: %s", err, out)
	}
}

func jsonLines(from, to int) string {
	var text strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintf(&text, "{\"n\":%d}\n", i)
	}
	return text.String()
}

// What is published to a broker while the router is down arrives once it is back, in order and once, through outages of the
// broker too; it is mapped as the rules' `mqtt` does.
func TestBridgeBringsInFromABroker(t *testing.T) {
	b := startMosquitto(t)
	const rules = `version: 1
bridges:
  site:
    topic: readings
    from: {mqtt: "mqtt://%[1]s", filters: [%[2]s], type: reading, subject: "{1}", user: bridge, password: broker-password}
  wrong:
    topic: readings
    from: {mqtt: "mqtt://%[1]s", filters: ["x/#"], user: bridge, password: other-password}
`
	p := startProcess(t, fmt.Sprintf(rules, b.addr, `"sensors/+/temp"`))
	state := func(name string) (s bridgeState) {
		for _, s = range p.r.inlets.states() {
			if s.Name == name {
				return s
			}
		}
		t.Fatalf("no bridge %s", name)
		return s
	}
	count := func(n int) func() bool {
		return func() bool { return len(p.events("readings")) >= n }
	}
	until(t, "it is subscribed", func() bool { return state("site").Last != nil })
	b.publish("sensors/a/temp", jsonLines(0, 100))
	until(t, "they arrive", count(100))
	p.stop()
	b.publish("sensors/a/temp", jsonLines(100, 600))
	b.stop()
	p.start()
	until(t, "it says why it waits", func() bool { return strings.Contains(state("site").Reason, "connection refused") })
	b.start()
	until(t, "the rest arrives", count(600))
	page := p.must(200, "GET", "/v1/topics/readings/events?limit=1000", "", "")
	at := 0
	for i := range 600 {
		n := strings.Index(page[at:], fmt.Sprintf(`"data":{"n":%d}`, i))
		if n < 0 {
			t.Fatalf("%d is missing, or out of order", i)
		}
		at += n
	}
	for _, want := range []string{`"type":"reading"`, `"subject":"a"`, `"mqtttopic":"sensors/a/temp"`} {
		if strings.Count(page, want) != 600 {
			t.Errorf("%d events have %s", strings.Count(page, want), want)
		}
	}

	// Other filters take the place of those that the session had, and what is no event is left out and counted.
	b.publish("kept/b/temp", "{\"n\":-1}\n", "-r")
	p.write(fmt.Sprintf(rules, b.addr, `"kept/+/temp"`))
	if err := p.r.defs.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "what is retained arrives", count(601))
	b.publish("sensors/a/temp", "1\n")
	b.publish("kept/b/temp", "not JSON\n", "-D", "publish", "content-type", "application/json")
	b.publish("kept/b/temp", "last\n")
	until(t, "the last arrives", count(602))
	if s := state("site"); s.Refused != 1 || s.State != "running" || s.Lost != 0 {
		t.Errorf("%+v", s)
	}
	if s := state("wrong"); s.State != "waiting" || !strings.Contains(s.Reason, "refuses the connection") {
		t.Errorf("%+v", s)
	}
	p.stop()
	if log := p.log.String(); strings.Contains(log, "other-password") || strings.Contains(log, "broker-password") {
		t.Error("a password is in the log")
	}
	p.start()
	until(t, "it is back", func() bool { return state("site").Last != nil })
	if ids := p.events("readings"); len(ids) != 602 || len(slices.Compact(slices.Sorted(slices.Values(ids)))) != 602 {
		t.Errorf("%d events, want 602: what is retained does not come again", len(ids))
	}
}
