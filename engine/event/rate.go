package event

import (
	"errors"
	"strconv"
	"strings"
)

// Bounds of a rate, a second.
const (
	minRate = 1.0 / 86400
	maxRate = 1e6
)

var ratePer = []struct {
	name    string
	seconds float64
}{{"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}}

var errRate = errors.New("want a number a second, minute, hour or day, such as 500/s or 10/m, or unlimited")

// ParseRate reads how many a second: 500/s, 10/m, 2.5/s, 100/h, 5/d; 0 for unlimited.
func ParseRate(s string) (float64, error) {
	if s == "unlimited" {
		return 0, nil
	}
	num, per, ok := strings.Cut(s, "/")
	for _, u := range ratePer {
		if !ok || per != u.name {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
		if err != nil || !(n > 0) {
			return 0, errRate
		}
		if r := n / u.seconds; r >= minRate*(1-1e-9) && r <= maxRate {
			return r, nil
		}
		return 0, errors.New("want 1/d to 1000000/s")
	}
	return 0, errRate
}
