package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

const must = `"specversion":"1.0","id":"1","source":"/s","type":"t"`

// parse reads doc, failing the test if it is refused.
func parse(t *testing.T, doc string) Event {
	t.Helper()
	var e Event
	if err := ParseStructured([]byte(doc), Limits{}, &e); err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
	return e
}

// record encodes e as the store would.
func record(e *Event) Record {
	r, _, err := CutRecord(e.AppendRecord(nil))
	if err != nil {
		panic(err)
	}
	return r
}

func TestParseStructured(t *testing.T) {
	e := parse(t, ` { "data" : {"n": 9007199254740993, "deep":[1, 2]} , "comexample":"x","flag":true,"n":-5, "gone":null,
		"specversion":"1.0","id":"A-1","source":"/mine","type":"com.example","subject":"sü\u00df","time":"2026-01-02T03:04:05.6Z",
		"dataschema":"http://x/y","partitionkey":"k","traceparent":"00-1-2-3","datacontenttype":null, "\u006dore":"\"q\""} `)
	want := Event{ID: "A-1", Source: "/mine", Type: "com.example", Subject: "süß", Time: "2026-01-02T03:04:05.6Z",
		DataSchema: "http://x/y", PartitionKey: "k", TraceParent: "00-1-2-3",
		Extensions: []Attribute{{"comexample", String, "x"}, {"flag", Boolean, "true"}, {"n", Integer, "-5"}, {"more", String, `"q"`}},
		Data:       []byte(`{"n": 9007199254740993, "deep":[1, 2]}`)}
	if !reflect.DeepEqual(e, want) {
		t.Errorf("got  %+v\nwant %+v", e, want)
	}
}

func TestStructuredData(t *testing.T) {
	for _, c := range []struct {
		members string
		data    []byte
		binary  bool
	}{
		{``, nil, false},
		{`,"data":null`, []byte("null"), false},
		{`,"data":"text"`, []byte(`"text"`), false},
		{`,"data": 12345678901234567890.10 `, []byte("12345678901234567890.10"), false},
		{`,"data":"<a/>","datacontenttype":"application/xml"`, []byte("<a/>"), false},
		{`,"datacontenttype":"text/plain; charset=utf-8","data":"a\n\ud83d\ude00"`, []byte("a\n😀"), false},
		{`,"datacontenttype":"text/plain","data":""`, []byte{}, false},
		{`,"datacontenttype":"text/plain","data":null`, nil, false},
		{`,"datacontenttype":"application/vnd.x+json","data":{"a":1}`, []byte(`{"a":1}`), false},
		{`,"data_base64":"AAH/"`, []byte{0, 1, 255}, true},
		{`,"data_base64":""`, []byte{}, true},
		{`,"data_base64":"A\u0041H\/"`, []byte{0, 1, 255}, true},
		{`,"data_base64":null,"data":1`, []byte("1"), false},
	} {
		e := parse(t, `{`+must+c.members+`}`)
		if !bytes.Equal(e.Data, c.data) || (e.Data == nil) != (c.data == nil) || e.Binary != c.binary {
			t.Errorf("%s: data %q (nil: %t), binary %t", c.members, e.Data, e.Data == nil, e.Binary)
		}
		// What is rendered means the same.
		again := parse(t, string(record(&e).AppendStructured(nil)))
		if !bytes.Equal(e.Data, again.Data) || (e.Data == nil) != (again.Data == nil) || e.Binary != again.Binary {
			t.Errorf("%s: rendered and read again: data %q, binary %t", c.members, again.Data, again.Binary)
		}
	}
}

