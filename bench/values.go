package main

import (
	"context"
	"fmt"
	"slices"
)

// A measurement takes one or more values in each round.
type measurement struct {
	name  string   // as progress shows it
	gives []string // values
	needs []string // values of this round, taken before
	once  bool     // in the first round only: it takes long, or does not drift
	run   func(ctx context.Context, l *lab, of func(name string) float64, put func(name string, v float64)) error
}

// needed are the measurements whose values rows show, and those whose values these need, in the order of all.
func needed(picked []row, all []measurement) ([]measurement, error) {
	want := map[string]bool{}
	for _, r := range picked {
		for _, v := range r.values {
			want[v] = true
		}
	}
	take := make([]bool, len(all))
	for i := len(all) - 1; i >= 0; i-- { // what is needed stands before what needs it
		if slices.ContainsFunc(all[i].gives, func(v string) bool { return want[v] }) {
			take[i] = true
			for _, v := range all[i].needs {
				want[v] = true
			}
		}
	}
	given := map[string]bool{}
	var wanted []measurement
	for i, m := range all {
		if !take[i] {
			continue
		}
		for _, v := range m.needs {
			if !given[v] {
				return nil, fmt.Errorf("%s needs %s, which nothing before it measures", m.name, v)
			}
		}
		for _, v := range m.gives {
			given[v] = true
		}
		wanted = append(wanted, m)
	}
	for v := range want {
		if !given[v] {
			return nil, fmt.Errorf("nothing measures %s", v)
		}
	}
	return wanted, nil
}

// values are what was measured, by name and round, and what failed.
type values struct {
	taken map[string][]float64 // by round
	notes map[string]error     // why there is none
}

func newValues() *values {
	return &values{taken: map[string][]float64{}, notes: map[string]error{}}
}

func (v *values) put(name string, x float64) { v.taken[name] = append(v.taken[name], x) }

// newest returns a value of this round, or of the last in which it was taken; 0 if there is none.
func (v *values) newest(name string) float64 {
	if list := v.taken[name]; len(list) > 0 {
		return list[len(list)-1]
	}
	return 0
}

// fail notes that a measurement could not be made; it is not tried again.
func (v *values) fail(m measurement, err error) {
	for _, name := range m.gives {
		v.notes[name] = err
		delete(v.taken, name) // half of the rounds is no median
	}
}

func (v *values) failed(m measurement) bool {
	for _, name := range m.gives {
		if v.notes[name] != nil {
			return true
		}
	}
	for _, name := range m.needs {
		if err := v.notes[name]; err != nil {
			v.fail(m, err)
			return true
		}
	}
	return false
}
