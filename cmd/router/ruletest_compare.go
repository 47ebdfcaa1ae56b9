package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
)

// What came of a test beside what it expects. An event is brought to the names that tests use, then compared key by key.

// shownEvent is an event as tests write it: attributes by name, data under "data".
type shownEvent map[string]any

func shown(rec event.Record) shownEvent {
	var ev event.Event
	rec.Decode(&ev)
	m := shownEvent{}
	for _, a := range []struct{ key, value string }{{"id", ev.ID}, {"source", ev.Source}, {"type", ev.Type}, {"subject", ev.Subject}, {"time", ev.Time},
		{"datacontenttype", ev.DataContentType}, {"dataschema", ev.DataSchema}, {"key", ev.PartitionKey}, {"ext.traceparent", ev.TraceParent}} {
		if a.value != "" {
			m[a.key] = a.value
		}
	}
	for _, a := range ev.Extensions {
		m["ext."+a.Name] = a.Value
		switch a.Name {
		case "deadletterreason":
			m["reason"] = a.Value
		case "deadlettercode":
			m["code"] = a.Value
		}
	}
	switch v, ok := decodeJSON(ev.Data); {
	case ev.Data == nil:
	case ok && !ev.Binary:
		m["data"] = v
	case utf8.Valid(ev.Data):
		m["data"] = string(ev.Data)
	default:
		m["data"] = fmt.Sprintf("(%d bytes)", len(ev.Data))
	}
	return m
}

// decodeJSON reads JSON with its numbers as they are written.
func decodeJSON(b []byte) (v any, ok bool) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return v, d.Decode(&v) == nil
}

// wantedMap is a wanted event in the same form.
func wantedMap(w rules.WantedEvent) shownEvent {
	m := shownEvent{}
	for k, v := range w.Attributes {
		m[k] = v
	}
	if w.Data != nil {
		m["data"], _ = decodeJSON(w.Data)
	}
	return m
}

// matches reports whether got is what is wanted: of objects the keys that are named, null for one that may be missing;
// with exact no others.
func matches(want, got any, exact bool) bool {
	switch want := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return false
		}
		for k, v := range want {
			if x, there := g[k]; !there && v != nil || there && !matches(v, x, exact) {
				return false
			}
		}
		for k, v := range g {
			if _, named := want[k]; exact && !named && v != nil {
				return false
			}
		}
		return true
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(want) {
			return false
		}
		for i := range want {
			if !matches(want[i], g[i], exact) {
				return false
			}
		}
		return true
	case json.Number:
		g, ok := got.(json.Number)
		return ok && sameNumber(string(want), string(g))
	}
	return want == got
}

// sameNumber compares exactly; numbers whose digits would not fit on a page only as they are written.
func sameNumber(a, b string) bool {
	if a == b {
		return true
	}
	const most = 1000
	for _, s := range []string{a, b} {
		if _, e, ok := strings.Cut(strings.ToLower(s), "e"); len(s) > most || ok && len(strings.TrimLeft(e, "+-0")) > 3 {
			return false
		}
	}
	x, ok := new(big.Rat).SetString(a)
	y, ok2 := new(big.Rat).SetString(b)
	return ok && ok2 && x.Cmp(y) == 0
}

// eventMatches is matches for events: what is said of an event's attributes need not be all of them.
func eventMatches(want, got shownEvent, exact bool) bool {
	for k, v := range want {
		if k == "data" {
			if !matches(v, got["data"], exact) {
				return false
			}
		} else if got[k] != v {
			return false
		}
	}
	return true
}

