package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// A row is one line of the table: a figure beside its limit.
type row struct {
	key, name string
	group     string                                // -only takes it for all its rows; empty: none
	values    []string                              // what it is made of
	figure    func(of func(string) float64) float64 // of a round
	limit     func(of func(string) float64) float64 // of a round; nil: there is none to compare with
	show      func(float64) string                  // figure and limit
	ratio     func(float64) string                  // the ratio, and what it should be; plain if nil
	lower     bool                                  // less is better
	floor     float64                               // what must, and what should be reached; 0: nothing is said
	aim       float64
	note      string
}

// errMissing is why a row stays empty without anything having failed.
var errMissing = errors.New("not measured")

// A line is a row with what came out.
type line struct {
	Key    string  `json:"key"`
	Name   string  `json:"name"`
	Figure float64 `json:"figure"`
	Limit  float64 `json:"limit,omitempty"`
	Ratio  float64 `json:"ratio,omitempty"`
	Low    float64 `json:"ratioLow,omitempty"` // of the rounds
	High   float64 `json:"ratioHigh,omitempty"`
	Floor  float64 `json:"floor,omitempty"`
	Aim    float64 `json:"aim,omitempty"`
	Met    string  `json:"met,omitempty"` // aim, floor, no; yes where there is no aim
	Note   string  `json:"note,omitempty"`

	row row
}

// A report is what a run found.
type report struct {
	Machine map[string]string    `json:"machine"`
	Rounds  int                  `json:"rounds"`
	Seconds float64              `json:"seconds"`
	Took    string               `json:"took"`
	Lines   []line               `json:"rows"`
	Values  map[string][]float64 `json:"values"` // of every round
	Failed  []string             `json:"failed,omitempty"`
}

// report makes the lines. Figure and limit are medians of the rounds, the ratio is the median of the rounds' ratios:
// what drifts between rounds leaves it alone.
func (v *values) report(picked []row, wanted []measurement, o options) *report {
	rep := &report{Rounds: o.rounds, Seconds: o.seconds, Values: v.taken}
	for _, m := range wanted {
		if err := v.notes[m.gives[0]]; err != nil && !errors.Is(err, errMissing) {
			if text := m.name + ": " + err.Error(); !slices.Contains(rep.Failed, text) {
				rep.Failed = append(rep.Failed, text)
			}
		}
	}
	for _, r := range picked {
		rep.Lines = append(rep.Lines, v.line(r))
	}
	return rep
}

func (v *values) line(r row) line {
	l := line{Key: r.key, Name: r.name, Floor: r.floor, Aim: r.aim, Note: r.note, Figure: math.NaN(), Limit: math.NaN(), Ratio: math.NaN(), row: r}
	rounds := 0
	for _, name := range r.values {
		if err := v.notes[name]; err != nil {
			l.Note, l.Met = err.Error(), ""
			return l
		}
		rounds = max(rounds, len(v.taken[name]))
	}
	if rounds == 0 {
		return l
	}
	var figures, limits []float64
	for i := range rounds {
		of := func(name string) float64 {
			list := v.taken[name]
			return list[min(i, len(list)-1)]
		}
		figures = append(figures, r.figure(of))
		if r.limit != nil {
			limits = append(limits, r.limit(of))
		}
	}
	l.Figure = median(figures)
	if r.limit == nil {
		return l
	}
	ratios := paired(figures, limits)
	l.Limit, l.Ratio = median(limits), median(ratios)
	if len(ratios) > 0 {
		l.Low, l.High = slices.Min(ratios), slices.Max(ratios)
	}
	l.Met = met(l.Ratio, r)
	return l
}

// met says which of a row's marks a ratio reaches.
func met(ratio float64, r row) string {
	reaches := func(mark float64) bool {
		if r.lower {
			return ratio <= mark
		}
		return ratio >= mark
	}
	switch {
	case r.floor == 0 || math.IsNaN(ratio):
		return ""
	case r.aim != 0 && reaches(r.aim):
		return "aim"
	case reaches(r.floor) && r.aim == 0:
		return "yes"
	case reaches(r.floor):
		return "floor"
	}
	return "no"
}

// below are the rows that miss their floor.
func (r *report) below() []string {
	var keys []string
	for _, l := range r.Lines {
		if l.Met == "no" {
			keys = append(keys, l.Key)
		}
	}
	return keys
}

// cells are a line as it is printed.
func (l line) cells() []string {
	ratio := l.row.ratio
	if ratio == nil {
		ratio = plain
	}
	if math.IsNaN(l.Figure) {
		return []string{l.Name, l.Note, "", "", "", "", ""}
	}
	mark := func(v float64) string {
		if v == 0 {
			return ""
		}
		return ratio(v)
	}
	c := []string{l.Name, l.row.show(l.Figure), "", "", mark(l.Floor), mark(l.Aim), l.Met}
	if !math.IsNaN(l.Ratio) {
		c[2], c[3] = l.row.show(l.Limit), ratio(l.Ratio)
		if low, high := ratio(l.Low), ratio(l.High); low != high {
			c[3] += " (" + low + " to " + high + ")"
		}
	}
	return c
}

// print writes the report as text that is a Markdown table as well.
func (r *report) print(w io.Writer) error {
	table := [][]string{{"", "figure", "limit", "ratio", "floor", "aim", "met"}}
	var notes []string
	for _, l := range r.Lines {
		c := l.cells()
		if l.Note != "" && !math.IsNaN(l.Figure) {
			notes = append(notes, l.Note)
			c[0] += fmt.Sprintf(" [%d]", len(notes))
		}
		table = append(table, c)
	}
	widths := make([]int, len(table[0]))
	for _, c := range table {
		for i := range c {
			widths[i] = max(widths[i], utf8.RuneCountInString(c[i]))
		}
	}
	var b strings.Builder
	for i, c := range table {
		b.WriteByte('|')
		for j := range c {
			b.WriteString(" " + c[j] + strings.Repeat(" ", widths[j]-utf8.RuneCountInString(c[j])) + " |")
		}
		b.WriteByte('\n')
		if i == 0 {
			b.WriteByte('|')
			for _, n := range widths {
				b.WriteString(strings.Repeat("-", n+2) + "|")
			}
			b.WriteByte('\n')
		}
	}
	b.WriteByte('\n')
	for i, n := range notes {
		fmt.Fprintf(&b, "[%d] %s\n", i+1, n)
	}
	fmt.Fprintf(&b, "\nMedians of interleaved rounds (%d) of %g s a measurement; a ratio is the median of the rounds' own ratios (lowest to highest).\n", r.Rounds, r.Seconds)
	fmt.Fprintf(&b, "Generator, router and receiver share the cores; bodies have 1 KiB; %s in all.\n", r.Took)
	for _, k := range []string{"cpu", "cores", "memory", "kernel", "go", "disk", "load"} {
		if v := r.Machine[k]; v != "" {
			fmt.Fprintf(&b, "%-7s %s\n", k, v)
		}
	}
	for _, f := range r.Failed {
		fmt.Fprintf(&b, "FAILED  %s\n", f)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *report) printJSON(w io.Writer) error {
	for i := range r.Lines { // JSON has no NaN
		for _, p := range []*float64{&r.Lines[i].Figure, &r.Lines[i].Limit, &r.Lines[i].Ratio} {
			if math.IsNaN(*p) || math.IsInf(*p, 0) {
				*p = 0
			}
		}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}
