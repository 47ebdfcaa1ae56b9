package rules

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// What is said of order and retries is in force, and shown with what it implies.
func TestOrderAndRetry(t *testing.T) {
	schedule := event.DefaultSchedule
	for _, c := range []struct {
		keys  string
		order event.Order
		want  event.RetryPolicy
		shown string
	}{
		{`"order": "none"`, event.Unordered, event.RetryPolicy{Attempts: 10, Schedule: schedule, Jitter: 0.2}, `{"attempts":10,"schedule":["5s","5m","30m","2h","5h","10h","14h","20h","1d"],"jitter":0.2,"on4xx":"retry"}`},
		{`"order": "key", "retry": {"schedule": "exponential", "on4xx": "retry"}`, event.ByKey,
			event.RetryPolicy{Attempts: 10, Exponential: &event.Exponential{First: time.Second, Max: time.Hour, Factor: 2}, Jitter: 0.2},
			`{"attempts":10,"exponential":{"first":"1s","factor":2,"max":"1h"},"jitter":0.2,"on4xx":"retry"}`},
		{`"retry": {"exponential": {"first": "250ms", "factor": 1.5, "max": "10m"}, "maxAge": "24h", "on4xx": "deadLetter", "jitter": 0, "attempts": "unlimited"}`, event.Unordered,
			event.RetryPolicy{Attempts: event.Unlimited, Exponential: &event.Exponential{First: 250 * time.Millisecond, Max: 10 * time.Minute, Factor: 1.5}, MaxAge: 24 * time.Hour, On4xx: event.DeadLetter4xx},
			`{"attempts":"unlimited","exponential":{"first":"250ms","factor":1.5,"max":"10m"},"jitter":0,"maxAge":"1d","on4xx":"deadLetter"}`},
		{`"retry": {"exponential": {"first": "2h"}}`, event.Unordered,
			event.RetryPolicy{Attempts: 10, Exponential: &event.Exponential{First: 2 * time.Hour, Max: 2 * time.Hour, Factor: 2}, Jitter: 0.2},
			`{"attempts":10,"exponential":{"first":"2h","factor":2,"max":"2h"},"jitter":0.2,"on4xx":"retry"}`},
	} {
		s, err := ParseSubscription([]byte(`{"name": "s", "topic": "t", "deliver": {"pull": {}}, `+c.keys+`}`), testOptions())
		if err != nil {
			t.Errorf("%s: %v", c.keys, err)
			continue
		}
		if s.Order != c.order || !reflect.DeepEqual(s.Retry, c.want) {
			t.Errorf("%s: order %v, retry %+v", c.keys, s.Order, s.Retry)
		}
		var shown struct{ Retry json.RawMessage }
		if err := json.Unmarshal(s.Effective, &shown); err != nil || string(shown.Retry) != c.shown {
			t.Errorf("%s is shown as %s (%v)\nwant %s", c.keys, shown.Retry, err, c.shown)
		}
	}
}
