package main

import (
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

const sampleInput = `{"specversion":"1.0","id":"1","source":"/s","type":"t","subject":"x","data":{"a":1,"b":[1,2]}}`

func sampleOf(t *testing.T, doc string) event.Record {
	t.Helper()
	records, _, err := readSamples("s", []byte(doc), 0)
	if err != nil {
		t.Fatal(err)
	}
	return records[0]
}

// One meaning has one text, however it is spelled.
func TestWantedAnswers(t *testing.T) {
	in := sampleOf(t, sampleInput)
	for _, c := range []struct{ spelled, same string }{
		{`null`, `{"verdict":"drop"}`},
		{`[{"verdict":"pass"}]`, `{"verdict":"pass"}`},
		{`{"verdict":"retry","delay":"1500ms"}`, `{"verdict":"retry","delay":"1.5s"}`},
		{`{"verdict":"retry","delay":"0s"}`, `{"verdict":"retry"}`},
		{`{"verdict":"reply"}`, `{"verdict":"reply","status":200}`},
		{`{"verdict":"emit","type":"t","subject":"x"}`, `{"verdict":"emit"}`},
		{`{"verdict":"emit","data":{"b":[1,2],"a":1}}`, `{"verdict":"emit"}`},
		{`{"specversion":"1.0","source":"/s","type":"u","data":{"a":1,"b":[1,2]}}`, `{"verdict":"emit","type":"u","subject":null}`},
		{`{"verdict":"emit","data_base64":"AAE="}`, `{"data_base64":"AAE=","verdict":"emit","subject":"x"}`},
	} {
		got, err := wantedAnswers(in, []byte(c.spelled))
		same, err2 := wantedAnswers(in, []byte(c.same))
		if err != nil || err2 != nil || got != same {
			t.Errorf("%s (%v) and %s (%v) differ:\n%s", c.spelled, err, c.same, err2, diffLines(got, same, false))
		}
	}
	for _, pair := range [][2]string{
		{`{"verdict":"emit","id":"1"}`, `{"verdict":"emit"}`}, // an id is not inherited: to give one is to say something
		{`{"verdict":"emit","data":{"a":1.0,"b":[1,2]}}`, `{"verdict":"emit"}`},
		{`[{"verdict":"pass"},{"verdict":"reply"}]`, `{"verdict":"pass"}`},
	} {
		a, err := wantedAnswers(in, []byte(pair[0]))
		b, err2 := wantedAnswers(in, []byte(pair[1]))
		if err != nil || err2 != nil || a == b {
			t.Errorf("%s and %s are taken for the same (%v, %v)", pair[0], pair[1], err, err2)
		}
	}
	for doc, want := range map[string]string{
		`{"verdict":"deliver"}`:            "want pass, emit",
		`{"verdict":"drop","code":1}`:      `"code"; it may have verdict`,
		`{"verdict":"retry","delay":"x"}`:  "want a duration",
		`{"verdict":"retry","delay":1500}`: "want a duration",
		`"pass"`:                           "want an object",
		`{"verdict":"pass"} {}`:            "more than one JSON text",
	} {
		if _, err := wantedAnswers(in, []byte(doc)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want an error with %q", doc, err, want)
		}
	}
}

// What a function says reads as an author would write it, and what is read back is the same.
func TestAnswersRoundTrip(t *testing.T) {
	in := sampleOf(t, sampleInput)
	events := []event.Record{in, in, in, in, in}
	out := &plugins.Outcome{
		Results: []plugins.Result{
			{Index: 0, Verdict: plugins.Pass},
			{Index: 0, Verdict: plugins.Reply, Data: []byte(`{"x": 1}`)},
			{Index: 1, Verdict: plugins.Retry, Arg: 1500},
			{Index: 2, Verdict: plugins.Emit, Flags: plugins.Inherit, Data: []byte(`{"a":2}`)},
			{Index: 4, Verdict: plugins.Reject, Arg: 422, Data: []byte("a <b>")},
		},
		Failures: []plugins.Failure{{Index: 3, Reason: plugins.ReasonTrap}},
	}
	want := []string{
		"[\n  {\n    \"verdict\": \"pass\"\n  },\n  {\n    \"verdict\": \"reply\",\n    \"data\": {\n      \"x\": 1\n    },\n    \"status\": 200\n  }\n]",
		"{\n  \"verdict\": \"retry\",\n  \"delay\": \"1.5s\"\n}",
		"{\n  \"verdict\": \"emit\",\n  \"data\": {\n    \"a\": 2\n  }\n}",
		"{\n  \"verdict\": \"fail\",\n  \"reason\": \"trap\"\n}",
		"{\n  \"verdict\": \"reject\",\n  \"code\": 422,\n  \"reason\": \"a <b>\"\n}",
	}
	for i, got := range answersOf(events, out) {
		if got != want[i] {
			t.Errorf("event %d:\n%s", i, diffLines(want[i], got, false))
		}
		if back, err := wantedAnswers(in, []byte(got)); err != nil || back != got {
			t.Errorf("event %d read back (%v):\n%s", i, err, diffLines(got, back, false))
		}
	}
}

func TestReadSamples(t *testing.T) {
	for _, c := range []struct {
		doc, data, contentType, id string
		n                          int
		array                      bool
	}{
		{sampleInput, `{"a":1,"b":[1,2]}`, "", "1", 1, false},
		{`[` + sampleInput + `,{"specversion":"1.0","data":[ 1 ]}]`, `{"a":1,"b":[1,2]}`, "", "1", 2, true},
		{`{"specversion":"1.0","data":{"a": 1}}`, `{"a": 1}`, "", "s-1", 1, false},
		{` {"total": 1} `, `{"total": 1}`, "application/json", "s", 1, false},
		{`[1,2]`, `[1,2]`, "application/json", "s", 1, false},
		{`no JSON`, `no JSON`, "", "s", 1, false},
	} {
		records, array, err := readSamples("s", []byte(c.doc), 7)
		if err != nil || len(records) != c.n || array != c.array {
			t.Errorf("%s: %d events, array %v, %v", c.doc, len(records), array, err)
			continue
		}
		r := records[0]
		if string(r.Data()) != c.data || r.Attr(event.TagDataContentType) != c.contentType || r.Attr(event.TagID) != c.id || r.Offset() != 7 {
			t.Errorf("%s: data %s, type %s, id %s at %d", c.doc, r.Data(), r.Attr(event.TagDataContentType), r.Attr(event.TagID), r.Offset())
		}
		if r.Received() != sampleTime.UnixNano() {
			t.Errorf("%s: received at %v, want %v", c.doc, r.ReceivedAt(), sampleTime)
		}
	}
	if _, _, err := readSamples("s", []byte(`[{"specversion":"1.0"},{}]`), 0); err == nil {
		t.Error("events and data in one array are taken")
	}
	if _, _, err := readSamples("s", []byte(`{"specversion":"1.0","id":7}`), 0); err == nil {
		t.Error("an id that is a number is taken")
	}
}

func TestDiffLines(t *testing.T) {
	long := strings.Repeat("same\n", 20)
	got := diffLines(long+"a\nb\nc", long+"a\nx\nc", false)
	if !strings.HasPrefix(got, "  …\n  same\n") || !strings.Contains(got, "  a\n- b\n+ x\n  c\n") || strings.Count(got, "same") > 3 {
		t.Errorf("got\n%s", got)
	}
	if got := diffLines(strings.Repeat(long, 200)+"a", strings.Repeat(long, 200)+"b", false); !strings.Contains(got, "- a\n+ b\n") || strings.Count(got, "\n") > 6 {
		t.Errorf("a difference far down:\n%s", got)
	}
	if got := diffLines("a\x1b[2J", "b", true); strings.Contains(got, "\x1b[2J") || !strings.Contains(got, "\x1b[31m") {
		t.Errorf("colours, and nothing that the text brings along: %q", got)
	}
}
