package main

import (
	"encoding/json"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// Pseudonyms keep form and length, are the same for the same value and key, and say nothing without the key.
func TestPseudonyms(t *testing.T) {
	a, err := newRedactor(redactStrings, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newRedactor(redactStrings, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := newRedactor(redactAll, nil, a.key)
	if err != nil {
		t.Fatal(err)
	}
	for text, form := range map[string]string{
		"anna.lovelace+shop@example.com": `^[a-z]{4}\.[a-z]{8}\+[a-z]{4}@[a-z]{7}\.[a-z]{3}$`,
		"+49 (30) 901820":                `^\+\d\d \(\d\d\) \d{6}$`,
		"Ünal Öz":                        `^[A-Z][a-z]{3} [A-Z][a-z]$`,
		"DE89-3704":                      `^[A-Z]{2}\d\d-\d{4}$`,
		"日本語":                            `^[a-z]{3}$`,
		"":                               `^$`,
	} {
		got := a.text(text)
		if !regexp.MustCompile(form).MatchString(got) || got == text && text != "" {
			t.Errorf("%q became %q; want the form %s", text, got, form)
		}
		if got != a.text(text) || got != again.text(text) {
			t.Errorf("%q became %q, then something else", text, got)
		}
		if len(text) > 12 && got == b.text(text) {
			t.Errorf("%q became %q under two keys", text, got)
		}
	}
	for text, form := range map[string]string{"0": `^[1-9]$`, "-12.50": `^-[1-9]\d\.\d\d$`, "1.5e300": `^[1-9]\.\de300$`, "900719925474099267": `^[1-9]\d{17}$`, "0.001": `^0\.\d{3}$`} {
		if got := a.number(text); !regexp.MustCompile(form).MatchString(got) || !json.Valid([]byte(got)) {
			t.Errorf("%s became %s; want the form %s", text, got, form)
		}
	}
}

// Whatever the event, nothing of a marked string is left in its data, and the rest is as it was.
func TestRedactedEventsKeepTheirShape(t *testing.T) {
	const mark = "Xyzzy"
	rng := rand.New(rand.NewPCG(1, 2))
	var grow func(depth int) any
	grow = func(depth int) any {
		switch k := rng.IntN(8); {
		case k == 0 && depth < 4:
			m := map[string]any{}
			for _, name := range []string{"a", "b.c", "ü", ""}[:rng.IntN(5)] {
				m[name] = grow(depth + 1)
			}
			return m
		case k == 1 && depth < 4:
			var list []any
			for range rng.IntN(3) {
				list = append(list, grow(depth+1))
			}
			return append([]any{}, list...)
		case k == 2:
			return rng.IntN(1000)
		case k == 3:
			return rng.IntN(2) == 0
		case k == 4:
			return nil
		default:
			return mark + strings.Repeat("<é\"\\\n", rng.IntN(3))
		}
	}
	r, err := newRedactor(redactStrings, []string{"data.kept"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 500 {
		doc, err := json.Marshal(map[string]any{"specversion": "1.0", "id": mark + "1", "source": "/s", "type": "t", "subject": mark, "partitionkey": mark, "tenant": mark,
			"data": map[string]any{"x": grow(0), "kept": mark}})
		if err != nil {
			t.Fatal(err)
		}
		out, err := r.event(doc)
		if err != nil {
			t.Fatalf("%v of %s", err, doc)
		}
		if err := event.CheckJSON(out); err != nil {
			t.Fatalf("%v: %s of %s", err, out, doc)
		}
		if n := strings.Count(string(out), mark); n != 2 { // the id, and what is kept
			t.Errorf("%d marks are left in %s of %s", n, out, doc)
		}
		var was, is any
		if err := json.Unmarshal(doc, &was); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out, &is); err != nil {
			t.Fatal(err)
		}
		if a, b := shapeOf(was), shapeOf(is); a != b {
			t.Errorf("the shape %s became %s", a, b)
		}
	}
}

// A path that is named holds for whatever lies there, and for a text in which what it names may be anywhere.
func TestNamedPathsLeaveNothing(t *testing.T) {
	const head = `{"specversion":"1.0","id":"i","source":"/s","type":"t",`
	for _, x := range []struct{ redact, event, gone, form string }{
		{"data.id", `"data":{"id":123456,"no":123456}}`, `"id":123456`, `"data":\{"id":[1-9]\d{5},"no":123456\}`},
		{"data.id", `"data":{"id":7}}`, `:7`, `"id":\d\}`},
		{"data.id", `"data":{"id":0}}`, `:0`, `"id":[1-9]\}`},
		{"data.ok", `"data":{"ok":true,"no":true}}`, `"ok":true`, `\{"ok":false,"no":true\}`},
		{"data.a", `"data":{"a":[{"b":8001},9001,"Xyzzy"]}}`, `8001|9001|Xyzzy`, `"a":\[\{"b":\d{4}\},\d{4},"[A-Z][a-z]{4}"\]`},
		{"data.list.email", `"data":{"list":[{"email":"xyzzy"}]}}`, `xyzzy`, `"email":"[a-z]{5}"`},
		{"partitionkey", `"partitionkey":"xyzzy"}`, `xyzzy`, `"partitionkey":"[a-z]{5}"`},
		{"ext.tenant", `"tenant":4711471147}`, `4711471147`, `"tenant":1\d{9}`},
		{"ext.flag", `"flag":true}`, `true`, `"flag":false`},
		{"time", `"time":"2026-01-31T12:00:00Z"}`, `2026-01-31T12`, `"time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"`},
		{"data.email", `"datacontenttype":"text/plain","data":"xyzzy"}`, `xyzzy`, `"data":"[a-z]{5}"`},
		{"data.email", `"datacontenttype":"text/xml","data_base64":"eHl6enk="}`, `eHl6enk`, `"data_base64":"[^"]{7}="`},
		{"data.address.street", `"data":{"address":"xyzzy"}}`, `xyzzy`, `"address":"[a-z]{5}"`},
		{"data.email", `"data":471147114711}`, `471147114711`, `"data":\d{12}\}`},
		{redactAll, `"tenant":471147114}`, `471147114`, `"tenant":[1-9]\d{8}`},
	} {
		r, err := newRedactor(x.redact, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		out, err := r.event([]byte(head + x.event))
		if err != nil {
			t.Fatal(err)
		}
		if regexp.MustCompile(x.gone).Match(out) || !regexp.MustCompile(x.form).Match(out) {
			t.Errorf("--redact=%s of %s is %s; want the form %s", x.redact, x.event, out, x.form)
		}
		if err := event.ParseStructured(out, event.Limits{}, &event.Event{}); err != nil {
			t.Errorf("--redact=%s made no event, %s: %v", x.redact, out, err)
		}
	}
}

// A path at which nothing can lie would leave what its author meant as it is: it is refused, in words.
func TestPathsThatCanNotMatchAreRefused(t *testing.T) {
	for path, says := range map[string]string{
		"tenant":              "ext.tenant",
		"email":               "data.email",
		"data.items[0].email": "every item",
		"data.items[].email":  "every item",
		"datacontenttype":     "begin with data",
		"subject.name":        "begin with data",
		"ext.a.b":             "begin with data",
		"ext.":                "names with dots",
		"data..email":         "names with dots",
		"data.email,":         "begin with data",
		"all,data.email":      "data.all",
	} {
		if _, err := newRedactor(path, nil, nil); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("--redact=%s: %v; want it to say %s", path, err, says)
		}
	}
	r, err := newRedactor("data.email, data.none,subject,ext.traceparent", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.event([]byte(`{"specversion":"1.0","id":"i","source":"/s","type":"t","traceparent":"x","data":{"email":null}}`)); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(r.missed(), " "); got != "data.none subject" {
		t.Errorf("nothing lay at %q", got)
	}
}

// shapeOf is a JSON value with strings replaced by their lengths in characters.
func shapeOf(v any) string {
	var hide func(v any) any
	hide = func(v any) any {
		switch v := v.(type) {
		case string:
			return len([]rune(v))
		case []any:
			for i := range v {
				v[i] = hide(v[i])
			}
		case map[string]any:
			for k := range v {
				v[k] = hide(v[k])
			}
		}
		return v
	}
	b, err := json.Marshal(hide(v))
	if err != nil {
		return err.Error()
	}
	return string(b)
}
