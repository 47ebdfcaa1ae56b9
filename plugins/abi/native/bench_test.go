package native_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// order is 1 KiB of JSON with the member to redact in its middle.
func order() string {
	head := `{"id":"o-1234567890","total":129.95,"currency":"EUR","items":[` + strings.Repeat(`{"sku":"sku-00017","name":"a thing to have","quantity":2,"price":12.5},`, 5) +
		`{"sku":"last","quantity":1}],`
	tail := `"email":"somebody@example.com","customer":{"name":"Ada","city":"London"},"note":"`
	return head + tail + strings.Repeat("x", 1024-len(head)-len(tail)-2) + `"}`
}

func batch(n int, data string) *plugins.Call {
	c := &plugins.Call{}
	for i := range n {
		c.Events = append(c.Events, record(uint64(i+1), data))
		c.Attempts = append(c.Attempts, 1)
	}
	return c
}

func BenchmarkCall(b *testing.B) {
	quickstart := event.Function{Name: "redact", Config: map[string]string{"field": "email"}}
	for _, g := range []struct {
		name   string
		module []byte
		data   string
	}{
		{"pass/C", cGuest(b, "hostile.c"), "p"},
		{"redact/C", cGuest(b, "redact.c"), order()},
		{"redact/Go", goGuest(b, quickstartDir), order()},
		{"enrich/Go", goGuest(b, enrichDir), order()},
		{"enrich/C", cSample(b, cSDK+"/examples/enrich/enrich.c", wasiReactor...), order()},
		{"enrich/AssemblyScript", asSample(b), order()},
		{"enrich/Rust", rustGuest(b, rustSDK+"/examples/enrich"), order()},
	} {
		f := open(b, newHost(b, plugins.Options{}), g.module, quickstart)
		for _, n := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/%d", g.name, n), func(b *testing.B) {
				c := batch(n, g.data)
				var out plugins.Outcome
				b.ReportAllocs()
				for b.Loop() {
					if err := f.Call(context.Background(), c, &out); err != nil || len(out.Failures) > 0 {
						b.Fatal(err, out.Failures)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/event")
			})
		}
	}
}

const quickstartDir = "../../../examples/quickstart/functions/redact"

func TestCallAllocatesNothing(t *testing.T) {
	for name, module := range map[string][]byte{"C": cGuest(t, "redact.c"), "Go": goGuest(t, quickstartDir)} {
		f := open(t, newHost(t, plugins.Options{}), module, event.Function{})
		c := batch(16, order())
		var out plugins.Outcome
		if err := f.Call(context.Background(), c, &out); err != nil || len(out.Results) != 16 || out.Results[15].Verdict != plugins.Emit {
			t.Fatalf("%s: %v, %s", name, err, show(&out))
		}
		if n := testing.AllocsPerRun(100, func() {
			if err := f.Call(context.Background(), c, &out); err != nil {
				t.Fatal(err)
			}
		}); n > 0 {
			t.Errorf("%s: %v allocations a batch of 16", name, n)
		}
	}
}

// The quickstart's function, as it is built from source.
func TestQuickstartFunction(t *testing.T) {
	f := open(t, newHost(t, plugins.Options{}), goGuest(t, quickstartDir), event.Function{Config: map[string]string{"field": "customer.email"}})
	out := call(t, f, `{"total":1,"customer":{"email":"a@b","n":1}}`, `{"total":1}`, `{"n":1}`, `not json`)
	want := `0:EMIT({"total":1,"customer":{"email":"***","n":1},"redacted":true}) 1:PASS 2:REJECT/422(the order has no total) 3:REJECT/422(the order has no total)`
	if got := show(out); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Go's own ways to fail have reasons that name them, and its standard library sees the event's time and
// randomness.
func TestGoGuest(t *testing.T) {
	f := open(t, newHost(t, plugins.Options{}), goGuest(t, "testdata/faults"), event.Function{})
	out := call(t, f, "p", "panic", "oom", "huge", "silent", "see")
	again := call(t, f, "p", "p", "p", "p", "p", "see")
	if len(out.Results) != 2 || len(again.Results) != 6 {
		t.Fatal(show(out), show(again))
	}
	got, same := out.Results[1], again.Results[5]
	if s := string(got.Data); s != string(same.Data) || s[4:] != "1970-01-01T00:00:06Z" || s[:4] == "\x00\x00\x00\x00" {
		t.Errorf("%q, then %q", got.Data, same.Data)
	}
	var e event.Event
	got.Event(record(6, "see"), &e)
	if e.Topic != "audit" || e.Source != "/test" || e.ID != "" || len(e.Extensions) != 1 || e.Extensions[0].Value != "us" {
		t.Errorf("%+v", e)
	}
	got.Data = nil
	out.Results[1] = got
	if s := show(out); s != "0:PASS 1!trap 2!memory 3!memory 4!output 5:EMIT" {
		t.Error(s)
	}
	for i, says := range []string{"oh no", "out of memory", "out of memory", "silence is an error"} {
		if msg := out.Failures[i].Err.Error(); !strings.Contains(msg, says) {
			t.Errorf("%s does not say %q", msg, says)
		}
	}
}
