package quickstart_test

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/examples/quickstart"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/native"
)

// builtWith is the toolchain that made the committed module: the same one makes the same bytes.
const builtWith = "go1.26.8"

// The committed module is what its source says: built again it does the same, and with the same toolchain it
// is the same.
func TestModuleIsItsSource(t *testing.T) {
	committed, err := fs.ReadFile(quickstart.Files, "functions/redact.wasm")
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "redact.wasm")
	build := exec.Command("go", "build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, ".")
	build.Dir = filepath.Join("functions", "redact")
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	built, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.Version() == builtWith && !bytes.Equal(committed, built) {
		t.Errorf("functions/redact.wasm (%d bytes) is not what its source builds to (%d bytes); `make functions` builds it", len(committed), len(built))
	}
	a, b := outputs(t, committed), outputs(t, built)
	if a != b {
		t.Errorf("the committed module says\n%s\nits source says\n%s", a, b)
	}
	if strings.Count(a, `"email":"***"`) != 6 || strings.Contains(a, "@example.com") {
		t.Errorf("the module does not redact every order:\n%s", a)
	}
}

// outputs runs a module over the quickstart's events.
func outputs(t *testing.T, module []byte) string {
	t.Helper()
	host, err := plugins.NewHost(t.Context(), plugins.Options{ABIs: []plugins.ABI{native.ABI{}}})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close(t.Context())
	digest, err := host.Put(t.Context(), module)
	if err != nil {
		t.Fatal(err)
	}
	f, err := host.Open(t.Context(), event.Function{Name: "redact", Digest: digest, Config: map[string]string{"field": "email"}})
	if err != nil {
		t.Fatal(err)
	}
	events, err := fs.ReadFile(quickstart.Files, "events.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	var call plugins.Call
	for line := range bytes.Lines(events) {
		var ev event.Event
		if err := event.ParseStructured(bytes.TrimSpace(line), event.Limits{}.WithDefaults(), &ev); err != nil {
			t.Fatal(err)
		}
		call.Events = append(call.Events, event.Record(ev.AppendRecord(nil)))
		call.Attempts = append(call.Attempts, 1)
	}
	var out plugins.Outcome
	if err := f.Call(t.Context(), &call, &out); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, r := range out.Results {
		text.WriteString(r.Verdict.String() + " " + string(r.Data) + "\n")
	}
	for _, x := range out.Failures {
		text.WriteString(string(x.Reason) + " " + x.Err.Error() + "\n")
	}
	return text.String()
}
