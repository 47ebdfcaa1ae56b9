package wasi_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/extism"
	"github.com/millrace/millrace/plugins/abi/native"
	"github.com/millrace/millrace/plugins/abi/redpanda"
	"github.com/millrace/millrace/plugins/abi/wasi"
	"github.com/millrace/millrace/plugins/abitest"
)

func TestEnrichGo(t *testing.T) {
	abitest.Run(t, abitest.Guest{Name: "Go program", Module: abitest.GoCommand(t, "testdata/enrich"), ABIs: []plugins.ABI{wasi.ABI{}}, Lacks: abitest.Text})
}

func open(t testing.TB, module []byte, def event.Function) *plugins.Function {
	t.Helper()
	ctx := context.Background()
	h, err := plugins.NewHost(ctx, plugins.Options{ABIs: []plugins.ABI{wasi.ABI{}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	if def.Digest, err = h.Put(ctx, module); err != nil {
		t.Fatal(err)
	}
	def.Name = "filter"
	f, err := h.Open(ctx, def)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func call(t testing.TB, f *plugins.Function, datas ...string) *plugins.Outcome {
	t.Helper()
	c := &plugins.Call{}
	for i, d := range datas {
		e := event.Event{ID: "1", Source: "/t", Type: "t", Data: []byte(d)}
		r := event.Record(e.AppendRecord(nil))
		r.SetPlace(event.Position{Offset: uint64(i)}, 1e9)
		c.Events = append(c.Events, r)
	}
	out := &plugins.Outcome{}
	if err := f.Call(context.Background(), c, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func show(out *plugins.Outcome) string {
	var s []string
	for i := range out.Results {
		s = append(s, fmt.Sprintf("%d:%s(%s)", out.Results[i].Index, out.Results[i].Verdict, out.Results[i].Data))
	}
	for _, f := range out.Failures {
		s = append(s, fmt.Sprintf("%d!%s %v", f.Index, f.Reason, f.Err))
	}
	return strings.Join(s, " ")
}

// An unmodified filter, whose lines are the events' data. What fails is found and fails alone.
func TestFilter(t *testing.T) {
	module := abitest.CCommand(t, "testdata/filter.c")
	f := open(t, module, event.Function{Config: map[string]string{"wasi.input": "data"}, Limits: event.FunctionLimits{CPU: 50 * time.Millisecond}})
	for _, c := range []struct{ data, want string }{
		{"\"boom\"", "trap"}, {"\"exit\"", "the guest exited with status 3; it said: cannot go on"},
		{"\"flood\"", "more than 4194304 bytes of output"}, {"\"spin\"", "deadline"},
		{"\"mute\"", "0 lines of output for 1 events"}, {"\"twice\"", "more lines of output than the 1 events"},
		{"\"broken\"", "the answer to event 0"},
	} {
		out := call(t, f, "1", c.data, "{\"a\":\n[2, 3]}")
		got := show(out)
		if want := `0:EMIT(1) 2:EMIT({"a": [2, 3]}) 1!`; !strings.HasPrefix(got, want) || !strings.Contains(got, c.want) || len(out.Failures) != 1 {
			t.Errorf("%s: got %s", c.data, got)
		}
	}
	if got := show(call(t, f, "null", "2")); got != "0:DROP() 1:EMIT(2)" {
		t.Error(got)
	}
	st := f.Stats()
	if st.Instances > 1 || st.Created < 5 {
		t.Errorf("a program serves one run: %+v", st)
	}
}

// A call of many events is several runs, each of an instance of its own, and no run is in vain.
func TestRuns(t *testing.T) {
	f := open(t, abitest.CCommand(t, "testdata/filter.c"), event.Function{})
	datas := make([]string, 600)
	for i := range datas {
		datas[i] = "1"
	}
	out := call(t, f, datas...)
	if st := f.Stats(); len(out.Results) != 600 || st.Reruns != 0 || st.Created < 3 || st.Retired != 0 {
		t.Errorf("%d results: %+v", len(out.Results), st)
	}
}

// What limits.cpu allows an event, a run of several may take for each.
func TestTimeOfRun(t *testing.T) {
	f := open(t, abitest.CCommand(t, "testdata/filter.c"), event.Function{Config: map[string]string{"wasi.input": "data"}, Limits: event.FunctionLimits{CPU: 200 * time.Millisecond}})
	slow := slices.Repeat([]string{`"slow"`}, 10)
	if out := call(t, f, slow...); len(out.Results) != 10 || f.Stats().Reruns != 0 {
		t.Errorf("%s: %+v", show(out), f.Stats())
	}
}

func TestPassesWhole(t *testing.T) {
	f := open(t, abitest.CCommand(t, "testdata/filter.c"), event.Function{})
	out := call(t, f, `{"n":1}`)
	if len(out.Results) != 1 || out.Results[0].Verdict != plugins.Emit || out.Results[0].Flags != 0 || string(out.Results[0].Data) != `{"n":1}` {
		t.Error(show(out))
	}
}

func TestArguments(t *testing.T) {
	f := open(t, abitest.CCommand(t, "testdata/filter.c"), event.Function{Config: map[string]string{"wasi.input": "data", "wasi.args": "-c\n.a b\n"}})
	if got := show(call(t, f, `"args"`)); got != `0:EMIT(["3","filter","-c",".a b"])` {
		t.Error(got)
	}
}

// A program that reads nothing has as many lines to write as others.
func TestNeverReads(t *testing.T) {
	f := open(t, abitest.CCommand(t, "testdata/filter.c"), event.Function{Config: map[string]string{"mode": "deaf"}})
	if got := show(call(t, f, "1", "2")); got != "0:DROP() 1:DROP()" { // alone each has its line
		t.Error(got)
	}
}

func TestStartRefuses(t *testing.T) {
	for want, config := range map[string]map[string]string{
		"want event":       {"wasi.input": "lines"},
		"no setting":       {"wasi.stdin": "x"},
		"zero byte":        {"a": "\x00"},
		"both be MILLRACE": {"a.b": "1", "a-b": "2"},
	} {
		if _, _, err := (wasi.ABI{}).Start("f", config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", config, err)
		}
	}
}

// What was meant to be something else is told so when it is uploaded, not by each of its events.
func TestRefusedUploads(t *testing.T) {
	ctx := context.Background()
	h, err := plugins.NewHost(ctx, plugins.Options{ABIs: []plugins.ABI{native.ABI{}, extism.ABI{}, redpanda.ABI{}, wasi.ABI{}}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(ctx)
	const imports = `__attribute__((import_module("%s"), import_name("f"))) void f(void); int main(void) { f(); }`
	const exported = `__attribute__((export_name("%s"))) int f(void) { return 0; } int main(void) { return 0; }`
	for _, c := range []struct{ source, want string }{
		{fmt.Sprintf(imports, "millrace_v1"), "-buildmode=c-shared"},
		{fmt.Sprintf(imports, "extism:host/user"), "the program that the plug-in was written for"},
		{fmt.Sprintf(imports, "extism:host/env"), "no such host function"},
		{fmt.Sprintf(imports, "redpanda_transform"), "no such host function"},
		{fmt.Sprintf(imports, "elsewhere"), "no module"},
		{fmt.Sprintf(exported, "millrace_abi_v1"), "built as a program"},
	} {
		file := filepath.Join(t.TempDir(), "f.c")
		if err := os.WriteFile(file, []byte(c.source), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Put(ctx, abitest.CCommand(t, file)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.source, err)
		}
	}
}

func BenchmarkCall(b *testing.B) {
	for name, module := range map[string][]byte{"C": abitest.CCommand(b, "testdata/filter.c"), "Go": abitest.GoCommand(b, "testdata/enrich")} {
		b.Run(name, func(b *testing.B) {
			f := open(b, module, event.Function{})
			c := &plugins.Call{}
			for range 256 {
				e := event.Event{ID: "1", Source: "/t", Type: "t", Data: []byte(`{"email":"a@b","note":"` + strings.Repeat("x", 1000) + `"}`)}
				c.Events = append(c.Events, event.Record(e.AppendRecord(nil)))
			}
			var out plugins.Outcome
			for b.Loop() {
				if err := f.Call(context.Background(), c, &out); err != nil || len(out.Failures) > 0 {
					b.Fatal(err, out.Failures)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*256), "ns/event")
			b.ReportMetric(256*float64(b.N)/float64(f.Stats().Created), "events/run")
		})
	}
}
