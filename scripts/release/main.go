// Command release builds what is published: the program for each system, in archives that are the same byte for byte
// whoever builds them from the same commit with the same Go, their SHA-256 sums, and a list of what is in them (SBOM,
// CycloneDX 1.5).
//
//	go run ./scripts/release -out dist                       all platforms
//	go run ./scripts/release -out dist -only linux/amd64     one
//	go run ./scripts/release -check linux/amd64              twice, in two clones and two build caches, and compare
//
// Version and time are of the commit (git describe; SOURCE_DATE_EPOCH stands over it), so nothing of a release depends on
// the machine, the folder or the day.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

var platforms = []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64", "windows/amd64", "windows/arm64"}

func main() {
	out := flag.String("out", "dist", "write to this `folder`")
	only := flag.String("only", "", "build this `platform` alone, such as linux/amd64")
	check := flag.String("check", "", "build this `platform` twice, in different folders, and compare")
	dirty := flag.Bool("dirty", false, "build although files differ from the commit")
	flag.Parse()
	err := error(nil)
	switch {
	case flag.NArg() > 0:
		err = fmt.Errorf("%q is no flag", flag.Arg(0))
	case *check != "":
		err = reproduce(*check)
	default:
		err = release(".", *out, *only, *dirty, os.Environ())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// A source is the commit that is built.
type source struct {
	version  string // v1.2.3, or v0.0.0-20260102030405-abcdefabcdef where no tag is on the way to it
	revision string
	time     time.Time
}

// ask runs a command and returns the first line that it prints.
func ask(dir string, args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	b, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(b)), nil
}

func sourceOf(dir string, dirty bool) (s source, err error) {
	if s.revision, err = ask(dir, "git", "rev-parse", "HEAD"); err != nil {
		return s, err
	}
	changed, err := ask(dir, "git", "status", "--porcelain", "--untracked-files=all")
	if err != nil {
		return s, err
	}
	if changed != "" && !dirty {
		return s, fmt.Errorf("files differ from commit %.12s:\n%s\ncommit them first; a release is of a commit (-dirty for a try)", s.revision, changed)
	}
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		if epoch, err = ask(dir, "git", "log", "-1", "--format=%ct"); err != nil {
			return s, err
		}
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return s, fmt.Errorf("SOURCE_DATE_EPOCH %q: want seconds since 1970", epoch)
	}
	s.time = time.Unix(seconds, 0).UTC()
	tags, err := ask(dir, "git", "tag", "--list", "v*")
	if err != nil {
		return s, err
	}
	s.version = "v0.0.0-" + s.time.Format("20060102150405") + "-" + s.revision[:12]
	if tags != "" {
		if s.version, err = ask(dir, "git", "describe", "--tags", "--match", "v*", "--abbrev=12"); err != nil {
			return s, err
		}
	}
	if changed != "" {
		s.version += "+dirty"
	}
	return s, nil
}

// release builds into out. dir is the repository.
func release(dir, out, only string, dirty bool, env []string) error {
	src, err := sourceOf(dir, dirty)
	if err != nil {
		return err
	}
	todo := platforms
	if only != "" {
		if !slices.Contains(platforms, only) {
			return fmt.Errorf("%q: want one of %s", only, strings.Join(platforms, ", "))
		}
		todo = []string{only}
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "millrace-release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if !dirty {
		if dir, err = checkout(dir, filepath.Join(work, "source"), src.revision); err != nil {
			return err
		}
	}
	// The demo's function is part of the program: what lies there from before may be of another Go.
	if err := build(dir, env, filepath.Join("examples", "quickstart", "functions", "redact"), "../redact.wasm", "wasip1/wasm", "-buildmode=c-shared", "-ldflags=-s -w -buildid="); err != nil {
		return err
	}
	var sums bytes.Buffer
	for _, platform := range todo {
		names, err := one(dir, work, out, platform, src, env)
		if err != nil {
			return fmt.Errorf("%s: %w", platform, err)
		}
		for _, name := range names {
			b, err := os.ReadFile(filepath.Join(out, name))
			if err != nil {
				return err
			}
			sum := sha256.Sum256(b)
			fmt.Fprintf(&sums, "%s  %s\n", hex.EncodeToString(sum[:]), name)
		}
	}
	if err := os.WriteFile(filepath.Join(out, "SHA256SUMS"), sums.Bytes(), 0o644); err != nil {
		return err
	}
	fmt.Print(sums.String())
	return nil
}

