package templates

import (
	"bytes"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write the archives of the SDKs anew")

// unshipped are what projects do not need of an SDK: its tests, what its builds leave, and the files that
// only its own tests and examples use.
var unshipped = []string{"testdata", "tests", "test", "examples", "example", "target", "node_modules", "build", "dist", "package-lock.json"}

// pack makes the archive of an SDK's folder.
func pack(dir string) ([]byte, error) {
	a := &txtar.Archive{Comment: []byte("What sdk/" + filepath.Base(dir) + " holds, for new projects. Made by: go generate ./cmd/router/templates\n")}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		name := d.Name()
		if err != nil || p == dir {
			return err
		}
		if slices.Contains(unshipped, name) || strings.HasPrefix(name, ".") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() || strings.HasSuffix(name, "_test.go") || strings.HasSuffix(name, ".wasm") {
			return nil
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		a.Files = append(a.Files, txtar.File{Name: filepath.ToSlash(rel), Data: b})
		return err
	})
	return txtar.Format(a), err
}

// The SDKs that are shipped are those of sdk/.
func TestSDKs(t *testing.T) {
	packed := 0
	for _, language := range Languages() {
		dir := filepath.Join("..", "..", "..", "sdk", language)
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("%s is a language without %s: %v", language, dir, err)
			continue
		}
		want, err := pack(dir)
		if err != nil {
			t.Fatal(err)
		}
		packed++
		file := "sdk-" + language + ".txtar"
		if *update {
			if err := os.WriteFile(file, want, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what %s holds (%v); run 'go generate ./cmd/router/templates'", file, dir, err)
		}
		for _, f := range txtar.Parse(want).Files {
			if b, err := os.ReadFile(filepath.Join(dir, f.Name)); err != nil || !bytes.Equal(b, f.Data) {
				t.Errorf("%s of %s does not survive as text (%v): txtar has no room for it", f.Name, dir, err)
			}
		}
	}
	if packed == 0 {
		t.Error("no SDK was looked at")
	}
}

// Every project has what its author needs, with the name filled in and nothing twice.
func TestProjects(t *testing.T) {
	for _, language := range Languages() {
		files, err := Project(language, "Big.redact")
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]string{}
		for _, f := range files {
			if _, twice := have[f.Path]; twice {
				t.Errorf("%s: %s is there twice", language, f.Path)
			}
			have[f.Path] = string(f.Text)
			if !fs.ValidPath(f.Path) {
				t.Errorf("%s: %q is no path below a project", language, f.Path)
			}
			if !strings.HasPrefix(f.Path, SDKDir+"/") && strings.Contains(string(f.Text), "{{") {
				t.Errorf("%s: %s has a place left unfilled", language, f.Path)
			}
		}
		for _, want := range []string{"README.md", ".gitignore", "function.yaml", "testdata/hide.in.json", "testdata/hide.out.json"} {
			if have[want] == "" {
				t.Errorf("%s: no %s", language, want)
			}
		}
		if !strings.Contains(have["README.md"], "# Big.redact") {
			t.Errorf("%s: the README does not name the function:\n%s", language, have["README.md"])
		}
	}
	if _, err := Project("cobol", "x"); err == nil || !strings.Contains(err.Error(), "go") {
		t.Errorf("an unknown language: %v; want the names of those there are", err)
	}
}
