// Package abitest holds every calling convention and every SDK to one meaning: that of the sample function
// "enrich", which says each verdict of a function. A guest passes if it answers the table of this package
// alone, in batches, again, and beside an event that fails.
package abitest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// A Guest is the sample function as some toolchain has built it for some convention.
type Guest struct {
	Name    string
	Module  []byte
	ABIs    []plugins.ABI
	Engines []plugins.Engine  // where Module is a script
	Config  map[string]string // of the function, besides `field`
	Limits  event.FunctionLimits
	Lacks   Lack
}

// Lack is what a convention or a guest cannot do. The sum of the lacks that a guest has decides what is
// expected of it instead; nothing is left out in silence.
type Lack uint8

// The lacks.
const (
	// Edges: data loses the white space around it, which a JSON document that embeds it does not keep.
	Edges Lack = 1 << iota
	// Text: the guest decodes JSON and encodes it anew, so data is the same as a value, not as bytes.
	Text
	// Reject: the guest says that an event is wrong by failing at it.
	Reject
	// Reply: there is nobody to answer; an event that asks is only passed on.
	Reply
	// Pass: what is to be delivered unchanged is emitted as it came.
	Pass
)

// want is one result: of an Emit its type and data, of a Reject or Reply its number and text.
type want struct {
	verdict plugins.Verdict
	arg     uint32
	kind    string // "": the input's
	data    string
	marked  bool // has the extension enrichedby
}

// A sample is an event and what comes of it.
type sample struct {
	name  string
	kind  string // "": order
	data  string
	none  bool // no data, which differs from empty data
	raw   bool // bytes rather than JSON
	plain string
	field string // configuration; "": the default
	texts bool   // only of guests that keep text as it is
	wants []want
}

func emit(data string) []want {
	return []want{{verdict: plugins.Emit, data: data, marked: true}}
}

func items(datas ...string) (ws []want) {
	for _, d := range datas {
		ws = append(ws, want{verdict: plugins.Emit, kind: "order.item", data: d})
	}
	return ws
}

func answer(body string) []want {
	return []want{{verdict: plugins.Reply, arg: 200, data: body}, {verdict: plugins.Pass}}
}

func reject(code uint32, reason string) []want {
	return []want{{verdict: plugins.Reject, arg: code, data: reason}}
}

