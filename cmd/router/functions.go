package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/js"
)

func functionsCommand(p *program) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:     "functions",
		Aliases: []string{"function", "fn"},
		Short:   "Write, build, test, push and watch functions",
	})
	columns := []column{{"NAME", "name"}, {"VERSION", "state.digest"}, {"MEMORY", "limits.memory"}, {"CALLS", "state.calls"}}
	cmd.AddCommand(functionsNew(p), functionsBuild(p), functionsTest(p), functionsBench(p), functionsInspect(p), functionsDev(p),
		functionsPush(p), functionsDeploy(p), functionsRollback(p), functionsLogs(p),
		p.listCommand("functions", columns), p.showCommand("functions", "redact"), p.deleteCommand("functions", "redact"))
	return cmd
}

// maxModule bounds the modules that push sends, in bytes; the router has a limit of its own.
const maxModule = 64 << 20

func functionsPush(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "push NAME FILE",
		Short: "Upload a module or a script as a function's new version",
		Example: `  router functions push redact redact.wasm
  router fn push mask mask.js`,
		Args: cobra.ExactArgs(2),
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

// readModule reads a file and checks that it is WASM at all. A script becomes the module that holds it.
func readModule(file string) ([]byte, error) {
	b, err := readFile(file, maxModule+1)
	if err != nil {
		return nil, err
	}
	if len(b) > maxModule {
		return nil, fmt.Errorf("%s has over %s; a module must be smaller", file, sizeText(maxModule))
	}
	if isScript(file) {
		if b, err = plugins.Script(js.Language, b); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	if !bytes.HasPrefix(b, []byte("\x00asm")) {
		return nil, fmt.Errorf("%s is not a WASM module (it does not begin with \\0asm); 'router functions build' makes one", file)
	}
	return b, nil
}

// isScript tells source that the router runs as it is by the file's name.
func isScript(file string) bool {
	ext := filepath.Ext(file)
	return ext == ".js" || ext == ".mjs"
}

// placedAt is what is wrong with a script, in words that name its file instead of the name that the engine has for it.
func placedAt(err error, file string) string {
	return strings.ReplaceAll(err.Error(), plugins.ScriptName+":", file+":")
}

// readFile reads at most so many bytes of a file.
func readFile(file string, most int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}
