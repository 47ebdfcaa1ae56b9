package httpapi

import (
	"encoding/json"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// Schedules shows what the router publishes by itself.
type Schedules interface {
	// ScheduleList lists all schedules by name.
	ScheduleList() []Schedule
}

// Schedule is a schedule and how it stands.
type Schedule struct {
	event.Schedule
	OwnerText  string
	Next, Last time.Time // zero: never
	Fired      uint64
	Skipped    uint64
	Fault      string
}

// scheduleDoc is how a schedule is shown: the keys of rules files, then what is read-only.
type scheduleDoc struct {
	Name     string          `json:"name"`
	Topic    string          `json:"topic"`
	Cron     string          `json:"cron,omitempty"`
	Every    string          `json:"every,omitempty"`
	TimeZone string          `json:"timezone,omitempty"`
	Missed   string          `json:"missed"`
	Type     string          `json:"type"`
	Source   string          `json:"source"`
	Subject  string          `json:"subject,omitempty"`
	Key      string          `json:"key,omitempty"`
	Data     json.RawMessage `json:"data,omitempty"`
	Owner    string          `json:"owner"`
	State    scheduleState   `json:"state"`
}

type scheduleState struct {
	Next    *time.Time `json:"next,omitempty"`
	Last    *time.Time `json:"last,omitempty"`
	Fired   uint64     `json:"fired"`
	Skipped uint64     `json:"skipped"`
	Fault   string     `json:"fault,omitempty"`
}

// schedules is GET /v1/schedules.
func (c *call) schedules() error {
	out := struct {
		Schedules []scheduleDoc `json:"schedules"`
	}{[]scheduleDoc{}}
	for _, s := range c.s.o.Backend.ScheduleList() {
		if c.principal.Check(access.Read, access.Topic, s.Topic) != nil { // its events are shown
			continue
		}
		d := scheduleDoc{Name: s.Name, Topic: s.Topic, Cron: s.Cron, Missed: s.Missed.String(), Type: s.Type, Source: s.Source, Subject: s.Subject, Key: s.Key,
			Data: s.Data, Owner: s.OwnerText, State: scheduleState{Fired: s.Fired, Skipped: s.Skipped, Fault: s.Fault}}
		if s.Every > 0 {
			d.Every = s.Every.String()
		} else {
			d.TimeZone = s.TimeZone
		}
		if !s.Next.IsZero() {
			d.State.Next = &s.Next
		}
		if !s.Last.IsZero() {
			d.State.Last = &s.Last
		}
		out.Schedules = append(out.Schedules, d)
	}
	return c.answerJSON(fasthttp.StatusOK, out)
}
