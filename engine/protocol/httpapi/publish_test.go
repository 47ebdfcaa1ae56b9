package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/millrace/millrace/engine/event"
)

const orders = "/v1/topics/orders/events"

// stored is what the fake holds, in structured mode.
func stored(f *fake, topic string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, r := range f.topics[topic].recs {
		out = append(out, string(r.AppendStructured(nil)))
	}
	return out
}

// like reports whether the document has all that want has.
func like(t *testing.T, doc, want string) {
	t.Helper()
	var d, w map[string]any
	for _, x := range []struct {
		s  string
		to *map[string]any
	}{{doc, &d}, {want, &w}} {
		dec := json.NewDecoder(strings.NewReader(x.s))
		dec.UseNumber()
		if err := dec.Decode(x.to); err != nil {
			t.Fatalf("%s: %v", x.s, err)
		}
	}
	for k, v := range w {
		if fmt.Sprint(d[k]) != fmt.Sprint(v) {
			t.Errorf("%s is %v, want %v, in\n%s", k, d[k], v, doc)
		}
	}
}

func TestPublishForms(t *testing.T) {
	ce := []string{"ce-specversion", "1.0", "ce-id", "1", "ce-source", "/s", "ce-type", "t"}
	with := func(h []string, more ...string) []string { return append(append([]string{}, h...), more...) }
	for _, tt := range []struct {
		name, query, body string
		headers           []string
		want              []string // what the stored events must have
	}{
		{"json", "?type=order.created&subject=s&key=k&id=7", `{"total": 9007199254740993}`, []string{"Content-Type", "application/json"},
			[]string{`{"id":"7","type":"order.created","subject":"s","partitionkey":"k","source":"/topics/orders","datacontenttype":"application/json","data":{"total":9007199254740993}}`}},
		{"nothing said", "", `{"a":1}`, nil, []string{`{"id":"made-1","type":"event","data":{"a":1}}`}},
		{"text", "", "hello", []string{"Content-Type", "text/plain; charset=utf-8"}, []string{`{"data":"hello","datacontenttype":"text/plain; charset=utf-8"}`}},
		{"bytes", "", "\x00\xff", []string{"Content-Type", "image/png"}, []string{`{"data_base64":"AP8=","datacontenttype":"image/png"}`}},
		{"curl's form that is JSON", "", `{"a":1}`, []string{"Content-Type", "application/x-www-form-urlencoded"}, []string{`{"data":{"a":1},"datacontenttype":"application/json"}`}},
		{"type as a header", "", `1`, []string{"Content-Type", "application/json", "ce-type", "x"}, []string{`{"type":"x"}`}},
		{"idempotency key", "", `1`, []string{"Content-Type", "application/json", "Idempotency-Key", `"k1"`}, []string{`{"id":"k1"}`}},
		{"empty", "", ``, nil, []string{`{"type":"event"}`}},
		{"binary", "", `{"a":1}`, with(ce, "Content-Type", "application/json", "ce-myext", "x%20y", "ce-partitionkey", "p", "ce-time", "2026-01-02T03:04:05Z"),
			[]string{`{"id":"1","source":"/s","type":"t","myext":"x y","partitionkey":"p","time":"2026-01-02T03:04:05Z","data":{"a":1}}`}},
		{"binary csv", "", "a,b\n1,2\n", with(ce, "Content-Type", "text/csv"), []string{`{"id":"1","data":"a,b\n1,2\n"}`}},
		{"binary without data", "", "", with(ce, "Content-Type", "application/json"), []string{`{"id":"1"}`}},
		{"structured", "?key=k", `{"specversion":"1.0","id":"1","source":"/s","type":"t","ext":7,"data":{"a":1}}`, []string{"Content-Type", "application/cloudevents+json; charset=UTF-8"},
			[]string{`{"id":"1","ext":7,"partitionkey":"k","data":{"a":1}}`}},
		{"batch", "", `[{"specversion":"1.0","id":"1","source":"/s","type":"t"},{"specversion":"1.0","id":"2","source":"/s","type":"t","data":"x"}]`,
			[]string{"Content-Type", "application/cloudevents-batch+json"}, []string{`{"id":"1"}`, `{"id":"2","data":"x"}`}},
		{"ndjson", "?type=row", "{\"a\":1}\n\n[2]\r\n{\"specversion\":\"1.0\",\"id\":\"9\",\"source\":\"/s\",\"type\":\"row\"} 4", []string{"Content-Type", "application/x-ndjson", "Idempotency-Key", "k"},
			[]string{`{"id":"k~0","type":"row","data":{"a":1}}`, `{"id":"k~1","data":[2]}`, `{"id":"9"}`, `{"id":"k~3","data":4}`}},
		{"csv", "?type=row", "\ufeffa,b,c,d,e\n1,007,true,,x\n-1.5,1e5,\"q,\"\"r\",1.50,9007199254740993\n", []string{"Content-Type", "text/csv"},
			[]string{`{"type":"row","data":{"a":1,"b":"007","c":true,"d":null,"e":"x"}}`, `{"data":{"a":-1.5,"b":"1e5","c":"q,\"r","d":"1.50","e":9007199254740993}}`}},
		{"csv of strings", "?types=string", "a,b\n1,\n", []string{"Content-Type", "text/csv"}, []string{`{"data":{"a":"1","b":""}}`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake("orders")
			_, url := serve(t, Options{Backend: f})
			resp, body := do(t, "POST", url+orders+tt.query, tt.body, tt.headers...)
			if resp.StatusCode != 202 {
				t.Fatalf("%d %s", resp.StatusCode, body)
			}
			got := stored(f, "orders")
			if len(got) != len(tt.want) {
				t.Fatalf("stored %d events, want %d: %s", len(got), len(tt.want), got)
			}
			var answer struct {
				Accepted int
				Events   []struct{ ID, Position string }
			}
			if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Accepted != len(tt.want) || len(answer.Events) != len(tt.want) {
				t.Fatalf("%s: %v", body, err)
			}
			for i, w := range tt.want {
				like(t, got[i], w)
				like(t, got[i], fmt.Sprintf(`{"id":%q}`, answer.Events[i].ID))
				if p := fmt.Sprintf("0-%d", i); answer.Events[i].Position != p {
					t.Errorf("position %s, want %s", answer.Events[i].Position, p)
				}
			}
		})
	}
}

