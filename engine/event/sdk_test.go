package event_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	sdk "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/millrace/millrace/engine/event"
)

// sdkEvents are events made with the official SDK. Plain ones survive its binary mode, which does not
// percent-encode; see TestBinaryFromAndToSDK.
func sdkEvents(t *testing.T) map[string]sdk.Event {
	t.Helper()
	base := func() sdk.Event {
		e := sdk.New()
		e.SetID("A-1")
		e.SetSource("/shops/eu")
		e.SetType("com.example.order")
		return e
	}
	set := func(e *sdk.Event, contentType string, data any) {
		if err := e.SetData(contentType, data); err != nil {
			t.Fatal(err)
		}
	}
	all := map[string]sdk.Event{}

	e := base()
	all["no data"] = e

	e = base()
	e.SetSubject("orders/1")
	e.SetTime(time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC))
	e.SetDataSchema("http://example.com/schema#1")
	e.SetExtension("partitionkey", "k-1")
	e.SetExtension("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	e.SetExtension("flag", true)
	e.SetExtension("number", int32(-42))
	e.SetExtension("text", "true")
	e.SetExtension("link", types.ParseURI("http://example.com/a?b=c"))
	set(&e, "application/json", map[string]any{"a": "ü😀", "n": json.Number("9007199254740993")})
	all["everything"] = e

	e = base()
	set(&e, "application/json; charset=utf-8", []byte(`[1,2]`))
	all["json with a parameter"] = e

	e = base()
	set(&e, "text/plain", []byte("a \"line\"\nand ü"))
	all["text"] = e

	e = base()
	set(&e, "text/plain", []byte{})
	all["empty text"] = e

	e = base()
	set(&e, "application/octet-stream", []byte{0, 1, 254, 255})
	e.DataBase64 = true
	all["bytes"] = e

	e = base()
	set(&e, "application/octet-stream", []byte{})
	e.DataBase64 = true
	all["empty bytes"] = e

	e = base()
	e.SetSubject("Zürich \u20ac \U0001f600 100% \"x\\y\"")
	e.SetExtension("unicode", "\u00e9\u2028")
	set(&e, "application/json", []byte(`"text"`))
	all["unicode"] = e
	for name, e := range all {
		if err := e.Validate(); err != nil {
			t.Fatal(name, err)
		}
	}
	return all
}

// check compares our reading of an event with the SDK's own view of it.
func check(t *testing.T, name string, got *event.Event, want *sdk.Event, typed bool) {
	t.Helper()
	tm := ""
	if !want.Time().IsZero() {
		tm = want.Time().Format(time.RFC3339Nano)
	}
	ext := map[string]event.Attribute{}
	for name, v := range want.Extensions() {
		s, err := types.Format(v)
		if err != nil {
			t.Fatal(err)
		}
		a := event.Attribute{Name: name, Value: s}
		switch v.(type) {
		case bool:
			a.Kind = event.Boolean
		case int32:
			a.Kind = event.Integer
		}
		if !typed {
			a.Kind = event.String
		}
		ext[name] = a
	}
	key, trace := ext["partitionkey"].Value, ext["traceparent"].Value
	delete(ext, "partitionkey")
	delete(ext, "traceparent")
	exts := map[string]event.Attribute{}
	for _, a := range got.Extensions {
		exts[a.Name] = a
	}
	for what, pair := range map[string][2]string{"id": {got.ID, want.ID()}, "source": {got.Source, want.Source()}, "type": {got.Type, want.Type()},
		"subject": {got.Subject, want.Subject()}, "datacontenttype": {got.DataContentType, want.DataContentType()},
		"dataschema": {got.DataSchema, want.DataSchema()}, "time": {got.Time, tm}, "partitionkey": {got.PartitionKey, key},
		"traceparent": {got.TraceParent, trace}, "data": {string(got.Data), string(want.Data())}} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %s is %q, the SDK says %q", name, what, pair[0], pair[1])
		}
	}
	if (got.Data == nil) != (want.Data() == nil) {
		t.Errorf("%s: data nil: %t, the SDK's: %t", name, got.Data == nil, want.Data() == nil)
	}
	if !reflect.DeepEqual(exts, ext) {
		t.Errorf("%s: extensions %v, the SDK says %v", name, exts, ext)
	}
}

