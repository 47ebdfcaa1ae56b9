package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// untraced goes as withFilter does, through a topic of which no trace is kept. The two stand side by side.
var untraced = way{value: "untraced", name: "delivered: filter, signed webhook, no trace", trace: "none"}

const explainRounds = 40

// explains measures, on a router with 10,000 subscriptions, how long it takes to say what became of an event at each.
func explains(ctx context.Context, r *routerProcess, put func(string, float64)) error {
	var stored struct{ Events []struct{ Position string } }
	err := r.call(ctx, "POST", "/v1/topics/many/events?type=order.created", "application/json", []byte(`{"customer":77,"total":250,"k":-1}`), &stored)
	if err != nil {
		return err
	}
	var took []float64
	for range explainRounds {
		begin := time.Now()
		var answer string
		if err := r.call(ctx, "GET", "/v1/topics/many/events/"+stored.Events[0].Position+"/trace", "", nil, &answer); err != nil {
			return err
		}
		took = append(took, 1e6*time.Since(begin).Seconds())
		if !strings.Contains(answer, `"subscription":"s77"`) {
			return fmt.Errorf("the trace of an event does not name the subscription that matches it: %.400s", answer)
		}
	}
	put("explain-10k", median(took))
	return nil
}

// explainRows are the rows about explaining events.
func explainRows() []row {
	return []row{
		{key: "trace-cost", name: "delivered with traces as they are by default / without, events", group: "rules", values: []string{"passed", "untraced"},
			figure: value("passed"), limit: value("untraced"), show: rate, floor: 0.95, aim: 0.98,
			note: "Published singly over 64 connections, durable, filtered, signed."},
		{key: "trace-cpu", name: "the router's CPU for an event, with traces / without", group: "rules", values: []string{"passed-cpu", "untraced-cpu"},
			figure: value("passed-cpu"), limit: value("untraced-cpu"), show: micros, ratio: times, lower: true},
		{key: "explain-10k", name: "what became of an event at 10,000 subscriptions / bound", group: "rules", values: []string{"explain-10k"},
			figure: value("explain-10k"), limit: constant(20_000), show: micros, lower: true, floor: 1, aim: 0.25},
	}
}
