package extism_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/extism"
	"github.com/millrace/millrace/plugins/abitest"
)

func TestEnrichGo(t *testing.T) {
	abitest.Run(t, abitest.Guest{Name: "Extism's Go kit", Module: abitest.Go(t, "testdata/enrich"), ABIs: []plugins.ABI{extism.ABI{}}, Lacks: abitest.Text})
}

// The kernel in the repository is the one that its source makes.
func TestKernelIsBuiltFromSource(t *testing.T) {
	out := filepath.Join(t.TempDir(), "k.wasm")
	if said, err := exec.Command("wat2wasm", "kernel.wat", "-o", out).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	made, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile("kernel.wasm")
	if err != nil || !bytes.Equal(made, kept) {
		t.Errorf("kernel.wasm is not what wat2wasm makes of kernel.wat: %v", err)
	}
}

func host(t testing.TB, o plugins.Options) *plugins.Host {
	t.Helper()
	o.ABIs, o.Instances = []plugins.ABI{extism.ABI{}}, 1
	h, err := plugins.NewHost(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return h
}

func open(t testing.TB, h *plugins.Host, module []byte, def event.Function) (*plugins.Function, error) {
	t.Helper()
	digest, err := h.Put(context.Background(), module)
	if err != nil {
		t.Fatal(err)
	}
	def.Name, def.Digest = "plugin", digest
	return h.Open(context.Background(), def)
}

func data(config map[string]string) map[string]string {
	all := map[string]string{"extism.input": "data"}
	for k, v := range config {
		all[k] = v
	}
	return all
}

func call(t testing.TB, f *plugins.Function, datas ...string) string {
	t.Helper()
	c := &plugins.Call{}
	for i, d := range datas {
		e := event.Event{ID: "1", Source: "/t", Type: "t", DataContentType: "text/plain", Data: []byte(d)}
		r := event.Record(e.AppendRecord(nil))
		r.SetPlace(event.Position{Offset: uint64(i)}, 1e9)
		c.Events = append(c.Events, r)
	}
	out := &plugins.Outcome{}
	if err := f.Call(context.Background(), c, out); err != nil {
		t.Fatal(err)
	}
	var s []string
	for i := range out.Results {
		s = append(s, fmt.Sprintf("%d:%s(%s)", out.Results[i].Index, out.Results[i].Verdict, out.Results[i].Data))
	}
	for _, x := range out.Failures {
		s = append(s, fmt.Sprintf("%d!%s %v", x.Index, x.Reason, x.Err))
	}
	return strings.Join(s, " ")
}

// A hostile plug-in fails at its event alone, and says why.
func TestHostile(t *testing.T) {
	f, err := open(t, host(t, plugins.Options{}), abitest.C(t, "testdata/plugin.c"), event.Function{Config: data(nil), Limits: event.FunctionLimits{CPU: 50 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("0123456789", 30_001)
	for _, c := range []struct{ data, want string }{
		{"t", "trap unreachable"},
		{"e", "trap the plug-in returned 7: no such thing"},
		{"E", "trap the plug-in returned 3: it gave no reason"},
		{"m", "output no output for event"},
		{"o", "output output of 64 bytes"},
		{"O", "output output of 2147483647 bytes"},
		{"l", "trap unreachable"}, {"L", "trap out of bounds memory access"}, {"s", "trap unreachable"},
		{"i", "trap unreachable"}, {"I", "trap unreachable"},
		{"a", "memory the plug-in's blocks take more than 32 MiB"}, {"A", "memory the plug-in's blocks take more than 32 MiB"},
		{"z", "deadline limits.cpu"},
		{"Z", "deadline limits.cpu"},
		{"V", "trap the plug-in's variables take more than 1048576 bytes"},
		{"h", "trap http_request: the function's definition does not allow it"},
		{"j", "trap http_request: the request is not the JSON object"},
	} {
		got := call(t, f, "1", c.data, long)
		if want := "0:EMIT(1) 2:EMIT(" + long + ") 1!" + c.want; !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %s", c.data, strings.ReplaceAll(got, long, "…"))
		}
	}
	if st := f.Stats(); st.Reruns > 3*18 {
		t.Errorf("%d runs again for 18 faults; the cursor tells whose fault it was", st.Reruns)
	}
}

func TestKernel(t *testing.T) {
	var said []string
	h := host(t, plugins.Options{
		Log: func(_ string, level int, m string) { said = append(said, fmt.Sprint(level, m)) },
		Fetch: func(_ context.Context, r *plugins.Request) (*plugins.Response, error) {
			return &plugins.Response{Status: 201, Header: http.Header{"X-B": {"c"}}, Body: fmt.Appendf(nil, "%s %s %s %s", r.Method, r.URL, r.Header.Get("A"), r.Body)}, nil
		},
	})
	f, err := open(t, h, abitest.C(t, "testdata/plugin.c"), event.Function{Config: data(map[string]string{"greeting": "hello"}), Allow: event.Allow{HTTP: []string{"api.example.com"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ data, want string }{
		{"", "0:EMIT()"}, {"f", "0:EMIT(here)"}, {"F", "0:EMIT(ok)"},
		{"v", "0:EMIT(none)"}, {"v", "0:EMIT(once)"}, {"v", "0:EMIT(again)"}, {"x", "0:EMIT(removed)"}, {"v", "0:EMIT(none)"},
		{"c", "0:EMIT(hello)"}, {"C", "0:EMIT()"}, {"g", "0:EMIT(debug)"},
		{"h", "0:EMIT(POST https://api.example.com/x b body)"},
		{"H", "0!trap http_request: the function's definition does not allow it: add other.example.com to allow.http"},
	} {
		if got := call(t, f, c.data); got != c.want {
			t.Errorf("%s: got %s, want %s", c.data, got, c.want)
		}
	}
	if all := strings.Join(said, "\n"); !strings.Contains(all, "1it is logged") {
		t.Errorf("%q", all)
	}
}

func TestWhichFunction(t *testing.T) {
	h := host(t, plugins.Options{})
	two := abitest.C(t, "testdata/plugin.c", "-DTWO")
	for _, c := range []struct{ name, want string }{
		{"", "0:EMIT(q)"}, {"handle", "0:EMIT(q)"}, {"second", "0:EMIT(second)"},
		{"with_parameter", `those are ["handle" "second"]`}, {"none", `config extism.function is "none"`},
	} {
		config := data(nil)
		if c.name != "" {
			config["extism.function"] = c.name
		}
		f, err := open(t, h, two, event.Function{Config: config})
		if err != nil {
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if got := call(t, f, "q"); got != c.want {
			t.Errorf("%s: %s", c.name, got)
		}
		if err := f.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
	if _, err := open(t, h, two, event.Function{Config: map[string]string{"extism.input": "bytes"}}); err == nil || !strings.Contains(err.Error(), "want event") {
		t.Error(err)
	}
}

func TestDataAllocatesNothing(t *testing.T) {
	f, err := open(t, host(t, plugins.Options{}), abitest.C(t, "testdata/plugin.c"), event.Function{Config: data(nil)})
	if err != nil {
		t.Fatal(err)
	}
	c := &plugins.Call{}
	for range 16 {
		e := event.Event{ID: "1", Source: "/t", Type: "t", Data: []byte(strings.Repeat("1", 1024))}
		c.Events = append(c.Events, event.Record(e.AppendRecord(nil)))
	}
	var out plugins.Outcome
	if n := testing.AllocsPerRun(100, func() {
		if err := f.Call(context.Background(), c, &out); err != nil || len(out.Results) != 16 {
			t.Fatal(err, out.Failures)
		}
	}); n > 0 {
		t.Errorf("%v allocations a batch of 16", n)
	}
}