// projected is what got has of what want names, for a difference to be read.
func projected(want, got any, exact bool) any {
	switch want := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return got
		}
		m := map[string]any{}
		for k, v := range g {
			if w, named := want[k]; named {
				m[k] = projected(w, v, exact)
			} else if exact && v != nil {
				m[k] = v
			}
		}
		for k, v := range want {
			if _, there := g[k]; !there && v == nil {
				m[k] = nil
			}
		}
		return m
	case []any:
		g, ok := got.([]any)
		if !ok {
			return got
		}
		l := slices.Clone(g)
		for i := range min(len(want), len(g)) {
			l[i] = projected(want[i], g[i], exact)
		}
		return l
	case json.Number:
		if matches(want, got, exact) {
			return want
		}
	}
	return got
}

func projectedEvent(want, got shownEvent, exact bool) shownEvent {
	m := shownEvent{}
	for k, v := range want {
		x, there := got[k]
		if there && k == "data" {
			x = projected(v, x, exact)
		}
		if there {
			m[k] = x
		}
	}
	return m
}

// pairUp gives each wanted event one that came and matches, each of these once. It returns the places of those
// that found none.
func pairUp(want, got []shownEvent, inOrder, exact bool) (missing, extra []int) {
	of := make([]int, len(got)) // the wanted one that has it, from 1
	if inOrder {
		for i := range want {
			if i < len(got) && eventMatches(want[i], got[i], exact) {
				of[i] = i + 1
			} else {
				missing = append(missing, i)
			}
		}
	} else {
		var tried []bool
		var place func(i int) bool
		place = func(i int) bool { // an augmenting path: one that has several choices makes room
			for j := range got {
				if tried[j] || !eventMatches(want[i], got[j], exact) {
					continue
				}
				tried[j] = true
				if of[j] == 0 || place(of[j]-1) {
					of[j] = i + 1
					return true
				}
			}
			return false
		}
		for i := range want {
			if tried = make([]bool, len(got)); !place(i) {
				missing = append(missing, i)
			}
		}
	}
	for j, i := range of {
		if i == 0 {
			extra = append(extra, j)
		}
	}
	return missing, extra
}

// mostShown bounds the events of one expectation that are shown.
const mostShown = 5

