package native_test

import (
	"context"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// A function that is tried sends nothing, is told why, and is known not to repeat itself from then on. The clock
// that a guest reads while it starts is no reason.
func TestTrialSendsNothing(t *testing.T) {
	asked := 0
	h := newHost(t, plugins.Options{Fetch: func(context.Context, *plugins.Request) (*plugins.Response, error) {
		asked++
		return &plugins.Response{Status: 200}, nil
	}})
	digest, err := h.Put(t.Context(), cGuest(t, "hostile.c"))
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	def := event.Function{Name: "f", Digest: digest, Allow: event.Allow{HTTP: []string{"api.example.com"}}}
	f, err := h.OpenTrial(t.Context(), def, func(_ int, message string) { said = append(said, message) })
	if err != nil {
		t.Fatal(err)
	}
	call(t, f, "p")
	if why := f.Unrepeatable(); why != "" {
		t.Errorf("unrepeatable before anything was asked: %s", why)
	}
	out := call(t, f, "Hhttps://api.example.com/x")
	if len(out.Results) != 1 || out.Results[0].Arg != ^uint32(1) || asked != 0 {
		t.Errorf("%s, asked %d times", show(out), asked)
	}
	if all := strings.Join(said, "\n"); !strings.Contains(all, "this is a trial, which sends nothing") {
		t.Errorf("it was told %q", all)
	}
	if why := f.Unrepeatable(); why != "it calls other hosts" {
		t.Errorf("unrepeatable: %q", why)
	}
	kept, err := h.OpenTrial(t.Context(), event.Function{Name: "g", Digest: digest, Allow: event.Allow{KV: true}}, func(int, string) {})
	if err != nil {
		t.Fatal(err)
	}
	if why := kept.Unrepeatable(); why != "it keeps state" {
		t.Errorf("of one that keeps state: %q", why)
	}
}
