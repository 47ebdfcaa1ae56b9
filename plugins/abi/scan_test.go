package abi

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// FuzzScan holds the walk over JSON that was found whole against the standard library's.
func FuzzScan(f *testing.F) {
	for _, s := range []string{`{}`, `[]`, `{"a":1}`, ` { "a" : [ 1 , "}" , {"b":null} ] , "\u0061\\\"" : "x\ny\ud83d" } `, `[[],{},"]",-1.5e3,true]`, `{"":{"":[]}}`, `"a"`, `1`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		if event.CheckJSON(doc) != nil {
			return
		}
		doc = bytes.TrimSpace(doc)
		if end := valueEnd(doc, 0); end != len(doc) {
			t.Fatalf("%q ends at %d", doc, end)
		}
		switch doc[0] {
		case '{':
			var want map[string]json.RawMessage
			if err := json.Unmarshal(doc, &want); err != nil {
				t.Fatal(err)
			}
			got := map[string]json.RawMessage{}
			err := members(doc, func(name string, value []byte) error {
				var s string
				if q, err := json.Marshal(name); err != nil || json.Unmarshal(q, &s) != nil {
					t.Fatal(err)
				}
				got[s] = value
				return nil
			})
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%q: %v %q, want %q", doc, err, got, want)
			}
		case '[':
			var want, got []json.RawMessage
			if err := json.Unmarshal(doc, &want); err != nil {
				t.Fatal(err)
			}
			if err := elements(doc, func(v []byte) error { got = append(got, v); return nil }); err != nil || len(got) != len(want) {
				t.Fatalf("%q: %v %q, want %q", doc, err, got, want)
			}
			for i := range got {
				if !bytes.Equal(got[i], want[i]) {
					t.Fatalf("%q: %q, want %q", doc, got, want)
				}
			}
		}
	})
}
