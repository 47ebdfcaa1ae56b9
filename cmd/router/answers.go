package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// What a function says about an event, as JSON that people write and read: {"verdict": "drop"}, or
// {"verdict": "emit"} with the members in which the new event differs from its input. Both what a function
// said and what its author expects are brought to one canonical text, and texts are compared.

// answer is one verdict as JSON.
type answer map[string]any

// verdictKeys are the members that each verdict may have.
var verdictKeys = map[string][]string{
	"pass": nil, "drop": nil, "retry": {"delay"}, "reject": {"code", "reason"},
	"reply": {"status", "contentType", "data", "data_base64"}, "fail": {"reason"},
}

// answersOf renders what a call came to for each of its events.
func answersOf(events []event.Record, out *plugins.Outcome) []string {
	texts := make([]string, len(events))
	r, f := out.Results, out.Failures
	for i, in := range events {
		var all []answer
		for ; len(r) > 0 && r[0].Index == i; r = r[1:] {
			all = append(all, answerOf(in, &r[0]))
		}
		for ; len(f) > 0 && f[0].Index == i; f = f[1:] {
			all = append(all, answer{"verdict": "fail", "reason": string(f[0].Reason)})
		}
		texts[i] = canonical(all)
	}
	return texts
}

// answerOf renders one result.
func answerOf(in event.Record, r *plugins.Result) answer {
	a := answer{"verdict": strings.ToLower(r.Verdict.String())}
	switch r.Verdict {
	case plugins.Retry:
		if r.Arg > 0 {
			a["delay"] = (time.Duration(r.Arg) * time.Millisecond).String()
		}
	case plugins.Reject:
		a["code"], a["reason"] = json.Number(fmt.Sprint(r.Arg)), string(r.Data)
	case plugins.Reply:
		a["status"] = json.Number(fmt.Sprint(max(r.Arg, 200)))
		event.AttrsOf(r.Attrs, r.Count, func(at event.Attr) bool {
			if at.Tag == event.TagDataContentType {
				a["contentType"] = at.Value
			}
			return true
		})
		putData(a, r.Data)
	case plugins.Emit:
		var e event.Event
		r.Event(in, &e)
		full := members(event.Record(e.AppendRecord(nil)))
		if e.Topic != "" {
			full["topic"] = e.Topic
		}
		maps.Copy(a, difference(members(in), full))
	}
	return a
}

// putData sets the member for bytes: JSON as it is, text as a string, anything else in base64.
func putData(a answer, data []byte) {
	switch v, err := decode(data); {
	case data == nil:
	case err == nil:
		a["data"] = v
	case utf8.Valid(data):
		a["data"] = string(data)
	default:
		a["data_base64"] = base64.StdEncoding.EncodeToString(data)
	}
}

// members are those of an event as a CloudEvent in JSON.
func members(r event.Record) map[string]any {
	m := map[string]any{}
	v, err := decode(r.AppendStructured(nil))
	if err == nil {
		m, _ = v.(map[string]any) // a CloudEvent is an object
	}
	return m
}

// decode reads one JSON text; numbers stay as they are written.
func decode(doc []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, fmt.Errorf("more than one JSON text")
	}
	return v, nil
}

// difference is what to say of an emitted event so that its input and this make it: id and topic are never
// inherited, and null removes a member.
func difference(in, full map[string]any) answer {
	a := answer{}
	for k, v := range full {
		if k == "id" || k == "topic" || !reflect.DeepEqual(v, in[k]) {
			a[k] = v
		}
	}
	for k := range in {
		if _, there := full[k]; !there && k != "id" && k != "topic" {
			a[k] = nil
		}
	}
	if _, ok := a["data"]; ok && a["data_base64"] == nil {
		delete(a, "data_base64") // one stands for the other
	}
	if _, ok := a["data_base64"]; ok && a["data"] == nil {
		delete(a, "data")
	}
	delete(a, "specversion")
	return a
}