func samples() []sample {
	drop := []want{{verdict: plugins.Drop}}
	none := reject(422, "data is not a JSON object")
	var many, each []string
	for i := range 200 {
		many = append(many, fmt.Sprintf(`{"sku":%d}`, i))
		each = append(each, many[i])
	}
	return []sample{
		{name: "member replaced", data: `{"email":"a@b","n":1}`, wants: emit(`{"email":"***","n":1,"enriched":true}`)},
		{name: "member absent", data: `{"n":1}`, wants: emit(`{"n":1,"enriched":true}`)},
		{name: "empty object", data: `{}`, wants: emit(`{"enriched":true}`)},
		{name: "already enriched", data: `{"enriched":false,"n":1}`, wants: emit(`{"enriched":true,"n":1}`)},
		{name: "null member", data: `{"email":null}`, wants: emit(`{"email":"***","enriched":true}`)},
		{name: "object member", data: `{"email":{"a":["}",{"email":"x"}]},"z":0}`, wants: emit(`{"email":"***","z":0,"enriched":true}`)},
		{name: "same key below", data: `{"x":{"email":"keep"},"email":"hide","y":[{"email":1}]}`,
			wants: emit(`{"x":{"email":"keep"},"email":"***","y":[{"email":1}],"enriched":true}`)},
		{name: "escapes", data: `{"s":"q\"b\\s\/n\n\u00e9\ud83d\ude00","email":"\"}"}`,
			wants: emit(`{"s":"q\"b\\s\/n\n\u00e9\ud83d\ude00","email":"***","enriched":true}`)},
		{name: "unicode", data: `{"名":"héllo 中文 😀","email":"é"}`, wants: emit(`{"名":"héllo 中文 😀","email":"***","enriched":true}`)},
		{name: "name with escapes", data: `{"em\u0061il":1}`, wants: emit(`{"em\u0061il":"***","enriched":true}`)},
		{name: "duplicate members", data: `{"email":1,"email":2}`, wants: emit(`{"email":"***","email":"***","enriched":true}`)},
		{name: "big numbers", data: `{"a":9007199254740993,"b":-0,"c":1.50,"d":123456789012345678901234567890,"email":1e3}`,
			wants: emit(`{"a":9007199254740993,"b":-0,"c":1.50,"d":123456789012345678901234567890,"email":"***","enriched":true}`)},
		{name: "number beyond doubles", data: `{"a":1e400}`, texts: true, wants: emit(`{"a":1e400,"enriched":true}`)},
		{name: "white space", data: " {\t\"n\" : [ 1 ,2 ] , \"email\" : \"x\" } ", wants: emit(" {\t\"n\" : [ 1 ,2 ] , \"email\" : \"***\" ,\"enriched\":true} ")},
		{name: "another field", data: `{"email":"keep","phone":"1"}`, field: "phone", wants: emit(`{"email":"keep","phone":"***","enriched":true}`)},
		{name: "field with a dot", data: `{"a.b":1,"a":{"b":2}}`, field: "a.b", wants: emit(`{"a.b":"***","a":{"b":2},"enriched":true}`)},
		{name: "64 KiB", data: `{"pad":"` + strings.Repeat("x", 64<<10) + `","email":1}`, wants: emit(`{"pad":"` + strings.Repeat("x", 64<<10) + `","email":"***","enriched":true}`)},

		{name: "no data", none: true, wants: none},
		{name: "text", data: "not json", plain: "text/plain", wants: none},
		{name: "empty text", data: "", plain: "text/plain", wants: none},
		{name: "bytes", data: "\x00\xff\xfe{}", raw: true, plain: "application/octet-stream", wants: none},
		{name: "array", data: `[{"email":1}]`, wants: none},
		{name: "string", data: `"email"`, wants: none},
		{name: "number", data: `12`, wants: none},
		{name: "null", data: `null`, wants: none},
		{name: "broken JSON", data: `{"email":1`, wants: none},
		{name: "more than JSON", data: `{"email":1}x`, wants: none},

		{name: "ignored", kind: "order.ignored", data: `{"email":1}`, wants: drop},
		{name: "ignored text", kind: "order.ignored", data: "not json", plain: "text/plain", wants: drop},
		{name: "bad", kind: "order.bad", data: `{}`, wants: reject(400, "bad order")},
		{name: "bad array", kind: "order.bad", data: `[]`, wants: none},

		{name: "split", kind: "order.split", data: `{"items":[{"sku":1},"é\u00e9",-1.50,[1,2],null,true],"email":1}`,
			wants: items(`{"sku":1}`, `"é\u00e9"`, `-1.50`, `[1,2]`, `null`, `true`)},
		{name: "split one", kind: "order.split", data: `{"items":[{"sku":1}]}`, wants: items(`{"sku":1}`)},
		{name: "split spaced", kind: "order.split", data: `{"items" : [ {"sku" : 1} , 2 ] }`, wants: items(`{"sku" : 1}`, `2`)},
		{name: "split many", kind: "order.split", data: `{"items":[` + strings.Join(many, ",") + `]}`, wants: items(each...)},
		{name: "split none", kind: "order.split", data: `{"items":[]}`, wants: drop},
		{name: "split nothing", kind: "order.split", data: `{"n":1}`, wants: drop},
		{name: "split object", kind: "order.split", data: `{"items":{"a":1}}`, wants: drop},

		{name: "ask", kind: "order.ask", data: `{"total":129.95,"email":"x"}`, wants: answer(`{"total":129.95}`)},
		{name: "ask for an object", kind: "order.ask", data: `{"total":{"a":[1,2]}}`, wants: answer(`{"total":{"a":[1,2]}}`)},
		{name: "ask for nothing", kind: "order.ask", data: `{}`, wants: answer(`{"total":null}`)},
	}
}

