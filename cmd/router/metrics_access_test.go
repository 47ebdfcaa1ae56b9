package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/engine/access"
)

// issuerMetrics is what is told of issuers, by themselves.
type issuerMetrics struct{ m *metrics }

func (issuerMetrics) Describe(chan<- *prometheus.Desc)       {}
func (c issuerMetrics) Collect(out chan<- prometheus.Metric) { c.m.collectIssuers(out) }

func TestIssuersAreSeen(t *testing.T) {
	m := &metrics{issuers: func() []access.IssuerState {
		return []access.IssuerState{
			{Name: "down", URL: "https://a/", Err: errors.New("no route")},
			{Name: "up", URL: "https://b/", Keys: 2, Fetched: time.Unix(1000, 0)},
			{Name: "file", Keys: 1},
		}
	}}
	reg := prometheus.NewRegistry()
	reg.MustRegister(issuerMetrics{m})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, f := range families {
		for _, s := range f.Metric {
			got.WriteString(f.GetName() + " " + s.Label[0].GetValue() + " " + s.String()[strings.LastIndex(s.String(), "value:"):] + "\n")
		}
	}
	for _, line := range []string{`_failed down value:1`, `_failed up value:0`, `_keys up value:2`, `_keys file value:1`, `_fetched_timestamp_seconds down value:0`, `_fetched_timestamp_seconds up value:1000`} {
		if !strings.Contains(got.String(), "millrace_access_issuer"+line+"}\n") {
			t.Errorf("no %s in\n%s", line, got.String())
		}
	}
	if strings.Contains(got.String(), "_failed file") {
		t.Error("keys of a file are said to be fetched")
	}
	var log bytes.Buffer
	g := &guard{log: slog.New(slog.NewTextHandler(&log, nil))}
	g.fetched(access.IssuerState{Name: "down", URL: "https://a/", Err: errors.New("no route")})
	g.fetched(access.IssuerState{Name: "up"})
	if s := log.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "issuer=down") || !strings.Contains(s, "no route") {
		t.Errorf("log: %s", s)
	}
}
