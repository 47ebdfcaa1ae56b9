package abitest_test

import (
	"os"
	"testing"

	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/native"
	"github.com/millrace/millrace/plugins/abitest"
	"github.com/millrace/millrace/plugins/js"
)

const sdk = "../../sdk/"

// The samples of the SDKs, as their documents say to build them. A new one is a line here.
func TestSamples(t *testing.T) {
	// Debian's Rust comes first: it has the target that rustup's may lack.
	rust := []string{"PATH=/usr/bin:/bin", "CARGO_TARGET_DIR={tmp}"}
	wasip1 := []string{"GOOS=wasip1", "GOARCH=wasm"}
	for _, s := range []struct {
		name  string
		dir   string
		env   []string
		build []string
		lacks abitest.Lack
	}{
		{"Go", "go/examples/enrich", wasip1, []string{"go", "build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", "{out}", "."}, 0},
		{"C", "c/examples/enrich", nil, []string{"clang-19", "--target=wasm32-wasi", "-mexec-model=reactor", "-O3", "-mbulk-memory", "-Wl,--strip-all", "-I../..", "-o", "{out}", "enrich.c"}, 0},
		{"AssemblyScript", "assemblyscript", nil, []string{"node", "../../scripts/npm/node_modules/assemblyscript/bin/asc.js", "examples/enrich/enrich.ts", "-o", "{out}", "-O3", "--runtime", "minimal", "--exportStart", "_initialize", "--enable", "bulk-memory", "--use", "abort=assembly/abort/abort"}, 0},
		{"Rust", "rust/examples/enrich", rust, []string{"sh", "-c", "cargo build --locked --offline --quiet --release --target wasm32-unknown-unknown && cp {tmp}/wasm32-unknown-unknown/release/*.wasm {out}"}, 0},
	} {
		t.Run(s.name, func(t *testing.T) {
			module := abitest.Build(t, sdk+s.dir, s.env, s.build...)
			abitest.Run(t, abitest.Guest{Name: s.name, Module: module, ABIs: []plugins.ABI{native.ABI{}}, Lacks: s.lacks})
		})
	}
}

// JavaScript needs no build: its script is the function.
func TestJavaScriptSample(t *testing.T) {
	source, err := os.ReadFile(sdk + "js/examples/enrich.js")
	if err != nil {
		t.Fatal(err)
	}
	module, err := plugins.Script(js.Language, source)
	if err != nil {
		t.Fatal(err)
	}
	abitest.Run(t, abitest.Guest{Name: "JavaScript", Module: module, ABIs: []plugins.ABI{native.ABI{}}, Engines: []plugins.Engine{js.Engine()}})
}