func TestParseStructuredRefuses(t *testing.T) {
	for _, c := range []struct{ doc, at, want string }{
		{`{"id":"1","source":"/s","type":"t"}`, "specversion", "is missing"},
		{`{"specversion":"2.0","id":"1","source":"/s","type":"t"}`, "specversion", `is "2.0"`},
		{`{"specversion":1.0,"id":"1","source":"/s","type":"t"}`, "specversion", "is 1.0"},
		{`{"specversion":"1.0","source":"/s","type":"t"}`, "id", "is missing"},
		{`{"specversion":"1.0","id":"","source":"/s","type":"t"}`, "id", "is empty"},
		{`{"specversion":"1.0","id":7,"source":"/s","type":"t"}`, "id", "is a number (7); want a string"},
		{`{"specversion":"1.0","id":"1","source":null,"type":"t"}`, "source", "is missing"},
		{`{"specversion":"1.0","id":"1","source":"/s"}`, "type", "is missing"},
		{`{` + must + `,"subject":""}`, "subject", "is empty"},
		{`{` + must + `,"id":"2"}`, "id", "is given twice"},
		{`{` + must + `,"i\u0064":"2"}`, "id", "is given twice"},
		{`{` + must + `,"specversion":"1.0"}`, "specversion", "is given twice"},
		{`{` + must + `,"data":1,"data":2}`, "data", "is given twice"},
		{`{` + must + `,"data_base64":"","data_base64":""}`, "data_base64", "is given twice"},
		{`{` + must + `,"x":"1","x":"2"}`, "x", "is given twice"},
		{`{` + must + `,"x":null,"x":"2"}`, "x", "is given twice"},
		{`{` + must + `,"data":null,"data_base64":""}`, "data", "beside data_base64"},
		{`{` + must + `,"data_base64":"A"}`, "data_base64", "is not base64"},
		{`{` + must + `,"data_base64":5}`, "data_base64", "want a string"},
		{`{` + must + `,"datacontenttype":"text/xml","data":{}}`, "data", "is an object, but datacontenttype"},
		{`{` + must + `,"datacontenttype":"text/xml","data":"\ud800"}`, "data", "half of a surrogate pair"},
		{`{` + must + `,"comExample":"x"}`, "comExample", "'E' at 3"},
		{`{` + must + `,"my_ext":"x"}`, "my_ext", "'_' at 2"},
		{`{` + must + `,"":"x"}`, "", "no name"},
		{`{` + must + `,"x":{}}`, "x", "is an object"},
		{`{` + must + `,"x":[1]}`, "x", "is an array"},
		{`{` + must + `,"x":2147483648}`, "x", "integer of 32 bits"},
		{`{` + must + `,"x":1.0}`, "x", "integer of 32 bits"},
		{`{` + must + `,"x":1e3}`, "x", "integer of 32 bits"},
		{`{` + must + `,"partitionkey":5}`, "partitionkey", "want a string"},
		{`{` + must + `,"time":"yesterday"}`, "time", "is not a time"},
		{`{` + must + `,"time":"2026-02-29T00:00:00Z"}`, "time", "no day of the calendar"},
		{`{` + must + `,"subject":"a\u0000b"}`, "subject", "U+0000 at byte 1"},
		{`{` + must + `,"subject":"\ud800"}`, "subject", "half of a surrogate pair"},
		{`[]`, "", "a CloudEvent is a JSON object"},
		{`{` + must + `} x`, "", "more follows after the event"},
		{`{` + must + `,}`, "", "at byte 55 ('}'): want a name"},
		{`{` + must + `,"data":{"a":}}`, "", "at byte 67 ('}'): want a value"},
		{`{,` + must + `}`, "", "at byte 1 (','): want a name"},
		{`{` + must, "", "it ends at byte 54; want , or }"},
		{``, "", "it ends at byte 0"},
	} {
		var e Event
		err := ParseStructured([]byte(c.doc), Limits{}, &e)
		var f *Faults
		if !errors.As(err, &f) || !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", c.doc, err)
			continue
		}
		if len(f.List) != 1 || f.List[0].At != c.at || !strings.Contains(f.List[0].Detail, c.want) {
			t.Errorf("%s: %+v; want one fault at %q: %s", c.doc, f.List, c.at, c.want)
		}
	}
	// All that is wrong is told at once.
	var e Event
	err := ParseStructured([]byte(`{"specversion":"0.3","type":"","Bad":1,"time":"x"}`), Limits{}, &e)
	var f *Faults
	if !errors.As(err, &f) || len(f.List) != 6 {
		t.Errorf("%v; want faults at specversion, type, Bad, id, source, time", err)
	}
	// -0 is an integer whose canonical form is 0.
	if e := parse(t, `{`+must+`,"x":-0}`); e.Extensions[0] != (Attribute{"x", Integer, "0"}) {
		t.Errorf("-0: %+v", e.Extensions)
	}
}