func TestPublishRefused(t *testing.T) {
	small := event.Limits{Body: 4096, Events: 3}
	ce := []string{"Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "/s", "Ce-Type", "t"}
	js := []string{"Content-Type", "application/json"}
	deep := strings.Repeat("[", 2000)
	for _, tt := range []struct {
		name, path, body string
		headers          []string
		status           int
		words            string // each of these, split at |, is in the answer
	}{
		{"no such topic", "/v1/topics/none/events", "1", js, 404, `router topics create none`},
		{"a topic's name", "/v1/topics/..%2Fx/events", "1", js, 400, `../x|begins with a letter or digit`},
		{"a name with NUL", "/v1/topics/a%00/events", "1", js, 400, `\\x00`},
		{"a name with bidi", "/v1/topics/a%E2%80%AEb/events", "1", js, 400, `A-Z a-z`},
		{"a long name", "/v1/topics/" + strings.Repeat("a", 9000) + "/events", "1", js, 400, `9000 bytes|249`},
		{"broken JSON", orders, `{"a":`, js, 400, `broken JSON`},
		{"deep JSON", orders, deep, js, 400, `deeper than 1000`},
		{"empty JSON", orders, ``, js, 400, `send null`},
		{"form", orders, `a=b`, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, `--data-binary`},
		{"multipart", orders, `--x`, []string{"Content-Type", "multipart/form-data; boundary=x"}, 415, `curl`},
		{"both modes", orders, `{"specversion":"1.0","id":"1","source":"/s","type":"t"}`, append([]string{"Content-Type", "application/cloudevents+json"}, ce...), 400, `not both`},
		{"specversion 2.0", orders, "1", append([]string{"Ce-Specversion", "2.0"}, js...), 400, `ce-specversion`},
		{"no id", orders, "1", append([]string{"Ce-Specversion", "1.0", "Ce-Source", "/s", "Ce-Type", "t"}, js...), 400, `"at":"id"`},
		{"structured without id", orders, `{"specversion":"1.0","source":"/s","type":"t"}`, []string{"Content-Type", "application/cloudevents+json"}, 400, `"at":"id"`},
		{"upper case", orders, `{"specversion":"1.0","id":"1","source":"/s","type":"t","myExt":"x"}`, []string{"Content-Type", "application/cloudevents+json"}, 400, `myExt`},
		{"another format", orders, `x`, []string{"Content-Type", "application/cloudevents+avro"}, 415, `cloudevents-batch+json`},
		{"batch with a bad one", orders, `[{"specversion":"1.0","id":"1","source":"/s","type":"t"},{"specversion":"1.0"}]`, []string{"Content-Type", "application/cloudevents-batch+json"}, 400, `events[1]`},
		{"empty batch", orders, `[]`, []string{"Content-Type", "application/cloudevents-batch+json"}, 400, `at least one`},
		{"too many", orders, `1 2 3 4`, []string{"Content-Type", "application/x-ndjson"}, 413, `events[3]|3 events`},
		{"too many rows", orders, "a\n1\n2\n3\n4\n", []string{"Content-Type", "text/csv"}, 413, `events[3]|3 events`},
		{"bad line", orders, "1\n{\n", []string{"Content-Type", "application/x-ndjson"}, 400, `events[1]`},
		{"no lines", orders, "\n", []string{"Content-Type", "application/x-ndjson"}, 400, `at least one`},
		{"an id for several", orders + "?id=1", "1 2", []string{"Content-Type", "application/x-ndjson"}, 400, `Idempotency-Key`},
		{"a type that differs", orders + "?type=x", "1", append(append([]string{}, ce...), js...), 400, `?type`},
		{"id and key differ", orders + "?id=x", "1", append([]string{"Idempotency-Key", "y"}, js...), 400, `?id`},
		{"unknown parameter", orders + "?typ=x", "1", js, 400, `?typ|type`},
		{"parameter twice", orders + "?type=x&type=y", "1", js, 400, `twice`},
		{"dryRun", orders + "?dryRun=1", "1", js, 400, `true or false`},
		{"wait", orders, "1", append([]string{"Prefer", "return=minimal, wait=soon"}, js...), 400, `want a number of seconds`},
		{"wait with several", orders, "1 2", []string{"Content-Type", "application/x-ndjson", "Prefer", "wait=5"}, 400, `wait goes with one event and the request has 2`},
		{"csv without rows", orders, "a,b\n", []string{"Content-Type", "text/csv"}, 400, `at least one row`},
		{"csv short row", orders, "a,b\n1\n", []string{"Content-Type", "text/csv"}, 400, `line 2`},
		{"csv name twice", orders, "a,a\n1,2\n", []string{"Content-Type", "text/csv"}, 400, `column 2`},
		{"csv quote", orders, "a\n\"x\n", []string{"Content-Type", "text/csv"}, 400, `broken CSV`},
		{"csv types", orders + "?types=int", "a\n1\n", []string{"Content-Type", "text/csv"}, 400, `?types`},
		{"csv charset", orders, "a\n1\n", []string{"Content-Type", "text/csv; charset=latin1"}, 415, `UTF-8`},
		{"encoding", orders, "1", append([]string{"Content-Encoding", "br"}, js...), 415, `gzip, zstd`},
		{"no gzip", orders, "1", append([]string{"Content-Encoding", "gzip"}, js...), 400, `not gzip`},
		{"no zstd", orders, "1", append([]string{"Content-Encoding", "zstd"}, js...), 400, `not zstd`},
		{"body too large", orders, strings.Repeat(" ", 5000), js, 413, `4096 bytes`},
		{"short: no topic", "/v1/publish", `{"payload":1}`, js, 400, `"at":"topic"`},
		{"short: no payload", "/v1/publish", `{"topic":"orders"}`, js, 400, `"at":"payload"`},
		{"short: unknown key", "/v1/publish", `{"topic":"orders","payload":1,"headers":{}}`, js, 400, `headers|topic, payload`},
		{"short: twice", "/v1/publish", `{"topic":"orders","payload":1,"payload":2}`, js, 400, `twice`},
		{"short: a number as type", "/v1/publish", `{"topic":"orders","payload":1,"type":2}`, js, 400, `"at":"type"`},
		{"short: array", "/v1/publish", `[]`, js, 400, `not an object`},
		{"short: text", "/v1/publish", `{"topic":"orders","payload":1}`, []string{"Content-Type", "text/plain"}, 415, `application/json`},
		{"nothing there", "/v1/nothing", "", nil, 404, `/v1/openapi.json`},
		{"not yet routed", "/v1/topics/orders/events/0-0/history", "", nil, 404, `openapi`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake("orders")
			_, url := serve(t, Options{Backend: f, Limits: small})
			resp, body := do(t, "POST", url+tt.path, tt.body, tt.headers...)
			if resp.StatusCode != tt.status || resp.Header.Get("Content-Type") != "application/problem+json" {
				t.Fatalf("%d %s: %s", resp.StatusCode, resp.Header, body)
			}
			for w := range strings.SplitSeq(tt.words, "|") {
				if !strings.Contains(body, w) {
					t.Errorf("no %q in %s", w, body)
				}
			}
			like(t, body, fmt.Sprintf(`{"status":%d,"title":%q}`, tt.status, http.StatusText(tt.status)))
			if n := len(stored(f, "orders")); n > 0 {
				t.Errorf("%d events stored of a refused request", n)
			}
		})
	}
}

