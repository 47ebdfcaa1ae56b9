package acceptance

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

const refuseRules = `version: 1
topics:
  orders:
    schema:
      type: object
      properties: {total: {type: number}}
      required: [total]
  plain: {}
subscriptions:
  all: {topic: plain, deliver: {pull: {}}}
`

const (
	structuredType = "application/cloudevents+json"
	batchType      = "application/cloudevents-batch+json"
	linesType      = "application/x-ndjson"
	jsonType       = "application/json"
)

// A badRequest is one request, and what its answer must say.
type badRequest struct {
	path, contentType string
	body              []byte
	headers           []string
	status            int
	says              []string // all in detail or errors
}

func badRequests(t *testing.T) map[string]badRequest {
	t.Helper()
	plain := "/v1/topics/plain/events"
	event := func(extra string) string {
		return `{"specversion":"1.0","id":"e","source":"/s","type":"t"` + extra + `}`
	}
	// Bombs of half a GiB: both formats may be repeated end to end.
	zeros := make([]byte, 1<<20)
	var member bytes.Buffer
	zip := gzip.NewWriter(&member)
	if _, err := zip.Write(zeros); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	bomb := bytes.Repeat(member.Bytes(), 512)
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	zbomb := bytes.Repeat(zw.EncodeAll(zeros, nil), 512)
	return map[string]badRequest{
		"event over 1 MiB": {plain, structuredType, []byte(event(`,"data":"` + strings.Repeat("x", 1<<20) + `"`)), nil, 413, []string{"1048576", "1048582"}},
		"event over 1 MiB in a batch": {plain, batchType, []byte("[" + event("") + "," + event(`,"data":"`+strings.Repeat("x", 1<<20)+`"`) + "]"), nil,
			413, []string{"[1]", "1048576"}},
		"body over 16 MiB":       {plain, jsonType, bytes.Repeat([]byte("x"), 17<<20), nil, 413, []string{"16777216"}},
		"gzip bomb":              {plain, jsonType, bomb, []string{"Content-Encoding", "gzip"}, 413, []string{"16777216"}},
		"zstd bomb":              {plain, jsonType, zbomb, []string{"Content-Encoding", "zstd"}, 413, []string{"16777216"}},
		"cut gzip":               {plain, jsonType, bomb[:100], []string{"Content-Encoding", "gzip"}, 400, []string{"gzip"}},
		"unknown encoding":       {plain, jsonType, []byte(`{}`), []string{"Content-Encoding", "br"}, 415, []string{"br", "gzip", "zstd"}},
		"10,001 events":          {plain, linesType, bytes.Repeat([]byte("{}\n"), 10_001), nil, 413, []string{"10000"}},
		"broken JSON":            {plain, structuredType, []byte(`{"specversion":"1.0",`), nil, 400, []string{"JSON"}},
		"broken batch":           {plain, batchType, []byte("[" + event("") + `,{"specversion":"1.0","id":` + "]"), nil, 400, nil},
		"broken line":            {plain, linesType, []byte("{}\n{}\n{\"a\":}\n{}\n"), nil, 400, []string{"[2]"}},
		"bad member of a batch":  {plain, batchType, []byte("[" + event("") + "," + `{"specversion":"1.0","source":"/s","type":"t"}` + "]"), nil, 400, []string{"[1]", "id"}},
		"no id":                  {plain, structuredType, []byte(`{"specversion":"1.0","source":"/s","type":"t"}`), nil, 400, []string{"id"}},
		"no id, binary":          {plain, jsonType, []byte(`{}`), []string{"ce-specversion", "1.0", "ce-source", "/s", "ce-type", "t"}, 400, []string{"id: is missing"}},
		"specversion 2.0":        {plain, structuredType, []byte(strings.Replace(event(""), "1.0", "2.0", 1)), nil, 400, []string{"specversion", "2.0", "1.0"}},
		"upper-case attribute":   {plain, structuredType, []byte(event(`,"traceId":"x"`)), nil, 400, []string{"traceId"}},
		"both modes at once":     {plain, structuredType, []byte(event("")), []string{"ce-specversion", "1.0", "ce-id", "x", "ce-source", "/s", "ce-type", "t"}, 400, []string{"ce-"}},
		"long attribute":         {plain, structuredType, []byte(event(`,"subject":"` + strings.Repeat("s", 65537) + `"`)), nil, 413, []string{"subject", "65536", "65537"}},
		"unknown topic":          {"/v1/topics/plian/events", jsonType, []byte(`{}`), nil, 404, []string{`"plian"`, `did you mean "plain"?`, "router topics create plian"}},
		"topic ../x":             {"/v1/topics/..%2Fx/events", jsonType, []byte(`{}`), nil, 400, []string{"1 to 249", "A-Z a-z 0-9 . _ -"}},
		"topic with NUL":         {"/v1/topics/a%00b/events", jsonType, []byte(`{}`), nil, 400, []string{"A-Z a-z 0-9 . _ -"}},
		"topic of 250":           {"/v1/topics/" + strings.Repeat("a", 250) + "/events", jsonType, []byte(`{}`), nil, 400, []string{"250", "249"}},
		"topic with bidi":        {"/v1/topics/a%E2%80%AEb/events", jsonType, []byte(`{}`), nil, 400, []string{"A-Z a-z 0-9 . _ -"}},
		"id of another event":    {plain, structuredType, []byte(`{"specversion":"1.0","id":"kept","source":"/s","type":"t","data":2}`), nil, 409, []string{"kept"}},
		"conflict in a batch":    {plain, batchType, []byte("[" + event("") + `,{"specversion":"1.0","id":"kept","source":"/s","type":"t","data":2}]`), nil, 409, []string{"[1]"}},
		"foreign origin":         {plain, jsonType, []byte(`{}`), []string{"Origin", "https://evil.example"}, 403, []string{"evil.example", "--cors-origin"}},
		"foreign host":           {plain, jsonType, []byte(`{}`), []string{"Host", "evil.example"}, 403, []string{"evil.example", "--host"}},
		"schema":                 {"/v1/topics/orders/events", jsonType, []byte(`{"total":"much"}`), nil, 422, []string{"total"}},
		"schema, a line":         {"/v1/topics/orders/events", linesType, []byte("{\"total\":1}\n{}\n"), nil, 422, []string{"[1]", "total"}},
		"form that is no JSON":   {plain, "application/x-www-form-urlencoded", []byte(`a=b`), nil, 415, []string{"curl"}},
		"unknown query":          {plain + "?kay=x", jsonType, []byte(`{}`), nil, 400, []string{"kay", "key"}},
		"id for several":         {plain + "?id=x", linesType, []byte("{}\n{}\n"), nil, 400, []string{"id"}},
		"deep JSON":              {plain, structuredType, []byte(event(`,"data":` + strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000))), nil, 400, []string{"deep"}},
		"short form, no payload": {"/v1/publish", jsonType, []byte(`{"topic":"plain"}`), nil, 400, []string{"payload"}},
	}
}

