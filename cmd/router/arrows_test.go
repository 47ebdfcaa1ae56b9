package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/millrace/millrace"

// arrows says which of our own packages each package may import, besides its parents. A name that ends in
// /... stands for what is below it; the first row that fits counts. A package without a row is an error: every
// wall has its place here. "*" allows everything: cmd/router is the only wiring, and examples are users.
var arrows = []struct {
	from string
	may  []string
}{
	{"engine/event", nil},
	{"engine/access", []string{"engine/event"}},
	{"engine/mqttname", []string{"engine/event"}},
	{"engine/egress", []string{"engine/event"}},
	{"engine/admission", []string{"engine/event", "engine/access"}},
	{"engine/edge", nil},
	{"filters", []string{"engine/event"}},
	{"filters/...", []string{"engine/event"}},
	{"plugins", []string{"engine/event", "plugins/meter"}},
	{"plugins/meter", []string{"engine/event"}},
	{"plugins/...", []string{"engine/event"}},
	{"storage", []string{"engine/event"}},
	{"storage/...", []string{"engine/event"}},
	{"engine/rules", []string{"engine", "filters", "plugins", "engine/event", "engine/mqttname"}},
	{"engine/protocol/mqtt", []string{"engine/event", "engine/access", "engine/admission", "engine/mqttname"}},
	{"engine/protocol/grpcapi", []string{"engine/event", "engine/access", "engine/admission", "sdk/client/millracev1"}},
	{"engine/protocol/...", []string{"engine/event", "engine/access", "engine/admission", "engine/egress"}},
	{"engine/connector/...", []string{"engine/event", "engine/access", "engine/egress", "engine/mqttname"}},
	{"engine", []string{"storage", "filters", "plugins", "engine/event"}},
	{"cmd/router/...", []string{"engine/event"}},
	{"cmd/router", []string{"*"}},
	{"examples/...", []string{"*"}},
	{"acceptance", []string{"*"}}, // drives the built binary from outside
	{"bench", []string{"*"}},      // measures the parts beside their limits
	{"scripts/...", nil},
}

// parentless are packages whose parent is not theirs to import: engine is above what it is built from.
var parentless = []string{"engine"}

// stdOnly import the standard library and nothing else.
var stdOnly = []string{"engine/event"}

// forbiddenNames say nothing about what a package holds.
var forbiddenNames = []string{"util", "utils", "common", "types", "manager", "helpers", "misc"}

// maxLines of a file that is neither a test nor generated; 500 is where to split.
const maxLines = 600

// misdirected says what is wrong with pkg importing imp, both paths below our module; "" if nothing is.
func misdirected(pkg, imp string) string {
	for _, row := range arrows {
		below, tree := strings.CutSuffix(row.from, "/...")
		if pkg != row.from && (!tree || !strings.HasPrefix(pkg, below+"/")) {
			continue
		}
		if slices.Contains(row.may, "*") || slices.Contains(row.may, imp) {
			return ""
		}
		if strings.HasPrefix(pkg, imp+"/") && !slices.Contains(parentless, imp) {
			return ""
		}
		return fmt.Sprintf("%s imports %s; it may import %s and its parents", pkg, imp, strings.Join(row.may, ", "))
	}
	return fmt.Sprintf("%s has no row in the table of arrows", pkg)
}

// A goFile is one Go file of the module that is not a test.
type goFile struct {
	path string // below the repository
	text []byte
	ast  *ast.File
}

// faults says what is wrong with a file's imports, name, length, layout and registration.
func (f goFile) faults() []string {
	var out []string
	fault := func(format string, args ...any) {
		out = append(out, f.path+": "+fmt.Sprintf(format, args...))
	}
	pkg := path.Dir(f.path)
	if bad := misdirected(pkg, pkg); strings.Contains(bad, "no row") {
		fault("%s", bad)
	}
	for _, spec := range f.ast.Imports {
		imp, _ := strconv.Unquote(spec.Path.Value)
		ours, isOurs := strings.CutPrefix(imp, module+"/")
		if isOurs {
			if bad := misdirected(pkg, ours); bad != "" {
				fault("%s", bad)
			}
		} else if slices.Contains(stdOnly, pkg) && strings.Contains(strings.Split(imp, "/")[0], ".") {
			fault("%s imports %s; it may import the standard library only", pkg, imp)
		}
	}
	for _, d := range f.ast.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			fault("has func init: registries are tables")
		}
	}
	if slices.Contains(forbiddenNames, f.ast.Name.Name) {
		fault("a package named %s says nothing about what it holds", f.ast.Name.Name)
	}
	if n := bytes.Count(f.text, []byte("\n")); n > maxLines && !ast.IsGenerated(f.ast) {
		fault("has %d lines; split it (at most %d)", n, maxLines)
	}
	return out
}

