package native_test

import (
	"context"
	"encoding/hex"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// The example of the documents is what a guest gets, and what it may answer.
func TestDocumentedBytes(t *testing.T) {
	text, err := os.ReadFile("../../../docs/abi.md")
	if err != nil {
		t.Fatal(err)
	}
	dump := func(name string) string {
		m := regexp.MustCompile("(?s)<!-- " + name + " -->\n```text\n(.*?)```").FindSubmatch(text)
		if m == nil {
			t.Fatalf("the documents have no %s", name)
		}
		return string(m[1])
	}
	e := event.Event{ID: "a", Source: "/s", Type: "t", Topic: "orders", Data: []byte(`{"n":1}`)}
	rec := event.Record(e.AppendRecord(nil))
	rec.SetPlace(event.Position{Offset: 5}, 1e9)

	// This guest answers with the batch that it got, or, where its configuration has one, with that answer.
	module := cGuest(t, "echo.c")
	c := &plugins.Call{Events: []event.Record{rec}, Attempts: []uint32{1}}
	var out plugins.Outcome
	f := open(t, newHost(t, plugins.Options{}), module, event.Function{})
	if err := f.Call(context.Background(), c, &out); err != nil || len(out.Results) != 1 {
		t.Fatal(err, show(&out))
	}
	if got := hex.Dump(out.Results[0].Data); got != dump("batch") {
		t.Errorf("a batch is\n%s", got)
	}

	var answer []byte
	for line := range strings.Lines(dump("result")) {
		if len(line) > 58 {
			b, err := hex.DecodeString(strings.ReplaceAll(line[10:58], " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			answer = append(answer, b...)
		}
	}
	f = open(t, newHost(t, plugins.Options{}), module, event.Function{Config: map[string]string{"answer": string(answer)}})
	if err := f.Call(context.Background(), c, &out); err != nil || show(&out) != "0:EMIT({})" {
		t.Fatal(err, show(&out), out.Failures)
	}
	var got event.Event
	out.Results[0].Event(rec, &got)
	if got.Subject != "x" || got.Type != "t" || got.Source != "/s" {
		t.Errorf("%+v", got)
	}
}