// Each bad request is answered with a problem that names the field, the limit and the value, stores nothing, and leaves the
// router serving.
func TestBadInput(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rules := filepath.Join(dir, "rules.yaml")
	write(t, rules, refuseRules)
	r := serve(t, filepath.Join(dir, "data"), nil, "--rules", rules)
	r.publish("plain", structuredType, []byte(`{"specversion":"1.0","id":"kept","source":"/s","type":"t","data":1}`))
	bad := badRequests(t)
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		b := bad[name]
		status, header, text, err := r.send(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var p struct {
			Type, Title, Detail string
			Status              int
			Errors              []struct{ At, Detail string }
		}
		if err := json.Unmarshal(text, &p); err != nil || !strings.HasPrefix(header, "application/problem+json") || p.Title == "" || p.Detail == "" || p.Type == "" || p.Status != status {
			t.Errorf("%s: %d %s is no problem document: %.300s", name, status, header, text)
		}
		if status != b.status {
			t.Errorf("%s: %d %.400s; want %d", name, status, text, b.status)
		}
		all := p.Detail
		for _, e := range p.Errors {
			all += "\n" + e.At + ": " + e.Detail
		}
		for _, s := range b.says {
			if !strings.Contains(all, s) {
				t.Errorf("%s: the problem does not name %q:\n%.600s", name, s, all)
			}
		}
		if plain, orders := r.count("plain"), r.count("orders"); plain != 1 || orders != 0 {
			t.Fatalf("%s: stored something: plain has %d events, orders %d", name, plain, orders)
		}
	}
	a := r.publish("plain", structuredType, []byte(`{"specversion":"1.0","id":"kept","source":"/s","type":"t","data":1}`))
	if len(a.Events) != 1 || a.Events[0].Position != "0-0" || r.count("plain") != 1 {
		t.Errorf("a repeat is answered with %+v; want the first answer", a)
	}
	r.publish("orders", jsonType, []byte(`{"total":1}`))
	r.stop(20 * time.Second)
}

