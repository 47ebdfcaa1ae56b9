package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// asks is what the imports of a module say it would use.
var asks = []struct {
	feature string
	imports []string
}{
	{"state", []string{"kv_get", "kv_put", "kv_del", "kv_add", "kv_range"}},
	{"http", []string{"http"}},
	{"secrets", []string{"secret_get"}},
	{"config", []string{"config_get"}},
	{"counters", []string{"counter_add"}},
	{"log", []string{"log"}},
	{"random", []string{"random"}},
	{"the true clock", []string{"clock"}},
}

// inspected is what inspect prints.
type inspected struct {
	Module      string   `json:"module"`
	Bytes       int      `json:"bytes"`
	Digest      string   `json:"digest"`
	Script      string   `json:"script,omitempty"`
	ABI         string   `json:"abi,omitempty"`
	Uses        []string `json:"uses"`
	Imports     []string `json:"imports"`
	Exports     []string `json:"exports"`
	Functions   int      `json:"functions"`
	Memory      string   `json:"memory,omitempty"`
	Tables      []string `json:"tables"`
	Compile     string   `json:"compile,omitempty"`
	Instantiate string   `json:"instantiate,omitempty"`
	Used        int64    `json:"instanceBytes,omitempty"`
	Refused     string   `json:"refused,omitempty"`
}

func functionsInspect(p *program) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what a module or a script is, what it asks for, and whether the router would take it",
		Long: `Inspect reads a module as an upload would, compiles it and makes one instance of it. It exits with 1 if the router would
refuse the module, and says why.`,
		Example: `  router functions inspect redact.wasm
  router fn inspect redact.wasm -o json`,
		Args: cobra.ExactArgs(1),
	}
	p.outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		asJSON, err := asJSON(cmd, output)
		if err != nil {
			return err
		}
		file, err := readFile(args[0], maxModule+1) // a byte more is what is too large
		if err != nil {
			return err
		}
		if isScript(args[0]) {
			if file, err = readModule(args[0]); err != nil {
				return err
			}
		}
		pr, err := openProject(args)
		if err != nil {
			return err
		}
		def, err := pr.definition("sha256:" + strings.Repeat("0", 64)) // Describe knows the true one
		if err != nil {
			return err
		}
		d, refused, err := p.describeModule(cmd.Context(), file, def)
		if err != nil {
			return err
		}
		in := inspectedOf(args[0], d, def)
		if refused != nil {
			in.Refused = placedAt(refused, args[0])
		}
		if asJSON {
			doc, err := json.Marshal(in)
			if err != nil {
				return err
			}
			if err := printJSON(p.stdout, doc); err != nil {
				return err
			}
		} else {
			in.print(p)
		}
		if refused != nil {
			return errSaid
		}
		return nil
	}
	return cmd
}

// describeModule has a host describe a module, which it compiles in a process apart: it may be anybody's.
func (p *program) describeModule(ctx context.Context, file []byte, def event.Function) (d plugins.Description, refused, err error) {
	dir, err := os.MkdirTemp("", "millrace-inspect-*") // what the compiling process makes, this one takes from here
	if err != nil {
		return d, nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	host, err := authorHost(ctx, plugins.Options{Dir: dir, Compiler: p.compiler()})
	if err != nil {
		return d, nil, err
	}
	stop := p.busy("compiling")
	d, refused = host.Describe(ctx, file, def)
	stop()
	return d, refused, host.Close(ctx)
}

func inspectedOf(file string, d plugins.Description, def event.Function) *inspected {
	in := &inspected{Module: file, Bytes: d.Bytes, Digest: d.Digest, Script: d.Script, ABI: abiName(d.ABI), Functions: d.Funcs, Used: d.Used,
		Uses: []string{}, Imports: []string{}, Exports: []string{}, Tables: []string{}}
	if d.Script != "" { // the rest is its engine's, which tells nothing of what the script uses
		d.Imports, d.Exports, d.Tables, d.Funcs = nil, nil, nil, 0
	}
	for _, a := range asks {
		for _, e := range d.Imports {
			if slices.Contains(a.imports, e.Name) && !slices.Contains(in.Uses, a.feature) {
				in.Uses = append(in.Uses, a.feature)
			}
		}
	}
	for _, e := range d.Imports {
		in.Imports = append(in.Imports, fmt.Sprintf("%s.%s%s", e.Module, e.Name, kindSuffix(e.Kind)))
	}
	for _, e := range d.Exports {
		in.Exports = append(in.Exports, e.Name+kindSuffix(e.Kind))
	}
	if d.Memory != nil {
		limit := def.Limits.WithDefaults().Memory
		most := "no maximum of its own"
		if d.Memory.Bounded {
			most = "at most " + sizeText(int64(d.Memory.Max)<<16)
		}
		in.Memory = fmt.Sprintf("%s to begin with, %s; limits.memory is %s", sizeText(int64(d.Memory.Min)<<16), most, sizeText(limit))
	}
	for _, t := range d.Tables {
		text := fmt.Sprintf("%d elements", t.Min)
		if t.Bounded {
			text += fmt.Sprintf(", at most %d", t.Max)
		}
		in.Tables = append(in.Tables, text)
	}
	if d.Compile > 0 {
		in.Compile = d.Compile.Round(100 * time.Microsecond).String()
	}
	if d.Instantiate > 0 {
		in.Instantiate = d.Instantiate.Round(10 * time.Microsecond).String()
	}
	return in
}

func kindSuffix(k plugins.Kind) string {
	if k == plugins.Func {
		return ""
	}
	return " (" + k.String() + ")"
}

func (in *inspected) print(p *program) {
	row := func(head, text string) {
		if text != "" {
			say(p.stdout, "%-12s %s", head, clean(text))
		}
	}
	some := func(head string, all []string) {
		const few = 24
		rest := ""
		if len(all) > few {
			rest = fmt.Sprintf(" and %d more (-o json shows them)", len(all)-few)
		}
		if len(all) == 0 {
			all = []string{"none"}
		}
		row(head, strings.Join(all[:min(len(all), few)], ", ")+rest)
	}
	row("module", in.Module)
	row("size", sizeText(int64(in.Bytes)))
	row("digest", in.Digest)
	row("ABI", in.ABI)
	if in.Script != "" {
		row("script", fmt.Sprintf("%s, run by the router's engine; size and digest are those of the module that holds it", toolchains[in.Script].title))
	} else {
		some("uses", in.Uses)
		some("imports", in.Imports)
		some("exports", in.Exports)
		row("functions", fmt.Sprint(in.Functions))
	}
	row("memory", in.Memory)
	if in.Script == "" {
		some("tables", in.Tables)
	}
	row("compiles in", in.Compile)
	row("starts in", in.Instantiate)
	if in.Used > 0 {
		row("an instance", sizeText(in.Used)+" before its first event")
	}
	if in.Refused != "" {
		say(p.stdout, "%-12s %s", "REFUSED", strings.ReplaceAll(lines(in.Refused), "\n", "\n"+strings.Repeat(" ", 13)))
	} else {
		say(p.stdout, "the router takes it")
	}
}
