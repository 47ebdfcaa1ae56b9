package rules

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// str returns the text of a single value; numbers and the like are taken as they are written.
func (p *parser) str(n *node) (string, bool) {
	if n.kind != scalar {
		p.bad(n, "is %s; want a single value", n.kind)
		return "", false
	}
	return p.text(n)
}

// name is str for the name of a topic or the like.
func (p *parser) name(n *node, what string) (string, bool) {
	s, ok := p.str(n)
	if ok {
		if err := event.CheckName(what, s); err != nil {
			p.bad(n, "%s", nameFault(err))
			return "", false
		}
	}
	return s, ok
}

func nameFault(err error) string {
	var f *event.Faults
	if errors.As(err, &f) && len(f.List) > 0 {
		return f.List[0].Detail
	}
	return err.Error()
}

func (p *parser) integer(n *node, lo, hi int64, want string) (int64, bool) {
	s, ok := p.str(n)
	if !ok {
		return 0, false
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		p.bad(n, "is %s; want %s", n.shown(), want)
		return 0, false
	}
	if v < lo || v > hi {
		p.bad(n, "is %s; want %s, %d to %d", n.shown(), want, lo, hi)
		return 0, false
	}
	return v, true
}

func (p *parser) boolean(n *node) (bool, bool) {
	s, ok := p.str(n)
	if ok && s != "true" && s != "false" {
		p.bad(n, "is %s; want true or false", n.shown())
		return false, false
	}
	return s == "true", ok
}

func (p *parser) size(n *node, lo, hi int64) (int64, bool) {
	s, ok := p.str(n)
	if !ok {
		return 0, false
	}
	v, err := parseSize(s)
	if err != nil {
		p.bad(n, "is %s; %v", n.shown(), err)
		return 0, false
	}
	if v < lo || v > hi {
		p.bad(n, "is %s; want a size of %s to %s", n.shown(), formatSize(lo), formatSize(hi))
		return 0, false
	}
	return v, true
}

func (p *parser) duration(n *node, lo, hi time.Duration) (time.Duration, bool) {
	s, ok := p.str(n)
	if !ok {
		return 0, false
	}
	v, err := parseDuration(s)
	if err != nil {
		p.bad(n, "is %s; %v", n.shown(), err)
		return 0, false
	}
	if v < lo || v > hi {
		p.bad(n, "is %s; want a duration of %s to %s", n.shown(), formatDuration(lo), formatDuration(hi))
		return 0, false
	}
	return v, true
}

var units = []struct {
	name string
	is   time.Duration
}{{"ns", 1}, {"us", time.Microsecond}, {"µs", time.Microsecond}, {"ms", time.Millisecond}, {"s", time.Second},
	{"m", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour}, {"w", 7 * 24 * time.Hour}}

var errDuration = errors.New("want a duration with its unit, such as 15s, 5m, 1h30m or 7d")

// parseDuration reads what time.ParseDuration does, and days and weeks.
func parseDuration(s string) (time.Duration, error) {
	var sum time.Duration
	for rest := s; ; {
		i := 0
		for i < len(rest) && (rest[i] >= '0' && rest[i] <= '9' || rest[i] == '.') {
			i++
		}
		j := i
		for j < len(rest) && rest[j] != '.' && (rest[j] < '0' || rest[j] > '9') {
			j++
		}
		var unit time.Duration
		for _, u := range units {
			if u.name == rest[i:j] {
				unit = u.is
			}
		}
		if i == 0 || unit == 0 {
			return 0, errDuration
		}
		whole, frac, point := strings.Cut(rest[:i], ".")
		n, err := strconv.ParseInt(whole, 10, 64)
		if err != nil || n > int64(math.MaxInt64/unit) {
			return 0, errDuration
		}
		d := time.Duration(n) * unit
		if point {
			f, err := strconv.ParseFloat("0."+frac, 64)
			if err != nil {
				return 0, errDuration
			}
			d += time.Duration(f * float64(unit))
		}
		if sum += d; sum < 0 || d < 0 {
			return 0, errDuration
		}
		if rest = rest[j:]; rest == "" {
			return sum, nil
		}
	}
}

// formatDuration is the shortest form that parseDuration reads back.
func formatDuration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	for _, u := range []struct {
		name string
		is   time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond}} {
		if d%u.is == 0 {
			return strconv.FormatInt(int64(d/u.is), 10) + u.name
		}
	}
	return d.String()
}

var sizes = []struct {
	name string
	is   int64
}{{"B", 1}, {"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"", 1}}

// parseSize reads a number of bytes: 1048576, 1MiB, 1.5GiB, 10MB.
func parseSize(s string) (int64, error) {
	i := strings.IndexFunc(s, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if i < 0 {
		i = len(s)
	}
	num, name := s[:i], strings.TrimSpace(s[i:])
	for _, u := range sizes {
		if u.name != name || num == "" {
			continue
		}
		if n, err := strconv.ParseInt(num, 10, 64); err == nil && n <= math.MaxInt64/u.is {
			return n * u.is, nil
		}
		f, err := strconv.ParseFloat(num, 64)
		if v := f * float64(u.is); err == nil && v < 1<<62 && v == math.Trunc(v) {
			return int64(v), nil
		}
		return 0, errors.New("want a whole number of bytes below 4 EiB")
	}
	for _, u := range sizes {
		if u.name != "" && num != "" && (strings.EqualFold(u.name, name) || strings.EqualFold(u.name, name+"iB")) {
			return 0, fmt.Errorf("want a size such as 64MiB; did you mean %q?", num+u.name)
		}
	}
	return 0, errors.New("want a size such as 64MiB, 1GiB or 500MB, or a number of bytes")
}

// formatSize is the shortest form that parseSize reads back.
func formatSize(n int64) string {
	for _, u := range []string{"TiB", "GiB", "MiB", "KiB"} {
		for _, s := range sizes {
			if s.name == u && n != 0 && n%s.is == 0 {
				return strconv.FormatInt(n/s.is, 10) + u
			}
		}
	}
	return strconv.FormatInt(n, 10)
}
