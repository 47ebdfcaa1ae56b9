package millrace

import (
	"encoding/hex"
	"testing"
	"time"
)

// batchOf encodes events of an id, an extension and data, nil data meaning none.
func batchOf(datas ...[]byte) []byte {
	b := make([]byte, batchHeader)
	for i, data := range datas {
		start := len(b)
		b = append(b, make([]byte, 48)...)
		for _, a := range []Attr{ID("id"), Extension("region", "eu")} {
			var room [64]byte
			b = append(b, room[:a.put(room[:])]...)
		}
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
		off := len(b) - start
		b = append(b, data...)
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
		h := b[start:]
		le.PutUint32(h, uint32(len(h)))
		le.PutUint16(h[4:], 2)
		if data == nil {
			le.PutUint16(h[6:], 4)
		}
		le.PutUint64(h[8:], uint64(i+7))
		le.PutUint32(h[24:], 2)
		le.PutUint32(h[32:], uint32(off))
		le.PutUint32(h[36:], uint32(len(data)))
		le.PutUint32(h[40:], 48)
	}
	le.PutUint32(b[4:], uint32(len(datas)))
	return b
}

func TestEventAccessors(t *testing.T) {
	seen := 0
	b := batchOf([]byte("abc"), nil, []byte{})
	var r Results
	r.run(b, func(e *Event, _ *Results) {
		region, ok := e.Extension("region")
		_, other := e.Extension("other")
		if e.ID() != "id" || region != "eu" || !ok || other || e.Type() != "" || e.Attempt() != 2 || e.Offset() != uint64(seen+7) {
			t.Errorf("event %d: id %q, region %q %v %v", seen, e.ID(), region, ok, other)
		}
		if d := e.Data(); [](bool){string(d) == "abc", d == nil, d != nil && len(d) == 0}[seen] != true {
			t.Errorf("event %d: data %v", seen, d)
		}
		if c := le.Uint32(b[12:]); c != uint32(seen) {
			t.Errorf("event %d: the cursor is %d", seen, c)
		}
		e.Extensions(func(name, value string) bool {
			if name != "region" || value != "eu" {
				t.Errorf("extension %s=%s", name, value)
			}
			return true
		})
		seen++
	})
	if c := le.Uint32(b[12:]); seen != 3 || c != 3 {
		t.Errorf("%d events, cursor %d at the end", seen, c)
	}
	if len(r.buf) != 0 {
		t.Error("a silent handler was given a verdict")
	}
}

func TestResultsAreEncodedAsTheRouterReadsThem(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(r *Results)
		want string
	}{
		{"pass", func(r *Results) { r.Pass() }, "180000000000000000000000000000000000000000000000"},
		{"drop", func(r *Results) { r.Drop() }, "180000000200000000000000000000000000000000000000"},
		{"retry", func(r *Results) { r.Retry(5 * time.Second) }, "180000000300000000000000881300000000000000000000"},
		{"retry at once", func(r *Results) { r.Retry(-1) }, "180000000300000000000000000000000000000000000000"},
		{"reject", func(r *Results) { r.Reject(422, "no") }, "200000000400000000000000a601000018000000020000006e6f000000000000"},
		{"replace, empty", func(r *Results) { r.Replace([]byte{}) }, "180000000101000000000000000000001800000000000000"},
		{"emit, topic", func(r *Results) { r.Emit(nil, Topic("ab"), Unset("x")) },
			"300000000100020000000000000000000000000000000000" + "07000000020000006162" + "0000" + "00000100ffffffff78" + "000000"},
	} {
		var r Results
		r.run(batchOf([]byte("x")), func(_ *Event, out *Results) { c.do(out) })
		if got := hex.EncodeToString(r.buf); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func TestHandlingAllocatesNothing(t *testing.T) {
	b := batchOf([]byte(`{"a":1}`), []byte(`{"a":2}`))
	var r Results
	h := func(e *Event, out *Results) { out.Replace(e.Data(), Type("t"), Extension("x", e.ID())) }
	r.run(b, h)
	if n := testing.AllocsPerRun(100, func() { r.run(b, h) }); n != 0 {
		t.Fatalf("%v allocations a batch", n)
	}
}
