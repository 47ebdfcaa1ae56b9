package abitest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// Build runs a command in dir, with env added to the environment, and returns the module that it has written
// to where "{out}" stands among its arguments. "{tmp}" is a directory of the test's own.
func Build(t testing.TB, dir string, env []string, command ...string) []byte {
	t.Helper()
	tmp := t.TempDir()
	out := filepath.Join(tmp, "f.wasm")
	place := strings.NewReplacer("{out}", out, "{tmp}", tmp)
	args := make([]string, len(command))
	for i, a := range command {
		args[i] = place.Replace(a)
	}
	c := exec.Command(args[0], args[1:]...)
	c.Dir, c.Env = dir, os.Environ()
	for _, e := range env {
		c.Env = append(c.Env, place.Replace(e))
	}
	if said, err := c.CombinedOutput(); err != nil {
		t.Fatalf("in %s: %s: %v\n%s", dir, strings.Join(args, " "), err, said)
	}
	module, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return module
}

// Go builds the reactor of a Go package.
func Go(t testing.TB, dir string) []byte {
	t.Helper()
	return goBuild(t, dir, "-buildmode=c-shared")
}

// GoCommand builds the program of a Go package.
func GoCommand(t testing.TB, dir string) []byte {
	t.Helper()
	return goBuild(t, dir, "-buildmode=exe")
}

func goBuild(t testing.TB, dir, mode string) []byte {
	t.Helper()
	return Build(t, dir, []string{"GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=-mod=mod"},
		"go", "build", mode, "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", "{out}", ".")
}

// C builds the reactor of a C file.
func C(t testing.TB, file string, flags ...string) []byte {
	t.Helper()
	return clang(t, file, append(flags, "-mexec-model=reactor"))
}

// CCommand builds the program of a C file.
func CCommand(t testing.TB, file string, flags ...string) []byte {
	t.Helper()
	return clang(t, file, flags)
}

func clang(t testing.TB, file string, flags []string) []byte {
	t.Helper()
	return Build(t, filepath.Dir(file), nil, append(append([]string{"clang-19", "--target=wasm32-wasi"}, flags...),
		"-O3", "-mbulk-memory", "-Wall", "-Wextra", "-Werror", "-Wl,--strip-all", "-o", "{out}", filepath.Base(file))...)
}

// Part is the block of code that follows the comment "<!-- name -->" in a Markdown file.
func Part(t testing.TB, file, name string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "<!-- "+name+" -->\n```")
	_, rest, begins := strings.Cut(rest, "\n")
	code, _, ends := strings.Cut(rest, "\n```")
	if !ok || !begins || !ends {
		t.Fatalf("%s has no block of code named %s", file, name)
	}
	return code + "\n"
}

// Source makes a package of Go of one file, with the go.mod and go.sum of another folder, and returns its folder.
func Source(t testing.TB, code, modulesOf string) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string][]byte{"main.go": []byte(code)}
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(modulesOf, name))
		if err == nil {
			files[name] = b
		} else if name == "go.mod" {
			t.Fatal(err)
		}
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Says opens a module as a function, hands it an event for each of datas (nil: without data), and writes what
// comes of each as the documents do: a verdict, its data or reason and its attributes, a line each.
func Says(t testing.TB, abi plugins.ABI, module []byte, config map[string]string, datas ...[]byte) string {
	t.Helper()
	ctx := context.Background()
	h, err := plugins.NewHost(ctx, plugins.Options{ABIs: []plugins.ABI{abi}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	digest, err := h.Put(ctx, module)
	if err != nil {
		t.Fatal(err)
	}
	f, err := h.Open(ctx, event.Function{Name: "f", Digest: digest, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	c := &plugins.Call{}
	for i, d := range datas {
		e := event.Event{ID: "1", Source: "/t", Type: "t", Data: d}
		r := event.Record(e.AppendRecord(nil))
		r.SetPlace(event.Position{Offset: uint64(i)}, 1e9)
		c.Events = append(c.Events, r)
	}
	var out plugins.Outcome
	if err := f.Call(ctx, c, &out); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	for i := range out.Results {
		r := &out.Results[i]
		data := r.Data
		if r.Flags&plugins.SameData != 0 {
			data = c.Events[r.Index].Data()
		}
		said.WriteString(r.Verdict.String())
		if len(data) > 0 {
			said.WriteString(" " + string(data))
		}
		event.AttrsOf(r.Attrs, r.Count, func(a event.Attr) bool {
			said.WriteString(" " + a.Name + "=" + a.Value)
			return true
		})
		said.WriteString("\n")
	}
	for _, x := range out.Failures {
		said.WriteString(string(x.Reason) + " " + x.Err.Error() + "\n")
	}
	return said.String()
}
