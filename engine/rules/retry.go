package rules

import (
	"strconv"
	"time"

	"github.com/millrace/millrace/engine/event"
)

func (p *parser) retry(d *subscriptionDef, n *node) {
	f, _ := p.fields(n, retryShape)
	if v := f["attempts"]; v != nil {
		if v.kind == scalar && v.raw == "unlimited" {
			d.Retry.Attempts = event.Unlimited
		} else {
			i, _ := p.integer(v, 1, 1_000_000, "a number of tries, the first included, or unlimited")
			d.Retry.Attempts = int(i)
		}
	}
	if v := f["schedule"]; v != nil {
		switch {
		case v.kind == scalar && v.raw == "exponential":
			d.Retry.Exponential = &event.Exponential{}
		case v.kind != list || len(v.items) == 0 || len(v.items) > maxSchedule:
			p.bad(v, "want a list of 1 to %d waits, such as [5s, 5m, 30m], of which the last repeats, or exponential", maxSchedule)
		default:
			d.Retry.Schedule = make([]time.Duration, len(v.items))
			for i, v := range v.items {
				d.Retry.Schedule[i], _ = p.duration(v, time.Millisecond, maxWait)
			}
		}
	}
	if v := f["exponential"]; v != nil {
		if f["schedule"] != nil {
			p.bad(v, "stands beside schedule; keep one of them")
		}
		p.exponential(d, v)
	}
	if x := d.Retry.Exponential; x != nil {
		full := x.WithDefaults()
		d.Retry.Exponential, d.Retry.Schedule = &full, nil
	}
	if v := f["maxAge"]; v != nil {
		d.Retry.MaxAge, _ = p.duration(v, time.Second, 10*365*24*time.Hour)
	}
	if v := f["on4xx"]; v != nil {
		switch s, ok := p.str(v); {
		case !ok || s == "retry":
		case s == "deadLetter":
			d.Retry.On4xx = event.DeadLetter4xx
		default:
			p.bad(v, "is %s; want retry or deadLetter%s", v.shown(), near(s, "retry", "deadLetter"))
		}
	}
	if v := f["jitter"]; v != nil {
		s, ok := p.str(v)
		j, err := strconv.ParseFloat(s, 64)
		if ok && (err != nil || !(j >= 0 && j <= 1)) {
			p.bad(v, "is %s; want a share of the wait, 0 to 1, such as 0.2", v.shown())
		}
		d.Retry.Jitter = j
	}
}

func (p *parser) exponential(d *subscriptionDef, n *node) {
	x := &event.Exponential{}
	d.Retry.Exponential = x
	f, _ := p.fields(n, exponentialShape)
	if v := f["first"]; v != nil {
		x.First, _ = p.duration(v, time.Millisecond, maxWait)
	}
	if v := f["max"]; v != nil {
		x.Max, _ = p.duration(v, time.Millisecond, maxWait)
		if first := x.WithDefaults().First; x.Max != 0 && x.Max < first {
			p.bad(v, "is %s, less than the first wait of %s", v.shown(), formatDuration(first))
		}
	}
	if v := f["factor"]; v != nil {
		s, ok := p.str(v)
		factor, err := strconv.ParseFloat(s, 64)
		if ok && (err != nil || !(factor >= 1 && factor <= 100)) {
			p.bad(v, "is %s; want what each wait is multiplied by, 1 to 100, such as 2", v.shown())
		}
		x.Factor = factor
	}
}

func (p *parser) order(d *subscriptionDef, n *node) {
	switch s, ok := p.str(n); {
	case !ok || s == "none":
	case s == "key":
		d.Order = event.ByKey
	default:
		p.bad(n, "is %s; want none, or key for one delivery of a partitionkey at a time%s", n.shown(), near(s, "none", "key"))
	}
}
