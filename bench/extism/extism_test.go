// Package extism measures plug-ins of Extism in this router beside the same in Extism's own host for Go. It is a module
// of its own, so that the router does not depend on that. Run it by: cd bench/extism && go test -bench .
package extism

import (
	"bytes"
	"context"
	"strings"
	"testing"

	sdk "github.com/extism/go-sdk"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/extism"
	"github.com/millrace/millrace/plugins/abitest"
)

// order is 1 KiB of JSON with the member to hide in its middle.
var order = `{"id":"o-1234567890","total":129.95,"items":[` + strings.Repeat(`{"sku":"sku-00017","name":"a thing","quantity":2,"price":12.5},`, 5) +
	`{"sku":"last"}],"email":"somebody@example.com","note":"` + strings.Repeat("x", 600) + `"}`

func modules(t testing.TB) map[string][]byte {
	return map[string][]byte{
		"C":  abitest.C(t, "testdata/hide.c"),
		"Go": abitest.Go(t, "testdata/hide"),
	}
}

const hidden = `"email":"********************"`

// router opens the plug-in in a host of this router and returns a call of it with n events.
func router(t testing.TB, module []byte, n int) func() []byte {
	ctx := context.Background()
	h, err := plugins.NewHost(ctx, plugins.Options{ABIs: []plugins.ABI{extism.ABI{}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close(ctx) })
	digest, err := h.Put(ctx, module)
	if err != nil {
		t.Fatal(err)
	}
	f, err := h.Open(ctx, event.Function{Name: "hide", Digest: digest, Config: map[string]string{"extism.input": "data"}})
	if err != nil {
		t.Fatal(err)
	}
	c := &plugins.Call{}
	for range n {
		e := event.Event{ID: "1", Source: "/bench", Type: "order", Data: []byte(order)}
		c.Events = append(c.Events, event.Record(e.AppendRecord(nil)))
	}
	var out plugins.Outcome
	return func() []byte {
		if err := f.Call(ctx, c, &out); err != nil || len(out.Results) != n {
			t.Fatal(err, out.Failures)
		}
		return out.Results[n-1].Data
	}
}

// theirs opens the plug-in in Extism's host.
func theirs(t testing.TB, module []byte) func() []byte {
	ctx := context.Background()
	p, err := sdk.NewPlugin(ctx, sdk.Manifest{Wasm: []sdk.Wasm{sdk.WasmData{Data: module}}}, sdk.PluginConfig{EnableWasi: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(ctx) })
	input := []byte(order)
	return func() []byte {
		code, out, err := p.Call("hide", input)
		if err != nil || code != 0 {
			t.Fatal(code, err)
		}
		return out
	}
}

// Both hosts must do the same work for their times to mean something.
func TestSame(t *testing.T) {
	for name, module := range modules(t) {
		a, b := router(t, module, 1)(), theirs(t, module)()
		if !bytes.Equal(a, b) || !strings.Contains(string(a), hidden) {
			t.Errorf("%s: %s\nbeside %s", name, a, b)
		}
	}
}

func BenchmarkPlugin(b *testing.B) {
	for name, module := range modules(b) {
		for _, s := range []struct {
			name string
			n    int
			call func() []byte
		}{{"router", 16, router(b, module, 16)}, {"extism", 1, theirs(b, module)}} {
			b.Run(name+"/"+s.name, func(b *testing.B) {
				for b.Loop() {
					s.call()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*s.n), "ns/event")
			})
		}
	}
}
