package main

import (
	"math"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}, {[]float64{1, 100}, 50.5}} {
		before := slices.Clone(c.in)
		if got := median(c.in); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.in, got, c.want)
		}
		if !slices.Equal(before, c.in) {
			t.Errorf("median changed %v to %v", before, c.in)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("the median of nothing is a number")
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for _, c := range []struct {
		in   []float64
		p    float64
		want float64
	}{
		{hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 1, 100}, {hundred, 0, 1}, {hundred, 0.501, 51},
		{[]float64{7}, 0.5, 7}, {[]float64{7}, 0.99, 7}, {[]float64{1, 2}, 0.5, 1}, {[]float64{1, 2}, 0.51, 2}, {hundred[:10], 0.7, 7},
	} {
		if got := percentile(c.in, c.p); got != c.want {
			t.Errorf("percentile of %d values at %v = %v, want %v", len(c.in), c.p, got, c.want)
		}
	}
	if !math.IsNaN(percentile(nil, 0.5)) {
		t.Error("a percentile of nothing is a number")
	}
}

// Pairing takes drift out: the machine is half as fast in the second round, the ratio stays.
func TestPaired(t *testing.T) {
	if got := paired([]float64{50, 25, 52}, []float64{100, 50, 104}); !slices.Equal(got, []float64{0.5, 0.5, 0.5}) {
		t.Errorf("paired = %v", got)
	}
	if got := paired([]float64{30}, []float64{10, 15}); !slices.Equal(got, []float64{3, 2}) {
		t.Errorf("a figure taken once: %v", got)
	}
	if got := paired([]float64{30, 10}, []float64{10}); !slices.Equal(got, []float64{3, 1}) {
		t.Errorf("a limit taken once: %v", got)
	}
	if got := paired(nil, []float64{1}); got != nil {
		t.Errorf("without figures: %v", got)
	}
	if got := paired([]float64{1, 2}, []float64{0, 4}); !slices.Equal(got, []float64{0.5}) {
		t.Errorf("a limit of 0: %v", got)
	}
}

func TestComposite(t *testing.T) {
	if got := composite(60, 30); math.Abs(got-20) > 1e-9 {
		t.Errorf("composite(60, 30) = %v, want 20", got)
	}
	if got := composite(0, 30); got != 0 {
		t.Errorf("composite(0, 30) = %v", got)
	}
}

func TestTexts(t *testing.T) {
	for got, want := range map[string]string{
		rate(512): "512/s", rate(7400): "7.4k/s", rate(99_940): "99.9k/s", rate(99_960): "100k/s", rate(298_123): "298k/s", rate(1_234_567): "1.23M/s",
		micros(4.29): "4.29 µs", micros(2480): "2.48 ms", micros(254): "254 µs", micros(250_000): "250 ms",
		part(1.0 / 40): "1/40", part(2): "2.00", times(1.3): "1.30×", mebibytes(35.71): "35.71 MiB",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
