package abitest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
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
