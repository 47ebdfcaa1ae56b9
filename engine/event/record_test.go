package event

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

// full has every attribute, every kind and every part that a record carries.
func full() Event {
	return Event{ID: "id", Source: "/s", Type: "t", Subject: "sub", DataContentType: "text/plain", DataSchema: "http://x",
		Time: "2026-01-02T03:04:05Z", PartitionKey: "k", TraceParent: "00-1", Topic: "orders",
		Extensions: []Attribute{{"a", String, ""}, {"b", Boolean, "true"}, {"c", Integer, "7"}, {"d", Bytes, "AA=="},
			{"e", URI, "x:y"}, {"f", URIReference, "/"}, {"g", Timestamp, "2026-01-02T03:04:05Z"}},
		Data: []byte("hello"), Binary: true, Hops: 3}
}

func TestRecordRoundTrip(t *testing.T) {
	empty := full()
	empty.Data = []byte{}
	none := full()
	none.Data, none.Binary, none.Extensions = nil, false, []Attribute{}
	for _, e := range []Event{full(), empty, none, {Extensions: []Attribute{}}} {
		b := e.AppendRecord([]byte("before"))
		if len(b)-6 != e.RecordSize() || (len(b)-6)%8 != 0 {
			t.Errorf("appended %d bytes, RecordSize says %d", len(b)-6, e.RecordSize())
		}
		r, rest, err := CutRecord(append(b[6:], "after"...))
		if err != nil || string(rest) != "after" || r.Len() != len(r) || len(r) != len(b)-6 {
			t.Fatalf("%v, rest %q, %d bytes", err, rest, len(r))
		}
		got := Event{Extensions: []Attribute{{"old", String, "old"}}}
		r.Decode(&got)
		if !reflect.DeepEqual(got, e) {
			t.Errorf("got  %+v\nwant %+v", got, e)
		}
		if (r.Data() == nil) != (e.Data == nil) {
			t.Errorf("data nil: %t, want %t", r.Data() == nil, e.Data == nil)
		}
		if r.Offset() != 0 || r.Received() != 0 || r.Partition() != 0 || r.Attempt() != 0 {
			t.Error("a fresh record has a place")
		}
	}
}

// TestRecordLayout holds the bytes to the documented format: guests of other languages read them.
func TestRecordLayout(t *testing.T) {
	e := Event{ID: "abc", Time: "T", Extensions: []Attribute{{"x", Integer, "12"}}, Data: []byte("data!"), Binary: true, Hops: 9}
	r := record(&e)
	r.SetPlace(Position{Partition: 0x01020304, Offset: 0x1112131415161718}, -2)
	r.SetAttempt(2, FlagRedeliver|FlagReply)
	want := []byte{
		96, 0, 0, 0, 3, 0, FlagBinary | FlagRedeliver | FlagReply, 0,
		0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,
		0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
		2, 0, 0, 0, 4, 3, 2, 1,
		88, 0, 0, 0, 5, 0, 0, 0,
		48, 0, 0, 0, 9, 0, 0, 0,
		1, 0, 0, 0, 3, 0, 0, 0, 'a', 'b', 'c', 0,
		10, 6, 0, 0, 1, 0, 0, 0, 'T', 0, 0, 0,
		0, 2, 1, 0, 2, 0, 0, 0, 'x', '1', '2', 0, 0, 0, 0, 0,
		'd', 'a', 't', 'a', '!', 0, 0, 0,
	}
	if !bytes.Equal(r, want) {
		t.Errorf("got  %v\nwant %v", []byte(r), want)
	}
	if r.Position().String() != "16909060-1230066625199609624" || r.Attempt() != 2 || r.Hops() != 9 ||
		!r.ReceivedAt().Equal(time.Unix(0, -2)) || r.Flags() != FlagBinary|FlagRedeliver|FlagReply {
		t.Errorf("accessors: %v, %d, %d, %v, %d", r.Position(), r.Attempt(), r.Hops(), r.ReceivedAt(), r.Flags())
	}
}

