package rules

import (
	"fmt"
	"strings"
	"testing"
)

// many is a rules file of n subscriptions with filters and webhooks.
func many(n int) string {
	var b strings.Builder
	b.WriteString("version: 1\ntopics:\n  orders:\n    schema:\n      properties:\n        total: {type: number}\n        country: {type: string}\nsubscriptions:\n")
	for i := range n {
		fmt.Fprintf(&b, `  customer-%05d:
    topic: orders
    filter: type == "order.created" && data.total > %d && data.country in ["DE", "FR"] && subject == "customer-%d"
    deliver:
      webhook:
        url: https://customer-%d.example.com/hook
        secrets: ["${env:HOOK_SECRET}"]
        headers: {x-customer: "%d"}
        timeout: 10s
    retry: {attempts: 5, schedule: [5s, 5m, 30m]}
`, i, i%1000, i, i, i)
	}
	return b.String()
}

// A file of as many subscriptions as a router is meant for is within the bounds of files; how fast it is read whole is a
// benchmark's to say.
func TestManySubscriptions(t *testing.T) {
	p := newParser(testOptions())
	n := p.read(&source{name: "r.yaml", text: []byte(many(10_000))})
	if err := p.err(); n == nil || err != nil || len(n.get("subscriptions").items) != 10_000 {
		t.Errorf("%v", err)
	}
}

func BenchmarkParse(b *testing.B) {
	text, o := []byte(many(10_000)), testOptions()
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := ParseBytes("r.yaml", text, o); err != nil {
			b.Fatal(err)
		}
	}
}
