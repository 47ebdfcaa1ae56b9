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
	for text, form := range map[string]string{"0": `^0$`, "-12.50": `^-[1-9]\d\.\d\d$`, "1.5e300": `^[1-9]\.\de300$`, "900719925474099267": `^[1-9]\d{17}$`, "0.001": `^0\.\d{3}$`} {
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
