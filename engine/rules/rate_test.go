package rules

import (
	"math"
	"testing"
)

func TestRates(t *testing.T) {
	for text, want := range map[string]float64{"500/s": 500, "10/m": 10.0 / 60, "2.5/s": 2.5, "100/h": 100.0 / 3600, "1/d": 1.0 / 86400, "unlimited": 0, "1000000/s": 1e6, "90/m": 1.5} {
		r, err := ParseRate(text)
		if err != nil || math.Abs(r-want) > 1e-12 {
			t.Errorf("%s: %v, %v", text, r, err)
		}
		if again, err := ParseRate(formatRate(r)); err != nil || math.Abs(again-r) > 1e-9*r {
			t.Errorf("%s is shown as %s, which reads %v, %v", text, formatRate(r), again, err)
		}
	}
	for _, text := range []string{"", "5", "/s", "0/s", "-1/s", "1/w", "Inf/s", "NaN/s", "1e300/s", "1/s/s", "0.5/d", "1000001/s"} {
		if r, err := ParseRate(text); err == nil {
			t.Errorf("%q is taken as %v a second", text, r)
		}
	}
}