func TestParseLimits(t *testing.T) {
	attrs := func(n int) string {
		var b strings.Builder
		b.WriteString(`{` + must)
		for i := range n - 3 {
			fmt.Fprintf(&b, `,"x%d":""`, i)
		}
		return b.String() + "}"
	}
	var e Event
	for _, c := range []struct {
		doc  string
		l    Limits
		want string // "" is accepted
	}{
		{attrs(128), Limits{}, ""},
		{attrs(129), Limits{}, "the limit is 128 attributes an event"},
		{attrs(200_000), Limits{}, "the limit is 128 attributes an event"},
		{`{` + must + `,"subject":"` + strings.Repeat("x", 10) + `"}`, Limits{Attribute: 10}, ""},
		{`{` + must + `,"subject":"` + strings.Repeat("x", 11) + `"}`, Limits{Attribute: 10}, "subject: has 11 bytes; the limit is 10 bytes an attribute"},
		{`{` + must + `,"` + strings.Repeat("x", 249) + `":""}`, Limits{}, ""},
		{`{` + must + `,"data":"` + strings.Repeat("x", 94) + `"}`, Limits{Event: 100}, ""},
		{`{` + must + `,"data":"` + strings.Repeat("x", 95) + `"}`, Limits{Event: 100}, "has 101 bytes of data and attributes; the limit is 100"},
	} {
		err := ParseStructured([]byte(c.doc), c.l, &e)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%.80s…: %v; want %q", c.doc, err, c.want)
		}
	}
	// A flood of bad members is told within bounds.
	var f *Faults
	err := ParseStructured([]byte(`{`+must+strings.Repeat(`,"X":{}`, 100_000)+`}`), Limits{}, &e)
	if !errors.As(err, &f) || len(f.List) > 200 {
		t.Errorf("%d faults", len(f.List))
	}
	// A name past any record is malformed rather than cut to what a record can say.
	err = ParseStructured([]byte(`{`+must+`,"`+strings.Repeat("x", 70_000)+`":""}`), Limits{}, &e)
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "has 70000 bytes; the limit is 249") {
		t.Error(err)
	}
}

func TestParseBatch(t *testing.T) {
	one := `{` + must + `,"x":"y"}`
	got, err := ParseBatch([]byte(` [ `+one+` , `+one+` ] `), Limits{}, nil)
	if err != nil || len(got) != 2 || got[1].ID != "1" || got[0].Extensions[0].Value != "y" {
		t.Fatalf("%+v, %v", got, err)
	}
	if none, err := ParseBatch([]byte(`[ ]`), Limits{}, nil); err != nil || len(none) != 0 {
		t.Errorf("an empty batch: %v, %v", none, err)
	}
	kept := []Event{{ID: "kept"}}
	for _, c := range []struct{ doc, want string }{
		{`[` + one + `,` + one + `,{"specversion":"1.0"}]`, "events[2].id: is missing"},
		{`[` + one + `,{"Id":1,` + must + `}]`, "events[1].Id: "},
		{`[` + one + `,7]`, "events[1]: broken JSON at byte 65 ('7'): a CloudEvent is a JSON object"},
		{`[` + one + `,]`, "events[1]: broken JSON at byte 65 (']')"},
		{`[` + one + ` ` + one + `]`, "broken JSON at byte 65 ('{'): want , or ]"},
		{`[` + one + `,` + one + `,` + one + `,` + one + `]`, "events[3]: the limit is 3 events a request"},
		{`[` + one, "it ends at byte 64"},
		{`[`, "it ends at byte 1"},
		{`[] []`, "more follows after the batch"},
		{one, "a batch is a JSON array"},
	} {
		got, err := ParseBatch([]byte(c.doc), Limits{Events: 3}, kept)
		if err == nil || !strings.Contains(err.Error(), c.want) || len(got) != 1 || got[0].ID != "kept" {
			t.Errorf("%s: %v, %d events; want %s", c.doc, err, len(got), c.want)
		}
	}
}

func TestHasSpecVersion(t *testing.T) {
	for doc, want := range map[string]bool{
		`{"specversion":"1.0"}`: true, ` { "a" : [1] , "b":{"x":"}"}, "spec\u0076ersion":7}`: true,
		`{}`: false, `[{"specversion":"1.0"}]`: false, `{"a":{"specversion":"1.0"}}`: false, `"specversion"`: false,
		`{"a":"specversion"}`: false, `7`: false, ``: false, `{"a"`: false, `{"a":`: false, `{"a":1`: false,
	} {
		if got := HasSpecVersion([]byte(doc)); got != want {
			t.Errorf("%s: %t", doc, got)
		}
	}
}

