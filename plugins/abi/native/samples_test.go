package native_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

const rustSDK = "../../../sdk/rust"

// debian is an environment in which Debian's Rust comes first: it has the target that rustup's may lack.
func debian() []string {
	return append(os.Environ(), "PATH=/usr/bin:"+os.Getenv("PATH"), "CARGO_TARGET_DIR="+filepath.Join(built.dir, "cargo"))
}

// rustGuest builds a crate as its README says.
func rustGuest(t testing.TB, dir string) []byte {
	t.Helper()
	return guestOf(t, dir, func(out string) *exec.Cmd {
		c := exec.Command("sh", "-c", `export CARGO_TARGET_DIR="$0.target"; `+"cargo build --locked --offline --quiet --release --target wasm32-unknown-unknown && "+
			`cp "$CARGO_TARGET_DIR"/wasm32-unknown-unknown/release/*.wasm "$0"`, out)
		c.Dir, c.Env = dir, debian()
		return c
	})
}

// rustcGuest builds the same without cargo.
func rustcGuest(t testing.TB, source string) []byte {
	t.Helper()
	return guestOf(t, source, func(out string) *exec.Cmd {
		c := exec.Command("sh", "-ec", `
			lib=$(dirname "$0")/libmillrace.rlib
			rustc --edition 2021 -O --crate-name millrace --crate-type rlib --target wasm32-unknown-unknown --cfg 'feature="reply"' -o "$lib" "$1"
			rustc --edition 2021 -O -C panic=abort -C lto -C strip=symbols --crate-type cdylib --target wasm32-unknown-unknown --extern millrace="$lib" -o "$0" "$2"`,
			out, rustSDK+"/src/lib.rs", source)
		c.Env = debian()
		return c
	})
}

func TestEnrichRust(t *testing.T)  { enriches(t, rustGuest(t, rustSDK+"/examples/enrich")) }
func TestEnrichRustc(t *testing.T) { enriches(t, rustcGuest(t, rustSDK+"/examples/enrich/src/lib.rs")) }

// The crate's own tests: the table of scanner cases, the example of its README.
func TestRustSDK(t *testing.T) {
	for _, args := range [][]string{{"test", "--locked", "--offline", "--all-features"}, {"test", "--locked", "--offline", "--test", "table"}} {
		c := exec.Command("cargo", args...)
		c.Path = "/usr/bin/cargo"
		c.Dir, c.Env = rustSDK, debian()
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("cargo %v: %v\n%s", args, err, out)
		}
	}
}

const cSDK = "../../../sdk/c"

// cSample builds with the command of the SDK's README: as a WASI reactor, or for no system at all.
func cSample(t testing.TB, source string, flags ...string) []byte {
	t.Helper()
	return guestOf(t, source+flags[0], func(out string) *exec.Cmd {
		return exec.Command("clang-19", append(flags, "-O3", "-mbulk-memory", "-Wall", "-Wextra", "-Werror", "-Wl,--strip-all",
			"-I", cSDK, "-o", out, source)...)
	})
}

var (
	wasiReactor = []string{"--target=wasm32-wasi", "-mexec-model=reactor"}
	noSystem    = []string{"--target=wasm32-unknown-unknown", "-nostdlib", "-Wl,--no-entry"}
)

func TestEnrichC(t *testing.T) {
	enriches(t, cSample(t, cSDK+"/examples/enrich/enrich.c", wasiReactor...))
}

func TestEnrichCWithoutLibrary(t *testing.T) {
	enriches(t, cSample(t, cSDK+"/examples/enrich/enrich.c", noSystem...))
}

// The table, run by the scanner in C as two compilers build it for this machine, once under sanitizers.
func TestCSDK(t *testing.T) {
	for _, compile := range [][]string{
		{"clang-19", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"},
		{"gcc", "-O2"},
	} {
		driver := filepath.Join(built.dir, compile[0]+"-driver")
		c := exec.Command(compile[0], append(compile[1:], "-std=c11", "-Wall", "-Wextra", "-Werror", "-o", driver, cSDK+"/tests/driver.c")...)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c, err, out)
		}
		c = exec.Command(driver)
		c.Env = append(os.Environ(), "ASAN_OPTIONS=detect_leaks=0") // a test's memory goes with its process
		scanTable(t, c)
	}
}

// scanTable holds a program to the table of scanner cases. It is given a case a line, its fields in hexadecimal
// with a space between, and answers with a line.
func scanTable(t *testing.T, driver *exec.Cmd) {
	t.Helper()
	text, err := os.ReadFile("../../../sdk/testdata/scan.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Op, Doc, Path string
		Edits         [][3]string
		Nest          int
		Want          *string
	}
	if err := json.Unmarshal(text, &cases); err != nil || len(cases) < 100 {
		t.Fatalf("%d cases: %v", len(cases), err)
	}
	var in bytes.Buffer
	var want []string
	for _, c := range cases {
		nest := strings.NewReplacer("@<", strings.Repeat("[", c.Nest), "@>", strings.Repeat("]", c.Nest))
		fmt.Fprintf(&in, "%x %x", c.Op, nest.Replace(c.Doc))
		if c.Op != "edit" {
			fmt.Fprintf(&in, " %x", c.Path)
		}
		for _, e := range c.Edits {
			fmt.Fprintf(&in, " %x %x %x", e[0], e[1], e[2])
		}
		in.WriteString("\n")
		w := "-"
		if c.Want != nil {
			w = fmt.Sprintf("%x", nest.Replace(*c.Want))
		}
		want = append(want, w)
	}
	var errs bytes.Buffer
	driver.Stdin, driver.Stderr = &in, &errs
	out, err := driver.Output()
	got := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if err != nil || len(got) != len(want) {
		t.Fatalf("%v: %d answers to %d cases: %v\n%.4000s", driver, len(got), len(want), err, errs.String())
	}
	for i, c := range cases {
		if got[i] != want[i] {
			g, _ := hex.DecodeString(got[i])
			t.Errorf("%v: %s %.200q %q %v:\n got %.200q (%.20s)", driver, c.Op, c.Doc, c.Path, c.Edits, g, got[i])
		}
	}
}

