package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// secretly is how what must not be found out byte by byte is called.
var secretly = regexp.MustCompile(`(?i)(secret|token|password|bearer|mac|sum|hash|digest|signature|sig|proof)s?$`)

// isPublic are comparisons of what is called so and is none: each says why.
var isPublic = map[string]string{
	"engine/access/source.go: old.sum":    "of a key set, which its issuer publishes",
	"engine/access/source.go: set.sum":    "of a key set, which its issuer publishes",
	"engine/protocol/ws/server.go: token": "of a header's list, such as upgrade",
}

// Where callers, webhooks and leases are told from others, secrets and what is made of them are compared in constant time: not
// with == and not with what ends at the first byte that differs.
func TestSecretsAreComparedInConstantTime(t *testing.T) {
	root, looked := filepath.Join("..", ".."), 0
	for _, dir := range []string{"engine/access", "engine/protocol/hooks", "engine/connector/webhook", "engine/protocol/ws", "engine/lease.go"} {
		err := filepath.WalkDir(filepath.Join(root, filepath.FromSlash(dir)), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, path, nil, 0)
			if err != nil {
				return err
			}
			looked++
			name, _ := filepath.Rel(root, path)
			ast.Inspect(file, func(n ast.Node) bool {
				for _, found := range leaks(n) {
					if at := filepath.ToSlash(name) + ": " + found; isPublic[at] == "" {
						t.Errorf("%s is compared at %s: use subtle.ConstantTimeCompare or hmac.Equal, or say here why it is no secret", at, fset.Position(n.Pos()))
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if looked < 30 {
		t.Errorf("%d files were looked at", looked)
	}
}

// leaks names the secret that n compares in a time that depends on it.
func leaks(n ast.Node) []string {
	var operands []ast.Expr
	switch n := n.(type) {
	case *ast.BinaryExpr:
		if n.Op == token.EQL || n.Op == token.NEQ {
			operands = []ast.Expr{n.X, n.Y}
		}
	case *ast.CallExpr:
		if f, ok := n.Fun.(*ast.SelectorExpr); ok && len(n.Args) == 2 {
			if of, ok := f.X.(*ast.Ident); ok && (of.Name == "bytes" || of.Name == "strings") && (strings.HasPrefix(f.Sel.Name, "Equal") || f.Sel.Name == "Compare") {
				operands = n.Args
			}
		}
	}
	var found []string
	for _, x := range operands {
		switch x := x.(type) {
		case *ast.BasicLit: // of how long it is, or whether it is there
			return nil
		case *ast.Ident:
			if x.Name == "nil" {
				return nil
			}
		}
		if name := nameOf(x); secretly.MatchString(name) {
			found = append(found, name)
		}
	}
	return found
}

// nameOf is what an operand is called: a variable, a field, or either with an index, sliced or converted.
func nameOf(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.SelectorExpr:
		if of := nameOf(x.X); of != "" {
			return of + "." + x.Sel.Name
		}
		return x.Sel.Name
	case *ast.IndexExpr:
		return nameOf(x.X)
	case *ast.SliceExpr:
		return nameOf(x.X)
	case *ast.ParenExpr:
		return nameOf(x.X)
	case *ast.StarExpr:
		return nameOf(x.X)
	case *ast.CallExpr: // string(x), []byte(x)
		if len(x.Args) == 1 {
			switch f := x.Fun.(type) {
			case *ast.ArrayType:
				return nameOf(x.Args[0])
			case *ast.Ident:
				if f.Name == "string" {
					return nameOf(x.Args[0])
				}
			}
		}
	}
	return ""
}
