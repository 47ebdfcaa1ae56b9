package rules

import (
	"slices"
	"strings"
)

// A shape is the keys of one mapping.
type shape struct {
	keys  []string
	empty []string // of keys: those whose value may be left empty
}

var (
	rulesShape = shape{
		keys:  []string{"version", "topics", "functions", "subscriptions", "hosts", "schedules", "sources", "bridges", "mqtt", "tests"},
		empty: []string{"topics", "functions", "subscriptions", "hosts", "schedules", "sources", "bridges", "mqtt", "tests"},
	}
	topicShape = shape{
		keys: []string{"partitions", "retain", "whenFull", "dedupe", "schema", "trace"},
	}
	retainShape   = shape{keys: []string{"bytes", "age", "events"}}
	functionShape = shape{
		keys: []string{"wasm", "js", "limits", "config", "secrets", "allow"},
	}
	limitsShape       = shape{keys: []string{"cpu", "wall", "memory", "output", "fuel"}}
	allowShape        = shape{keys: []string{"http", "kv"}}
	subscriptionShape = shape{
		keys: []string{"topic", "start", "filter", "functions", "deliver", "order", "concurrency", "rate", "retry", "parked", "deadLetter", "shadow"},
	}
	retryShape = shape{
		keys: []string{"attempts", "schedule", "exponential", "jitter", "maxAge", "on4xx"},
	}
	exponentialShape = shape{keys: []string{"first", "factor", "max"}}
	hostShape        = shape{keys: []string{"concurrency", "rate"}}
	parkedShape      = shape{keys: []string{"bytes"}}
	pullShape        = shape{keys: []string{"ackDeadline"}}
	streamShape      = shape{keys: []string{"retain"}}
)

// fields checks a mapping's keys and returns their values. ok is false if it is no mapping; what is wrong
// with single keys leaves the others usable.
func (p *parser) fields(n *node, s shape) (map[string]*node, bool) {
	if n.kind != mapping {
		p.bad(n, "is %s; want a mapping with %s", n.kind, strings.Join(s.keys, ", "))
		return nil, false
	}
	values := make(map[string]*node, len(n.keys))
	for i, key := range n.keys {
		value := n.items[i]
		switch {
		case slices.Contains(s.keys, key.raw):
			if value.kind == null && !slices.Contains(s.empty, key.raw) {
				p.bad(value, "is empty; give it a value, or remove the key")
				continue
			}
			values[key.raw] = value
		case p.full(n): // what is near to the key would not be read
			p.count++
		default:
			in := ""
			if n.path != "" && !p.api {
				in = " in " + n.path
			}
			p.fault(p.keyed(key, value), "unknown key %s%s%s", quote(key.raw), in, suggest(key.raw, s.keys))
		}
	}
	return values, true
}

// keyed is the place of a key: in a file where it stands, in a document of the API its own path.
func (p *parser) keyed(key, value *node) *node {
	if !p.api {
		return key
	}
	k := *key
	k.path = value.path
	return &k
}