func TestPublishShortMinimalDry(t *testing.T) {
	f := newFake("orders")
	_, url := serve(t, Options{Backend: f})
	js := []string{"Content-Type", "application/json"}
	resp, body := do(t, "POST", url+"/v1/publish", `{"topic":"orders","payload":{"n": 1.10},"type":"t\u0041","subject":"s","key":"k","id":"i"}`, append(js, "Prefer", "return=minimal")...)
	if resp.StatusCode != 202 || body != `{"accepted":1}`+"\n" || resp.Header.Get("Preference-Applied") != "return=minimal" {
		t.Fatalf("%d %q", resp.StatusCode, body)
	}
	like(t, stored(f, "orders")[0], `{"id":"i","type":"tA","subject":"s","partitionkey":"k","data":{"n":1.10},"datacontenttype":"application/json"}`)
	resp, body = do(t, "POST", url+orders+"?dryRun=true", "1 2", "Content-Type", "application/x-ndjson")
	if resp.StatusCode != 200 || len(stored(f, "orders")) != 1 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	if want := `{"dryRun":true,"events":[{"matches":[{"subscription":"fake","matched":true,"why":"a fake"}]},{"matches":[{"subscription":"fake","matched":false,"why":"a fake"}]}]}` + "\n"; body != want {
		t.Errorf("%s", body)
	}
}

