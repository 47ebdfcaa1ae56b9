// Package wasi runs plain programs as functions: a WASI command that reads one JSON text a line from standard
// input and writes its answer to each as one line to standard output. docs/abi-others.md says how.
package wasi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi"
)

// ABI is the convention. The zero value is ready.
type ABI struct{}

const startFn = "_start"

// Keys of a function's configuration that are the host's; the others are the program's.
const (
	inputKey  = "wasi.input"
	argsKey   = "wasi.args"
	hostsKeys = "wasi."
	envPrefix = "MILLRACE_CONFIG_"
)

// Speaks reports whether m is a program.
func (ABI) Speaks(m *plugins.Module) bool { return m.Export(plugins.Func, startFn) }

// Check wants the memory under its name.
func (ABI) Check(m *plugins.Module) error {
	if m.ImportsFrom("millrace_v1") {
		return event.Invalid("export _start", "makes the module a program, but it imports millrace_v1, which functions of the SDKs do; build those so: "+plugins.HowToBuild+" (C: -mexec-model=reactor)")
	}
	if !m.Export(plugins.Memory, "memory") {
		return event.Invalid("export memory", "is missing; a WASI command exports its memory")
	}
	return nil
}

// Link makes nothing known: the host's WASI is all that programs import.
func (ABI) Link(context.Context, wazero.Runtime) error { return nil }

// Once reports that a program ends with its input.
func (ABI) Once() bool { return true }

// Start gives a program the lines of wasi.args as arguments, and every key of the configuration that is not the
// host's as MILLRACE_CONFIG_<KEY>, in upper case and with _ for what is no letter or digit.
func (ABI) Start(name string, config map[string]string) (args, env []string, err error) {
	args = []string{name}
	for key, value := range config {
		switch {
		case strings.ContainsRune(value, 0):
			return nil, nil, event.Invalid("config."+key, "has a zero byte, which an environment cannot hold")
		case key == argsKey:
			args = append(args, strings.Split(strings.TrimSuffix(value, "\n"), "\n")...)
		case key == inputKey:
			if _, err := abi.ModeOf(key, value); err != nil {
				return nil, nil, event.Invalid("config."+key, err.Error())
			}
		case strings.HasPrefix(key, hostsKeys):
			return nil, nil, event.Invalid("config."+key, fmt.Sprintf("is no setting of programs; they have %s and %s", inputKey, argsKey))
		default:
			env = append(env, variable(key)+"="+value)
		}
	}
	slices.Sort(env)
	for i := 1; i < len(env); i++ {
		a, _, _ := strings.Cut(env[i-1], "=")
		if b, _, _ := strings.Cut(env[i], "="); a == b {
			return nil, nil, event.Invalid("config", fmt.Sprintf("two keys would both be %s in the program's environment; rename one", a))
		}
	}
	return args, env, nil
}

func variable(key string) string {
	return envPrefix + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
}

// Bind finds the program's entry.
func (ABI) Bind(in *plugins.Instance) (plugins.Guest, error) {
	g := &guest{in: in, start: in.Export(startFn)}
	if g.start == nil {
		return nil, fmt.Errorf("export %s is missing", startFn)
	}
	if d := g.start.Definition(); len(d.ParamTypes())+len(d.ResultTypes()) != 0 {
		return nil, fmt.Errorf("%s has parameters or results; a WASI command has none", startFn)
	}
	mode, _ := in.Config([]byte(inputKey))
	var err error
	g.mode, err = abi.ModeOf(inputKey, mode)
	return g, err
}

// guest is an instance of a program, which runs once.
type guest struct {
	in      *plugins.Instance
	start   api.Function
	mode    abi.Mode
	answers abi.Answers
}

// Cursor does not know: how far a program has come is hidden behind its buffers. Batches that fail are halved.
func (g *guest) Cursor() int { return -1 }

// Handle runs the program over the batch.
func (g *guest) Handle(b *plugins.Batch, out *plugins.Outcome) error {
	var lines []byte
	for i := range b.Len() {
		lines = append(abi.AppendLine(lines, g.mode, b.Event(i)), '\n')
	}
	said := &output{in: g.in, most: b.MaxOutput}
	g.in.Redirect(bytes.NewReader(lines), said)
	if err := g.in.Invoke(g.start, nil); err != nil {
		var exit *plugins.ExitError
		if !errors.As(err, &exit) || exit.Status != 0 {
			return err
		}
	}
	g.answers.Begin(out)
	rest := said.buf
	for i := range b.Len() {
		if len(rest) == 0 {
			return plugins.BadOutput(-1, "%d lines of output for %d events: every line of input is answered by one line, null to drop an event", i, b.Len())
		}
		line, after, _ := bytes.Cut(rest, []byte("\n"))
		if err := g.answers.Add(b, i, g.mode, line, out); err != nil {
			return err
		}
		rest = after
	}
	if len(rest) > 0 {
		return plugins.BadOutput(-1, "more lines of output than the %d events; the first beyond: %.200q", b.Len(), firstLine(rest))
	}
	return nil
}

func firstLine(b []byte) []byte {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return line
}

// output keeps what a program writes, up to a limit at which it ends.
type output struct {
	in   *plugins.Instance
	buf  []byte
	most int
}

var _ io.Writer = (*output)(nil)

func (o *output) Write(p []byte) (int, error) {
	if len(o.buf)+len(p) > o.most {
		o.in.End(plugins.BadOutput(-1, "more than %d bytes of output (limits.output)", o.most))
	}
	o.buf = append(o.buf, p...)
	return len(p), nil
}