func TestRecordLookup(t *testing.T) {
	e := full()
	r := record(&e)
	for tag := TagID; tag < tagEnd; tag++ {
		if got := r.Attr(tag); got != *e.field(tag) || got == "" {
			t.Errorf("tag %d: %q", tag, got)
		}
		if name := tag.Name(); name != "" && TagOf(name) != tag {
			t.Errorf("tag %d is called %s, which is tag %d", tag, name, TagOf(name))
		}
	}
	for name, want := range map[string]string{"c": "7", "a": "", "partitionkey": "k", "traceparent": "00-1"} {
		if a, ok := r.Extension(name); !ok || a.Value != want || a.Name != name {
			t.Errorf("%s: %+v, %t", name, a, ok)
		}
	}
	bare := record(&Event{ID: "1"})
	for _, name := range []string{"c", "partitionkey", "traceparent", "id"} {
		if a, ok := bare.Extension(name); ok {
			t.Errorf("%s: %+v", name, a)
		}
	}
	if bare.Attr(TagSubject) != "" {
		t.Error("an absent subject has a value")
	}
	n := 0
	for range r.Attrs {
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("Attrs went on after break: %d", n)
	}
}

func TestCutRecordRefuses(t *testing.T) {
	e := full()
	good := e.AppendRecord(nil)
	n := uint32(len(good))
	put32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint32(b[at:], v); return b }
	}
	for name, change := range map[string]func([]byte) []byte{
		"empty":                        func(b []byte) []byte { return nil },
		"short header":                 func(b []byte) []byte { return b[:HeaderSize-1] },
		"cut":                          func(b []byte) []byte { return b[:n-1] },
		"length 0":                     put32(0, 0),
		"length below a header":        put32(0, 40),
		"length not of 8":              put32(0, n-4),
		"length beyond":                put32(0, n+8),
		"length huge":                  put32(0, math.MaxUint32-7),
		"attributes in the header":     put32(40, 40),
		"attributes behind data":       put32(40, n),
		"attributes unaligned":         put32(40, 50),
		"data unaligned":               put32(32, le.Uint32(good[32:])+4),
		"data beyond":                  put32(36, n),
		"data overflows u32":           put32(36, math.MaxUint32),
		"data offset overflows":        put32(32, math.MaxUint32-7),
		"data beside no data":          func(b []byte) []byte { b[6] |= FlagNoData; return b },
		"more attributes than there":   func(b []byte) []byte { le.PutUint16(b[4:], math.MaxUint16); return b },
		"unknown tag":                  func(b []byte) []byte { b[HeaderSize] = byte(tagEnd); return b },
		"unknown kind":                 func(b []byte) []byte { b[HeaderSize+1] = byte(Timestamp) + 1; return b },
		"extension without name":       func(b []byte) []byte { b[HeaderSize] = 0; return b },
		"name beside a tag":            func(b []byte) []byte { b[HeaderSize+2] = 1; return b },
		"a tag twice":                  func(b []byte) []byte { b[HeaderSize] = byte(TagSource); return b },
		"value removed, as in results": put32(HeaderSize+4, NoValue),
		"value beyond":                 put32(HeaderSize+4, NoValue-1),
	} {
		if r, rest, err := CutRecord(change(bytes.Clone(good))); !errors.Is(err, ErrInvalid) || r != nil || rest != nil {
			t.Errorf("%s: %d bytes, %v", name, len(r), err)
		}
	}
	if _, _, err := CutRecord(good); err != nil {
		t.Error(err)
	}

	// Without attributes nothing else stands against an odd attr_off; without a value's bytes nothing else
	// against a removed one.
	bare := append((&Event{}).AppendRecord(nil), make([]byte, 8)...)
	le.PutUint32(bare, 56)
	le.PutUint32(bare[32:], 56)
	if _, _, err := CutRecord(bare); err != nil {
		t.Error(err)
	}
	le.PutUint32(bare[40:], 50)
	if _, _, err := CutRecord(bare); !errors.Is(err, ErrInvalid) {
		t.Errorf("attributes at 50: %v", err)
	}
	removed := (&Event{Extensions: []Attribute{{Name: "x"}}}).AppendRecord(nil)
	le.PutUint32(removed[HeaderSize+4:], NoValue)
	if _, _, err := CutRecord(removed); !errors.Is(err, ErrInvalid) {
		t.Errorf("a removed attribute in a record: %v", err)
	}
}