// event is the sample as the one at an offset of its partition.
func (s *sample) event(offset uint64) event.Record {
	e := event.Event{ID: fmt.Sprintf("id-%d", offset), Source: "/shop/1", Type: "order", Subject: "s/é", Time: "2026-01-02T03:04:05.678Z",
		DataContentType: "application/json", PartitionKey: "k1", Topic: "orders", Data: []byte(s.data), Binary: s.raw, Hops: 2,
		Extensions: []event.Attribute{{Name: "region", Value: "eu"}, {Name: "priority", Kind: event.Integer, Value: "7"}, {Name: "live", Kind: event.Boolean, Value: "true"}}}
	if s.kind != "" {
		e.Type = s.kind
	}
	if s.plain != "" {
		e.DataContentType = s.plain
	}
	if s.none {
		e.Data, e.DataContentType = nil, ""
	}
	r := event.Record(e.AppendRecord(nil))
	r.SetPlace(event.Position{Partition: 3, Offset: offset}, int64(offset)*1e9)
	return r
}

// Run holds g to the table.
func Run(t *testing.T, g Guest) {
	t.Helper()
	ctx := context.Background()
	h, err := plugins.NewHost(ctx, plugins.Options{ABIs: g.ABIs, Engines: g.Engines})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	digest, err := h.Put(ctx, g.Module)
	if err != nil {
		t.Fatalf("%s: %v", g.Name, err)
	}
	byField := map[string][]sample{}
	var fields []string
	for _, s := range samples() {
		if s.texts && g.Lacks&Text != 0 {
			continue
		}
		if byField[s.field] == nil {
			fields = append(fields, s.field)
		}
		byField[s.field] = append(byField[s.field], s)
	}
	for _, field := range fields {
		def := event.Function{Name: "enrich", Digest: digest, Limits: g.Limits, Config: map[string]string{}}
		for k, v := range g.Config {
			def.Config[k] = v
		}
		if field != "" {
			def.Config["field"] = field
		}
		f, err := h.Open(ctx, def)
		if err != nil {
			t.Fatalf("%s: %v", g.Name, err)
		}
		g.run(t, f, byField[field])
	}
}

func (g *Guest) run(t *testing.T, f *plugins.Function, all []sample) {
	t.Helper()
	for i := range all {
		g.call(t, f, "alone", all[i:i+1])
	}
	for range 2 {
		g.call(t, f, "together", all)
	}
	// More results than one run may have: no guest needs code of its own to be at fault.
	poison := sample{name: "poison", kind: "order.split", data: `{"items":[` + strings.Repeat("0,", 1500) + `0]}`}
	for _, at := range []int{0, len(all) / 2, len(all)} {
		g.call(t, f, "beside poison", slices.Insert(slices.Clone(all), at, poison))
	}
	g.call(t, f, "after poison", all)
}

// call hands the samples over in one call and checks what came of each.
func (g *Guest) call(t *testing.T, f *plugins.Function, how string, all []sample) {
	t.Helper()
	c := &plugins.Call{}
	for i := range all {
		c.Events = append(c.Events, all[i].event(uint64(i+1)))
		c.Attempts = append(c.Attempts, 1)
	}
	var out plugins.Outcome
	if err := f.Call(context.Background(), c, &out); err != nil {
		t.Fatalf("%s, %s: %v", g.Name, how, err)
	}
	results, failures := out.Results, out.Failures
	for i := range all {
		s := &all[i]
		n := 0
		for n < len(results) && results[n].Index == i {
			n++
		}
		var failure *plugins.Failure
		if len(failures) > 0 && failures[0].Index == i {
			failure, failures = &failures[0], failures[1:]
		}
		if err := g.check(s, c.Events[i], results[:n], failure); err != nil {
			t.Errorf("%s: %s, %s: %v", g.Name, s.name, how, err)
		}
		results = results[n:]
	}
	if len(results)+len(failures) > 0 {
		t.Errorf("%s, %s: %d results and %d failures out of order", g.Name, how, len(results), len(failures))
	}
}

