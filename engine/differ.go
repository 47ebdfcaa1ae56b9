package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// An answer is what a version said about one event.
type answer struct {
	failure string // why it failed; "" if it did not
	results []*plugins.Result
}

func answers(n int, out *plugins.Outcome) []answer {
	as := make([]answer, n)
	for i := range out.Results {
		r := &out.Results[i]
		as[r.Index].results = append(as[r.Index].results, r)
	}
	for _, f := range out.Failures {
		as[f.Index].failure = string(f.Reason)
		if f.Err != nil {
			as[f.Index].failure += ": " + f.Err.Error()
		}
	}
	return as
}

// reason is the typed part of a failure: two versions trap in words of their own.
func (a answer) reason() string { r, _, _ := strings.Cut(a.failure, ":"); return r }

func (a answer) verdicts() string {
	names := []string{}
	for _, r := range a.results {
		names = append(names, strings.ToLower(r.Verdict.String()))
	}
	return strings.Join(names, ", ")
}

// difference is the first one between two answers.
type difference struct {
	path    string
	was, is string
	json    bool // only in how the same JSON is written
}

// differ compares what two versions said about an event; nil where it is the same.
func differ(in event.Record, was, is answer) *difference {
	switch {
	case was.failure != "" || is.failure != "":
		if was.reason() == is.reason() {
			return nil
		}
		return &difference{path: "outcome", was: was.told(), is: is.told()}
	case len(was.results) != len(is.results):
		return &difference{path: "results", was: was.verdicts(), is: is.verdicts()}
	}
	var spelling *difference
	for i, a := range was.results {
		d := differResults(in, a, is.results[i])
		if d == nil {
			continue
		}
		if len(was.results) > 1 {
			d.path = fmt.Sprintf("results[%d].%s", i, d.path)
		}
		if !d.json {
			return d
		}
		if spelling == nil {
			spelling = d
		}
	}
	return spelling
}

func (a answer) told() string {
	if a.failure != "" {
		return a.failure
	}
	return a.verdicts()
}

func differResults(in event.Record, a, b *plugins.Result) *difference {
	if a.Verdict != b.Verdict {
		return &difference{path: "verdict", was: strings.ToLower(a.Verdict.String()), is: strings.ToLower(b.Verdict.String())}
	}
	number := func(path string, show func(uint32) string) *difference {
		if a.Arg == b.Arg {
			return nil
		}
		return &difference{path: path, was: show(a.Arg), is: show(b.Arg)}
	}
	plain := func(v uint32) string { return strconv.FormatUint(uint64(v), 10) }
	switch a.Verdict {
	case plugins.Emit:
		return differEvents(in, a, b)
	case plugins.Retry:
		return number("delay", func(ms uint32) string { return (time.Duration(ms) * time.Millisecond).String() })
	case plugins.Reject:
		if d := number("code", plain); d != nil {
			return d
		}
		return differData("reason", a.Data, b.Data)
	case plugins.Reply:
		if d := number("status", plain); d != nil {
			return d
		}
		return differData("data", a.Data, b.Data)
	}
	return nil
}

func differEvents(in event.Record, a, b *plugins.Result) *difference {
	var was, is event.Event
	a.Event(in, &was)
	b.Event(in, &is)
	if d := differAttributes(&was, &is); d != nil {
		return d
	}
	return differData("data", was.Data, is.Data)
}

// differAttributes finds the first attribute, by name, that differs; whether the data is bytes counts as one.
func differAttributes(a, b *event.Event) *difference {
	was, is := attributesOf(a), attributesOf(b)
	names := slices.AppendSeq(slices.Collect(maps.Keys(was)), maps.Keys(is))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if v, w := was[name], is[name]; v != w {
			return &difference{path: name, was: v, is: w}
		}
	}
	if a.Binary != b.Binary {
		return &difference{path: "data", was: fmt.Sprintf("binary: %t", a.Binary), is: fmt.Sprintf("binary: %t", b.Binary)}
	}
	return nil
}