// checkout clones a commit of the repository dir to a folder of its own and returns that: a build takes minutes, and what
// is written in dir meanwhile, or what git ignores there, is not of the commit.
func checkout(dir, to, revision string) (string, error) {
	root, err := ask(dir, "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return "", err
	}
	if _, err := ask(dir, "git", "clone", "-q", "--no-checkout", root, to); err != nil {
		return "", err
	}
	_, err = ask(to, "git", "checkout", "-q", "--detach", revision)
	return to, err
}

// build runs go build in a folder below dir, for a platform.
func build(dir string, env []string, at, out, platform string, flags ...string) error {
	system, arch, _ := strings.Cut(platform, "/")
	cmd := exec.Command("go", append(append([]string{"build", "-trimpath", "-buildvcs=false", "-o", out}, flags...), ".")...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = filepath.Join(dir, at), os.Stderr, os.Stderr
	cmd.Env = append(slices.Clone(env), "GOOS="+system, "GOARCH="+arch, "CGO_ENABLED=0", "GOFLAGS=", "GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build in %s: %w", at, err)
	}
	return nil
}

// one builds one platform and returns the names of its files.
func one(dir, work, out, platform string, src source, env []string) ([]string, error) {
	system, arch, _ := strings.Cut(platform, "/")
	name := "millrace_" + strings.TrimPrefix(src.version, "v") + "_" + system + "_" + arch
	program := "router"
	if system == "windows" {
		program += ".exe"
	}
	path := filepath.Join(work, name)
	linked := strings.Join([]string{src.version, src.revision, src.time.Format(time.RFC3339)}, ",")
	if err := build(dir, env, filepath.Join("cmd", "router"), path, platform, "-ldflags=-s -w -buildid= -X main.linked="+linked); err != nil {
		return nil, err
	}
	bom, notices, err := inventory(dir, path, platform, src)
	if err != nil {
		return nil, err
	}
	files := []packed{{name: program, from: path, mode: 0o755}}
	for _, f := range []string{"LICENSE", "README.md"} {
		files = append(files, packed{name: f, from: filepath.Join(dir, f), mode: 0o644})
	}
	files = append(files, packed{name: "THIRD_PARTY_LICENSES", text: notices, mode: 0o644})
	pack, ext := packTar, ".tar.gz"
	switch system {
	case "linux":
		files = append(files, packed{name: "millrace.service", from: filepath.Join(dir, "packaging", "millrace.service"), mode: 0o644})
	case "windows":
		pack, ext = packZip, ".zip"
	}
	archive, err := pack(name, files, src.time)
	if err != nil {
		return nil, err
	}
	err = errors.Join(os.WriteFile(filepath.Join(out, name+ext), archive, 0o644), os.WriteFile(filepath.Join(out, name+".cdx.json"), bom, 0o644))
	return []string{name + ext, name + ".cdx.json"}, err
}

// reproduce builds the commit twice, in clones at different places and with build caches of their own, and compares.
func reproduce(platform string) error {
	if platform == "here" {
		platform = runtime.GOOS + "/" + runtime.GOARCH
	}
	revision, err := ask(".", "git", "rev-parse", "HEAD") // the second clone may come after another commit
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "millrace-release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	var made [2]map[string]string
	for i, at := range []string{"a", "some/other place/deeper"} {
		clone, out := filepath.Join(work, at), filepath.Join(work, fmt.Sprint("out", i))
		if _, err := checkout(".", clone, revision); err != nil {
			return err
		}
		if err := release(clone, out, platform, false, append(os.Environ(), "GOCACHE="+filepath.Join(work, fmt.Sprint("cache", i)))); err != nil {
			return err
		}
		made[i] = map[string]string{}
		entries, err := os.ReadDir(out)
		if err != nil {
			return err
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(out, e.Name()))
			if err != nil {
				return err
			}
			made[i][e.Name()] = string(b)
		}
	}
	for name, text := range made[0] {
		if made[1][name] != text || len(made[0]) != len(made[1]) {
			return fmt.Errorf("%s: two builds of one commit differ in %s", platform, name)
		}
	}
	fmt.Printf("%s: two builds of one commit, in different folders, are the same in all %d files\n", platform, len(made[0]))
	return nil
}
