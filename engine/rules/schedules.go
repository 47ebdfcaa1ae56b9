package rules

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Schedule is a schedule's definition with its defaults.
type Schedule struct {
	event.Schedule
	Effective json.RawMessage // with all defaults
	source    *doc
	effective *doc
	hidden    hiddenValues
}

var scheduleShape = shape{keys: []string{"topic", "cron", "every", "timezone", "missed", "type", "source", "subject", "key", "data"}}

// Bounds of a schedule.
const (
	minEvery = time.Second
	maxEvery = 366 * 24 * time.Hour
)

// schedule reads one entry of `schedules`.
func (p *parser) schedule(name string, key, n *node) Schedule {
	s := Schedule{Schedule: event.Schedule{Name: name, Owner: p.owner(key)}}
	f, ok := p.fields(n, scheduleShape)
	if !ok {
		s.source = mask(n)
		return s
	}
	if v := f["topic"]; v != nil {
		s.Topic, _ = p.name(v, "topic")
	}
	p.missing(n, "topic", "the topic that its events go into")
	p.scheduleTimes(n, f, &s.Schedule)
	if v := f["missed"]; v != nil {
		s.Missed = p.missed(v)
	}
	for _, x := range []struct {
		key string
		to  *string
	}{{"type", &s.Type}, {"source", &s.Source}, {"subject", &s.Subject}, {"key", &s.Key}} {
		if v := f[x.key]; v != nil {
			*x.to, _ = p.str(v)
		}
	}
	if v := f["data"]; v != nil {
		if d, ok := p.filled(v); ok {
			s.Data = d.appendJSON(nil)
		}
	}
	s.Schedule = s.Schedule.WithDefaults()
	p.scheduleEvent(n, f, s.Schedule)
	s.source, s.hidden = mask(n), p.hiddenOf(n) // by now it is known which values are references
	s.effective = effectiveSchedule(s.Schedule, f["data"]).over(s.source)
	s.Effective = s.effective.named(name)
	return s
}

// scheduleTimes reads when it is due.
func (p *parser) scheduleTimes(n *node, f map[string]*node, s *event.Schedule) {
	cron, every, zone := f["cron"], f["every"], f["timezone"]
	switch {
	case cron != nil && every != nil:
		p.bad(every, "is beside cron; a schedule has one of them")
	case cron == nil && every == nil:
		p.badAt(n, "cron", "missing; want such as \"0 2 * * *\" or @hourly, or every: 15m")
	case every != nil:
		s.Every, _ = p.duration(every, minEvery, maxEvery)
	default:
		if text, ok := p.str(cron); ok {
			if _, err := event.ParseCron(text); err != nil {
				p.bad(cron, "%v", err)
			}
			s.Cron = text
		}
	}
	if zone == nil {
		return
	}
	if every != nil {
		p.bad(zone, "is beside every, which is the same in each zone; remove it, or give a cron")
		return
	}
	if text, ok := p.str(zone); ok {
		if _, err := event.LoadZone(text); err != nil {
			p.bad(zone, "%v", err)
		}
		s.TimeZone = text
	}
}

func (p *parser) missed(n *node) event.Missed {
	text, ok := p.str(n)
	if !ok {
		return event.MissedOnce
	}
	names := []string{}
	for _, m := range []event.Missed{event.MissedOnce, event.MissedSkip, event.MissedAll} {
		if text == m.String() {
			return m
		}
		names = append(names, m.String())
	}
	p.bad(n, "is %s%s", n.shown(), suggest(text, names))
	return event.MissedOnce
}

// scheduleEvent checks the event that will be published.
func (p *parser) scheduleEvent(n *node, f map[string]*node, s event.Schedule) {
	ev := s.Event(time.Unix(0, 0))
	var faults *event.Faults
	if err := ev.Validate(event.Limits{}); !errors.As(err, &faults) {
		return
	}
	for _, x := range faults.List {
		at := map[string]string{"partitionkey": "key"}[x.At]
		if at == "" {
			at = x.At
		}
		if v := f[at]; v != nil {
			p.bad(v, "%s", x.Detail)
		} else {
			p.badAt(n, at, "%s", x.Detail)
		}
	}
}

// filled is a node with its references replaced.
func (p *parser) filled(n *node) (d *doc, ok bool) {
	d, ok = &doc{kind: n.kind, tag: n.tag}, true
	if n.kind == scalar {
		d.text, ok = p.text(n)
		return d, ok
	}
	for i, item := range n.items {
		child, fine := p.filled(item)
		ok = ok && fine
		d.items = append(d.items, child)
		if n.kind == mapping {
			d.keys = append(d.keys, n.keys[i].raw)
		}
	}
	return d, ok
}

func effectiveSchedule(s event.Schedule, data *node) *doc {
	d := &doc{kind: mapping}
	d.set("topic", text(s.Topic))
	if s.Every > 0 {
		d.set("every", text(formatDuration(s.Every)))
	} else {
		d.set("cron", text(s.Cron))
		d.set("timezone", text(s.TimeZone))
	}
	d.set("missed", text(s.Missed.String()))
	d.set("type", text(s.Type))
	d.set("source", text(s.Source))
	for _, x := range []struct{ key, value string }{{"subject", s.Subject}, {"key", s.Key}} {
		if x.value != "" {
			d.set(x.key, text(x.value))
		}
	}
	if data != nil {
		d.set("data", mask(data))
	}
	return d
}