// toRecord takes an event the way of one that is stored.
func toRecord(t *testing.T, e *event.Event) event.Record {
	t.Helper()
	r, _, err := event.CutRecord(e.AppendRecord(nil))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// equal compares two of the SDK's events by what its own JSON says of them.
func equal(t *testing.T, name string, got, want *sdk.Event) {
	t.Helper()
	a, err1 := json.Marshal(got)
	b, err2 := json.Marshal(want)
	if err1 != nil || err2 != nil {
		t.Fatal(name, err1, err2)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("%s: the SDK reads back\n%s\nwant\n%s", name, a, b)
	}
}

func TestStructuredFromAndToSDK(t *testing.T) {
	for name, want := range sdkEvents(t) {
		doc, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var e event.Event
		if err := event.ParseStructured(doc, event.Limits{}, &e); err != nil {
			t.Errorf("%s: %s: %v", name, doc, err)
			continue
		}
		check(t, name, &e, &want, true)
		if e.Binary != want.DataBase64 {
			t.Errorf("%s: binary %t", name, e.Binary)
		}
		var back sdk.Event
		if err := json.Unmarshal(toRecord(t, &e).AppendStructured(nil), &back); err != nil {
			t.Errorf("%s: the SDK does not read us: %v", name, err)
			continue
		}
		equal(t, name, &back, &want)
	}
}

func TestBatchFromAndToSDK(t *testing.T) {
	var want []sdk.Event
	for _, e := range sdkEvents(t) {
		want = append(want, e)
	}
	doc, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	events, err := event.ParseBatch(doc, event.Limits{}, nil)
	if err != nil || len(events) != len(want) {
		t.Fatalf("%d events, %v", len(events), err)
	}
	var rs []event.Record
	for i := range events {
		check(t, "batch", &events[i], &want[i], true)
		rs = append(rs, toRecord(t, &events[i]))
	}
	req, err := http.NewRequest("POST", "/", bytes.NewReader(event.AppendBatch(nil, rs)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/cloudevents-batch+json")
	back, err := cehttp.NewEventsFromHTTPRequest(req)
	if err != nil || len(back) != len(want) {
		t.Fatalf("the SDK reads %d events, %v", len(back), err)
	}
	for i := range back {
		equal(t, "batch", &back[i], &want[i])
	}
}

func TestBinaryFromAndToSDK(t *testing.T) {
	for name, want := range sdkEvents(t) {
		req, err := http.NewRequest("POST", "http://x/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := cehttp.WriteRequest(binding.WithForceBinary(context.Background()), binding.ToMessage(&want), req); err != nil {
			t.Fatal(err)
		}
		e := event.Event{DataContentType: req.Header.Get("Content-Type")}
		if req.Body != nil {
			if e.Data, err = io.ReadAll(req.Body); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		for h, values := range req.Header {
			for _, v := range values {
				is, err := event.FromHeader(&e, h, v)
				if err != nil || is != strings.HasPrefix(strings.ToLower(h), "ce-") {
					t.Errorf("%s: %s: %t, %v", name, h, is, err)
				}
				if is {
					n++
				}
			}
		}
		if n < 4 {
			t.Errorf("%s: %d headers of CloudEvents", name, n)
		}
		if err := e.Validate(event.Limits{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(e.Data) == 0 {
			e.Data = want.Data() // an HTTP body cannot tell empty data from none
		}
		check(t, name, &e, &want, false)

		out, err := http.NewRequest("POST", "http://x/", bytes.NewReader(e.Data))
		if err != nil {
			t.Fatal(err)
		}
		if e.DataContentType != "" {
			out.Header.Set("Content-Type", e.DataContentType)
		}
		for h, v := range toRecord(t, &e).Headers {
			if name == "unicode" && strings.Contains(v, "%") {
				v = wantRaw(&want, h) // the SDK does not decode what HTTP binding 3.1.3.2 has encoded
			}
			out.Header.Set(h, v)
		}
		back, err := cehttp.NewEventFromHTTPRequest(out)
		if err != nil {
			t.Errorf("%s: the SDK does not read us: %v", name, err)
			continue
		}
		check(t, name, &e, withData(t, back, want.Data()), false)
	}
}

// wantRaw is an attribute as the SDK wants it in a header.
func wantRaw(e *sdk.Event, header string) string {
	if header == "ce-subject" {
		return e.Subject()
	}
	return e.Extensions()[strings.TrimPrefix(header, "ce-")].(string)
}

// withData gives e back its data where an empty body took it.
func withData(t *testing.T, e *sdk.Event, data []byte) *sdk.Event {
	t.Helper()
	if len(e.Data()) == 0 {
		e.DataEncoded = data
	}
	return e
}
