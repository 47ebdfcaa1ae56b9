package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

func functionsCommand(p *program) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:     "functions",
		Aliases: []string{"function", "fn"},
		Short:   "Build, push and list functions",
	})
	columns := []column{{"NAME", "name"}, {"VERSION", "state.digest"}, {"MEMORY", "limits.memory"}, {"CALLS", "state.calls"}}
	cmd.AddCommand(functionsBuild(p), functionsPush(p), p.listCommand("functions", columns))
	return cmd
}

// buildFlags makes a reactor module: no main, small, and the same bytes from the same source anywhere.
var buildFlags = []string{"build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags=-s -w"}

func functionsBuild(p *program) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "build DIR",
		Short: "Compile a function written in Go to WASM",
		Long: `Build compiles the Go project in DIR, which imports Millrace's Go SDK, to a module for 'functions push' or a rules file.
It needs the Go toolchain, and says so if there is none.`,
		Example: `  router functions build ./redact
  router fn build ./redact --out redact.wasm`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&out, "out", "", "`file` to write (default DIR/NAME.wasm)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		dir, err := filepath.Abs(args[0])
		if err != nil {
			return err
		}
		if err := checkProject(dir); err != nil {
			return err
		}
		if out == "" {
			out = filepath.Join(dir, filepath.Base(dir)+".wasm")
		}
		target, err := filepath.Abs(out)
		if err != nil {
			return err
		}
		path := searchPath(p.env("PATH"), "go")
		if path == "" {
			return errors.New("building a Go function needs the Go toolchain, and there is no 'go' in PATH; " +
				"install it from https://go.dev/dl (or 'apt-get install golang-go') and try again")
		}
		build := exec.CommandContext(cmd.Context(), path, append(buildFlags[:len(buildFlags):len(buildFlags)], "-o", target, ".")...)
		build.Dir = dir
		build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
		var said bytes.Buffer
		build.Stdout, build.Stderr = &said, &said
		if err := build.Run(); err != nil {
			fmt.Fprintln(p.stderr, lines(strings.TrimSpace(said.String())))
			return fmt.Errorf("building %s with %s: %w", dir, path, err)
		}
		info, err := os.Stat(target)
		if err != nil {
			return err
		}
		say(p.stdout, "%s  %s", clean(out), sizeText(info.Size()))
		return nil
	}
	return cmd
}

// checkProject says what is wrong with a project's folder before a compiler says it in its own words.
func checkProject(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is a file; name the folder of the project", dir)
	}
	sources, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return err
	}
	if len(sources) > 0 {
		return nil
	}
	for file, language := range map[string]string{"Cargo.toml": "Rust", "asconfig.json": "AssemblyScript", "package.json": "JavaScript"} {
		if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
			return fmt.Errorf("%s is a project in %s; this version builds Go alone: build it with its own tools and push the .wasm file", dir, language)
		}
	}
	return fmt.Errorf("%s has no .go files; name the folder of a function written in Go", dir)
}

// searchPath finds a program in the folders of a PATH.
func searchPath(path, name string) string {
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file
		}
	}
	return ""
}

// maxModule bounds the modules that push sends, in bytes; the router has a limit of its own.
const maxModule = 64 << 20

func functionsPush(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "push NAME FILE",
		Short:   "Upload a module as a function's new version",
		Example: `  router functions push redact redact.wasm`,
		Args:    cobra.ExactArgs(2),
	}
	r := p.remoteFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		module, err := readModule(args[1])
		if err != nil {
			return err
		}
		shown, err := c.call(cmd.Context(), "PUT", c.path("functions", args[0]), module, "Content-Type", "application/wasm")
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(p.stdout, shown)
		}
		return p.printDocument(false, shown)
	}
	return cmd
}

// readModule reads a file and checks that it is WASM at all.
func readModule(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxModule+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxModule {
		return nil, fmt.Errorf("%s has over %s; a module must be smaller", file, sizeText(maxModule))
	}
	if !bytes.HasPrefix(b, []byte("\x00asm")) {
		return nil, fmt.Errorf("%s is not a WASM module (it does not begin with \\0asm); 'router functions build' makes one", file)
	}
	return b, nil
}
