package rules

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

func TestSchedules(t *testing.T) {
	o := testOptions()
	o.Getenv = func(name string) (string, bool) { return "de", name == "LAND" }
	s, err := ParseBytes("r.yaml", []byte(`version: 1
schedules:
  nightly:
    topic: jobs
    cron: "0 2 * * 1-5"
    timezone: Europe/Berlin
    missed: all
    type: job.nightly
    source: //house/clock
    subject: all
    key: k
    data: {clean: true, land: "${env:LAND}", days: [1, 2.50, null], none: ~}
  often:
    topic: jobs
    every: 90s
`), o)
	if err != nil {
		t.Fatal(err)
	}
	want := []event.Schedule{
		{Name: "nightly", Topic: "jobs", Cron: "0 2 * * 1-5", TimeZone: "Europe/Berlin", Missed: event.MissedAll, Type: "job.nightly", Source: "//house/clock", Subject: "all", Key: "k",
			Data: []byte(`{"clean":true,"land":"de","days":[1,2.50,null],"none":null}`), Owner: event.Owner{File: "r.yaml", Line: 3}},
		{Name: "often", Topic: "jobs", Every: 90 * time.Second, TimeZone: "UTC", Type: "schedule", Source: "/schedules/often", Owner: event.Owner{File: "r.yaml", Line: 13}},
	}
	for i, x := range s.Schedules {
		if !reflect.DeepEqual(x.Schedule, want[i]) {
			t.Errorf("got  %+v\nwant %+v", x.Schedule, want[i])
		}
	}
	if len(s.Topics) != 1 || s.Topics[0].Name != "jobs" || !s.Topics[0].Implied {
		t.Errorf("topics: %+v", s.Topics)
	}
	shown, err := s.Show(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"land: ${env:LAND}", "missed: once", "every: 90s", "source: /schedules/often"} {
		if !strings.Contains(string(shown), want) {
			t.Errorf("no %q in\n%s", want, shown)
		}
	}
	again, err := ParseBytes("r.yaml", shown, o)
	if err != nil || !reflect.DeepEqual(again.Schedules[0].Data, want[0].Data) {
		t.Errorf("what is shown is not what was read: %v", err)
	}
}

func TestBadSchedules(t *testing.T) {
	_, err := ParseBytes("r.yaml", []byte(`version: 1
schedules:
  a: {cron: "0 2 * *", topic: jobs}
  b: {topic: "a b", cron: "61 * * * *", every: 5m}
  c: {topic: jobs}
  d: {topic: jobs, every: 10ms, timezone: UTC}
  e: {topic: jobs, cron: "@hourly", timezone: Europe/Berln, missed: twice}
  f: {topic: jobs, cron: "@often", typ: x}
  g: {topic: jobs, cron: "@daily", subject: "a\u0001b", key: [k]}
  h: {topic: jobs, cron: "@daily", data: }
  "i j": {topic: jobs, cron: "@daily"}
  k: jobs
  l: {cron: "@daily", data: "${env:NONE}"}
`), testOptions())
	if err == nil {
		t.Fatal("it was accepted")
	}
	for _, want := range []string{
		`r.yaml:3:13: schedules.a.cron: "0 2 * *" has 4 fields; want 5`,
		`r.yaml:4:14: schedules.b.topic: `,
		`r.yaml:4:48: schedules.b.every: is beside cron; a schedule has one of them`,
		`r.yaml:5:6: schedules.c.cron: missing; want such as "0 2 * * *"`,
		`r.yaml:6:27: schedules.d.every: is "10ms"; want a duration of 1s to`,
		`r.yaml:6:43: schedules.d.timezone: is beside every`,
		`r.yaml:7:47: schedules.e.timezone: time zone "Europe/Berln" is unknown; want a name of the IANA database`,
		`r.yaml:7:69: schedules.e.missed: is "twice"; allowed: once, skip, all`,
		`r.yaml:8:26: schedules.f.cron: "@often" is none of @hourly`,
		`r.yaml:8:36: unknown key "typ" in schedules.f; did you mean "type"?`,
		`r.yaml:9:45: schedules.g.subject: `,
		`r.yaml:9:62: schedules.g.key: is a list; want a single value`,
		`schedules.h.data: is empty`,
		`r.yaml:11:3: schedule name "i j"`,
		`r.yaml:12:6: schedules.k: is a single value; want a mapping with topic, cron, every`,
		`r.yaml:13:6: schedules.l.topic: missing`,
		`schedules.l.data: environment variable "NONE" is not set`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in\n%v", want, err)
		}
	}
}

// What a reference stands for is shown nowhere: neither with defaults, nor in a difference.
func TestScheduleHidesReferences(t *testing.T) {
	parse := func(text, value string) *Set {
		t.Helper()
		s, err := ParseBytes("r.yaml", []byte("version: 1\nschedules: {s: {topic: jobs, every: 1h, "+text+"}}\n"), Options{Getenv: func(string) (string, bool) { return value, true }})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	refers := parse(`subject: "${env:PASSWORD}", key: "a-${env:PASSWORD}"`, "hunter2-hunter2")
	shown, err := refers.Show(true)
	if err != nil || strings.Contains(string(shown), "hunter2") || !strings.Contains(string(shown), "${env:PASSWORD}") {
		t.Errorf("shown (%v):\n%s", err, shown)
	}
	for name, old := range map[string]*Set{"new": parse("subject: a", ""), "another value": parse(`subject: "${env:PASSWORD}", key: "a-${env:PASSWORD}"`, "other-value")} {
		changes := fmt.Sprintf("%+v", Diff(old, refers))
		if !strings.Contains(changes, "subject") || strings.Contains(changes, "hunter2") || strings.Contains(changes, "other-value") {
			t.Errorf("%s: %s", name, changes)
		}
	}
}