// attributesOf are an event's attributes by the names that filters have for them.
func attributesOf(e *event.Event) map[string]string {
	m := map[string]string{}
	for name, v := range map[string]string{"id": e.ID, "source": e.Source, "type": e.Type, "subject": e.Subject, "datacontenttype": e.DataContentType,
		"dataschema": e.DataSchema, "time": e.Time, "key": e.PartitionKey, "ext.traceparent": e.TraceParent, "topic": e.Topic} {
		if v != "" {
			m[name] = v
		}
	}
	for _, x := range e.Extensions {
		m["ext."+x.Name] = x.Value
		if x.Kind != event.String {
			m["ext."+x.Name] = fmt.Sprintf("%s (kind %d)", x.Value, x.Kind)
		}
	}
	return m
}

func differData(path string, was, is []byte) *difference {
	if (was == nil) != (is == nil) || !bytes.Equal(was, is) {
		a, aOK := decodeJSON(was)
		b, bOK := decodeJSON(is)
		if !aOK || !bOK {
			return &difference{path: path, was: dataText(was), is: dataText(is)}
		}
		if d := differJSON(path, a, b); d != nil {
			return d
		}
		return &difference{path: path, was: dataText(was), is: dataText(is), json: true}
	}
	return nil
}

func dataText(b []byte) string {
	if b == nil {
		return "(no data)"
	}
	return string(b)
}

func decodeJSON(b []byte) (v any, ok bool) {
	if event.CheckJSON(b) != nil { // which bounds depth
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return v, d.Decode(&v) == nil
}

// differJSON finds the first difference of two values; members are looked at by name.
func differJSON(path string, a, b any) (first *difference) {
	differences(path, a, b, func(at string, was, is json.RawMessage) bool {
		first = &difference{path: at, was: jsonText(was), is: jsonText(is)}
		return false
	})
	return first
}

// differences calls fn for each difference of two values until it returns false; members are looked at by name.
// What one of them lacks is nil.
func differences(path string, a, b any, fn func(path string, was, is json.RawMessage) bool) bool {
	switch x := a.(type) {
	case map[string]any:
		y, ok := b.(map[string]any)
		if !ok {
			break
		}
		names := slices.AppendSeq(slices.Collect(maps.Keys(x)), maps.Keys(y))
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			v, had := x[name]
			w, has := y[name]
			at := strings.TrimPrefix(path+"."+name, ".")
			if had != has {
				if !fn(at, rawJSON(v, had), rawJSON(w, has)) {
					return false
				}
			} else if !differences(at, v, w, fn) {
				return false
			}
		}
		return true
	case []any:
		y, ok := b.([]any)
		if !ok {
			break
		}
		for i := range max(len(x), len(y)) {
			at := fmt.Sprintf("%s[%d]", path, i)
			var v, w any
			if i < len(x) {
				v = x[i]
			}
			if i < len(y) {
				w = y[i]
			}
			if i >= len(x) || i >= len(y) {
				if !fn(at, rawJSON(v, i < len(x)), rawJSON(w, i < len(y))) {
					return false
				}
			} else if !differences(at, v, w, fn) {
				return false
			}
		}
		return true
	default:
		if comparableJSON(b) && a == b {
			return true
		}
	}
	return fn(path, rawJSON(a, true), rawJSON(b, true))
}

// comparableJSON keeps a comparison of interfaces from maps and lists.
func comparableJSON(v any) bool {
	switch v.(type) {
	case map[string]any, []any:
		return false
	}
	return true
}

func rawJSON(v any, there bool) json.RawMessage {
	if !there {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil { // unreachable: it was read from JSON
		return nil
	}
	return b
}

func jsonText(raw json.RawMessage) string {
	if raw == nil {
		return "(missing)"
	}
	return string(raw)
}
