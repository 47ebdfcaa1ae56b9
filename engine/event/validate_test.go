package event

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestIsJSON(t *testing.T) {
	for ct, want := range map[string]bool{
		"": true, "application/json": true, "text/json": true, "APPLICATION/JSON; charset=utf-8": true, "application/json;x=y": true,
		"application/vnd.api+json": true, "application/problem+JSON ; q=1": true, " application/json ": true,
		"application/xml": false, "text/plain": false, "json": false, "+json": false, "application/jsonp": false, "application/json+xml": false,
		"text/plain; a=application/json": false, "application/": false, ";": false, "application/x-ndjson": false,
	} {
		if got := IsJSON(ct); got != want {
			t.Errorf("%q: %t", ct, got)
		}
	}
}

func TestParseTime(t *testing.T) {
	for _, s := range []string{"2026-01-31T12:00:00Z", "2026-01-31T12:00:00.123456789+02:30", "1969-12-31T23:59:59.5-00:00",
		"2024-02-29T00:00:00-23:59", "0001-01-01T00:00:00Z"} {
		want, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseTime(s); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v; want %v", s, got, err, want)
		}
	}
	for s, want := range map[string]string{"2026-01-31t12:00:00z": "2026-01-31T12:00:00Z", "2016-12-31T23:59:60Z": "2017-01-01T00:00:00Z",
		"2026-01-31T12:00:00.12345678999Z": "2026-01-31T12:00:00.123456789Z"} {
		if got, err := ParseTime(s); err != nil || got.Format(time.RFC3339Nano) != want {
			t.Errorf("%s: %v, %v; want %s", s, got, err, want)
		}
	}
	for _, s := range []string{"", "2026-01-31", "2026-01-31T12:00:00", "2026-01-31 12:00:00Z", "2026-1-31T12:00:00Z0", "2026-13-01T00:00:00Z",
		"2026-00-01T00:00:00Z", "2026-01-00T00:00:00Z", "2026-02-30T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z",
		"2026-01-01T00:00:61Z", "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00,5Z", "2026-01-01T00:00:00+0200", "2026-01-01T00:00:00+24:00",
		"2026-01-01T00:00:00+02:60", "2026-01-01T00:00:00+0a:00", "2026-01-01T00:00:00ZZ", "-026-01-01T00:00:00Z", "２026-01-01T00:00:00Z"} {
		if got, err := ParseTime(s); err == nil {
			t.Errorf("%q is read as %v", s, got)
		} else if s != "" && !strings.Contains(err.Error(), "want RFC 3339") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Event{ID: "1", Source: "s", Type: "t", Time: "2026-01-31T12:00:00Z", Topic: strings.Repeat("x", 300),
		Extensions: []Attribute{{"a1", String, "é"}, {"b", Boolean, "false"}, {"i", Integer, "-2147483648"}, {"u", URI, "http://x"}}}
	if err := good.Validate(Limits{Attribute: 20, Event: 100, Attrs: 8}); err != nil {
		t.Errorf("a good event: %v", err)
	}
	for want, change := range map[string]func(*Event){
		"id: is missing":                   func(e *Event) { e.ID = "" },
		"source: is missing":               func(e *Event) { e.Source = "" },
		"type: is missing":                 func(e *Event) { e.Type = "" },
		"time: \"x\"":                      func(e *Event) { e.Time = "x" },
		"id: has U+0085 at byte 1":         func(e *Event) { e.ID = "x\u0085" },
		"id: has U+007F":                   func(e *Event) { e.ID = "\x7f" },
		"subject: has U+FFFE":              func(e *Event) { e.Subject = "\ufffe" },
		"subject: has U+FDD0":              func(e *Event) { e.Subject = "\ufdd0" },
		"subject: has U+10FFFF":            func(e *Event) { e.Subject = "\U0010ffff" },
		"type: is not UTF-8 at byte 1":     func(e *Event) { e.Type = "t\xff" },
		"aB: the attribute's name has 'B'": func(e *Event) { e.Extensions[0].Name = "aB" },
		"subject: this name cannot":        func(e *Event) { e.Extensions[0].Name = "subject" },
		"partitionkey: this name cannot":   func(e *Event) { e.Extensions[0].Name = "partitionkey" },
		"specversion: this name cannot":    func(e *Event) { e.Extensions[0].Name = "specversion" },
		"b: is given twice":                func(e *Event) { e.Extensions[0].Name = "b" },
		`b: is "yes"; a boolean`:           func(e *Event) { e.Extensions[1].Value = "yes" },
		`i: is "2147483648"; an integer`:   func(e *Event) { e.Extensions[2].Value = "2147483648" },
		`i: is "+1"; an integer`:           func(e *Event) { e.Extensions[2].Value = "+1" },
		"u: has U+0000":                    func(e *Event) { e.Extensions[3].Value = "\x00" },
		"u: is of kind 7":                  func(e *Event) { e.Extensions[3].Kind = Timestamp + 1 },
	} {
		e := good.Clone()
		change(&e)
		err := e.Validate(Limits{})
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v; want %s alone", err, want)
		}
	}
	for want, l := range map[string]Limits{
		"the event has 8 attributes; the limit is 7":           {Attrs: 7},
		"time: has 20 bytes; the limit is 19 bytes":            {Attribute: 19},
		"has 54 bytes of data and attributes; the limit is 53": {Event: 53},
	} {
		if err := good.Validate(l); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
	// Everything at once; malformed outweighs too large.
	bad := Event{ID: strings.Repeat("x", 30), Type: "t\n", Extensions: []Attribute{{"A", String, ""}}}
	err := bad.Validate(Limits{Attribute: 20})
	var f *Faults
	if !errors.As(err, &f) || len(f.List) != 4 || f.Is != ErrInvalid {
		t.Errorf("%v", err)
	}
}