// check holds what came of one event against what must.
func (g *Guest) check(s *sample, in event.Record, results []plugins.Result, failure *plugins.Failure) error {
	reason := plugins.Reason("")
	wants := s.wants
	switch {
	case wants == nil:
		reason = plugins.ReasonOutput
	case wants[0].verdict == plugins.Reject && g.Lacks&Reject != 0:
		reason, wants = plugins.ReasonTrap, nil
	case wants[0].verdict == plugins.Reply && g.Lacks&Reply != 0:
		wants = wants[1:]
	}
	if reason != "" || failure != nil {
		if failure == nil || failure.Reason != reason || len(results) > 0 {
			return fmt.Errorf("%d results and failure %+v; want only a failure %q", len(results), failure, reason)
		}
		return nil
	}
	if len(results) != len(wants) {
		return fmt.Errorf("%d results, %d wanted: %.300s", len(results), len(wants), describe(results))
	}
	for i, w := range wants {
		if err := g.result(&w, in, &results[i]); err != nil {
			return fmt.Errorf("result %d: %w", i, err)
		}
	}
	return nil
}

func describe(rs []plugins.Result) string {
	var s []string
	for i := range rs {
		s = append(s, fmt.Sprintf("%s/%d(%s)", rs[i].Verdict, rs[i].Arg, rs[i].Data))
	}
	return strings.Join(s, " ")
}

func (g *Guest) result(w *want, in event.Record, r *plugins.Result) error {
	verdict := w.verdict
	if verdict == plugins.Pass && g.Lacks&Pass != 0 {
		verdict = plugins.Emit
	}
	if r.Verdict != verdict || r.Arg != w.arg {
		return fmt.Errorf("is %.300s; want %s/%d(%.300s)", describe([]plugins.Result{*r}), w.verdict, w.arg, w.data)
	}
	var was, made event.Event
	in.Decode(&was)
	switch {
	case verdict == plugins.Emit:
		r.Event(in, &made)
	case verdict == plugins.Reply:
		event.AttrsOf(r.Attrs, r.Count, func(a event.Attr) bool { made.Set(a); return true })
		if made.DataContentType != "application/json" {
			return fmt.Errorf("datacontenttype is %q", made.DataContentType)
		}
		fallthrough
	default:
		made.Data = r.Data
	}
	switch {
	case w.verdict == plugins.Pass && verdict == plugins.Emit:
		w.data = string(was.Data)
		fallthrough
	case verdict == plugins.Emit || verdict == plugins.Reply:
		if !g.same(w.data, made.Data) {
			return fmt.Errorf("data is %.300q; want %.300q", made.Data, w.data)
		}
	case string(made.Data) != w.data:
		return fmt.Errorf("says %.300q; want %.300q", made.Data, w.data)
	}
	if verdict != plugins.Emit {
		return nil
	}
	wanted := was.Clone()
	wanted.ID, wanted.Topic, wanted.Data, wanted.ClientID = "", "", nil, false
	if w.kind != "" {
		wanted.Type = w.kind
	}
	if w.marked {
		wanted.Extensions = append(wanted.Extensions, event.Attribute{Name: "enrichedby", Value: "enrich"})
	}
	made.Data = nil
	byName := func(a, b event.Attribute) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(made.Extensions, byName)
	slices.SortFunc(wanted.Extensions, byName)
	if !reflect.DeepEqual(made, wanted) {
		return fmt.Errorf("makes the event %+v; want %+v", made, wanted)
	}
	return nil
}

// same reports whether data is as much like text as the guest can keep it.
func (g *Guest) same(text string, data []byte) bool {
	if g.Lacks&Text != 0 {
		var a, b any
		return json.Unmarshal([]byte(text), &a) == nil && json.Unmarshal(data, &b) == nil && reflect.DeepEqual(a, b)
	}
	if g.Lacks&Edges != 0 {
		text, data = strings.TrimSpace(text), bytes.TrimSpace(data)
	}
	return text == string(data)
}
