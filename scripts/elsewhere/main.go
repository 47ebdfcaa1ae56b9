// Command elsewhere says whether this module's programs still compile for other systems than this one, without
// compiling: the packages are read with their build tags and type-checked, those of others without the bodies of their
// functions. That takes seconds where a build, in a fresh cache, takes a minute for each system; `make release` builds
// them all.
//
//	go run ./scripts/elsewhere windows/amd64 darwin/arm64
package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/tools/go/packages"
)

// program is what is released.
const program = "./cmd/router"

func main() {
	root, err := os.Getwd()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	faults := make([][]string, len(os.Args)-1)
	var wg sync.WaitGroup
	for i, platform := range os.Args[1:] {
		wg.Go(func() { faults[i] = check(root, platform) })
	}
	wg.Wait()
	code := 0
	for _, list := range faults {
		for _, f := range list {
			code = 1
			fmt.Println(f)
		}
	}
	os.Exit(code)
}

// check returns what does not compile on a platform such as "windows/amd64".
func check(root, platform string) []string {
	system, arch, ok := strings.Cut(platform, "/")
	if !ok {
		return []string{fmt.Sprintf("%q: want a system and an architecture, such as windows/amd64", platform)}
	}
	pkgs, err := packages.Load(&packages.Config{
		Mode: packages.NeedName | packages.NeedFiles | packages.NeedCompiledGoFiles | packages.NeedImports | packages.NeedDeps |
			packages.NeedTypes | packages.NeedSyntax | packages.NeedTypesInfo | packages.NeedTypesSizes,
		Env: append(os.Environ(), "GOOS="+system, "GOARCH="+arch, "CGO_ENABLED=0"),
		ParseFile: func(fset *token.FileSet, name string, src []byte) (*ast.File, error) {
			f, err := parser.ParseFile(fset, name, src, parser.SkipObjectResolution)
			if rel, relErr := filepath.Rel(root, name); f != nil && (relErr != nil || strings.HasPrefix(rel, "..")) {
				for _, d := range f.Decls {
					if fn, ok := d.(*ast.FuncDecl); ok {
						fn.Body = nil
					}
				}
			}
			return f, err
		},
	}, program)
	if err != nil {
		return []string{platform + ": " + err.Error()}
	}
	var faults []string
	packages.Visit(pkgs, nil, func(p *packages.Package) {
		ours := len(p.GoFiles) > 0 && strings.HasPrefix(p.GoFiles[0], root+string(filepath.Separator))
		for _, e := range p.Errors {
			// Without bodies, what only they use of an import is missed: of others only what cannot be found counts.
			if ours || e.Kind == packages.ListError {
				faults = append(faults, platform+": "+e.Error())
			}
		}
	})
	return faults
}