func TestAppendStructured(t *testing.T) {
	e := Event{ID: "1\n", Source: "/s", Type: "t", DataContentType: "application/json", Topic: "orders", PartitionKey: "k",
		Extensions: []Attribute{{"b", Boolean, "true"}, {"i", Integer, "-7"}, {"s", String, "true"}, {"odd", Integer, "7.5"}, {"u", URI, `x"y`}},
		Data:       []byte(" {\"a\": 9007199254740993}\n")}
	want := `{"specversion":"1.0","id":"1\n","source":"/s","type":"t","datacontenttype":"application/json","partitionkey":"k",` +
		`"b":true,"i":-7,"s":"true","odd":"7.5","u":"x\"y","data":{"a": 9007199254740993}}`
	if got := string(record(&e).AppendStructured([]byte("#"))); got != "#"+want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for _, c := range []struct {
		e    Event
		want string // after the attributes
	}{
		{Event{}, `}`},
		{Event{Data: []byte("1")}, `,"data":1}`},
		{Event{Data: []byte("1"), Binary: true}, `,"data_base64":"MQ=="}`},
		{Event{Data: []byte("{")}, `,"data_base64":"ew=="}`},
		{Event{Data: []byte{}}, `,"data_base64":""}`},
		{Event{Data: []byte("1 x")}, `,"data_base64":"MSB4"}`},
		{Event{Data: []byte("\"\xff\"")}, `,"data_base64":"Iv8i"}`},
		{Event{Data: []byte("a\"\x01"), DataContentType: "text/plain"}, `,"datacontenttype":"text/plain","data":"a\"\u0001"}`},
		{Event{Data: []byte{}, DataContentType: "text/plain"}, `,"datacontenttype":"text/plain","data":""}`},
		{Event{Data: []byte{0xFF}, DataContentType: "text/plain"}, `,"datacontenttype":"text/plain","data_base64":"/w=="}`},
	} {
		if got := string(record(&c.e).AppendStructured(nil)); got != `{"specversion":"1.0"`+c.want {
			t.Errorf("got %s, want …%s", got, c.want)
		}
	}
	r := record(&e)
	batch := AppendBatch(nil, []Record{r, r})
	if string(batch) != "["+want+","+want+"]" || string(AppendBatch(nil, nil)) != "[]" {
		t.Errorf("batch: %s", batch)
	}
	if !json.Valid(batch) {
		t.Error("the batch is not JSON")
	}
}

// kib is an event of 1 KiB in structured mode, with an extension and data of nested JSON.
func kib() []byte {
	doc := `{"specversion":"1.0","id":"01JCZ6Q4E5A2V8W3N7R9T1Y0PK","source":"/shops/eu/42","type":"com.example.order.created",` +
		`"subject":"orders/4711","time":"2026-01-31T12:34:56.789Z","datacontenttype":"application/json","partitionkey":"customer-81","region":"eu",` +
		`"data":{"order":{"id":4711,"total":129.95,"currency":"EUR","items":[{"sku":"A-1","qty":2},{"sku":"B-7","qty":1}]},"note":"`
	return []byte(doc + strings.Repeat("lorem ipsum ", 100)[:1024-len(doc)-3] + `"}}`)
}

func TestStructuredAllocatesNothing(t *testing.T) {
	doc := kib()
	e := Event{Extensions: make([]Attribute, 0, 4)}
	if n := testing.AllocsPerRun(100, func() {
		if err := ParseStructured(doc, Limits{}, &e); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("ParseStructured allocates %v times", n)
	}
	batch := append(append(append([]byte("["), doc...), ','), append(doc, ']')...)
	events, err := ParseBatch(batch, Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if events, err = ParseBatch(batch, Limits{}, events[:0]); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("ParseBatch allocates %v times", n)
	}
	r := record(&events[0])
	bytesRecord := record(&Event{ID: "1", Data: []byte{1, 2, 3}, Binary: true})
	text := record(&Event{ID: "1", Data: []byte("a\nb"), DataContentType: "text/plain"})
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() {
		for _, r := range [...]Record{r, bytesRecord, text} {
			buf = r.AppendStructured(buf[:0])
		}
	}); n != 0 {
		t.Errorf("AppendStructured allocates %v times", n)
	}
}

func BenchmarkParseStructured(b *testing.B) {
	doc := kib()
	e := Event{Extensions: make([]Attribute, 0, 4)}
	b.SetBytes(int64(len(doc)))
	b.ReportAllocs()
	for b.Loop() {
		if err := ParseStructured(doc, Limits{}, &e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendStructured(b *testing.B) {
	var e Event
	if err := ParseStructured(kib(), Limits{}, &e); err != nil {
		b.Fatal(err)
	}
	r := record(&e)
	buf := make([]byte, 0, 4096)
	b.SetBytes(int64(len(r)))
	b.ReportAllocs()
	for b.Loop() {
		buf = r.AppendStructured(buf[:0])
	}
}