// send makes a bad request; unlike request it can set Host, and it takes an answer that comes before the body was sent.
func (r *router) send(b badRequest) (status int, contentType string, text []byte, err error) {
	if len(b.headers) == 2 && b.headers[0] == "Host" {
		return r.sendRaw(b, b.headers[1])
	}
	status, header, text, err := r.request("POST", b.path, b.contentType, b.body, b.headers...)
	if err != nil {
		return 0, "", nil, err
	}
	return status, header.Get("Content-Type"), text, nil
}

func (r *router) sendRaw(b badRequest, host string) (status int, contentType string, text []byte, err error) {
	c := r.dial()
	var sending sync.WaitGroup
	sending.Go(func() {
		// That the router closes before all is sent is what it should do.
		_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
			b.path, host, b.contentType, len(b.body), b.body)
	})
	answer, err := io.ReadAll(c)
	sending.Wait()
	if len(answer) == 0 {
		return 0, "", nil, fmt.Errorf("no answer: %v", err)
	}
	head, body, _ := strings.Cut(string(answer), "\r\n\r\n")
	if _, err := fmt.Sscanf(head, "HTTP/1.1 %d", &status); err != nil {
		return 0, "", nil, err
	}
	for line := range strings.SplitSeq(head, "\r\n") {
		if v, ok := strings.CutPrefix(line, "Content-Type: "); ok {
			contentType = v
		}
	}
	return status, contentType, []byte(body), nil
}

// A second router on a directory, and a router on what a later version wrote, are refused in words; so are rules that are wrong.
func TestRefusedStarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	r := serve(t, data, nil)
	_, err := start(t, data, nil)
	if want := fmt.Sprintf("locked by pid %d", r.cmd.Process.Pid); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a second router on the directory: %v; want %q", err, want)
	}
	r.publish("a", jsonType, []byte(`{}`))
	r.stop(20 * time.Second)

	rules := filepath.Join(dir, "rules.yaml")
	write(t, rules, "version: 1\ntopcs: {}\n")
	_, err = start(t, data, nil, "--rules", rules)
	if err == nil || !strings.Contains(err.Error(), "rules.yaml:2:1:") || !strings.Contains(err.Error(), `did you mean "topics"?`) {
		t.Errorf("bad rules at the start: %v", err)
	}
	if err := os.Remove(rules); err != nil {
		t.Fatal(err)
	}
	_, err = start(t, data, nil, "--rules", rules)
	if err == nil || !strings.Contains(err.Error(), "rules.yaml") {
		t.Errorf("missing rules at the start: %v", err)
	}
	r = serve(t, data, nil)
	if n := r.count("a"); n != 1 {
		t.Errorf("after refused starts the topic has %d events; want 1", n)
	}
	r.stop(20 * time.Second)

	// What a later version writes first: its format in the file that is read before all others, with a good checksum.
	offsets := filepath.Join(data, "store", "offsets")
	b, err := os.ReadFile(offsets)
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint64(b[8:], binary.LittleEndian.Uint64(b[8:])+1)
	sum := len(b) - 4
	binary.LittleEndian.PutUint32(b[sum:], crc32.Checksum(b[:sum], crc32.MakeTable(crc32.Castagnoli)))
	if err := os.WriteFile(offsets, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = start(t, data, nil); err == nil || !strings.Contains(err.Error(), "this build knows up to") {
		t.Errorf("a directory of a later version: %v", err)
	}
}
