package event

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// same reports whether two events are equal, nil and empty extensions alike.
func same(a, b Event) bool {
	if len(a.Extensions) == 0 && len(b.Extensions) == 0 {
		a.Extensions, b.Extensions = nil, nil
	}
	return reflect.DeepEqual(a, b)
}

// FuzzRecord: whatever the bytes, they are refused or make a record that stays inside its bounds and
// means the same when it is written anew.
func FuzzRecord(f *testing.F) {
	e := full()
	f.Add(e.AppendRecord(nil))
	f.Add((&Event{}).AppendRecord(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, rest, err := CutRecord(b)
		if err != nil {
			return
		}
		if len(r)+len(rest) != len(b) || r.Len() != len(r) {
			t.Fatalf("%d + %d of %d bytes", len(r), len(rest), len(b))
		}
		for a := range r.Attrs {
			if a.Unset {
				t.Fatal("a record's attribute is unset")
			}
			if a.Tag == TagExtension {
				if _, ok := r.Extension(a.Name); !ok && a.Name != "partitionkey" && a.Name != "traceparent" {
					t.Fatalf("%q is not found", a.Name)
				}
			} else if r.Attr(a.Tag) != a.Value {
				t.Fatalf("tag %d is %q, found %q", a.Tag, a.Value, r.Attr(a.Tag))
			}
		}
		for name, value := range r.Headers {
			if strings.ContainsAny(name+value, "\r\n\x00 ") {
				t.Fatalf("header %q: %q", name, value)
			}
		}
		if doc := r.AppendStructured(nil); !json.Valid(doc) || !utf8.Valid(doc) {
			t.Fatalf("rendered as %q", doc)
		}
		var e, again Event
		r.Decode(&e)
		if err := e.CheckRecord(); err != nil {
			t.Fatal(err)
		}
		w := e.AppendRecord(nil)
		if len(w) != e.RecordSize() {
			t.Fatalf("%d bytes, RecordSize says %d", len(w), e.RecordSize())
		}
		r2, rest, err := CutRecord(w)
		if err != nil || len(rest) != 0 {
			t.Fatal(err, len(rest))
		}
		if r2.Decode(&again); !same(e, again) {
			t.Fatalf("got  %+v\nwant %+v", again, e)
		}
	})
}

// FuzzEvent: an event comes back from its record as it was, if CheckRecord lets it in.
func FuzzEvent(f *testing.F) {
	f.Add("1", "/s", "t", "", "2026-01-02T03:04:05Z", "x", uint8(0), "v", []byte("data"), true, uint32(3))
	f.Add("", "", "", "a\x00b", "", "", uint8(9), "", []byte{}, false, uint32(0))
	f.Fuzz(func(t *testing.T, id, source, typ, subject, tm, name string, kind uint8, value string, data []byte, binary bool, hops uint32) {
		e := Event{ID: id, Source: source, Type: typ, Subject: subject, DataContentType: value, DataSchema: subject, Time: tm, PartitionKey: name,
			TraceParent: typ, Topic: source, Extensions: []Attribute{{name, Kind(kind), value}, {name, String, id}}, Data: data, Binary: binary, Hops: hops}
		if len(data)%3 == 0 && len(data) < 3 {
			e.Data = nil
		}
		if err := e.CheckRecord(); err != nil {
			if name != "" && len(name) < 1<<16 && Kind(kind) <= Timestamp {
				t.Fatal(err)
			}
			if e.Validate(Limits{}) == nil {
				t.Fatalf("Validate accepts what no record holds: %v", err)
			}
			return
		}
		b := e.AppendRecord(nil)
		r, rest, err := CutRecord(b)
		if err != nil || len(rest) != 0 || len(b) != e.RecordSize() {
			t.Fatal(err, len(rest), len(b), e.RecordSize())
		}
		var got Event
		if r.Decode(&got); !same(got, e) {
			t.Fatalf("got  %+v\nwant %+v", got, e)
		}
		// Binary mode carries every attribute of a valid event.
		e.Extensions = e.Extensions[:1]
		if e.Validate(Limits{}) != nil || Kind(kind) == unset {
			return
		}
		back := Event{DataContentType: e.DataContentType, Data: e.Data, Binary: binary, Hops: hops, Topic: e.Topic}
		for name, value := range record(&e).Headers {
			if is, err := FromHeader(&back, name, value); !is || err != nil {
				t.Fatalf("%s: %s: %t, %v", name, value, is, err)
			}
		}
		e.Extensions[0].Kind = String // headers carry no kinds
		if !same(back, e) {
			t.Fatalf("by headers\ngot  %+v\nwant %+v", back, e)
		}
	})
}

// FuzzStructured: parsing never panics, JSON is judged as encoding/json does, and what is rendered means
// what was parsed.
func FuzzStructured(f *testing.F) {
	f.Add(kib())
	for _, s := range []string{`{` + must + `,"data":{"a":[1,-0.5e3,true,null]},"x":"\u00e9\ud83d\ude00","n":-5,"b":false}`,
		`{` + must + `,"datacontenttype":"text/plain","data":"a\nb"}`, `{` + must + `,"data_base64":"AAEC","subject":null}`,
		`[{` + must + `},{` + must + `,"time":"2026-01-02T03:04:05Z"}]`, `{"a":1,"a":{}} "x" 1`, strings.Repeat(`[{"a":`, 9)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		err := CheckJSON(doc)
		tooDeep := err != nil && strings.Contains(err.Error(), "nest deeper")
		if std := json.Valid(doc); (err == nil) != (std && utf8.Valid(doc)) && !tooDeep {
			t.Fatalf("%q: encoding/json says %t, CheckJSON %v", doc, std, err)
		}
		texts := 0
		if SplitJSON(doc, func(_ int, one []byte) error { texts++; return CheckJSON(one) }) == nil && err == nil && texts != 1 {
			t.Fatalf("one text is split into %d", texts)
		}
		HasSpecVersion(doc)

		events, errBatch := ParseBatch(doc, Limits{}, nil)
		var e Event
		if errOne := ParseStructured(doc, Limits{}, &e); errOne == nil {
			if err != nil || !HasSpecVersion(doc) {
				t.Fatalf("%q is parsed as an event: %v", doc, err)
			}
			events = []Event{e}
		} else if errBatch != nil {
			return
		} else if err != nil {
			t.Fatalf("%q is parsed as a batch: %v", doc, err)
		}
		var rs []Record
		for i := range events {
			rs = append(rs, record(&events[i]))
		}
		out := AppendBatch(nil, rs)
		again, err := ParseBatch(out, Limits{}, nil)
		if err != nil || len(again) != len(events) {
			t.Fatalf("%q is rendered as %q: %v", doc, out, err)
		}
		for i := range again {
			if !same(again[i], events[i]) {
				t.Fatalf("%q\ngot  %+v\nwant %+v", doc, again[i], events[i])
			}
		}
		for i := range rs { // and the same bytes the second time
			rs[i] = record(&again[i])
		}
		if twice := AppendBatch(nil, rs); !bytes.Equal(out, twice) {
			t.Fatalf("rendered as %q, then as %q", out, twice)
		}
	})
}
