package main

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/engine/protocol/hooks"
)

// However many sources there are, a thousand have series of their own; what the rest count is not lost.
func TestSourceSeriesAreBounded(t *testing.T) {
	var list []hooks.Stats
	for i := range maxSeries + 5 {
		list = append(list, hooks.Stats{Name: fmt.Sprintf("s%04d", i), Counts: [7]uint64{1}})
	}
	m := &metrics{sources: func() ([]hooks.Stats, uint64) { return list, 0 }}
	out := make(chan prometheus.Metric, 10*len(list))
	m.collectSources(out)
	if want := (maxSeries+1)*len(hooks.Outcomes()) + 1; len(out) != want {
		t.Errorf("%d series; want %d", len(out), want)
	}
}
