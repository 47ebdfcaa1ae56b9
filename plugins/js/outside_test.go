package js_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// kept is a function's state as it was committed.
type kept map[string]string

func (k kept) LoadState(_ context.Context, key []byte) ([]byte, int64, bool, error) {
	v, ok := k[string(key)]
	return []byte(v), 0, ok, nil
}

// State takes text, bytes and anything else as JSON, and gives it back as it was put.
func TestStateOfScripts(t *testing.T) {
	h := newHost(t, plugins.Options{})
	f, err := open(h, `export default function (event, {kv}) {
	const seen = [kv.get("old"), [...kv.bytes("old")].join(), kv.get("none") ?? null, kv.bytes("none") ?? null, kv.get("empty"), kv.bytes("empty").length];
	kv.put("text", "ü");
	kv.put("bytes", new Uint8Array([0, 255, 7]).subarray(1), "1h");
	kv.put("view", new DataView(new Uint8Array([1, 2, 3]).buffer, 1, 1));
	kv.put("json", {a: [1]});
	kv.put("nothing", "");
	seen.push(kv.get("text"), kv.bytes("bytes").length, kv.get("json"), kv.add("n", 2), kv.add("n"), kv.delete("text"), kv.delete("none"), kv.get("text") ?? null);
	for (const wrong of [() => kv.put("k", undefined), () => kv.put("", "x"), () => kv.put("k", "v", "soon"), () => kv.put("k", "x".repeat(1 << 20)), () => kv.add("json")])
		try { wrong(); seen.push("taken") } catch (e) { seen.push(e.message.split(":")[0]) }
	return emit({data: seen});
}`, event.Function{Allow: event.Allow{KV: true}})
	if err != nil {
		t.Fatal(err)
	}
	out := &plugins.Outcome{}
	c := &plugins.Call{Events: []event.Record{record(1, "t", "{}")}, Attempts: []uint32{1}, State: kept{"old": "\xc3\xbc", "empty": ""}}
	if err := f.Call(context.Background(), c, out); err != nil || len(out.Failures) > 0 {
		t.Fatal(err, out.Failures)
	}
	const want = `["ü","195,188",null,null,"",0,"ü",2,"{\"a\":[1]}",2,3,true,false,null,"data","kv.put","\"soon\"","kv.put","kv.add"]`
	if got := string(out.Results[0].Data); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	var writes []string
	for _, w := range out.Writes() {
		if len(w.Value) > 0 {
			writes = append(writes, fmt.Sprintf("%s=%q", w.Key, w.Value))
		}
	}
	if got, want := strings.Join(writes, " "), `bytes="\xff\a" view="\x02" json="{\"a\":[1]}" n="3"`; got != want {
		t.Errorf("written: got %s, want %s", got, want)
	}
}

// Requests go out as they are written, to hosts that the definition allows, and what comes back is read in each form.
func TestRequestsOfScripts(t *testing.T) {
	var asked []string
	h := newHost(t, plugins.Options{Fetch: func(_ context.Context, r *plugins.Request) (*plugins.Response, error) {
		asked = append(asked, fmt.Sprintf("%s %s %s %q", r.Method, r.URL, r.Header.Get("X-A"), r.Body))
		return &plugins.Response{Status: 201, Header: http.Header{"Content-Type": {"application/json"}, "X-Two": {"a", "b"}}, Body: []byte(`{"ok":"ü"}`)}, nil
	}})
	f, err := open(h, `export default function (event, {http, count}) {
	count("asked", 3);
	const a = http("https://api.example.com/a?b=c");
	http({url: "https://api.example.com/", method: "POST", headers: {"x-a": ["1"]}, body: new Uint8Array([0, 255]), timeout: "2s"});
	http({url: "https://api.example.com/", method: "PUT", body: {n: 1}});
	let refused;
	try { http("https://other.example.com/") } catch (e) { refused = e.message }
	return emit({data: [a.status, a.ok, a.headers, a.text, a.json(), a.bytes instanceof Uint8Array, a.bytes.length, refused]});
}`, event.Function{Allow: event.Allow{HTTP: []string{"api.example.com"}}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := call(t, f, "{}"), `0:EMIT[t /test s region=eu][201,true,{"content-type":"application/json","x-two":"a, b"},"{\"ok\":\"ü\"}",{"ok":"ü"},true,11,"http: not allowed by the function's definition"]`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := strings.Join(asked, "|"), `GET https://api.example.com/a?b=c  ""|POST https://api.example.com/ 1 "\x00\xff"|PUT https://api.example.com/  "{\"n\":1}"`; got != want {
		t.Errorf("asked: got %s, want %s", got, want)
	}
}

// Chance is the same for a script in every attempt at an event, and differs between events.
func TestScriptsRepeatThemselves(t *testing.T) {
	h := newHost(t, plugins.Options{})
	const source = `export default () => emit({data: [Math.random(), Math.random()]})`
	f, err := open(h, source, event.Function{})
	if err != nil {
		t.Fatal(err)
	}
	first, again := call(t, f, "1", "2"), call(t, f, "1", "2")
	if first != again {
		t.Errorf("%s\n%s", first, again)
	}
	if a, b, _ := strings.Cut(first, " 1:"); strings.TrimPrefix(a, "0:") == b || b == "" {
		t.Errorf("two events see the same: %s", first)
	}
}
