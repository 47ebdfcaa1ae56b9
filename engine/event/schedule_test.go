package event

import (
	"strings"
	"testing"
	"time"
)

func TestCronNext(t *testing.T) {
	const form = "2006-01-02T15:04:05Z07:00"
	for _, x := range []struct{ cron, zone, after, want string }{
		{"0 2 * * *", "UTC", "2026-11-21T01:59:59Z", "2026-11-21T02:00:00Z"},
		{"0 2 * * *", "UTC", "2026-11-21T02:00:00Z", "2026-11-22T02:00:00Z"},
		{"*/15 * * * *", "UTC", "2026-12-31T23:50:00Z", "2027-01-01T00:00:00Z"},
		{"5-10/2,58 8-9 * * *", "UTC", "2026-01-01T08:09:00Z", "2026-01-01T08:58:00Z"},
		{"0 0 29 2 *", "UTC", "2096-03-01T00:00:00Z", "2104-02-29T00:00:00Z"}, // 2100 is no leap year
		{"0 0 31 * *", "UTC", "2026-08-31T00:00:00Z", "2026-10-31T00:00:00Z"},
		{"0 9 * * MON-FRI", "UTC", "2026-11-20T09:00:00Z", "2026-11-23T09:00:00Z"},
		{"0 9 * * 7", "UTC", "2026-11-20T09:00:00Z", "2026-11-22T09:00:00Z"},
		{"0 9 13 * 5", "UTC", "2026-11-07T00:00:00Z", "2026-11-13T09:00:00Z"}, // either: the 13th, and Fridays
		{"0 9 13 * 5", "UTC", "2026-11-13T09:00:00Z", "2026-11-20T09:00:00Z"},
		{"0 9 */2 * 5", "UTC", "2026-11-13T09:00:00Z", "2026-11-27T09:00:00Z"}, // both: a Friday that is odd
		{"@monthly", "UTC", "2026-11-21T00:00:00Z", "2026-12-01T00:00:00Z"},
		{"0 0 1 jan *", "America/New_York", "2026-06-01T00:00:00Z", "2027-01-01T05:00:00Z"},

		// Clocks of Berlin go from 2:00 to 3:00 on 2026-03-29, at 01:00 UTC.
		{"30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"},
		{"30 2 * * *", "Europe/Berlin", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"},
		{"*/10 2 * * *", "Europe/Berlin", "2026-03-29T00:59:00Z", "2026-03-29T01:00:00Z"}, // six of them are one
		{"*/10 2 * * *", "Europe/Berlin", "2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"},
		{"0 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z"}, // 2:00 and 3:00 are one
		{"0 * * * *", "Europe/Berlin", "2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"},
		// They go from 3:00 to 2:00 on 2026-10-25, at 01:00 UTC.
		{"30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"},
		{"30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"},
		{"30 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", "2026-10-26T01:30:00Z"},
		{"0 3 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z"},
		{"*/30 * * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z"},
		// Lord Howe's clocks are set by half an hour, Apia left out a day.
		{"15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", "2026-10-03T15:30:00Z"},
		{"0 12 30 12 *", "Pacific/Apia", "2011-12-29T00:00:00Z", "2011-12-30T10:00:00Z"},
	} {
		after, err := time.Parse(form, x.after)
		if err != nil {
			t.Fatal(err)
		}
		times, err := Schedule{Cron: x.cron, TimeZone: x.zone}.Times()
		if err != nil {
			t.Errorf("%s: %v", x.cron, err)
			continue
		}
		if got := times.Next(after).UTC().Format(form); got != x.want {
			t.Errorf("%s in %s after %s: %s, want %s", x.cron, x.zone, x.after, got, x.want)
		}
	}
}

// Whatever the zone does, times go forward, and each fits where the clock shows it.
func TestCronGoesForward(t *testing.T) {
	for _, zone := range []string{"Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Africa/Cairo", "Pacific/Apia"} {
		times, err := Schedule{Cron: "20,50 */3 * * *", TimeZone: zone}.Times()
		if err != nil {
			t.Fatal(err)
		}
		at := time.Date(2011, 1, 1, 0, 0, 0, 0, time.UTC)
		for range 16 * 400 {
			next := times.Next(at)
			if !next.After(at) || next.Sub(at) > 28*time.Hour {
				t.Fatalf("%s: %s is followed by %s", zone, at, next)
			}
			at = next
		}
	}
}

func TestBadCron(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "has 0 fields; want 5",
		"* * * *":                "has 4 fields; want 5",
		"0 0 2 * * *":            "has 6 fields; want 5",
		"60 * * * *":             `minute: "60" is none; want *, or 0 to 59`,
		"1,99 * * * *":           `minute: "99" is none`,
		"* * 0 * *":              `day of the month: "0" is none; want *, or 1 to 31`,
		"* * L * *":              `"L" is none`,
		"* * * foo *":            `month: "foo" is none; want *, or 1 to 12, or JAN to DEC`,
		"* 22-2 * * *":           "hour: \"22-2\" runs backwards; write it as two, such as 22-23,0-2",
		"*/0 * * * *":            `the step of "*/0" is "0"; want 1 to 59`,
		"* * * * 8":              "day of the week",
		"0 0 30 2 *":             "is never: there is no such day",
		"@every 5m":              "is none of @hourly",
		"+1 * * * *":             `"+1" is none`,
		"1,,2 * * * *":           `"" is none`,
		"*/5/5 * * * *":          "step",
		"\u0661 * * * *":         "minute",
		"99999999999999 * * * *": "minute",
	} {
		if _, err := ParseCron(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
	for _, zone := range []string{"", "Local", "Berlin", "../etc/passwd", "Europe/Berlin\x00"} {
		if _, err := LoadZone(zone); err == nil || !strings.Contains(err.Error(), "IANA") {
			t.Errorf("zone %q: %v", zone, err)
		}
	}
}

func TestEvery(t *testing.T) {
	times, err := Schedule{Every: 15 * time.Minute}.Times()
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 21, 10, 7, 0, 1, time.UTC)
	for _, want := range []string{"10:15", "10:30", "10:45", "11:00"} {
		if at = times.Next(at); at.Format("15:04") != want || at.Second() != 0 {
			t.Errorf("%s, want %s", at, want)
		}
	}
}
