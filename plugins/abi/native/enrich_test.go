package native_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

const enrichDir = "../../../sdk/go/examples/enrich"

// The sample function of the SDKs says every verdict but RETRY.
func TestEnrichGo(t *testing.T) { enriches(t, goGuest(t, enrichDir)) }

func enriches(t *testing.T, module []byte) {
	t.Helper()
	f := open(t, newHost(t, plugins.Options{}), module, event.Function{})
	dotted := open(t, newHost(t, plugins.Options{}), module, event.Function{Config: map[string]string{"field": "a.b"}})
	const notObject = "REJECT/422(data is not a JSON object)"
	for _, c := range []struct{ kind, data, want string }{
		{"order.ignored", "not json", "DROP"},
		{"order", "not json", notObject},
		{"order", "", notObject},
		{"order", "\x00", notObject},
		{"order", `[{"email":1}]`, notObject},
		{"order", `"email"`, notObject},
		{"order", `{"email":1`, notObject},
		{"order", `{"email":1]`, notObject},
		{"order", `{"email":1}x`, notObject},
		{"order.bad", `[]`, notObject},
		{"order.bad", `{}`, "REJECT/400(bad order)"},
		{"order.split", `{"items":[ {"sku" : 1}, "é\u00e9" ,-0,[1, 2]] }`, `EMIT({"sku" : 1}) EMIT("é\u00e9") EMIT(-0) EMIT([1, 2])`},
		{"order.split", `{"items":[]}`, "DROP"},
		{"order.split", `{"items":{"a":1}}`, "DROP"},
		{"order.split", `{}`, "DROP"},
		{"order.ask", `{"total": 1e400 }`, `REPLY/200({"total":1e400}) PASS`},
		{"order.ask", `{"total":1,"total":{"a":2}}`, `REPLY/200({"total":{"a":2}}) PASS`},
		{"order.ask", `{}`, `REPLY/200({"total":null}) PASS`},
		{"order", `{}`, `EMIT({"enriched":true})`},
		{"order", `{"email":"a@b","n":1}`, `EMIT({"email":"***","n":1,"enriched":true})`},
		{"order", ` { "n" : 9007199254740993 , "email" : {"a":["}"]} } `, ` EMIT( { "n" : 9007199254740993 , "email" : "***" ,"enriched":true} ) `},
		{"order", `{"em\u0061il":null,"x":{"email":1}}`, `EMIT({"em\u0061il":"***","x":{"email":1},"enriched":true})`},
		{"order", `{"email":1,"email":2}`, `EMIT({"email":"***","email":"***","enriched":true})`},
		{"order", `{"enriched":false,"n":1}`, `EMIT({"enriched":true,"n":1})`},
		{"order", `{"a.b":1,"a":{"b":2}}`, `EMIT({"a.b":1,"a":{"b":2},"enriched":true})`},
		{"dotted", `{"a.b":1,"a":{"b":2}}`, `EMIT({"a.b":"***","a":{"b":2},"enriched":true})`},
		{"order", `{"n":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`, "EMIT"},
	} {
		fn := f
		if c.kind == "dotted" {
			fn = dotted
		}
		e := event.Event{ID: "1", Source: "/test", Type: c.kind, Data: []byte(c.data), Binary: c.data == "\x00"}
		if c.data == "" {
			e.Data = nil
		}
		r := event.Record(e.AppendRecord(nil))
		r.SetPlace(event.Position{Offset: 1}, 1e9)
		out := &plugins.Outcome{}
		if err := fn.Call(context.Background(), &plugins.Call{Events: []event.Record{r}}, out); err != nil {
			t.Fatal(err)
		}
		var got []string
		for i := range out.Results {
			x := &out.Results[i]
			s := x.Verdict.String()
			if x.Arg != 0 {
				s += fmt.Sprintf("/%d", x.Arg)
			}
			if x.Data != nil && len(x.Data) < 1000 {
				s += fmt.Sprintf("(%s)", x.Data)
			}
			got = append(got, s)
			if x.Verdict != plugins.Emit {
				continue
			}
			var made event.Event
			x.Event(r, &made)
			kind, ext := "order.item", ""
			if c.kind != "order.split" {
				kind, ext = c.kind, "enriched"
			}
			if made.Type != kind || made.Source != "/test" || ext != "" && (len(made.Extensions) != 1 || made.Extensions[0].Name != "enrichedby" || made.Extensions[0].Value != "enrich") {
				t.Errorf("%s %.80s makes %+v", c.kind, c.data, made)
			}
		}
		if s := strings.Join(got, " "); s != strings.TrimSpace(c.want) || len(out.Failures) > 0 {
			t.Errorf("%s %.80s:\n got %s %v\nwant %s", c.kind, c.data, s, out.Failures, c.want)
		}
	}
}