// TestHeaderCanGrow reads a record of a later version, whose header and attribute area are longer.
func TestHeaderCanGrow(t *testing.T) {
	e := full()
	old := e.AppendRecord(nil)
	b := append(bytes.Clone(old[:HeaderSize]), make([]byte, 16)...)
	b = append(b, old[HeaderSize:]...)
	for _, at := range []int{0, 32, 40} {
		le.PutUint32(b[at:], le.Uint32(b[at:])+16)
	}
	r, _, err := CutRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	var got Event
	r.Decode(&got)
	if !reflect.DeepEqual(got, e) {
		t.Errorf("got %+v", got)
	}
}

func TestResultAttributes(t *testing.T) {
	b := appendAttr(nil, TagSubject, String, "", "s")
	b = appendAttr(b, TagExtension, String, "x", "1")
	gone := len(b)
	b = appendAttr(b, TagExtension, String, "a", "")
	le.PutUint32(b[gone+4:], NoValue)
	gone = len(b)
	b = appendAttr(b, TagTime, Timestamp, "", "")
	le.PutUint32(b[gone+4:], NoValue)
	b = appendAttr(b, TagExtension, String, "partitionkey", "new")
	b = appendAttr(b, TagExtension, Integer, "c", "8")
	if n, err := CheckAttrs(append(b, "data"...), 6); err != nil || n != len(b) {
		t.Fatalf("%d of %d, %v", n, len(b), err)
	}
	if _, err := CheckAttrs(b, 7); !errors.Is(err, ErrInvalid) {
		t.Errorf("one attribute more than there are: %v", err)
	}
	e := full()
	e.Extensions = e.Extensions[:3]
	AttrsOf(b, 6, func(a Attr) bool { e.Set(a); return true })
	want := []Attribute{{"b", Boolean, "true"}, {"c", Integer, "8"}, {"x", String, "1"}}
	if e.Subject != "s" || e.Time != "" || e.PartitionKey != "new" || !reflect.DeepEqual(e.Extensions, want) {
		t.Errorf("%+v", e)
	}
	e.Set(Attr{Name: "nobody", Unset: true})
	if len(e.Extensions) != 3 {
		t.Errorf("removing what is not there: %+v", e.Extensions)
	}
}

func TestCheckRecord(t *testing.T) {
	e := full()
	if err := e.CheckRecord(); err != nil {
		t.Error(err)
	}
	for name, exts := range map[string][]Attribute{
		"many":      make([]Attribute, math.MaxUint16),
		"long name": {{Name: strings.Repeat("x", math.MaxUint16+1)}},
		"no name":   {{Value: "x"}},
		"kind":      {{Name: "x", Kind: Timestamp + 1}},
	} {
		e := Event{Extensions: exts}
		if e.CheckRecord() == nil {
			t.Errorf("%s is held to fit", name)
		}
	}
	e = Event{Extensions: []Attribute{{Name: strings.Repeat("x", math.MaxUint16), Value: "v"}}}
	if err := e.CheckRecord(); err != nil {
		t.Error(err)
	}
	if a, ok := record(&e).Extension(e.Extensions[0].Name); !ok || a.Value != "v" {
		t.Errorf("the longest name: %q, %t", a.Value, ok)
	}
}

func TestCloneBorrowsNothing(t *testing.T) {
	e := full()
	b := e.AppendRecord(nil)
	r, _, err := CutRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	var lent Event
	r.Decode(&lent)
	own := lent.Clone()
	clear(b)
	if !reflect.DeepEqual(own, e) {
		t.Errorf("the clone changed with the record: %+v", own)
	}
	if lent.ID == "id" {
		t.Error("Decode copied")
	}
}

func TestRecordAllocatesNothing(t *testing.T) {
	e := full()
	buf := make([]byte, 0, e.RecordSize())
	var back Event
	if n := testing.AllocsPerRun(100, func() {
		if err := e.CheckRecord(); err != nil {
			t.Fatal(err)
		}
		buf = e.AppendRecord(buf[:0])
		r, _, err := CutRecord(buf)
		if err != nil {
			t.Fatal(err)
		}
		r.Decode(&back)
		if _, ok := r.Extension("g"); !ok || r.Attr(TagTime) == "" {
			t.Fatal("an attribute is lost")
		}
	}); n != 0 {
		t.Errorf("a round trip allocates %v times", n)
	}
}
