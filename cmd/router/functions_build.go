package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/cmd/router/templates"
)

// A toolchain is how a language becomes WASM.
type toolchain struct {
	title   string
	marks   []string // files that tell the language, as patterns
	tools   []string // programs that can do it, the best first
	local   string   // where a project may have the program for itself, below its folder
	missing string   // what to install, said where there is none
	env     []string
	// fit says what a tool lacks, "" if nothing; another in PATH may have it.
	fit func(ctx context.Context, tool string) string
	// command is what to run with tool, in the project's folder, for the module to come out at target.
	command func(pr *project, tool, target string) ([]string, error)
	// made is where the module is found if the tool decides that itself.
	made   func(pr *project) (string, error)
	hints  map[string]string // what a compiler says, in part, and what to do about it
	suffix string            // of what is pushed; .wasm
	source bool              // the source is what is pushed: nothing is built
}

// detection is the order in which languages are looked for: a Rust project may hold a .c file.
var detection = []string{"go", "rust", "assemblyscript", "c", "js"}

var toolchains = map[string]toolchain{
	"go": {
		title: "Go", marks: []string{"go.mod", "*.go"}, tools: []string{"go"},
		missing: "the Go toolchain, and there is no 'go' in PATH; install it from https://go.dev/dl (or 'apt-get install golang-go')",
		env:     []string{"GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0"},
		// A reactor module: no main, small, and the same bytes from the same source anywhere.
		command: func(_ *project, tool, target string) ([]string, error) {
			return []string{tool, "build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", target, "."}, nil
		},
		hints: map[string]string{"go.mod requires go >= ": "install a newer Go from https://go.dev/dl"},
	},
	"rust": {
		title: "Rust", marks: []string{"Cargo.toml"}, tools: []string{"cargo"},
		missing: "cargo with the target wasm32-unknown-unknown, and there is none in PATH; install Rust from https://rustup.rs and run 'rustup target add wasm32-unknown-unknown' " +
			"(or 'apt-get install cargo libstd-rust-dev-wasm32 lld-14')",
		fit: hasWASM,
		command: func(pr *project, tool, _ string) ([]string, error) {
			return []string{tool, "build", "--release", "--target", "wasm32-unknown-unknown", "--target-dir", filepath.Join(pr.dir, "target")}, nil
		},
		made: func(pr *project) (string, error) {
			crate, err := crateOf(filepath.Join(pr.dir, "Cargo.toml"))
			return filepath.Join(pr.dir, "target", "wasm32-unknown-unknown", "release", strings.ReplaceAll(crate, "-", "_")+".wasm"), err
		},
		hints: map[string]string{"linker `rust-lld` not found": "the linker is missing: 'apt-get install lld-14'"},
	},
	"c": {
		title: "C", marks: []string{"*.c"}, tools: []string{"clang-19", "clang-20", "clang-21", "clang"},
		missing: "clang, and there is none in PATH; 'apt-get install clang-19 lld-19 wasi-libc libclang-rt-19-dev-wasm32' " +
			"(elsewhere: the WASI SDK, https://github.com/WebAssembly/wasi-sdk, with its bin in PATH)",
		command: func(pr *project, tool, target string) ([]string, error) {
			sources, err := sourcesBelow(pr.dir, ".c")
			return append([]string{tool, "--target=wasm32-wasi", "-mexec-model=reactor", "-O3", "-mbulk-memory", "-Wall", "-Wl,--strip-all",
				"-I", templates.SDKDir, "-o", target}, sources...), err
		},
		hints: map[string]string{
			"'stdlib.h' file not found": "wasi-libc is missing: 'apt-get install wasi-libc libclang-rt-19-dev-wasm32'",
			"'string.h' file not found": "wasi-libc is missing: 'apt-get install wasi-libc libclang-rt-19-dev-wasm32'",
			"wasm-ld":                   "the linker may be missing: 'apt-get install lld-19'",
			"libclang_rt.builtins":      "the compiler's runtime for WASM is missing: 'apt-get install libclang-rt-19-dev-wasm32'",
		},
	},
	"assemblyscript": {
		title: "AssemblyScript", marks: []string{"asconfig.json"}, tools: []string{"asc"}, local: filepath.Join("node_modules", ".bin", "asc"),
		missing: "the compiler asc; run 'npm install' in the project's folder (which needs Node.js: 'apt-get install nodejs npm')",
		command: func(_ *project, tool, target string) ([]string, error) {
			return []string{tool, "assembly/index.ts", "--outFile", target}, nil // asconfig.json has the rest
		},
	},
	"js": {title: "JavaScript", marks: []string{"*.js", "*.mjs"}, suffix: ".js", source: true},
}

