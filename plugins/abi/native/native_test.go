package native_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/native"
)

// built makes a guest of testdata or of the SDK once for all tests.
var built = struct {
	sync.Mutex
	dir string
	got map[string][]byte
}{got: map[string][]byte{}}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "guests")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	built.dir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func cGuest(t testing.TB, source string) []byte {
	t.Helper()
	return guestOf(t, source, func(out string) *exec.Cmd {
		return exec.Command("clang-19", "--target=wasm32-wasi", "-mexec-model=reactor", "-O3", "-mbulk-memory",
			"-Wl,--strip-all", "-o", out, filepath.Join("testdata", source))
	})
}

func goGuest(t testing.TB, dir string) []byte {
	t.Helper()
	return guestOf(t, dir, func(out string) *exec.Cmd {
		c := exec.Command("go", "build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, ".")
		c.Dir = dir
		c.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=-mod=mod")
		return c
	})
}

func guestOf(t testing.TB, name string, build func(out string) *exec.Cmd) []byte {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if b := built.got[name]; b != nil {
		return b
	}
	out := filepath.Join(built.dir, strings.ReplaceAll(name, "/", "_")+".wasm")
	if msg, err := build(out).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	built.got[name] = b
	return b
}

func newHost(t testing.TB, o plugins.Options) *plugins.Host {
	t.Helper()
	o.ABIs = []plugins.ABI{native.ABI{}}
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

func open(t testing.TB, h *plugins.Host, module []byte, def event.Function) *plugins.Function {
	t.Helper()
	digest, err := h.Put(context.Background(), module)
	if err != nil {
		t.Fatal(err)
	}
	if def.Name == "" {
		def.Name = "f"
	}
	def.Digest = digest
	f, err := h.Open(context.Background(), def)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// record is an event at an offset, received at that many seconds.
func record(offset uint64, data string) event.Record {
	e := event.Event{ID: fmt.Sprintf("id-%d", offset), Source: "/test", Type: "t", Topic: "orders", Data: []byte(data),
		Extensions: []event.Attribute{{Name: "region", Value: "eu"}}}
	r := event.Record(e.AppendRecord(nil))
	r.SetPlace(event.Position{Partition: 3, Offset: offset}, int64(offset)*1e9)
	return r
}

func call(t testing.TB, f *plugins.Function, datas ...string) *plugins.Outcome {
	t.Helper()
	c := &plugins.Call{}
	for i, d := range datas {
		c.Events = append(c.Events, record(uint64(i+1), d))
		c.Attempts = append(c.Attempts, 1)
	}
	out := &plugins.Outcome{}
	if err := f.Call(context.Background(), c, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// show writes an outcome on one line: "0:PASS 1:EMIT(data) 2!trap".
func show(out *plugins.Outcome) string {
	var s []string
	n := 0
	for i := range out.Results {
		for ; n < len(out.Failures) && out.Failures[n].Index < out.Results[i].Index; n++ {
			s = append(s, fmt.Sprintf("%d!%s", out.Failures[n].Index, out.Failures[n].Reason))
		}
		r := &out.Results[i]
		w := fmt.Sprintf("%d:%s", r.Index, r.Verdict)
		if r.Arg != 0 {
			w += fmt.Sprintf("/%d", r.Arg)
		}
		if r.Data != nil {
			w += fmt.Sprintf("(%s)", r.Data)
		}
		s = append(s, w)
	}
	for ; n < len(out.Failures); n++ {
		s = append(s, fmt.Sprintf("%d!%s", out.Failures[n].Index, out.Failures[n].Reason))
	}
	return strings.Join(s, " ")
}

func TestCGuest(t *testing.T) {
	f := open(t, newHost(t, plugins.Options{}), cGuest(t, "redact.c"), event.Function{})
	got := show(call(t, f, `{"email":"a@b","n":1}`, `{"n":2}`, `[1]`, `{"n":3,"email":{"x":[1,"}"]}}`))
	want := `0:EMIT({"redacted":true,"email":"***","n":1}) 1:PASS 2:PASS 3:EMIT({"redacted":true,"n":3,"email":"***"})`
	if got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
}
