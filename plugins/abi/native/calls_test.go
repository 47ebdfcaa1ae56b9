package native_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// Every SDK makes every call: what is logged, counted, stored and asked for is the same.
func TestCallsGo(t *testing.T)   { makesCalls(t, goGuest(t, "testdata/calls/go")) }
func TestCallsRust(t *testing.T) { makesCalls(t, rustGuest(t, "testdata/calls/rust")) }
func TestCallsC(t *testing.T) {
	makesCalls(t, cSample(t, "testdata/calls/calls.c", noSystem...))
}
func TestCallsAssemblyScript(t *testing.T) {
	source, err := os.ReadFile("testdata/calls/calls.ts")
	if err != nil {
		t.Fatal(err)
	}
	makesCalls(t, asProject(t, source))
}

func makesCalls(t *testing.T, module []byte) {
	t.Helper()
	var logged, asked []string
	h := newHost(t, plugins.Options{
		Log: func(_ string, level int, m string) { logged = append(logged, fmt.Sprintf("%d %s", level, m)) },
		Fetch: func(_ context.Context, r *plugins.Request) (*plugins.Response, error) {
			asked = append(asked, fmt.Sprintf("%s %s %v %s", r.Method, r.URL, r.Header, r.Body))
			// More than any SDK makes room for at first: it comes again for what was kept.
			return &plugins.Response{Status: 201, Header: http.Header{"X-Tag": {"here"}}, Body: make([]byte, 40_000)}, nil
		},
	})
	def := event.Function{Name: "calls", Secrets: map[string]string{"token": strings.Repeat("s", 300)},
		Allow: event.Allow{KV: true, HTTP: []string{"api.example.com"}}, Limits: event.FunctionLimits{Wall: time.Minute}}
	f := open(t, h, module, def)

	s := &stored{rows: map[string]plugins.StateWrite{}}
	said := func(second uint64, data string) *plugins.Outcome {
		out := &plugins.Outcome{}
		if err := f.Call(context.Background(), &plugins.Call{Events: []event.Record{record(second, data)}, State: s}, out); err != nil {
			t.Fatal(err)
		}
		s.keep(out)
		return out
	}
	if got := show(said(1, "later")); got != "0:RETRY/1500" {
		t.Error(got)
	}
	for i, was := range []string{"none", "first"} {
		out := said(uint64(2+i), []string{"first", "second"}[i])
		want := fmt.Sprintf("0:EMIT 0:EMIT(now=true random=true was=%s gone=false sum=%d bad=true token=%s none=false status=201 tag=here body=40000 denied=true)",
			was, -3*(i+1), def.Secrets["token"])
		if got := show(out); got != want {
			t.Fatalf("got  %s\nwant %s", got, want)
		}
		var e event.Event
		out.Results[0].Event(record(uint64(2+i), "first"), &e)
		if e.Topic != "audit" || e.Subject != "s" || len(e.Extensions) != 0 || string(e.Data) != "first" {
			t.Errorf("relabelled: %+v", e)
		}
	}
	if got := s.String(); got != "last=second@3603 sum=-6@0" {
		t.Errorf("stored: %s", got)
	}
	if n := f.Stats().Counters["seen"]; n != 4 {
		t.Errorf("counted %d", n)
	}
	if got, want := strings.Join(asked, "\n"), "POST https://api.example.com/x map[X-A:[b]] ask"; got != want+"\n"+want {
		t.Errorf("asked:\n%s", got)
	}
	logged = slices.DeleteFunc(logged, func(l string) bool { return strings.Contains(l, "allow.http") }) // which the router says
	if got := strings.Join(logged, "\n"); got != "2 hello\n2 hello" {
		t.Errorf("logged:\n%s", got)
	}

	// What it needs is said by its marker: without state allowed it is refused when it is opened.
	def.Allow.KV = false
	if _, err := h.Open(context.Background(), def); err == nil {
		t.Error("it is taken where it may keep no state")
	}
}

// asProject builds a source in a folder that has the SDK among its packages.
func asProject(t *testing.T, source []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	sdk, err := filepath.Abs(asSDK)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "node_modules"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(sdk, filepath.Join(dir, "node_modules", "millrace")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "f.ts"), source, 0o666); err != nil {
		t.Fatal(err)
	}
	return asGuest(t, dir, "f.ts", "~lib/millrace/assembly/abort/abort")
}
