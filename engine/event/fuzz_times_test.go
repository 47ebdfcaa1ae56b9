package event

import (
	"strings"
	"testing"
	"time"
)

// FuzzTimes: what is taken as a time is the one that package time reads there, or a leap second's; what is taken as so long
// ago is not to come.
func FuzzTimes(f *testing.F) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		if at, err := ParseTime(s); err == nil {
			big := strings.ToUpper(s)
			if std, err := time.Parse(time.RFC3339, big); err == nil && !std.Equal(at) {
				t.Fatalf("%q is %s here, %s to package time", s, at, std)
			} else if err != nil && !strings.Contains(big, ":60") {
				t.Fatalf("%q is %s here; package time says %v", s, at, err)
			}
			if since, err := ParseSince(strings.Replace(s, "+", " ", 1), now); err != nil || !since.Equal(at) {
				t.Fatalf("%q is %s, and in a query %s (%v)", s, at, since, err)
			}
		}
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		if since, err := ParseSince(s, now); (err == nil) != (d >= 0) || err == nil && (since.After(now) || now.Sub(since) != d) {
			t.Fatalf("%q is %s, and as a beginning %s (%v)", s, d, since, err)
		}
	})
}
