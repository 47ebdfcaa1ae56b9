package engine

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

func TestInvoke(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	w.apply(through(digest, 1, &outputs{}, nil))
	invoke := func(version, data string) string {
		in, err := w.e.Invoke(t.Context(), "f0", version, &event.Event{ID: "i", Data: []byte(data)})
		if err != nil {
			return "error: " + err.Error()
		}
		if in.Took <= 0 {
			t.Errorf("%s: took %d ns", data, in.Took)
		}
		if in.Reply != nil {
			return says(in.Reply, nil)
		}
		var all []string
		for _, r := range in.Results {
			s := r.Verdict
			if r.Event != nil {
				s += fmt.Sprintf(" %s %s %s>%s", r.Event.Attr(event.TagID), r.Event.Attr(event.TagSource), r.Event.Data(), r.Topic)
			}
			all = append(all, fmt.Sprint(s, " ", r.Code, r.Reason, " ", r.Delay))
		}
		return strings.Join(all, "; ")
	}
	for _, c := range [][2]string{
		{"p", "pass 0 0"}, {"d", "drop 0 0"}, {"r1500", "retry 0 1500"}, {"x422", "reject 422refused here 0"},
		{"a201=hello;p", "201 text/plain hello"}, {"h200", says(fit(&event.Reply{}, event.Invalid("contentType", `"text/html\r\nx-evil: 1" has a character that a header cannot carry`)), nil)},
		{"ea;oelse;ib=c", "emit i~invoke~0 /functions/f0 a> 0 0; emit i~invoke~1 /functions/f0 out>else 0 0; emit b /functions/f0 c> 0 0"},
	} {
		if got := invoke("", c[0]); got != c[1] {
			t.Errorf("%s: %s, want %s", c[0], got, c[1])
		}
	}
	_, err := w.e.Invoke(t.Context(), "f0", "", &event.Event{Data: []byte("t")})
	var faults *event.Faults
	if !errors.Is(err, event.ErrFunction) || !errors.As(err, &faults) || faults.List[0].At != "trap" {
		t.Errorf("a trap: %v", err)
	}
	if got := invoke(digest, "d"); got != "drop 0 0" {
		t.Errorf("by digest: %s", got)
	}
	if got := invoke("sha256:"+strings.Repeat("0", 64), "d"); !strings.Contains(got, "no module") {
		t.Errorf("an unknown version: %s", got)
	}
	if got := invoke("latest", "d"); !strings.Contains(got, "64 hex digits") {
		t.Errorf("no version: %s", got)
	}
	if _, err := w.e.Invoke(t.Context(), "f1", "", &event.Event{}); !errors.Is(err, event.ErrNotFound) {
		t.Errorf("an unknown function: %v", err)
	}
	if n := len(w.records("orders")) + len(w.records("s.dead")); n != 0 {
		t.Errorf("invoking has stored %d events", n)
	}
	for range invokeQueue {
		w.e.invoking.all.Add(1)
	}
	if got := invoke("", "d"); !strings.Contains(got, "already") {
		t.Errorf("one too many: %s", got)
	}
	w.e.invoking.all.Add(-invokeQueue)
}

// State of an invoked function begins empty and ends with the call; what deliveries keep stays out of its sight.
func TestInvokeKeepsNoState(t *testing.T) {
	w, digests := stateWorld(t)
	w.apply(keeping(through(digests[0], 1, nil, copies)))
	w.publish("orders", "1=ahits=40")
	eventually(t, "it is settled", func() bool { return w.rest("s") })
	before := w.rows(tableState)
	for range 2 {
		in, err := w.e.Invoke(t.Context(), "f0", "", &event.Event{Data: []byte("ahits=2;ghits")})
		if err != nil || len(in.Results) != 1 || !strings.Contains(string(in.Results[0].Event.Data()), "2") || strings.Contains(string(in.Results[0].Event.Data()), "4") {
			t.Fatalf("%v, %+v", err, in)
		}
	}
	if after := w.rows(tableState); before != 1 || after != before {
		t.Errorf("%d keys before, %d after", before, after)
	}
}

// Another version than those that are open is opened for the call, and closed after it.
func TestInvokeOfAnotherVersion(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	spec := through(digest, 1, &outputs{}, nil)
	w.apply(spec)
	module, err := w.o.Host.Module(digest)
	if err != nil {
		t.Fatal(err)
	}
	other, err := w.o.Host.Put(t.Context(), append(bytes.Clone(module), 0, 2, 1, 'x')) // a custom section
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		in, err := w.e.Invoke(t.Context(), "f0", other, &event.Event{Data: []byte("a200=other")})
		if err != nil || says(in.Reply, nil) != "200 text/plain other" {
			t.Fatalf("%v, %v", in, err)
		}
	}
}
