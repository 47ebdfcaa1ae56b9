package main

import (
	"fmt"
	"math"
	"slices"
)

// median of values: the mean of the two in the middle of an even number, NaN of none. values keep their order.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	mid := len(s) / 2
	if len(s)%2 == 1 {
		return s[mid]
	}
	return (s[mid-1] + s[mid]) / 2
}

// percentile by nearest rank: the smallest value that at least a share p (0 to 1) of all do not exceed. sorted
// must ascend; NaN of none.
func percentile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	rank := int(math.Ceil(p*float64(len(sorted)) - 1e-9))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// paired are the ratios of figures and limits of the same rounds. A limit that was taken once, or a figure, stands
// for all rounds of the other.
func paired(figures, limits []float64) []float64 {
	n := max(len(figures), len(limits))
	if len(figures) == 0 || len(limits) == 0 {
		return nil
	}
	out := make([]float64, 0, n)
	for i := range n {
		f, l := figures[min(i, len(figures)-1)], limits[min(i, len(limits)-1)]
		if l != 0 {
			out = append(out, f/l)
		}
	}
	return out
}

// composite is the rate of one thing after the other when both are bound by the same cores.
func composite(a, b float64) float64 {
	if a <= 0 || b <= 0 {
		return 0
	}
	return 1 / (1/a + 1/b)
}

// rate writes a number of things a second: 512/s, 7.4k/s, 118k/s, 1.2M/s.
func rate(v float64) string { return count(v) + "/s" }

func count(v float64) string {
	switch {
	case math.IsNaN(v):
		return "—"
	case v >= 999_500:
		return fmt.Sprintf("%.3gM", v/1e6)
	case v >= 99_950:
		return fmt.Sprintf("%.0fk", v/1e3)
	case v >= 1000:
		return fmt.Sprintf("%.1fk", v/1e3)
	}
	return fmt.Sprintf("%.0f", v)
}

// micros writes microseconds.
func micros(v float64) string {
	switch {
	case v >= 99_950:
		return fmt.Sprintf("%.0f ms", v/1e3)
	case v >= 1000:
		return fmt.Sprintf("%.3g ms", v/1e3)
	}
	return fmt.Sprintf("%.3g µs", v)
}

// nanos writes nanoseconds.
func nanos(v float64) string {
	if v >= 999.5 {
		return micros(v / 1e3)
	}
	return fmt.Sprintf("%.3g ns", v)
}

func mebibytes(v float64) string { return fmt.Sprintf("%.4g MiB", v) }

func plain(v float64) string { return fmt.Sprintf("%.2f", v) }

func times(v float64) string { return fmt.Sprintf("%.2f×", v) }

// part writes a small share as one in so many.
func part(v float64) string {
	if v <= 0 || v >= 1 {
		return plain(v)
	}
	return fmt.Sprintf("1/%.0f", 1/v)
}
