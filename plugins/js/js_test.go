package js_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/native"
	"github.com/millrace/millrace/plugins/js"
)

// A said is what functions logged.
type said struct {
	sync.Mutex
	lines []string
}

func newHost(t testing.TB, o plugins.Options) *plugins.Host {
	t.Helper()
	o.ABIs, o.Engines = []plugins.ABI{native.ABI{}}, []plugins.Engine{js.Engine()}
	h, err := plugins.NewHost(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return h
}

func open(h *plugins.Host, source string, def event.Function) (*plugins.Function, error) {
	file, err := plugins.Script(js.Language, []byte(source))
	if err != nil {
		return nil, err
	}
	if def.Digest, err = h.Put(context.Background(), file); err != nil {
		return nil, err
	}
	if def.Name == "" {
		def.Name = "f"
	}
	return h.Open(context.Background(), def)
}

func record(offset uint64, typ, data string) event.Record {
	e := event.Event{ID: fmt.Sprintf("id-%d", offset), Source: "/test", Type: typ, Topic: "orders", Subject: "s", Data: []byte(data),
		Extensions: []event.Attribute{{Name: "region", Value: "eu"}}}
	r := event.Record(e.AppendRecord(nil))
	r.SetPlace(event.Position{Partition: 3, Offset: offset}, int64(offset)*1e9)
	return r
}

func call(t testing.TB, f *plugins.Function, datas ...string) string {
	t.Helper()
	c := &plugins.Call{}
	for i, d := range datas {
		c.Events, c.Attempts = append(c.Events, record(uint64(i+1), "t", d)), append(c.Attempts, 1)
	}
	out := &plugins.Outcome{}
	if err := f.Call(context.Background(), c, out); err != nil {
		t.Fatal(err)
	}
	var s []string
	for i := range out.Results {
		r := &out.Results[i]
		w := fmt.Sprintf("%d:%s", r.Index, r.Verdict)
		if r.Arg != 0 {
			w += fmt.Sprintf("/%d", r.Arg)
		}
		if r.Verdict == plugins.Emit {
			var e event.Event
			r.Event(c.Events[r.Index], &e)
			w += fmt.Sprintf("[%s %s %s", e.Type, e.Source, e.Subject)
			for _, x := range e.Extensions {
				w += " " + x.Name + "=" + x.Value
			}
			w += "]" + string(e.Data)
		} else if r.Data != nil {
			w += fmt.Sprintf("(%s)", r.Data)
		}
		s = append(s, w)
	}
	for _, x := range out.Failures {
		s = append(s, fmt.Sprintf("%d!%s: %v", x.Index, x.Reason, x.Err))
	}
	return strings.Join(s, " ")
}

// Every part of what scripts see, by what it makes of an event.
func TestScripts(t *testing.T) {
	h := newHost(t, plugins.Options{})
	for _, c := range []struct{ body, data, want string }{
		{`return pass()`, `{}`, `0:PASS`},
		{`return drop()`, `{}`, `0:DROP`},
		{`return event`, `{"a": 1}`, `0:PASS`},
		{`return retry("1.5s")`, `{}`, `0:RETRY/1500`},
		{`return retry()`, `{}`, `0:RETRY`},
		{`return reject(7, "why")`, `{}`, `0:REJECT/7(why)`},
		{`return [reply(201, {ok: true}), pass()]`, `{}`, `0:REPLY/201({"ok":true}) 0:PASS`},
		{`return reply(200, "hi")`, `{}`, `0:REPLY/200(hi)`},
		// Editing text keeps every other byte.
		{`event.set("a.b", "x"); event.set("n", [1]); return event`, `{"a": {"b": 1}, "big": 9007199254740993}`, `0:EMIT[t /test s region=eu]{"a": {"b": "x"}, "big": 9007199254740993,"n":[1]}`},
		{`event.remove("a"); return event`, `{"a":1,"b":2}`, `0:EMIT[t /test s region=eu]{"b":2}`},
		{`return [event.replace("a", 2), event.replace("x", 2)].join() === "true,false" ? event : drop()`, `{"a":1}`, `0:EMIT[t /test s region=eu]{"a":2}`},
		{`return emit({data: [event.get("a.b"), event.raw("n"), event.has("x"), event.has("n"), event.elements("l")]})`, `{"a":{"b":"ü\n"},"n":1e400,"l":[1, {"x":"]"}]}`, `0:EMIT[t /test s region=eu]["ü\n","1e400",false,true,["1","{\"x\":\"]\"}"]]`},
		// Once decoded, what is decoded counts.
		{`event.data.a = 2; return event`, `{"a":1}`, `0:EMIT[t /test s region=eu]{"a":2}`},
		{`event.data = "new"; return event`, `{"a":1}`, `0:EMIT[t /test s region=eu]"new"`},
		{`event.type = "u"; event.subject = null; event.setAttribute("tier", 3); return event`, `{"a":1}`, `0:EMIT[u /test  region=eu tier=3]{"a":1}`},
		{`return emit({type: "u", data: {n: 1}, region: null, extensions: {x: "y"}})`, `{}`, `0:EMIT[u /test s x=y]{"n":1}`},
		{`return emit({text: "plain"})`, `{}`, `0:EMIT[t /test s region=eu]plain`},
		{`return emit({bytes: new Uint8Array([65, 66, 67]).subarray(1)})`, `{}`, `0:EMIT[t /test s region=eu]BC`},
		{`return create({source: "/new", type: "n", raw: "[ 1 ]"})`, `{}`, `0:EMIT[n /new ][ 1 ]`},
		{`return emit({data: [event.id, event.source, event.type, event.subject, event.topic, event.time, event.attempt, event.offset, event.partition, event.replyWanted, event.extensions]})`, `{}`,
			`0:EMIT[t /test s region=eu]["id-1","/test","t","s","orders",null,1,1,3,false,{"region":"eu"}]`},
		{`return emit({data: [new Date().toISOString(), Date.now(), event.received.getTime(), ctx.now(), ctx.clock() > 1e12]})`, `{}`, `0:EMIT[t /test s region=eu]["1970-01-01T00:00:01.000Z",1000,1000,1000,true]`},
		{`return emit({data: [ctx.config("field"), ctx.config("none"), ctx.secret("token")]})`, `{}`, `0:EMIT[t /test s region=eu]["email",null,"s3"]`},
		{`const r = Math.random(); return emit({data: r >= 0 && r < 1 && r !== Math.random()})`, `{}`, `0:EMIT[t /test s region=eu]true`},
		// Data that was only looked at stays as it is, and what is emitted is what was there then.
		{`event.data.a; return event`, `{"a": 9007199254740993}`, `0:PASS`},
		{`event.set("b", 2); event.data.a; return event`, `{"a": 9007199254740993}`, `0:EMIT[t /test s region=eu]{"a": 9007199254740993,"b":2}`},
		{`event.data.a++; event.type = "u"; return event`, `{"a": 1}`, `0:EMIT[u /test s region=eu]{"a":2}`},
		{`event.data = {a: 1}; return event`, `no json`, `0:EMIT[t /test s region=eu]{"a":1}`},
		{`event.data = undefined; return event`, `{}`, `0:EMIT[t /test s region=eu]`},
		{`event.set("a", 1); const one = emit(event); event.set("a", 2); event.type = "u"; return [one, emit(event), event]`, `{"n": 1}`, `0:EMIT[t /test s region=eu]{"n": 1,"a":1} 0:EMIT[u /test s region=eu]{"n": 1,"a":2} 0:EMIT[u /test s region=eu]{"n": 1,"a":2}`},
		{`return [emit(event), emit(event)]`, `{"n": 1}`, `0:EMIT[t /test s region=eu]{"n": 1} 0:EMIT[t /test s region=eu]{"n": 1}`},
		{`const b = new Uint8Array([65]); const one = emit({bytes: b}); b[0] = 66; return [one, emit({bytes: b.buffer})]`, `{}`, `0:EMIT[t /test s region=eu]A 0:EMIT[t /test s region=eu]B`},
		{`event.data.l.push(3); return emit({data: [event.get("l[2]"), event.raw("l.0"), event.has("l[3]"), event.elements("l"), event.isObject()]})`, `{"l":[1,2]}`, `0:EMIT[t /test s region=eu][3,"1",false,["1","2","3"],true]`},
		{`return emit({text: JSON.stringify(event)})`, `{"a":1}`, `0:EMIT[t /test s region=eu]{"id":"id-1","source":"/test","type":"t","subject":"s","topic":"orders","region":"eu","data":{"a":1}}`},
		{`event.setAttribute("tier", "a"); event.setAttribute("region", null); return emit({data: [event.extensions, event.attribute("region") ?? null, event.attribute("toString") ?? null]})`, `{}`, `0:EMIT[t /test s region=eu][{"tier":"a"},null,null]`},
		{`return [pass(), drop()].map((r) => r.verdict).join() === "pass,drop" ? pass() : drop()`, `{}`, `0:PASS`},
		{`return emit({data: [...new TextEncoder().encode("ü\ud800"), new TextDecoder().decode(new Uint8Array([0xef, 0xbb, 0xbf, 0xc3, 0xbc, 0xff])), btoa("a\xffb"), btoa("ab"), atob(" Yf9i "), atob("YWI=")]})`, `{}`, `0:EMIT[t /test s region=eu][195,188,239,191,189,"ü�","Yf9i","YWI=","aÿb","ab"]`},
		{`try { new TextDecoder("utf-8", {fatal: true}).decode(event.bytes) } catch (e) { return reject(1, e.message) }`, "\xff", `0:REJECT/1(the bytes are not UTF-8)`},
		{`try { atob("a") } catch (e) { return reject(1, e.message) }`, `{}`, `0:REJECT/1(atob: the text is not base64)`},
		{`return reply(200, new TextEncoder().encode("hi"), "text/plain")`, `{}`, `0:REPLY/200(hi)`},
		{`return reject(1, "\ud800")`, `{}`, `0:REJECT/1(�)`},
		{`return {then: (done) => done(drop())}`, `{}`, `0:DROP`},
		{`return Promise.reject(1).catch(() => drop())`, `{}`, `0:DROP`},
		{`return new Promise((done) => done(1)).then((n) => drop())`, `{}`, `0:DROP`},
		{`try { event.set("a.b", 1) } catch (e) { return reject(1, e.message) }`, `{"a":[]}`, `0:REJECT/1(the data has no place for the path a.b)`},
		{`try { event.set("a", 1) } catch (e) { return reject(2, e.message) }`, `{"a":`, `0:REJECT/2(the data is not JSON)`},
		{`try { event.data } catch (e) { return reject(3, e.name + " " + e.message.slice(0, 12)) }`, `{"a":`, `0:REJECT/3(SyntaxError event.data: )`},
		{`try { ctx.kv.get("k") } catch (e) { return reject(1, e.message) }`, `{}`, `0:REJECT/1(kv.get: not allowed by the function's definition)`},
		{`try { ctx.http("https://example.com") } catch (e) { return reject(1, e.message) }`, `{}`, `0:REJECT/1(http: not allowed by the function's definition)`},
		{`try { ctx.http({url: "https://example.com", headers: {a: "b\r\nc: d"}}) } catch (e) { return reject(1, e.message) }`, `{}`, `0:REJECT/1(http: header "a" has a line break)`},
	} {
		f, err := open(h, "export default function (event, ctx) { "+c.body+" }", event.Function{Config: map[string]string{"field": "email"}, Secrets: map[string]string{"token": "s3"}})
		if err != nil {
			t.Errorf("%s: %v", c.body, err)
			continue
		}
		if got := call(t, f, c.data); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.body, got, c.want)
		}
		if err := f.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

// What goes wrong in a script costs its event alone, and is said with the place.
func TestFaultsOfScripts(t *testing.T) {
	h := newHost(t, plugins.Options{})
	f, err := open(h, `let poisoned = false;
function deep(n) { return deep(n + 1) + 1 }
export default function (event) {
	if (poisoned) return drop();
	switch (event.text) {
	case "throw": throw new Error("oh no");
	case "undefined": return;
	case "null": return null;
	case "empty": return [];
	case "string": return "x";
	case "forged": return Object.create(Object.getPrototypeOf(pass()));
	case "lies": return {kind: 0, arg: 0};
	case "never": return new Promise(() => {});
	case "rejects": return Promise.reject(new TypeError("later"));
	case "spin": for (;;);
	case "regexp": return /^(a+)+$/.test("a".repeat(40) + "b") ? pass() : drop();
	case "deep": return deep(0);
	case "memory": { const all = []; for (;;) all.push(new Uint8Array(1 << 20).fill(1)); }
	case "json": return emit({data: JSON.parse("[".repeat(1e6))});
	case "cycle": { const a = {}; a.a = a; return emit({data: a}); }
	case "attribute": return emit({extensions: {x: {}}});
	case "status": return reply(99, "x");
	case "aside": Promise.reject(new Error("nobody looks")); return pass();
	case "flood": { const again = () => Promise.resolve().then(again); return again(); }
	case "claims": throw new Error("out of memory, I say");
	case "name": return emit({extensions: {"Big Name": 1}});
	case "circle": { const a = {}; a.a = a; console.log(a, 1n); return pass(); }
	case "late": poisoned = true; throw new Error("left behind");
	}
	return pass();
}`, event.Function{Limits: event.FunctionLimits{CPU: 200 * time.Millisecond, Memory: 32 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	for data, want := range map[string]string{
		"throw": `1!trap: Error: oh no at default (function.js:6:31)`, "undefined": "1!trap: TypeError: the handler returned undefined; want pass()",
		"null": "returned null", "empty": "empty array", "string": "returned string", "lies": "returned object", "forged": "returned object",
		"never": "never settles", "rejects": "1!trap: TypeError: later", "spin": "1!deadline: limits.cpu", "regexp": "1!deadline: limits.cpu",
		"deep": "1!trap: InternalError: stack overflow", "memory": "1!memory: InternalError: out of memory", "json": "1!trap: ",
		"cycle": "circular reference", "attribute": "attribute x: want a string", "status": "reply: 99", "late": "left behind",
		"aside": "1!trap: Error: nobody looks", "flood": "1!deadline: limits.cpu", "claims": "1!trap: Error: out of memory, I say", "name": `attribute "Big Name"`,
	} {
		got := call(t, f, "fine", data, "fine")
		if !strings.HasPrefix(got, "0:PASS 2:PASS 1!") || !strings.Contains(got, want) {
			t.Errorf("%s: %s; want %s", data, got, want)
		}
	}
	if got := call(t, f, "circle", "fine"); got != "0:PASS 1:PASS" { // a line of the log is not worth an event
		t.Errorf("circle: %s", got)
	}
}

func TestScriptsThatDoNotStart(t *testing.T) {
	h := newHost(t, plugins.Options{})
	for source, want := range map[string]string{
		"":         "empty",
		"\xff":     "UTF-8",
		"let x = ": "SyntaxError",
		"export default function (e) {\n  return pass(;\n}": "function.js:2",
		"export const x = 1":                                              "the module exports no handler",
		"throw new Error('at once')":                                      "at once",
		"import fs from 'fs'; export default () => pass()":                "fs",
		"export default await new Promise(() => {})":                      "never settles",
		"Promise.reject(new Error('aside')); export default () => pass()": "aside",
		"for (;;);": "limits.cpu",
	} {
		if _, err := open(h, source, event.Function{Limits: event.FunctionLimits{CPU: time.Millisecond}}); !errors.Is(err, event.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %s", source, err, want)
		}
	}
	file, err := plugins.Script("cobol", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Put(context.Background(), file); !errors.Is(err, event.ErrUnsupported) || !strings.Contains(err.Error(), `script in "cobol"; this router runs: js, modules`) {
		t.Errorf("%v", err)
	}
	if language, source, ok := plugins.ScriptOf(file); !ok || language != "cobol" || string(source) != "x" {
		t.Errorf("%q %q %v", language, source, ok)
	}
	for n := range file {
		if _, _, ok := plugins.ScriptOf(file[:n]); ok {
			t.Errorf("the first %d bytes of %d are a script", n, len(file))
		}
	}
}

// Scripts share the engine's machine code, also across memory and restarts; each has its version.
func TestScriptsShareTheirEngine(t *testing.T) {
	dir := t.TempDir()
	h := newHost(t, plugins.Options{Dir: dir})
	versions := map[string]bool{}
	for i := range 20 {
		f, err := open(h, fmt.Sprintf("export default () => reject(%d)", i+1), event.Function{Name: fmt.Sprintf("f%d", i)})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := call(t, f, "x"), fmt.Sprintf("0:REJECT/%d()", i+1); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		versions[f.Digest()] = true
		if n := f.Stats().Memory; n > 3<<20 {
			t.Errorf("an instance takes %d bytes", n)
		}
	}
	if len(versions) != 20 {
		t.Errorf("20 scripts have %d versions", len(versions))
	}
	compiled := 0
	err := filepath.WalkDir(filepath.Join(dir, "compiled"), func(_ string, e fs.DirEntry, err error) error {
		if info, ierr := e.Info(); ierr == nil && info.Mode().IsRegular() && info.Size() > 1<<20 {
			compiled++ // machine code is larger than the engine's module
		}
		return err
	})
	if err != nil || compiled != 1 {
		t.Errorf("the cache has %d large files of 20 scripts: %v; want one", compiled, err)
	}
}

func TestConsole(t *testing.T) {
	var s said
	h := newHost(t, plugins.Options{Log: func(_ string, level int, m string) {
		s.Lock()
		defer s.Unlock()
		s.lines = append(s.lines, fmt.Sprintf("%d %s", level, m))
	}})
	f, err := open(h, `console.info("loaded"); export default () => { console.debug("a", 1, {b: [2]}); console.log(null, undefined, Symbol("s")); console.warn("w"); console.error(new Error("e").message); return pass() }`, event.Function{})
	if err != nil {
		t.Fatal(err)
	}
	call(t, f, "x")
	if got := strings.Join(s.lines, "|"); got != `1 loaded|0 a 1 {"b":[2]}|1 null undefined Symbol(s)|2 w|3 e` {
		t.Error(got)
	}
}

// What is embedded is what build.sh made of the sources beside it.
func TestEngineIsBuiltFromItsSources(t *testing.T) {
	record, err := os.ReadFile("quickjs/SUMS")
	if err != nil {
		t.Fatal(err)
	}
	sums := regexp.MustCompile(`(?m)^([0-9a-f]{64})  (\S+)$`).FindAllStringSubmatch(string(record), -1)
	if len(sums) != 6 {
		t.Fatalf("%d sums", len(sums))
	}
	for _, m := range sums {
		b, err := os.ReadFile("quickjs/" + m[2])
		if err != nil {
			t.Error(err)
			continue
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != m[1] {
			t.Errorf("%s has changed since the engine was built: run go generate ./plugins/js", m[2])
		}
	}
}

func BenchmarkScript(b *testing.B) {
	source, err := os.ReadFile("../../sdk/js/examples/enrich.js")
	if err != nil {
		b.Fatal(err)
	}
	f, err := open(newHost(b, plugins.Options{}), string(source), event.Function{})
	if err != nil {
		b.Fatal(err)
	}
	c := &plugins.Call{}
	for i := range 64 {
		c.Events = append(c.Events, record(uint64(i), "order.created", `{"email":"somebody@example.com","note":"`+strings.Repeat("x", 970)+`"}`))
		c.Attempts = append(c.Attempts, 1)
	}
	var out plugins.Outcome
	for b.Loop() {
		if err := f.Call(context.Background(), c, &out); err != nil || len(out.Failures) > 0 {
			b.Fatal(err, out.Failures)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*64), "ns/event")
	b.ReportMetric(float64(f.Stats().Memory), "bytes/instance")
}

// The example of the documents does what they say.
func TestDocumentedScript(t *testing.T) {
	text, err := os.ReadFile("../../docs/javascript.md")
	if err != nil {
		t.Fatal(err)
	}
	part := func(name string) string {
		m := regexp.MustCompile("(?s)<!-- " + name + " -->\n```[a-z]+\n(.*?)\n```").FindSubmatch(text)
		if m == nil {
			t.Fatalf("the documents have no %s", name)
		}
		return string(m[1])
	}
	h := newHost(t, plugins.Options{})
	f, err := open(h, part("script"), event.Function{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := call(t, f, part("input"), "{}"), "0:EMIT[t /test s region=eu]"+part("output")+" 1:REJECT/422(the order has no total)"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	readme, err := os.ReadFile("../../sdk/js/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, source, _ := strings.Cut(string(readme), "```js\n")
	source, _, _ = strings.Cut(source, "```")
	if f, err = open(h, source, event.Function{}); err != nil {
		t.Fatal(err)
	}
	if got, want := call(t, f, `{"customer":{"email":"x"}}`, "{}"), `0:EMIT[t /test s region=eu]{"customer":{"email":"***"}} 1:DROP`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
