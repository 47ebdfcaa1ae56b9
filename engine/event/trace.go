package event

import "time"

// Trace says what is kept of the way of a topic's events: how each try at each subscription ended.
type Trace struct {
	Keep   time.Duration // 24 h; below 0: nothing is traced
	Sample float64       // share of the events, above 0 up to 1; 1
}

// NoTrace is a Keep that turns traces off.
const NoTrace time.Duration = -1

// WithDefaults returns t with its zero fields filled.
func (t Trace) WithDefaults() Trace {
	if t.Keep == 0 {
		t.Keep = 24 * time.Hour
	}
	if t.Sample == 0 {
		t.Sample = 1
	}
	return t
}

// Off reports whether nothing is traced.
func (t Trace) Off() bool { return t.Keep < 0 }
