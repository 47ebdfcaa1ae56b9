package rules

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

func faultsOf(t *testing.T, err error) []event.Fault {
	t.Helper()
	var f *event.Faults
	if !errors.As(err, &f) || !errors.Is(err, event.ErrInvalid) {
		t.Fatalf("%v is not a list of faults", err)
	}
	return f.List
}

func TestDefinitionsOfTheAPI(t *testing.T) {
	topic, err := ParseTopic([]byte(`{"name": "orders", "partitions": 4, "retain": {"bytes": 1048576, "age": "1h"}, "whenFull": "reject", "dedupe": "30s",
		"schema": {"type": "object", "properties": {"token": {"const": "\ud83d\ude00"}}}}`), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if want := (event.Topic{Name: "orders", Partitions: 4, Retain: event.Retain{Bytes: 1 << 20, Age: time.Hour}, WhenFull: event.Reject,
		Dedupe: 30 * time.Second, Trace: event.Trace{Keep: 24 * time.Hour, Sample: 1}, Schema: []byte(`{"type":"object","properties":{"token":{"const":"😀"}}}`)}); !reflect.DeepEqual(topic.Topic, want) {
		t.Errorf("got  %+v\nwant %+v", topic.Topic, want)
	}
	if got := string(ShowTopic(topic.Topic)); got != `{"name":"orders","partitions":4,"retain":{"bytes":"1MiB","age":"1h"},"whenFull":"reject","dedupe":"30s","trace":{"keep":"1d","sample":1},"schema":{"type":"object","properties":{"token":{"const":"😀"}}}}` || got != string(topic.Effective) {
		t.Errorf("shown as %s\nand        %s", got, topic.Effective)
	}

	f, err := ParseFunction([]byte(`{"name": "f", "module": "sha256:`+strings.Repeat("ab", 32)+`", "limits": {"memory": "1MiB"}, "config": {"n": 3, "api_token": "tok-123456"}}`), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if f.Digest != "sha256:"+strings.Repeat("ab", 32) || f.Limits != (event.FunctionLimits{Memory: 1 << 20}.WithDefaults()) || f.Config["n"] != "3" || f.Owner != (event.Owner{}) {
		t.Errorf("%+v", f.Function)
	}
	if f, err = ParseFunction([]byte(`name: f`), Options{}); err != nil || f.Digest != "" || f.Pushed {
		t.Errorf("settings alone: %+v, %v", f, err)
	}

	o := testOptions()
	o.Functions = []string{"redact"}
	s, err := ParseSubscription([]byte(`{"name": "s", "topic": "orders", "functions": ["redact"], "start": "24h", "deliver": {"webhook": {"url": "https://x.y/?key=v", "headers": {"a": "literal"}}}}`), o)
	if err != nil {
		t.Fatal(err)
	}
	if want := (event.Start{At: event.AtTime, Time: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}); s.Start != want || s.DeadLetter != "s.dead" || s.OpenSink == nil {
		t.Errorf("%+v", s)
	}
	if got, want := string(s.Source), `{"name":"s","topic":"orders","functions":["redact"],"start":"24h","deliver":{"webhook":{"url":"https://x.y/?***","headers":{"a":"***"}}}}`; got != want {
		t.Errorf("source %s\nwant   %s", got, want)
	}
	if got, want := string(s.Effective), `{"name":"s","topic":"orders","start":"24h","functions":["redact"],"order":"none","deliver":{"webhook":{"url":"https://x.y/?***","format":"structured","headers":{"a":"***"},"timeout":"15s","reply":false}},"concurrency":16,"rate":"unlimited","retry":{"attempts":10,"schedule":["5s","5m","30m","2h","5h","10h","14h","20h","1d"],"jitter":0.2,"on4xx":"retry"},"parked":{"bytes":"256MiB"},"deadLetter":"s.dead"}`; got != want {
		t.Errorf("effective %s\nwant      %s", got, want)
	}
}

func TestTopicsOf(t *testing.T) {
	source := event.Topic{Name: "t", Partitions: 8, Retain: event.Retain{Bytes: 1 << 20, Age: time.Minute, Events: 5}, WhenFull: event.Reject}
	s, err := ParseSubscription([]byte(`{"name": "s", "topic": "t", "deliver": {"stream": {"retain": {"age": "1h"}}}}`), Options{})
	if err != nil {
		t.Fatal(err)
	}
	ts := TopicsOf(s.Subscription, source)
	if len(ts) != 2 || ts[0].Implied || /* its bounds are said */ !ts[1].Implied {
		t.Fatalf("%+v", ts)
	}
	if want := (event.Topic{Name: "s.out", Partitions: 8, Retain: event.Retain{Bytes: 1 << 20, Age: time.Hour, Events: 5}, WhenFull: event.Reject}).WithDefaults(); !reflect.DeepEqual(ts[0].Topic, want) {
		t.Errorf("out: %+v", ts[0].Topic)
	}
	if want := (event.Topic{Name: "s.dead", WhenFull: event.Reject}).WithDefaults(); !reflect.DeepEqual(ts[1].Topic, want) {
		t.Errorf("dead letters: %+v", ts[1].Topic)
	}
}

func TestFaultsOfTheAPI(t *testing.T) {
	o := Options{Sinks: testOptions().Sinks, Functions: []string{"redact"}}
	sub := func(b []byte) error { _, err := ParseSubscription(b, o); return err }
	topic := func(b []byte) error { _, err := ParseTopic(b, o); return err }
	function := func(b []byte) error { _, err := ParseFunction(b, o); return err }
	const begin = `{"name": "s", "topic": "t", `
	for _, c := range []struct {
		parse      func([]byte) error
		doc        string
		at, detail string
	}{
		{topic, `{}`, "name", "missing"},
		{topic, `{"name": "a b"}`, "name", `name "a b" has ' '`},
		{topic, `{"name": ["a"]}`, "name", "is a list"},
		{topic, `[1]`, "", "is a list"},
		{topic, ``, "", "nothing in it"},
		{topic, `{"name": "a"`, "", "not JSON, at byte"},
		{topic, `{"name": "a"} x`, "", "not JSON, at byte"},
		{topic, `{"name": "a", "name": "b"}`, "", `key "name" is there twice`},
		{topic, `{"name": "a", "trace": "never"}`, "trace", `is "never"; want none, or a mapping`},
		{topic, `{"name": "a", "retain": {"byte": 1}}`, "retain.byte", `unknown key "byte"; did you mean "bytes"?`},
		{topic, `{"name": "a", "schema": "schema.json"}`, "schema", "files are not available here"},
		{topic, `{"name": "a", "schema": {"type": 1}}`, "schema", "not a JSON Schema"},
		{topic, `{"name": "a", "schema": {"type": 1e}}`, "", "not JSON"},
		{topic, `{"name": "a", "dedupe": null}`, "dedupe", "is empty"},
		{topic, strings.Repeat(`{"a":`, 100), "", "over 64 deep"},
		{topic, strings.Repeat(`[`, 100_000), "", "not YAML"},
		{function, `{"name": "f", "wasm": "f.wasm"}`, "wasm", "want sha256:… of a module that was uploaded"},
		{function, `{"name": "f", "wasm": "pushed", "module": "pushed"}`, "module", "keep one"},
		{function, `{"name": "f", "allow": {"http": ["https://api.example.com/x"]}}`, "allow.http[0]", "want a host without scheme or path"},
		{function, `{"name": "f", "allow": {"http": "a"}}`, "allow.http", "want a list of hosts"},
		{function, `{"name": "f", "allow": {"kv": "yes"}}`, "allow.kv", "want true or false"},
		{function, `{"name": "f", "secrets": {"a": "***"}}`, "secrets.a", "give the secret"},
		{function, `{"name": "f", "limits": {"cpu": "2h"}}`, "limits.cpu", "want a duration of 1ms to 1m"},
		{function, `{"name": "f", "limits": {"fuel": -1}}`, "limits.fuel", "want a whole number, or unlimited"},
		{sub, begin + `"deliver": {"webhok": {}}}`, "deliver.webhok", `unknown sink "webhok"; did you mean "webhook"?`},
		{sub, begin + `"deliver": {"webhook": {}}}`, "deliver.webhook.url", "missing"},
		{sub, begin + `"deliver": {"webhook": {"url": "https://x.y", "secrets": ["hunter2hunter2"]}}}`, "deliver.webhook.secrets[0]", `is "***"`},
		{sub, begin + `"deliver": {"webhook": {"url": "${env:HOME}"}}}`, "deliver.webhook.url", "environment variables are not available here"},
		{sub, begin + `"deliver": {"webhook": {"url": "${file:/etc/passwd}"}}}`, "deliver.webhook.url", "files are not available here"},
		{sub, begin + `"deliver": {"webhook": {"url": "https://x.y", "headers": {"a": "***"}}}}`, "deliver.webhook.headers.a", "how the router shows what is secret"},
		{sub, begin + `"deliver": {"pull": {}}, "functions": ["redct"]}`, "functions[0]", `unknown function "redct"; did you mean "redact"?`},
		{sub, begin + `"deliver": {"pull": {}}, "filter": "typo == 1"}`, "filter", "filter, column 1: unknown name"},
		{sub, begin + `"deliver": {"pull": {}}, "order": "kye"}`, "order", `is "kye"; want none, or key for one delivery of a partitionkey at a time; did you mean "key"?`},
		{sub, begin + `"deliver": {"pull": {}}, "retry": {"exponential": {"first": "1m", "max": "1s"}}}`, "retry.exponential.max", `is "1s", less than the first wait of 1m`},
		{sub, begin + `"deliver": {"pull": {}}, "retry": {"exponential": {"factor": 0.5}}}`, "retry.exponential.factor", "1 to 100"},
		{sub, begin + `"deliver": {"pull": {}}, "retry": {"exponential": {}, "schedule": ["1s"]}}`, "retry.exponential", "beside schedule"},
		{sub, begin + `"deliver": {"pull": {}}, "retry": {"maxAge": "0s"}}`, "retry.maxAge", "want a duration of 1s"},
		{sub, begin + `"deliver": {"pull": {}}, "retry": {"on4xx": "drop"}}`, "retry.on4xx", `is "drop"; want retry or deadLetter`},
		{sub, begin + `"deliver": {"pull": {}}, "retry": {"jitter": "NaN"}}`, "retry.jitter", `is "NaN"`},
		{sub, `{"name": "` + strings.Repeat("s", 249) + `", "topic": "t", "deliver": {"topic": "u"}}`, "name", "too long for its topic"},
		{sub, "name: s\ntopic: t\ndeliver: {pull: {}}\nbad: 1\n", "bad", `unknown key "bad"`},
	} {
		err := c.parse([]byte(c.doc))
		if err == nil {
			t.Errorf("%s was accepted", c.doc)
			continue
		}
		if f := faultsOf(t, err); len(f) != 1 || f[0].At != c.at || !strings.Contains(f[0].Detail, c.detail) {
			t.Errorf("%.80s: %+v\nwant %q: %s", c.doc, f, c.at, c.detail)
		}
	}
}

// The table of RFC 7396, appendix A, as far as a patch is an object, and what is not in it.
func TestMergePatch(t *testing.T) {
	for _, c := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`["a","b"]`, `{"a":1}`, `{"a":1}`},
		{`{"e":null}`, `{"a":1}`, `{"e":null,"a":1}`},
		{`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		{`{"n":9007199254740993,"t":true}`, `{"f":1.50,"s":"<&>\ud83d\ude00"}`, `{"n":9007199254740993,"t":true,"f":1.50,"s":"<&>😀"}`},
		{"a: {b: 5s, c: 0x10}\n", `{"a": {"d": "${env:X}"}}`, `{"a":{"b":"5s","c":16,"d":"${env:X}"}}`},
	} {
		got, err := MergePatch([]byte(c[0]), []byte(c[1]))
		if err != nil || string(got) != c[2] {
			t.Errorf("%s with %s: %s, %v; want %s", c[0], c[1], got, err, c[2])
		}
	}
	for _, patch := range []string{``, `[1]`, `"a"`, `null`, `{`, `{"a":1,"a":2}`} {
		if got, err := MergePatch([]byte(`{}`), []byte(patch)); err == nil || !errors.Is(err, event.ErrInvalid) {
			t.Errorf("%s: %s, %v", patch, got, err)
		}
	}
}

// What is shown of a definition can be sent back, as long as nothing in it was hidden.
func TestEffectiveParsesAgain(t *testing.T) {
	o := fileOptions()
	o.Functions = []string{"redact"}
	for _, s := range parseFull(t).Subscriptions[1:] {
		for _, doc := range []json.RawMessage{s.Source, s.Effective} {
			again, err := ParseSubscription(doc, o)
			if err != nil {
				t.Errorf("%s: %v", doc, err)
				continue
			}
			if string(again.Effective) != string(s.Effective) {
				t.Errorf("%s\nread again is\n%s", s.Effective, again.Effective)
			}
		}
	}
}
