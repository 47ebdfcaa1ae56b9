package filters

import (
	"os"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// record builds an event's record.
func record(e event.Event) event.Record { return event.Record(e.AppendRecord(nil)) }

func sample(data string) event.Event {
	e := event.Event{ID: "e-1", Source: "/shop", Type: "order.created", Topic: "orders", Time: "2026-03-01T12:00:00Z",
		PartitionKey: "k1", Extensions: []event.Attribute{
			{Name: "level", Kind: event.Integer, Value: "5"},
			{Name: "flag", Kind: event.Boolean, Value: "true"},
			{Name: "tier", Value: "gold"},
		}}
	if data != "" {
		e.Data = []byte(data)
	}
	return e
}

func mustCompile(t testing.TB, src string) *Program {
	t.Helper()
	p, err := Compile(src)
	if err != nil {
		t.Fatalf("%s: %v", src, err)
	}
	return p
}

// TestTruthTable runs every row of the reference's tables: | `filter` | `data` | result |.
func TestTruthTable(t *testing.T) {
	doc, err := os.ReadFile("../docs/filters.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, line := range strings.Split(string(doc), "\n") {
		cells := strings.Split(strings.ReplaceAll(line, `\|`, "\x00"), "|")
		if len(cells) != 5 {
			continue
		}
		for i := range cells {
			cells[i] = strings.ReplaceAll(strings.TrimSpace(cells[i]), "\x00", "|")
		}
		src, data, want := strings.Trim(cells[1], "`"), strings.Trim(cells[2], "`"), cells[3]
		if !strings.HasPrefix(cells[1], "`") {
			continue
		}
		rows++
		if want == "refused" {
			if _, err := Compile(src); err == nil {
				t.Errorf("%s is not refused", src)
			}
			continue
		}
		if want != "true" && want != "false" {
			t.Fatalf("row %q: result %q", line, want)
		}
		if data == "none" {
			data = ""
		}
		rec := record(sample(data))
		p, err := Compile(src)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		s := &Scratch{}
		if got := p.Match(rec, s); got != (want == "true") || s.Errors != 0 {
			t.Errorf("%s with %s is %t, want %s (%d errors)", src, data, got, want, s.Errors)
		}
		whole, err := compile(src, true)
		if err != nil {
			t.Fatalf("%s for expr's machine: %v", src, err)
		}
		if got := whole.Match(rec, s); got != (want == "true") || s.Errors != 0 {
			t.Errorf("%s with %s on expr's machine is %t, want %s", src, data, got, want)
		}
		if got := p.Explain(rec); got.Matched != (want == "true") {
			t.Errorf("%s explained: %s", src, got)
		}
	}
	if rows < 60 {
		t.Fatalf("the reference has %d rows", rows)
	}
}
