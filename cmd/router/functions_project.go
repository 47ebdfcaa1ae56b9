package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/millrace/millrace/cmd/router/templates"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
)

// settingsFile holds a function's settings: what stands below its name in a rules file.
const settingsFile = "function.yaml"

// A project is a folder with a function's source, or a module by itself.
type project struct {
	dir      string // absolute
	name     string // the folder's, or the file's without its ending
	language string // a key of toolchains; "" if module is given
	module   string // the file that building writes, or that was named
}

// openProject finds out what lies at a path. Without a path it is the working directory.
func openProject(args []string) (*project, error) {
	at := "."
	if len(args) > 0 {
		at = args[0]
	}
	full, err := filepath.Abs(at)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(full)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		name := strings.TrimSuffix(filepath.Base(full), filepath.Ext(full))
		return &project{dir: filepath.Dir(full), name: name, module: full}, nil
	}
	pr := &project{dir: full, name: filepath.Base(full)}
	pr.module = filepath.Join(full, pr.name+".wasm")
	if pr.language, err = languageOf(full); err != nil {
		return nil, err
	}
	if tc := toolchains[pr.language]; tc.source {
		pr.module, err = tc.sourceIn(full, pr.name)
	}
	return pr, err
}

// sourceIn is the file that is pushed as it is: the one with the project's name, or the only one there is.
func (tc toolchain) sourceIn(dir, name string) (string, error) {
	var all []string
	for _, pattern := range tc.marks {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return "", err
		}
		all = append(all, found...)
	}
	if named := filepath.Join(dir, name+tc.suffix); len(all) == 1 || slices.Contains(all, named) {
		if len(all) == 1 {
			return all[0], nil
		}
		return named, nil
	}
	return "", fmt.Errorf("%s has %d files in %s and none is %s%s; name the file instead of the folder, or give the function's that name", dir, len(all), tc.title, name, tc.suffix)
}

// languageOf tells a project's language by the files that its tools look for.
func languageOf(dir string) (string, error) {
	for _, language := range detection {
		for _, pattern := range toolchains[language].marks {
			found, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil {
				return "", err
			}
			if len(found) > 0 {
				return language, nil
			}
		}
	}
	return "", fmt.Errorf("%s is no function's project: it has none of go.mod or *.go, Cargo.toml, asconfig.json, *.c and *.js; "+
		"'router functions new' makes one", dir)
}

// settings reads function.yaml beside a project; without the file they are the defaults.
func (pr *project) settings() (map[string]any, error) {
	doc := map[string]any{}
	path := filepath.Join(pr.dir, settingsFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return doc, nil
	}
	if err != nil {
		return nil, err
	}
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, key := range []string{"name", "wasm", "js", "module"} {
		if _, ok := doc[key]; ok {
			return nil, fmt.Errorf("%s: has %q; the settings are config, limits and the like: name and module are those of the folder", path, key)
		}
	}
	return doc, nil
}

// definition is the function as the router would have it from its settings and a module's digest.
func (pr *project) definition(digest string) (event.Function, error) {
	doc, err := pr.settings()
	if err != nil {
		return event.Function{}, err
	}
	doc["name"], doc["wasm"] = functionName(pr.name), digest
	b, err := json.Marshal(doc)
	if err != nil {
		return event.Function{}, fmt.Errorf("%s: %w", filepath.Join(pr.dir, settingsFile), err)
	}
	f, err := rules.ParseFunction(b, rules.Options{})
	if err != nil {
		return event.Function{}, fmt.Errorf("%s: %w", filepath.Join(pr.dir, settingsFile), err)
	}
	return f.Function, nil
}

// functionName is a name for running a function here, where that of its file would not do.
func functionName(name string) string {
	if event.CheckName("function", name) != nil {
		return "function"
	}
	return name
}

func functionsNew(p *program) *cobra.Command {
	var language, dir string
	cmd := &cobra.Command{
		Use:   "new NAME --lang LANGUAGE",
		Short: "Write a new function's project, ready to build and test",
		Long: `New writes a folder with a commented handler, the SDK, golden pairs for 'functions test', settings and a README. It
builds without a network, given the language's toolchain. It never overwrites a file.`,
		Example: `  router functions new redact --lang go
  router fn new redact --lang rust --dir functions/redact`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVarP(&language, "lang", "l", "", "`"+strings.Join(templates.Languages(), ", ")+"`")
	cmd.Flags().StringVar(&dir, "dir", "", "`folder` to write (default NAME)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := args[0]
		if err := event.CheckName("function", name); err != nil {
			return &usageError{cmd, err}
		}
		if language == "" {
			return usagef(cmd, "--lang is missing: want one of %s", strings.Join(templates.Languages(), ", "))
		}
		files, err := templates.Project(language, name)
		if err != nil {
			return &usageError{cmd, err}
		}
		if dir == "" {
			dir = name
		}
		if err := writeProject(dir, files); err != nil {
			return err
		}
		say(p.stdout, "%s: %s in %s", clean(dir), plural(len(files), "file"), toolchains[language].title)
		say(p.stderr, "next: router fn build %[1]s && router fn test %[1]s", clean(dir))
		return nil
	}
	return cmd
}

// writeProject writes the files of a project into a folder that is new or empty.
func writeProject(dir string, files []templates.File) error {
	if there, err := os.ReadDir(dir); err == nil && len(there) > 0 {
		return fmt.Errorf("%s has files in it (%s first); name a new folder with --dir", dir, there[0].Name())
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, f := range files {
		path := filepath.Join(dir, filepath.FromSlash(f.Path))
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.Text, 0o666); err != nil {
			return err
		}
	}
	return nil
}
