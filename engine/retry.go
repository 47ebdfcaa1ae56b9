package engine

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// backoff is the wait after the given number of tries, with jitter.
func backoff(r event.RetryPolicy, tries int) time.Duration {
	var d float64
	if x := r.Exponential; x != nil {
		d = min(float64(x.First)*math.Pow(x.Factor, float64(max(tries, 1)-1)), float64(x.Max))
	} else {
		d = float64(r.Schedule[min(max(tries, 1), len(r.Schedule))-1])
	}
	return time.Duration(d * (1 + r.Jitter*(2*rand.Float64()-1)))
}

// maxDelay bounds how long an event may ask to be held back.
const maxDelay = 30 * 24 * time.Hour

// delayAttribute is the CloudEvents extension that says when an event is to be delivered, not before.
const delayAttribute = "deliverat"

// delayed reports whether an event is not to be delivered yet, and when it is, Unix ns.
func (e *Engine) delayed(rec event.Record) (due int64, later bool) {
	a, ok := rec.Extension(delayAttribute)
	if !ok {
		return 0, false
	}
	at, err := event.ParseTime(a.Value)
	if err != nil { // it came from before this was checked, or from a function of another topic
		return 0, false
	}
	now := e.now()
	if !at.After(now) {
		return 0, false
	}
	return min(at.UnixNano(), now.Add(maxDelay).UnixNano()), true
}

// checkDelay says what is wrong with an event's deliverat.
func checkDelay(ev *event.Event, now time.Time) error {
	for i := range ev.Extensions {
		a := &ev.Extensions[i]
		if a.Name != delayAttribute {
			continue
		}
		at, err := event.ParseTime(a.Value)
		if err != nil {
			return event.Invalid(delayAttribute, fmt.Sprintf("%.40q is not a time; want RFC 3339, such as 2030-01-31T12:00:00Z", a.Value))
		}
		if ahead := at.Sub(now); ahead > maxDelay {
			return event.Invalid(delayAttribute, fmt.Sprintf("%.40q is %s ahead; an event can be held back for 30 days at most", a.Value, ahead.Round(time.Hour)))
		}
	}
	return nil
}

// toldTry is a try as a dead letter shows it.
type toldTry struct {
	At     string `json:"at"`
	Code   int    `json:"code,omitempty"`
	Detail string `json:"detail"`
}

// story is the tries of an item that ends now, as JSON.
func (s *subscription) story(it item, f failure) string {
	var tries []try
	if it.parked != nil {
		tries = it.parked.story
	}
	if !f.untried {
		tries = told(tries, try{s.e.now().UnixNano(), event.Code(f.err), errText(f.err)})
	}
	list := make([]toldTry, len(tries))
	for i, t := range tries {
		list[i] = toldTry{time.Unix(0, t.at).UTC().Format(time.RFC3339Nano), t.code, printable(t.reason)}
	}
	b, err := json.Marshal(list)
	if err != nil {
		return ""
	}
	return string(b)
}
