package main

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/protocol/httpapi"
)

func schedulesCommand(p *program) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:     "schedules",
		Aliases: []string{"schedule"},
		Short:   "List what the router publishes by itself",
		Long: `A schedule publishes an event again and again: at the times of a cron expression, or every so often. Schedules are
defined in rules alone; see router rules show.`,
	})
	cmd.AddCommand(p.listCommand("schedules", []column{{"NAME", "name"}, {"TOPIC", "topic"}, {"CRON", "cron"}, {"EVERY", "every"}, {"TIMEZONE", "timezone"},
		{"NEXT", "state.next"}, {"LAST", "state.last"}, {"SKIPPED", "state.skipped"}, {"FAULT", "state.fault"}}))
	return cmd
}

// ScheduleList lists all schedules by name.
func (b backend) ScheduleList() []httpapi.Schedule {
	infos := b.Engine.Schedules()
	list := make([]httpapi.Schedule, len(infos))
	for i, s := range infos {
		list[i] = httpapi.Schedule{Schedule: s.Schedule, OwnerText: fmt.Sprintf("%s:%d", s.Owner.File, s.Owner.Line), Next: s.Next, Last: s.Last,
			Fired: s.Fired, Skipped: s.Skipped, Fault: s.Fault}
	}
	return list
}

var (
	descScheduleFired   = describe("schedule_fired_total", "Events that the schedule has published.", "schedule")
	descScheduleSkipped = describe("schedule_skipped_total", "Times of the schedule that were missed and are not made up for.", "schedule")
	descScheduleNext    = describe("schedule_next_timestamp_seconds", "When the schedule is due next; in the past while its event cannot be published.", "schedule")
	descScheduleLast    = describe("schedule_last_timestamp_seconds", "The time of the schedule's last event.", "schedule")
)

func collectSchedules(e *engine.Engine, out chan<- prometheus.Metric) {
	var fired, skipped, next, last tally
	for _, s := range e.Schedules() {
		fired.add(s.Name, float64(s.Fired))
		skipped.add(s.Name, float64(s.Skipped))
		if !s.Next.IsZero() {
			next.add(s.Name, float64(s.Next.UnixMilli())/1000)
		}
		if !s.Last.IsZero() {
			last.add(s.Name, float64(s.Last.UnixMilli())/1000)
		}
	}
	fired.send(out, descScheduleFired, prometheus.CounterValue)
	skipped.send(out, descScheduleSkipped, prometheus.CounterValue)
	next.send(out, descScheduleNext, prometheus.GaugeValue)
	last.send(out, descScheduleLast, prometheus.GaugeValue)
}
