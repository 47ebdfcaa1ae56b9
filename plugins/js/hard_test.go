package js_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// What a script does to the language changes nothing about what its answers mean, for the event at work and for
// those after it.
func TestHostileScripts(t *testing.T) {
	h := newHost(t, plugins.Options{})
	const rest = `
export default function (event) {
	if (event.text === "first") {
		for (const k of ["kind", "arg", "flags", "data", "attributes", "verdict", "then", "type", "extensions", "text", "raw", "bytes", "length", "0"]) {
			try { spoil(k) } catch {}
		}
		return drop();
	}
	event.type = "u";
	return [event, emit({id: "x"}), reply(200, "r")];
}`
	for _, spoil := range []string{
		`Object.defineProperty(Object.prototype, k, {get() { return undefined }, set() {}, configurable: true})`,
		`Array.prototype.push = Array.prototype.map = Array.prototype.filter = () => [drop()]; Array.prototype[Symbol.iterator] = function* () {}; Array.isArray = () => true`,
		`Object.keys = () => []; Object.defineProperty = Object.freeze = () => { throw 1 }; Function.prototype.call = () => 1; JSON.stringify = JSON.parse = () => "{}"`,
		`RegExp.prototype.exec = () => null; String.prototype.toWellFormed = () => "no"; Number.isInteger = () => false; Promise.prototype.then = () => 1; globalThis.Promise = Object`,
		`const P = Object.getPrototypeOf(pass()); P.constructor = null; delete P.verdict; Object.setPrototypeOf(P, null); globalThis.undefined = 1; globalThis.TypeError = null`,
	} {
		f, err := open(h, "function spoil(k) { "+spoil+" }"+rest, event.Function{})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got, want := call(t, f, "first", "second", "third"), "0:DROP 1:EMIT[u /test s region=eu]second 1:EMIT[t /test s region=eu]second 1:REPLY/200(r) "+
				"2:EMIT[u /test s region=eu]third 2:EMIT[t /test s region=eu]third 2:REPLY/200(r)"; got != want {
				t.Errorf("%s\n got %s\nwant %s", spoil, got, want)
			}
		}
		if err := f.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

// An event that is over gives nothing away of the one at work, and cannot be delivered in its place.
func TestEventsThatAreOver(t *testing.T) {
	h := newHost(t, plugins.Options{})
	const looks = `["text", "bytes", "data", "id", "extensions", "attempt", "received", "binary"]`
	f, err := open(h, `let last, later;
export default function (event) {
	if (event.text === "keep") { last = event; new Promise((done) => { later = done }).then(() => console.log(event.text)); return pass(); }
	if (event.text === "return") return last;
	if (event.text === "later") { later(); return pass(); }
	const seen = `+looks+`.filter((k) => { try { last[k]; return true } catch (e) { return !e.message.startsWith("this event is over") } });
	for (const f of ["get", "raw", "has", "set", "setRaw", "replace", "remove", "elements", "isObject", "attribute", "setAttribute", "toJSON"])
		try { last[f]("a", "1"); seen.push(f) } catch (e) { if (!e.message.startsWith("this event is over")) seen.push(f + ": " + e.message) }
	return seen.length ? reject(1, seen.join()) : drop();
}`, event.Function{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := call(t, f, "keep", "look"), "0:PASS 1:DROP"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// An event that fails in a batch is tried again by itself, where it finds nothing kept: so only that it fails is seen.
	for _, how := range []string{"return", "later"} {
		if got, want := call(t, f, "keep", how), "0:PASS 1!trap: "; !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %s, want %s", how, got, want)
		}
	}
}

// Garbage in circles is found before it fills the memory, whatever its objects are; and an instance's memory does not
// grow with the events that it has seen.
func TestGarbage(t *testing.T) {
	h := newHost(t, plugins.Options{})
	f, err := open(h, `export default function (event) {
	const a = {big: new Uint8Array(1 << 18), all: event.data.items.map((n) => ({n})), f: () => a};
	a.a = a;
	event.set === undefined || event.setAttribute("n", a.all.length);
	return [emit(event), emit({data: a.all}), emit({bytes: event.bytes}), emit({text: event.text + "x"})];
}`, event.Function{Limits: event.FunctionLimits{Memory: 8 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	data := `{"items":[` + strings.TrimSuffix(strings.Repeat("1,", 200), ",") + `]}`
	var after int64
	for round := range 10 {
		if got := call(t, f, slices.Repeat([]string{data}, 20)...); strings.Contains(got, "!") {
			t.Fatalf("round %d: %.300s", round, got)
		}
		if round == 2 {
			after = f.Stats().Memory
		}
	}
	if now := f.Stats().Memory; now != after || after == 0 {
		t.Errorf("%d bytes of memory, %d after the first rounds", now, after)
	}
}

// A source that is nested beyond all measure is refused, and so is one whose errors are endless: neither takes more
// than the limits, nor the host with it.
func TestSourcesThatAreTooDeep(t *testing.T) {
	h := newHost(t, plugins.Options{})
	const n = 200_000
	for name, source := range map[string]string{
		"parentheses": strings.Repeat("(", n), "brackets": strings.Repeat("[", n) + strings.Repeat("]", n), "blocks": strings.Repeat("{", n),
		"functions": strings.Repeat("()=>", n) + "1", "unary": strings.Repeat("!", n) + "1", "templates": strings.Repeat("`${", n), "conditions": strings.Repeat("a?", n),
		"ifs": strings.Repeat("if(1)", n) + ";", "regexp": "/" + strings.Repeat("(", n) + strings.Repeat(")", n) + "/", "classes": strings.Repeat("class{static{", n),
		"patterns": "let " + strings.Repeat("[", n) + strings.Repeat("]", n) + "=1", "powers": "1" + strings.Repeat("**1", n) + "(", "news": strings.Repeat("new ", n),
		"a long name": strings.Repeat("a", 1<<20) + "()", "throws a lot": "throw new Error('x'.repeat(1 << 20))", "throws itself": "const e = new Error('x'); e.toString = () => { throw e }; throw e",
		"throws a proxy": "throw new Proxy({}, {get() { throw 1 }})", "throws null": "throw null", "throws a symbol": "throw Symbol('s')",
	} {
		_, err := open(h, source, event.Function{Limits: event.FunctionLimits{CPU: time.Second}})
		if !errors.Is(err, event.ErrInvalid) || len(err.Error()) > 10_000 {
			t.Errorf("%s: %.2000v", name, err)
			continue
		}
		t.Logf("%s: %.200v", name, err)
	}
}

// Paths mean to scripts what they mean to every SDK: the table is theirs.
func TestPathsInScripts(t *testing.T) {
	text, err := os.ReadFile("../../sdk/testdata/scan.json")
	if err != nil {
		t.Fatal(err)
	}
	type testCase struct {
		Op, Doc, Path string
		Edits         [][3]string
		Nest          int
		Want          *string
	}
	var cases []testCase
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, plugins.Options{})
	f, err := open(h, `export default function (event) {
	const {op, path, edits} = JSON.parse(event.subject);
	switch (op) {
	case "get": return emit({text: event.raw(path) ?? "-"});
	case "elements": return emit({text: event.elements(path).join("|")});
	case "object": return emit({text: String(event.isObject())});
	}
	for (const [how, at, v] of edits)
		if (how === "remove") event.remove(at);
		else event.setRaw(at, v);
	return emit({text: event.text});
}`, event.Function{Limits: event.FunctionLimits{CPU: 10 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, c := range cases {
		nest := strings.NewReplacer("@<", strings.Repeat("[", c.Nest), "@>", strings.Repeat("]", c.Nest))
		how, err := json.Marshal(map[string]any{"op": c.Op, "path": c.Path, "edits": c.Edits})
		if err != nil {
			t.Fatal(err)
		}
		switch c.Op {
		case "get", "elements", "object":
		case "edit":
			// Edits are applied one after the other here, at once there: those that are refused together, or are of
			// another kind, say nothing about scripts.
			if c.Want == nil || strings.HasPrefix(*c.Want, "!") || slices.ContainsFunc(c.Edits, func(e [3]string) bool { return e[0] != "set" && e[0] != "remove" }) || len(c.Edits) != 1 {
				continue
			}
		default:
			continue
		}
		want := "-"
		if c.Want != nil {
			want = nest.Replace(*c.Want)
		}
		if c.Op == "object" && c.Want == nil {
			want = "false"
		}
		e := event.Event{ID: "1", Source: "/test", Type: "t", Topic: "orders", Subject: string(how), Data: []byte(nest.Replace(c.Doc))}
		r := event.Record(e.AppendRecord(nil))
		out := &plugins.Outcome{}
		if err := f.Call(context.Background(), &plugins.Call{Events: []event.Record{r}, Attempts: []uint32{1}}, out); err != nil {
			t.Fatal(err)
		}
		ran++
		if len(out.Results) != 1 || string(out.Results[0].Data) != want {
			got := fmt.Sprint(out.Failures)
			if len(out.Results) == 1 {
				got = string(out.Results[0].Data)
			}
			t.Errorf("%s %.200q %q %q: got %.200q, want %.200q", c.Op, c.Doc, c.Path, c.Edits, got, want)
		}
	}
	if ran < 80 {
		t.Errorf("%d cases were run", ran)
	}
}

// The types that editors are told are those that scripts see: name for name.
func TestTypes(t *testing.T) {
	text, err := os.ReadFile("../../sdk/js/millrace.d.ts")
	if err != nil {
		t.Fatal(err)
	}
	members := func(interfaceName string) (names []string) {
		_, body, ok := strings.Cut(string(text), "interface "+interfaceName+" {\n")
		if !ok {
			t.Fatalf("no interface %s", interfaceName)
		}
		body, _, _ = strings.Cut(body, "\n}")
		for _, m := range regexp.MustCompile(`(?m)^\t(?:readonly )?([A-Za-z]+)\??[:(]`).FindAllStringSubmatch(body, -1) {
			names = append(names, m[1])
		}
		slices.Sort(names)
		return names
	}
	var globals []string
	for _, m := range regexp.MustCompile(`(?m)^declare function ([a-z]+)`).FindAllStringSubmatch(string(text), -1) {
		globals = append(globals, m[1])
	}
	slices.Sort(globals)
	want := fmt.Sprintf("event %v\nctx %v\nglobals %v\nresult %v", members("MillraceEvent"), members("MillraceContext"), globals, members("MillraceResult"))
	h := newHost(t, plugins.Options{})
	f, err := open(h, `
const list = (o) => "[" + Object.getOwnPropertyNames(o).filter((k) => k !== "constructor").sort().join(" ") + "]";
export default (event, ctx) => emit({text:
	"event " + list(Object.getPrototypeOf(event)) + "\nctx " + list(ctx) +
	"\nglobals [" + ["pass", "drop", "emit", "create", "retry", "reject", "reply"].filter((k) => typeof globalThis[k] === "function").sort().join(" ") +
	"]\nresult " + list(Object.getPrototypeOf(pass()))});
`, event.Function{})
	if err != nil {
		t.Fatal(err)
	}
	if got := call(t, f, "{}"); got != "0:EMIT[t /test s region=eu]"+want {
		t.Errorf("scripts see\n%s\nthe types have\n%s", got, want)
	}
}
