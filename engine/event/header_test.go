package event

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestFromHeader(t *testing.T) {
	var e Event
	for _, h := range [][2]string{{"Ce-Specversion", "1.0"}, {"ce-id", "A-1"}, {"CE-SOURCE", "/s"}, {"Ce-Type", "t"},
		{"ce-subject", "Euro%20%E2%82%AC%20%F0%9F%98%80"}, {"Ce-Time", "2026-01-02T03:04:05Z"}, {"ce-dataschema", "http://x/%2520"},
		{"ce-partitionkey", `"a \"b\" \\ c"`}, {"ce-traceparent", "00-1"}, {"Ce-ComExample", "50%"}, {"ce-e", ""},
		{"ce-raw", "süß%zz%4"}, {"ce-q", `%22`}, {"ce-averyveryverylongname", "x"}} {
		if is, err := FromHeader(&e, h[0], h[1]); !is || err != nil {
			t.Errorf("%s: %t, %v", h[0], is, err)
		}
	}
	want := Event{ID: "A-1", Source: "/s", Type: "t", Subject: "Euro € 😀", Time: "2026-01-02T03:04:05Z", DataSchema: "http://x/%20",
		PartitionKey: `a "b" \ c`, TraceParent: "00-1", Extensions: []Attribute{{"comexample", String, "50%"}, {"e", String, ""},
			{"raw", String, "süß%zz%4"}, {"q", String, `"`}, {"averyveryverylongname", String, "x"}}}
	if !reflect.DeepEqual(e, want) {
		t.Errorf("got  %+v\nwant %+v", e, want)
	}
	if err := e.Validate(Limits{}); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"Content-Type", "ce", "ce_id", "", "cer-id", "x-ce-id"} {
		if is, err := FromHeader(&e, name, "x"); is || err != nil {
			t.Errorf("%q: %t, %v", name, is, err)
		}
	}
}

func TestFromHeaderRefuses(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"Ce-Specversion", "2.0", `ce-specversion: is "2.0"`},
		{"ce-specversion", "", "ce-specversion: is"},
		{"ce-id", "again", "ce-id: is given twice"},
		{"ce-x", "again", "ce-x: is given twice"},
		{"CE-X", "again", "ce-x: is given twice"},
		{"ce-subject", "", "ce-subject: is empty"},
		{"ce-subject", "%FF", "ce-subject: is not UTF-8"},
		{"ce-subject", "caf\xe9", "ce-subject: is not UTF-8"},
		{"ce-datacontenttype", "a/b", "ce-datacontenttype: is not a header"},
		{"ce-data", "1", "ce-data: this name cannot be an extension"},
		{"ce-my-ext", "1", "ce-my-ext: the attribute's name has '-' at 2"},
		{"ce-data_base64", "1", "ce-data_base64: this name"},
		{"ce-", "1", "an attribute has no name"},
		{"ce-" + strings.Repeat("x", 300), "1", "has 300 bytes"},
	} {
		e := Event{ID: "1", Extensions: []Attribute{{"x", String, "1"}}}
		is, err := FromHeader(&e, c.name, c.value)
		if !is || !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %s: %t, %v; want %s", c.name, c.value, is, err, c.want)
		}
	}
	// What decodes to a control character is refused with the rest of the event.
	var e Event
	for _, h := range [][2]string{{"ce-id", "1"}, {"ce-source", "s"}, {"ce-type", "t%0D%0Ax"}} {
		if _, err := FromHeader(&e, h[0], h[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Validate(Limits{}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "type: has U+000D at byte 1") {
		t.Error(err)
	}
}

func headers(r Record) (hs [][2]string) {
	for name, value := range r.Headers {
		hs = append(hs, [2]string{name, value})
	}
	return hs
}

func TestHeaders(t *testing.T) {
	e := Event{ID: "1", Source: "/s", Type: "t", Subject: "Euro € \"100%\"", Time: "2026-01-02T03:04:05Z", Topic: "orders",
		DataContentType: "text/plain", PartitionKey: "k", Extensions: []Attribute{{"flag", Boolean, "true"}, {"e", String, ""},
			{"bad\r\nx", String, "1"}, {"crlf", String, "a\r\nb: c"}}}
	got := headers(record(&e))
	want := [][2]string{{"ce-specversion", "1.0"}, {"ce-id", "1"}, {"ce-source", "/s"}, {"ce-type", "t"},
		{"ce-subject", "Euro%20%E2%82%AC%20%22100%25%22"}, {"ce-partitionkey", "k"}, {"ce-time", "2026-01-02T03:04:05Z"},
		{"ce-flag", "true"}, {"ce-e", ""}, {"ce-crlf", "a%0D%0Ab:%20c"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	// Stopping early is heeded.
	n := 0
	record(&e).Headers(func(string, string) bool { n++; return n < 3 })
	if n != 3 {
		t.Errorf("yielded %d times after the third said stop", n)
	}
	// Every attribute comes back.
	var back Event
	e.Extensions = e.Extensions[:2]
	for _, h := range headers(record(&e)) {
		if _, err := FromHeader(&back, h[0], h[1]); err != nil {
			t.Error(err)
		}
	}
	if back.Subject != e.Subject || back.PartitionKey != "k" || back.Time != e.Time || len(back.Extensions) != 2 || back.Topic != "" {
		t.Errorf("read back as %+v", back)
	}
}

func TestHeadersAllocateNothing(t *testing.T) {
	e := Event{ID: "1", Source: "/s", Type: "t", Time: "2026-01-02T03:04:05Z", PartitionKey: "k", TraceParent: "00-1"}
	r, size := record(&e), 0
	if n := testing.AllocsPerRun(100, func() {
		for name, value := range r.Headers {
			size += len(name) + len(value)
		}
	}); n != 0 {
		t.Errorf("Headers allocates %v times for attributes that need no encoding", n)
	}
	var in Event
	if n := testing.AllocsPerRun(100, func() {
		in = Event{}
		for _, h := range [...][2]string{{"Ce-Specversion", "1.0"}, {"Ce-Id", "1"}, {"Ce-Source", "/s"}, {"Ce-Type", "t"}, {"Content-Type", "x"}} {
			if _, err := FromHeader(&in, h[0], h[1]); err != nil {
				t.Fatal(err)
			}
		}
		if err := in.Validate(Limits{}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("FromHeader and Validate allocate %v times", n)
	}
}