// readme writes the first example in a language of an SDK's README to a file and returns its name.
func readme(t *testing.T, sdk, language, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(sdk, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(text), "```"+language+"\n")
	code, _, ok := strings.Cut(code, "```\n")
	if !ok {
		t.Fatalf("%s has no example in %s", sdk, language)
	}
	name := filepath.Join(t.TempDir(), file)
	if err := os.WriteFile(name, []byte(code), 0o666); err != nil {
		t.Fatal(err)
	}
	return name
}

// redacts holds the example of a README to what it says.
func redacts(t *testing.T, module []byte) {
	t.Helper()
	f := open(t, newHost(t, plugins.Options{}), module, event.Function{})
	got := show(call(t, f, `{"total":1,"customer":{"email":"a@b"}}`, `{"n":1}`, `not json`, `{"total":1}`))
	const want = `0:EMIT({"total":1,"customer":{"email":"***"},"redacted":true}) 1:REJECT/422(the order has no total) ` +
		`2:REJECT/422(the order has no total) 3:EMIT({"total":1,"redacted":true})`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestGoReadme(t *testing.T) {
	dir := filepath.Dir(readme(t, "../../../sdk/go", "go", "main.go"))
	sdk, err := filepath.Abs("../../../sdk/go")
	if err != nil {
		t.Fatal(err)
	}
	const path = "github.com/millrace/millrace/sdk/go"
	mod := "module f\n\ngo 1.24\n\nrequire " + path + " v0.0.0\n\nreplace " + path + " => " + sdk + "\n"
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(mod), 0o666); err != nil {
		t.Fatal(err)
	}
	f := open(t, newHost(t, plugins.Options{}), goGuest(t, dir), event.Function{})
	if got := show(call(t, f, `{"total":1}`, `{}`)); got != "0:PASS 1:REJECT/422(no total)" {
		t.Error(got)
	}
}

func TestCReadme(t *testing.T) {
	redacts(t, cSample(t, readme(t, cSDK, "c", "f.c"), noSystem...))
}

const asSDK = "../../../sdk/assemblyscript"

// asc is a run of AssemblyScript's compiler in a folder.
func asc(t testing.TB, dir string, args ...string) *exec.Cmd {
	t.Helper()
	compiler, err := filepath.Abs("../../../scripts/npm/node_modules/assemblyscript/bin/asc.js")
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("node", append([]string{compiler}, args...)...)
	c.Dir = dir
	return c
}

func asGuest(t testing.TB, dir, source, abort string) []byte {
	t.Helper()
	return guestOf(t, dir+"/"+source, func(out string) *exec.Cmd {
		return asc(t, dir, source, "-o", out, "-O3", "--runtime", "minimal", "--exportStart", "_initialize",
			"--enable", "bulk-memory", "--use", "abort="+abort)
	})
}

func asSample(t testing.TB) []byte {
	return asGuest(t, asSDK, "examples/enrich/enrich.ts", "assembly/abort/abort")
}

func TestEnrichAssemblyScript(t *testing.T) { enriches(t, asSample(t)) }

func TestAssemblyScriptReadme(t *testing.T) {
	source, err := os.ReadFile(readme(t, asSDK, "ts", "f.ts"))
	if err != nil {
		t.Fatal(err)
	}
	redacts(t, asProject(t, source))
}

// The table, run by the scanner in AssemblyScript.
func TestAssemblyScriptSDK(t *testing.T) {
	driver := filepath.Join(built.dir, "driver.wasm")
	c := asc(t, asSDK, "tests/driver.ts", "-o", driver, "-O3", "--runtime", "incremental", "--use", "abort=")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", c, err, out)
	}
	scanTable(t, exec.Command("node", asSDK+"/tests/driver.mjs", driver))
}

// Neither the SDK's own memory nor a handler's objects pile up: strings, attributes, splits, rejects.
func TestAssemblyScriptMemoryStays(t *testing.T) {
	const limit = 2 << 20
	f := open(t, newHost(t, plugins.Options{Instances: 1}), asSample(t), event.Function{Limits: event.FunctionLimits{Memory: limit}})
	c := &plugins.Call{}
	for i, kind := range []string{"order", "order.split", "order.ask", "order.bad", "order", "nothing"} {
		data := `{"email":"a@b","items":[1,2,3],"total":5,"note":"` + strings.Repeat("x", 2000) + `"}`
		if kind == "nothing" {
			data = "not json"
		}
		e := event.Event{ID: "1", Source: "/test", Type: kind, Data: []byte(data)}
		r := event.Record(e.AppendRecord(nil))
		r.SetPlace(event.Position{Offset: uint64(i + 1)}, 1e9)
		c.Events = append(c.Events, r)
	}
	var out plugins.Outcome
	for n := 0; n < 100_000; n += len(c.Events) {
		if err := f.Call(context.Background(), c, &out); err != nil || len(out.Failures) > 0 {
			t.Fatalf("after %d events: %v, %v", n, err, out.Failures)
		}
	}
	if s := f.Stats(); s.Created != 1 || s.Retired != 0 {
		t.Errorf("%d instances were made and %d thrown away", s.Created, s.Retired)
	}
}
