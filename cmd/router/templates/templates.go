// Package templates holds what `router functions new` writes: a project for each language, with the SDK in
// it, so that it builds without a network.
package templates

//go:generate go test . -run TestSDKs -update

import (
	"embed"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/txtar"
)

// The archives are text: <language>.txtar is what an author edits, sdk-<language>.txtar a copy of
// sdk/<language>, and every.txtar goes with each. One go:embed cannot reach the SDKs themselves: sdk/go is a
// module of its own.
//
//go:embed *.txtar
var archives embed.FS

// SDKDir is the folder of a project that the SDK is copied to.
const SDKDir = "millrace"

// A File is one file of a new project.
type File struct {
	Path string // below the project's folder, with slashes
	Text []byte
}

// Languages are the names that Project takes, sorted.
func Languages() []string {
	var names []string
	entries, _ := archives.ReadDir(".") // an embedded folder: it is there
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".txtar")
		if name != "every" && !strings.HasPrefix(name, "sdk-") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Project returns the files of a new project in a language. The name is a function's, already checked.
func Project(language, name string) ([]File, error) {
	if !slices.Contains(Languages(), language) {
		return nil, fmt.Errorf("language %.40q: want one of %s", language, strings.Join(Languages(), ", "))
	}
	// What stands in the files for the name: {{crate}} is for package managers that are strict about names.
	crate := strings.ToLower(strings.ReplaceAll(name, ".", "-"))
	if c := crate[0]; c >= '0' && c <= '9' {
		crate = "f" + crate
	}
	fill := strings.NewReplacer("{{name}}", name, "{{crate}}", crate)
	var files []File
	for _, part := range []string{"every", language} {
		a, err := read(part)
		if err != nil {
			return nil, err
		}
		for _, f := range a.Files {
			files = append(files, File{fill.Replace(f.Name), []byte(fill.Replace(string(f.Data)))})
		}
	}
	if a, err := read("sdk-" + language); err == nil {
		for _, f := range a.Files {
			files = append(files, File{path.Join(SDKDir, f.Name), f.Data})
		}
	}
	return files, nil
}

func read(name string) (*txtar.Archive, error) {
	b, err := archives.ReadFile(name + ".txtar")
	if err != nil {
		return nil, err
	}
	return txtar.Parse(b), nil
}
