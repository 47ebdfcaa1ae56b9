package rules

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// FuzzValues: durations, sizes, rates and crons are refused, or come back the same when they are written as the router
// shows them; a cron's next time is later, and comes soon.
func FuzzValues(f *testing.F) {
	for _, s := range []string{"15s", "1h30m", "7d", "1.5h", "2w", "9223372036854775807ns", "106751d23h47m16.9s", "1ns", "0s", "00s", ".5s", "1..5s", "5", "1µs",
		"64MiB", "1.5GiB", "10MB", "1048576", "9007199254740993", "8EiB", "4611686018427387903B", "0.1KiB", "1e3", " 5 MiB", "1TiB",
		"500/s", "10/m", "2.5/s", "1/d", "unlimited", "NaN/s", "Inf/s", "0x1p3/s", "1e-9/s",
		"0 2 * * *", "@daily", "*/15 0-6,20-23 1-7 JAN-MAR mon", "59 23 29 2 *", "0 0 31 4 *", "0 0 30 2 *", "* * 31 */2 7", "5/70 * * * *", "0 0 1 1 0-7", "0 0 -1 * *", "1,,2 * * * *"} {
		f.Add(s)
	}
	zone, err := event.LoadZone("America/St_Johns")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := parseDuration(s); err == nil {
			if again, err := parseDuration(formatDuration(d)); d < 0 || err != nil || again != d {
				t.Fatalf("%q is %s, shown as %q, which is %s (%v)", s, d, formatDuration(d), again, err)
			}
		}
		if n, err := parseSize(s); err == nil {
			if again, err := parseSize(formatSize(n)); n < 0 || err != nil || again != n {
				t.Fatalf("%q is %d, shown as %q, which is %d (%v)", s, n, formatSize(n), again, err)
			}
		}
		if r, err := ParseRate(s); err == nil && r != 0 {
			if again, err := ParseRate(formatRate(r)); !(r > 0) || math.IsInf(r, 0) || err != nil || math.Abs(again-r) > r*1e-6 {
				t.Fatalf("%q is %g, shown as %q, which is %g (%v)", s, r, formatRate(r), again, err)
			}
		}
		if len(s) > 200 {
			return
		}
		if c, err := event.ParseCron(s); err == nil {
			at := time.Date(2026, 3, 7, 1, 59, 30, 0, time.UTC)
			for range 4 {
				next := c.Next(at, zone)
				if !next.After(at) || next.Sub(at) > 42*366*24*time.Hour { // 29 February on one day of the week, across 2100
					t.Fatalf("%q after %s is %s", s, at, next)
				}
				at = next
			}
		} else if strings.Contains(err.Error(), "%!") {
			t.Fatal(err)
		}
	})
}

// FuzzOpenSigned: nothing is taken as signed but what Sign made of the same bundle with that key.
func FuzzOpenSigned(f *testing.F) {
	key := signKey(0)
	for _, bundle := range []string{"", "version: 1\n", strings.Repeat("x", 600)} {
		file, err := Sign([]byte(bundle), key, Seal{Version: 7, Signed: time.Unix(1e9, 0), Expires: time.Unix(2e9, 0)})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file)
		f.Add(file[:len(file)/2])
	}
	f.Add([]byte("millrace.sig\x00"))
	f.Fuzz(func(t *testing.T, file []byte) {
		bundle, seal, err := OpenSigned(file, public(key))
		if err != nil {
			return
		}
		again, err := Sign(bundle, key, seal)
		if err != nil || string(again) != string(file) {
			t.Fatalf("taken as signed, with %+v, and not what is signed so: %v", seal, err)
		}
	})
}