func TestCSVTakesTheSchemasTypes(t *testing.T) {
	f := newFake("orders")
	f.topics["orders"].schema = []byte(`{"properties":{"zip":{"type":"string"},"n":{"type":"integer"},"x.y":{"type":["number","null"]},"ok":{"type":"boolean"},"tags":{"type":"array"}}}`)
	_, url := serve(t, Options{Backend: f})
	resp, body := do(t, "POST", url+orders, "zip,n,x.y,ok,tags,free\n12345,1e2,,true,\"[1,\"\"a\"\"]\",5\n,,1.50,,,\n", "Content-Type", "text/csv")
	if resp.StatusCode != 202 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	got := stored(f, "orders")
	for i, want := range []string{`{"zip":"12345","n":1e2,"x.y":null,"ok":true,"tags":[1,"a"],"free":5}`, `{"zip":"","x.y":1.50,"free":null}`} {
		if !strings.Contains(got[i], `"data":`+want) {
			t.Errorf("%s, want %s", got[i], want)
		}
	}
	resp, body = do(t, "POST", url+orders, "zip,ok\n1,yes\n", "Content-Type", "text/csv")
	if resp.StatusCode != 400 || !strings.Contains(body, `line 2, column 3`) || !strings.Contains(body, "true or false") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func compressed(t testing.TB, how string, b []byte) string {
	t.Helper()
	var z bytes.Buffer
	var err error
	switch how {
	case "gzip":
		w := gzip.NewWriter(&z)
		_, err = w.Write(b)
		w.Close()
	default:
		w, _ := zstd.NewWriter(&z)
		_, err = w.Write(b)
		w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return z.String()
}

func TestContentEncoding(t *testing.T) {
	for _, how := range []string{"gzip", "zstd"} {
		f := newFake("orders")
		_, url := serve(t, Options{Backend: f})
		doc := `{"a":"` + strings.Repeat("x", 100_000) + `"}`
		resp, body := do(t, "POST", url+orders, compressed(t, how, []byte(doc)), "Content-Type", "application/json", "Content-Encoding", how)
		if resp.StatusCode != 202 {
			t.Fatalf("%s: %d %s", how, resp.StatusCode, body)
		}
		like(t, stored(f, "orders")[0], `{"data":`+doc+`}`)
		z := compressed(t, how, []byte(doc))
		resp, body = do(t, "POST", url+orders, z[:len(z)-5], "Content-Type", "application/json", "Content-Encoding", how)
		if resp.StatusCode != 400 {
			t.Errorf("%s, cut off: %d %s", how, resp.StatusCode, body)
		}
	}
}