// built is what building came to.
type built struct {
	Language string   `json:"language"`
	Command  []string `json:"command,omitempty"`
	Module   string   `json:"module"`
	Bytes    int      `json:"bytes"`
	Digest   string   `json:"digest"`
	Seconds  float64  `json:"seconds"`
}

func functionsBuild(p *program) *cobra.Command {
	var out, output string
	cmd := &cobra.Command{
		Use:   "build [DIR]",
		Short: "Compile a function's project to WASM",
		Long: `Build compiles the project in DIR, by default the working directory, to a module for 'functions push' or a rules file. It
tells the language by the project's files, runs that language's own toolchain and prints the command; where the toolchain is
missing it says what to install. A project in JavaScript is its source: build loads that once, to find its mistakes.`,
		Example: `  router functions build ./redact
  router fn build ./redact --out redact.wasm`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&out, "out", "", "`file` to write (default DIR/NAME.wasm)")
	p.outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		asJSON, err := asJSON(cmd, output)
		if err != nil {
			return err
		}
		pr, err := openProject(args)
		if err != nil {
			return err
		}
		if pr.language == "" {
			return usagef(cmd, "%s is a file; name the folder of the project", args[0])
		}
		if toolchains[pr.language].source {
			if err := p.checkScript(cmd.Context(), pr); err != nil {
				return err
			}
		}
		if out != "" {
			from := pr.module
			if pr.module, err = filepath.Abs(out); err != nil {
				return err
			}
			if toolchains[pr.language].source {
				if err := copyModule(from, pr.module); err != nil {
					return err
				}
			}
		}
		b, err := p.build(cmd.Context(), pr, !asJSON)
		if err != nil {
			return err
		}
		if asJSON {
			doc, err := json.Marshal(b)
			if err != nil {
				return err
			}
			return printJSON(p.stdout, doc)
		}
		say(p.stdout, "%s  %s  %s", clean(shortPath(b.Module)), sizeText(int64(b.Bytes)), b.Digest)
		return nil
	}
	return cmd
}

// build compiles a project to its module. With show it prints the command first.
func (p *program) build(ctx context.Context, pr *project, show bool) (*built, error) {
	tc := toolchains[pr.language]
	b := &built{Language: pr.language, Module: pr.module}
	if !tc.source {
		tool, err := p.tool(ctx, pr, tc)
		if err != nil {
			return nil, err
		}
		// The tool's own companions come first: cargo runs the rustc that it finds in PATH.
		env := append([]string{"PATH=" + filepath.Dir(tool) + string(filepath.ListSeparator) + p.env("PATH")}, tc.env...)
		if b.Command, err = tc.command(pr, tool, pr.module); err != nil {
			return nil, err
		}
		if show {
			say(p.stderr, "$ %s", clean(strings.Join(append(tc.env[:len(tc.env):len(tc.env)], quoted(b.Command)...), " ")))
		}
		start := time.Now()
		stop := p.busy("compiling")
		said, err := runTool(ctx, pr.dir, env, b.Command)
		stop()
		if err != nil {
			return nil, tc.explain(p, pr, said, err)
		}
		b.Seconds = time.Since(start).Seconds()
		if tc.made != nil {
			if err := fetchMade(tc, pr); err != nil {
				return nil, err
			}
		}
	}
	module, err := readModule(pr.module)
	if err != nil {
		return nil, err
	}
	b.Bytes, b.Digest = len(module), digestOf(module)
	return b, nil
}

// checkScript loads a script once: what no compiler has read may have mistakes that only this shows.
func (p *program) checkScript(ctx context.Context, pr *project) error {
	module, err := readModule(pr.module)
	if err != nil {
		return err
	}
	def, err := pr.definition("sha256:" + strings.Repeat("0", 64)) // Describe knows the true one
	if err != nil {
		return err
	}
	_, refused, err := p.describeModule(ctx, module, def)
	if refused != nil {
		return fmt.Errorf("%s: %s", shortPath(pr.module), placedAt(refused, shortPath(pr.module)))
	}
	return err
}

// copyModule writes what pushing a file would send.
func copyModule(from, to string) error {
	module, err := readModule(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, module, 0o666)
}