// compareEvents says how what came differs from what is wanted; nil if it does not.
func compareEvents(what string, want *rules.Events, recs []event.Record, colour bool) (faults []string) {
	if want == nil {
		return nil
	}
	got := make([]shownEvent, len(recs))
	for i, r := range recs {
		got[i] = shown(r)
	}
	if want.List == nil {
		if len(got) == want.Count {
			return nil
		}
		fault := fmt.Sprintf("%s: wanted %s, got %s", what, countText(want.Count), countText(len(got)))
		return []string{fault + listed(got, nil)}
	}
	wanted := make([]shownEvent, len(want.List))
	for i, w := range want.List {
		wanted[i] = wantedMap(w)
	}
	missing, extra := pairUp(wanted, got, want.InOrder, want.Exact)
	if len(missing) == 0 && len(extra) == 0 {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: wanted %s, got %s", what, countText(len(wanted)), countText(len(got)))
	both := min(len(missing), len(extra))
	if both > 0 {
		b.WriteString("; - wanted, + got")
	}
	for n := range min(both, mostShown) {
		w, g := wanted[missing[n]], got[extra[n]]
		if len(wanted) > 1 || len(got) > 1 {
			fmt.Fprintf(&b, "\nnumber %d:", missing[n]+1)
		}
		b.WriteString("\n" + strings.TrimRight(diffLines(indented(w, ""), indented(projectedEvent(w, g, want.Exact), ""), colour), "\n"))
	}
	for _, i := range missing[both:min(len(missing), both+mostShown)] {
		fmt.Fprintf(&b, "\nmissing: %s", clean(compact(wanted[i])))
	}
	b.WriteString(listed(got, extra[both:]))
	return []string{b.String()}
}

// countText is "none" or a number.
func countText(n int) string {
	if n == 0 {
		return "none"
	}
	return fmt.Sprint(n)
}

// listed shows events, those at the given places or all if there are none given, a line each.
func listed(got []shownEvent, at []int) string {
	if at == nil {
		for i := range got {
			at = append(at, i)
		}
	}
	var b strings.Builder
	for n, i := range at {
		if n == mostShown {
			fmt.Fprintf(&b, "\nand %d more", len(at)-n)
			break
		}
		fmt.Fprintf(&b, "\ngot: %s", clean(compact(briefly(got[i]))))
	}
	return b.String()
}

// briefly leaves out of an event what is rarely looked at.
func briefly(e shownEvent) shownEvent {
	m := shownEvent{}
	for k, v := range e {
		if !strings.HasPrefix(k, "ext.deadletter") && k != "datacontenttype" && k != "time" {
			m[k] = v
		}
	}
	return m
}

// slack is how far from the time that a test names an attempt may be: the schedule spreads what comes at once.
const slack = 100 * time.Millisecond

// compareAttempts says how the requests differ from those wanted.
func compareAttempts(what string, want *rules.Attempts, got []madeAttempt, colour bool) []string {
	if want == nil || want.List == nil && len(got) == want.Count {
		return nil
	}
	lines := func(n int, line func(i int) string) string {
		all := make([]string, n)
		for i := range all {
			all[i] = line(i)
		}
		return strings.Join(all, "\n")
	}
	text := func(after time.Duration, answer string, events int) string {
		s := "{"
		if after >= 0 {
			s += "after: " + after.Round(slack).String() + ", "
		}
		if answer != "" {
			s += "answer: " + answer + ", "
		}
		if events > 0 {
			s += fmt.Sprintf("events: %d, ", events)
		}
		return strings.TrimSuffix(s, ", ") + "}"
	}
	full := func(i int) string { return text(got[i].after, got[i].answer, got[i].events) }
	if want.List == nil {
		return []string{strings.TrimSuffix(fmt.Sprintf("%s: wanted %s, got %s\n%s", what, plural(want.Count, "attempt"), countText(len(got)), lines(min(len(got), 20), full)), "\n")}
	}
	wanted := lines(len(want.List), func(i int) string { return text(want.List[i].After, want.List[i].Answer, want.List[i].Events) })
	made := lines(len(got), func(i int) string {
		if i >= len(want.List) {
			return full(i)
		}
		w, after, answer, events := want.List[i], time.Duration(-1), "", 0
		if w.After >= 0 {
			if after = got[i].after; (after - w.After).Abs() <= slack {
				after = w.After
			}
		}
		if w.Answer != "" {
			answer = got[i].answer
		}
		if w.Events > 0 {
			events = got[i].events
		}
		return text(after, answer, events)
	})
	if wanted == made {
		return nil
	}
	return []string{fmt.Sprintf("%s: other attempts than wanted; - wanted, + got\n%s", what, strings.TrimRight(diffLines(wanted, made, colour), "\n"))}
}

// compareReply says how the producer's reply differs from the one wanted.
func compareReply(want *rules.ReplyExpect, got *event.Reply, colour bool) []string {
	switch {
	case want == nil || want.None && got == nil:
		return nil
	case got == nil:
		return []string{"reply: wanted one, got none"}
	}
	have := map[string]any{"status": json.Number(fmt.Sprint(got.Status))}
	if v, ok := decodeJSON(got.Data); ok {
		have["data"] = v
	} else if len(got.Data) > 0 {
		have["data"] = string(got.Data)
	}
	if want.None {
		return []string{"reply: wanted none, got " + clean(compact(have))}
	}
	need := map[string]any{}
	if want.Status != 0 {
		need["status"] = json.Number(fmt.Sprint(want.Status))
	}
	if want.Data != nil {
		need["data"], _ = decodeJSON(want.Data)
	}
	if (want.Status == 0 || want.Status == got.Status) && (want.Data == nil || matches(need["data"], have["data"], want.Exact)) {
		return nil
	}
	return []string{"reply: another one than wanted; - wanted, + got\n" +
		strings.TrimRight(diffLines(indented(need, ""), indented(projected(need, have, want.Exact), ""), colour), "\n")}
}