func parse(path string, text []byte) (goFile, error) {
	tree, err := parser.ParseFile(token.NewFileSet(), path, text, parser.ParseComments|parser.SkipObjectResolution)
	return goFile{path, text, tree}, err
}

// walkGo calls each for every Go file of this module, tests too.
func walkGo(t *testing.T, each func(path string, text []byte)) {
	t.Helper()
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			_, nested := os.Stat(filepath.Join(p, "go.mod"))
			name := d.Name()
			if rel != "." && (nested == nil || name == "testdata" || name == "node_modules" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(p) != ".go" {
			return nil
		}
		text, err := os.ReadFile(p)
		if err == nil {
			each(filepath.ToSlash(rel), text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestArrows(t *testing.T) {
	files := 0
	walkGo(t, func(path string, text []byte) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		files++
		f, err := parse(path, text)
		if err != nil {
			t.Error(err)
			return
		}
		for _, bad := range f.faults() {
			t.Error(bad)
		}
	})
	if files < 20 {
		t.Fatalf("looked at %d files: this is not the repository", files)
	}
}

func TestFormatted(t *testing.T) {
	walkGo(t, func(path string, text []byte) {
		if want, err := format.Source(text); err != nil || !bytes.Equal(want, text) {
			t.Errorf("%s is not as gofmt writes it (%v); run 'make fmt'", path, err)
		}
	})
}

// The check finds what it is there to find.
func TestArrowsAreHeld(t *testing.T) {
	for _, c := range []struct{ path, source, want string }{
		{"engine/event/x.go", "package event\nimport _ \"" + module + "/storage\"\n", "engine/event imports storage"},
		{"engine/event/x.go", "package event\nimport _ \"golang.org/x/sync/errgroup\"\n", "standard library only"},
		{"engine/event/x.go", "package event\nimport _ \"encoding/json\"\n", ""},
		{"filters/x.go", "package filters\nimport _ \"" + module + "/engine\"\n", "filters imports engine"},
		{"storage/pebblestore/x.go", "package pebblestore\nimport _ \"" + module + "/storage\"\n", ""},
		{"storage/pebblestore/x.go", "package pebblestore\nimport _ \"" + module + "/filters\"\n", "imports filters"},
		{"plugins/abi/native/x.go", "package native\nimport _ \"" + module + "/plugins\"\n", ""},
		{"engine/protocol/sse/x.go", "package sse\nimport _ \"" + module + "/engine/protocol/httpapi\"\n", "imports engine/protocol/httpapi"},
		{"engine/connector/nats/x.go", "package nats\nimport _ \"" + module + "/engine\"\n", "imports engine;"},
		{"engine/rules/x.go", "package rules\nimport _ \"" + module + "/engine\"\n", ""},
		{"engine/x.go", "package engine\nimport _ \"" + module + "/engine/rules\"\n", "engine imports engine/rules"},
		{"cmd/router/x.go", "package main\nimport _ \"" + module + "/engine/connector/webhook\"\n", ""},
		{"attic/x.go", "package attic\n", "no row"},
		{"engine/x.go", "package engine\nfunc init() {}\n", "func init"},
		{"engine/x.go", "package engine\ntype T int\nfunc (T) init() {}\n", ""},
		{"plugins/x.go", "package util\n", "says nothing"},
		{"plugins/x.go", "package plugins\n" + strings.Repeat("//\n", maxLines), "601 lines"},
		{"plugins/x.go", "// Code generated by hand. DO NOT EDIT.\n\npackage plugins\n" + strings.Repeat("//\n", maxLines), ""},
	} {
		f, err := parse(c.path, []byte(c.source))
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(f.faults(), "\n")
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s:\n%.200s\ngot  %q\nwant %q", c.path, c.source, got, c.want)
		}
	}
}
