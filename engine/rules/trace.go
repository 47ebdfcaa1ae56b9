package rules

import (
	"strconv"
	"time"

	"github.com/millrace/millrace/engine/event"
)

var traceShape = shape{keys: []string{"keep", "sample"}}

// Bounds of trace.keep: long enough to look at what just happened, and not an archive.
const (
	minTrace = time.Second
	maxTrace = 30 * 24 * time.Hour
)

// trace is what is kept of the way of a topic's events: a mapping, or none.
func (p *parser) trace(n *node) (t event.Trace) {
	if n.kind == scalar {
		if s, ok := p.text(n); ok && s != "none" {
			p.bad(n, "is %s; want none, or a mapping such as {keep: 24h, sample: 1}", n.shown())
		}
		return event.Trace{Keep: event.NoTrace}
	}
	f, _ := p.fields(n, traceShape)
	if v := f["keep"]; v != nil {
		if d, ok := p.duration(v, 0, maxTrace); ok {
			switch {
			case d == 0:
				t.Keep = event.NoTrace
			case d < minTrace:
				p.bad(v, "is %s; want %s to %s, or 0s for none", v.shown(), formatDuration(minTrace), formatDuration(maxTrace))
			default:
				t.Keep = d
			}
		}
	}
	if v := f["sample"]; v != nil {
		s, _ := p.str(v)
		switch share, err := strconv.ParseFloat(s, 64); {
		case v.kind != scalar:
		case err != nil || !(share >= 0 && share <= 1):
			p.bad(v, "is %s; want the share of events that is traced, 0 to 1", v.shown())
		case share == 0:
			t.Keep = event.NoTrace
		default:
			t.Sample = share
		}
	}
	return t
}

func traceDoc(t event.Trace) *doc {
	if t.Off() {
		return text("none")
	}
	d := &doc{kind: mapping}
	d.set("keep", text(formatDuration(t.Keep)))
	d.set("sample", float(t.Sample))
	return d
}