// emitted is the event that an answer makes of its input.
func emitted(in map[string]any, a answer) map[string]any {
	if _, whole := a["specversion"]; whole {
		full := maps.Clone(map[string]any(a))
		delete(full, "verdict")
		return full
	}
	full := maps.Clone(in)
	delete(full, "id")
	delete(full, "topic")
	for k, v := range a {
		switch {
		case k == "verdict":
			continue
		case k == "data":
			delete(full, "data_base64")
		case k == "data_base64":
			delete(full, "data")
		}
		if v == nil {
			delete(full, k)
		} else {
			full[k] = v
		}
	}
	return full
}

// wantedAnswers reads what an author expects of an event and returns its canonical text.
func wantedAnswers(in event.Record, doc []byte) (string, error) {
	v, err := decode(doc)
	if err != nil {
		return "", err
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var all []answer
	for _, item := range list {
		a, err := wantedAnswer(members(in), item)
		if err != nil {
			return "", err
		}
		all = append(all, a)
	}
	return canonical(all), nil
}

func wantedAnswer(in map[string]any, item any) (answer, error) {
	if item == nil {
		return answer{"verdict": "drop"}, nil
	}
	m, ok := item.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%v is no answer; want an object with \"verdict\", or null to drop", item)
	}
	verdict, _ := m["verdict"].(string)
	if _, whole := m["specversion"]; whole && m["verdict"] == nil {
		verdict = "emit"
	}
	if verdict == "emit" {
		a := difference(in, emitted(in, m))
		a["verdict"] = verdict
		return a, nil
	}
	keys, known := verdictKeys[verdict]
	if !known {
		return nil, fmt.Errorf("verdict %.40q: want pass, emit, drop, retry, reject, reply or fail", fmt.Sprint(m["verdict"]))
	}
	a := answer{"verdict": verdict}
	for k, v := range m {
		if k != "verdict" && !slices.Contains(keys, k) {
			return nil, fmt.Errorf("verdict %s has %.40q; it may have %s", verdict, k, strings.Join(append([]string{"verdict"}, keys...), ", "))
		}
		a[k] = v
	}
	return a, a.fill()
}

// fill sets what may be left out and spells durations in one way.
func (a answer) fill() error {
	switch a["verdict"] {
	case "retry":
		text, ok := a["delay"].(string)
		if a["delay"] == nil {
			return nil
		}
		d, err := time.ParseDuration(text)
		if !ok || err != nil {
			return fmt.Errorf("delay is %v; want a duration such as \"1500ms\"", a["delay"])
		}
		if delete(a, "delay"); d > 0 {
			a["delay"] = d.String()
		}
	case "reject":
		for k, v := range map[string]any{"code": json.Number("0"), "reason": ""} {
			if a[k] == nil {
				a[k] = v
			}
		}
	case "reply":
		if a["status"] == nil {
			a["status"] = json.Number("200")
		}
	}
	return nil
}

// canonical is the text of what is said about one event: an answer, or an array of them; verdicts come first
// and other members in the order of their names, each on a line of its own.
func canonical(all []answer) string {
	var b strings.Builder
	indent := ""
	if len(all) != 1 {
		b.WriteString("[")
		indent = "  "
	}
	for i, a := range all {
		if len(all) != 1 {
			b.WriteString(comma(i) + "\n" + indent)
		}
		b.WriteString("{")
		keys := slices.SortedFunc(maps.Keys(a), func(x, y string) int {
			if (x == "verdict") != (y == "verdict") {
				if x == "verdict" {
					return -1
				}
				return 1
			}
			return strings.Compare(x, y)
		})
		for k, key := range keys {
			b.WriteString(comma(k) + "\n" + indent + "  ")
			b.WriteString(compact(key) + ": " + indented(a[key], indent+"  "))
		}
		b.WriteString("\n" + indent + "}")
	}
	if len(all) != 1 {
		b.WriteString("\n]")
	}
	return b.String()
}

func comma(i int) string {
	if i > 0 {
		return ","
	}
	return ""
}

// compact is a value's JSON on one line, with no characters escaped for HTML.
func compact(v any) string { return encode(v, "", "") }

func indented(v any, prefix string) string { return encode(v, prefix, "  ") }

func encode(v any, prefix, indent string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent(prefix, indent)
	if err := e.Encode(v); err != nil { // v was decoded from JSON, so it can be encoded
		return fmt.Sprintf("%q", err.Error())
	}
	return strings.TrimSuffix(b.String(), "\n")
}