// digestOf is a module's version.
func digestOf(module []byte) string {
	sum := sha256.Sum256(module)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// tool finds the program that compiles a language: the project's own, else the first in PATH that can do it.
func (p *program) tool(ctx context.Context, pr *project, tc toolchain) (string, error) {
	if tc.local != "" {
		if file := filepath.Join(pr.dir, tc.local); searchPath(filepath.Dir(file), filepath.Base(file)) != "" {
			return file, nil
		}
	}
	lacks := ""
	for _, name := range tc.tools {
		for _, dir := range filepath.SplitList(p.env("PATH")) {
			path := searchPath(dir, name)
			if path == "" {
				continue
			}
			if tc.fit == nil {
				return path, nil
			}
			lack := tc.fit(ctx, path)
			if lack == "" {
				return path, nil
			}
			if lacks == "" {
				lacks = fmt.Sprintf("; %s will not do: %s", path, lack)
			}
		}
	}
	return "", fmt.Errorf("building a function in %s needs %s%s", tc.title, tc.missing, lacks)
}

// hasWASM says whether the Rust of a cargo can make WASM: those of rustup and of distributions often cannot.
func hasWASM(ctx context.Context, cargo string) (lacks string) {
	rustc := filepath.Join(filepath.Dir(cargo), "rustc")
	out, err := exec.CommandContext(ctx, rustc, "--print", "target-libdir", "--target", "wasm32-unknown-unknown").Output()
	if err != nil {
		return fmt.Sprintf("%s does not work (%v)", rustc, err)
	}
	libs, _ := os.ReadDir(strings.TrimSpace(string(out)))
	if len(libs) == 0 {
		return "it has no target wasm32-unknown-unknown"
	}
	return ""
}

// runTool runs a compiler in a folder and returns what it printed.
func runTool(ctx context.Context, dir string, env, command []string) (string, error) {
	run := exec.CommandContext(ctx, command[0], command[1:]...)
	run.Dir = dir
	run.Env = append(os.Environ(), env...)
	run.WaitDelay = 5 * time.Second // a compiler's children may hold its output open
	var said bytes.Buffer
	run.Stdout, run.Stderr = &said, &said
	err := run.Run()
	return strings.TrimSpace(said.String()), err
}

// explain prints what the compiler said and adds what to do, where that is known.
func (tc toolchain) explain(p *program, pr *project, said string, err error) error {
	if said != "" {
		fmt.Fprintln(p.stderr, lines(said))
	}
	for part, hint := range tc.hints {
		if strings.Contains(said, part) {
			return fmt.Errorf("building %s: %w; %s", pr.dir, err, hint)
		}
	}
	return fmt.Errorf("building %s: %w", pr.dir, err)
}

// fetchMade copies a module from where its tool put it.
func fetchMade(tc toolchain, pr *project) error {
	from, err := tc.made(pr)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(from)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the build made no %s; a function's Cargo.toml has [lib] with crate-type = [\"cdylib\"]", from)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(pr.module, b, 0o666)
}

var crateName = regexp.MustCompile(`(?m)^\s*name\s*=\s*"([^"]+)"`)

// crateOf reads the name of the library, else of the package, of a Cargo.toml.
func crateOf(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	text := string(b)
	for _, section := range []string{"[lib]", "[package]"} {
		if _, after, ok := strings.Cut(text, section); ok {
			body, _, _ := strings.Cut(after, "\n[")
			if m := crateName.FindStringSubmatch(body); m != nil {
				return m[1], nil
			}
		}
	}
	return "", fmt.Errorf("%s names no package", file)
}

// sourcesBelow lists the source files of a folder and of its folder src, relative to it.
func sourcesBelow(dir, ext string) ([]string, error) {
	var all []string
	for _, pattern := range []string{"*" + ext, filepath.Join("src", "*"+ext)} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			rel, err := filepath.Rel(dir, f)
			if err != nil {
				return nil, err
			}
			all = append(all, rel)
		}
	}
	return all, nil
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

// quoted makes a command's words safe to paste into a shell.
func quoted(words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		if w == "" || strings.ContainsAny(w, " \t\n'\"\\$`*?[]{}()<>|&;#~!") {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		out[i] = w
	}
	return out
}

// shortPath is a path as it is seen from the working directory, if that is shorter.
func shortPath(path string) string {
	wd, err := os.Getwd()
	if err != nil {
		return path
	}
	if rel, err := filepath.Rel(wd, path); err == nil && len(rel) < len(path) {
		return rel
	}
	return path
}

// busy says on a terminal that something takes its time; stop takes it away again.
func (p *program) busy(what string) (stop func()) {
	if !isTerminal(p.stderr) {
		return func() {}
	}
	fmt.Fprintf(p.stderr, "%s…", what)
	return func() { fmt.Fprint(p.stderr, "\r\x1b[K") }
}
