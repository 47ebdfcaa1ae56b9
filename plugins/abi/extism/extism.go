// Package extism runs plug-ins that were built with a plug-in development kit of Extism, as they are. The host's side
// is this package's own. docs/abi-others.md says what events look like to them.
package extism

import (
	"context"
	"fmt"
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

// Keys of a function's configuration that say how to use a plug-in.
const (
	functionKey = "extism.function"
	inputKey    = "extism.input"
	usualName   = "handle"
)

// Speaks reports whether m imports what Extism's kits import.
func (ABI) Speaks(m *plugins.Module) bool { return m.ImportsFrom(envModule) }

// Check wants the memory under its name.
func (ABI) Check(m *plugins.Module) error {
	if !m.Export(plugins.Memory, "memory") {
		return event.Invalid("export memory", "is missing; a plug-in exports its memory")
	}
	return nil
}

// Link makes the modules known that plug-ins and kernels import.
func (ABI) Link(ctx context.Context, r wazero.Runtime) error { return link(ctx, r) }

// Companion makes the kernel of one plug-in.
func (ABI) Companion(ctx context.Context, r wazero.Runtime) (string, api.Module, error) {
	m, err := r.InstantiateWithConfig(ctx, kernelWasm, wazero.NewModuleConfig().WithName(""))
	return envModule, m, err
}

// Bind finds the function to call. Modules that are not reactors are initialised as Extism does it.
func (ABI) Bind(in *plugins.Instance) (plugins.Guest, error) {
	k := in.Companion()
	g := &guest{in: in, vars: map[string]string{}, memory: k.Memory(), begin: k.ExportedFunction("millrace:begin"), result: k.ExportedFunction("millrace:result")}
	input, _ := in.Config([]byte(inputKey))
	var err error
	if g.mode, err = abi.ModeOf(inputKey, input); err != nil {
		return nil, err
	}
	if g.handle, err = function(in); err != nil {
		return nil, err
	}
	if ctors := in.Export("__wasm_call_ctors"); ctors != nil && in.Export("_initialize") == nil {
		if err := in.Invoke(ctors, nil); err != nil {
			return nil, fmt.Errorf("__wasm_call_ctors failed: %w", err)
		}
	}
	return g, nil
}

// function is the export that handles events: the one that the configuration names, or else the only one that could,
// or else "handle".
func function(in *plugins.Instance) (api.Function, error) {
	var could []string
	for name, d := range in.Exports() {
		r := d.ResultTypes()
		if len(d.ParamTypes()) == 0 && (len(r) == 0 || len(r) == 1 && r[0] == api.ValueTypeI32) &&
			!strings.HasPrefix(name, "_") && !strings.HasPrefix(name, "asyncify_") && !strings.HasPrefix(name, "hs_") {
			could = append(could, name)
		}
	}
	slices.Sort(could)
	name, given := in.Config([]byte(functionKey))
	switch {
	case given && !slices.Contains(could, name):
		return nil, fmt.Errorf("config %s is %.60q, which is no function without parameters that the plug-in exports; those are %.200q", functionKey, name, could)
	case given:
	case len(could) == 1:
		name = could[0]
	case slices.Contains(could, usualName):
		name = usualName
	default:
		return nil, fmt.Errorf("the plug-in exports %d functions that could handle events, %.200q; name one of them by config %s", len(could), could, functionKey)
	}
	return in.Export(name), nil
}

// guest is a plug-in at work.
type guest struct {
	in            *plugins.Instance
	handle        api.Function
	begin, result api.Function // of its kernel
	memory        api.Memory   // of its kernel
	mode          abi.Mode
	at            int
	stack         [5]uint64
	input         []byte
	answers       abi.Answers

	vars     map[string]string
	varBytes int
	answer   *plugins.Response // of the last request for the event at work; nil: none
}

// Cursor is the event at work: plug-ins are called for one at a time.
func (g *guest) Cursor() int { return g.at }

// Handle calls the plug-in for each event.
func (g *guest) Handle(b *plugins.Batch, out *plugins.Outcome) error {
	g.answers.Begin(out)
	written := 0
	for g.at = 0; g.at < b.Len(); g.at++ {
		said, err := g.event(b.Event(g.at))
		if err != nil {
			return err
		}
		if written += len(said); written > b.MaxOutput {
			return plugins.BadOutput(g.at, "more than %d bytes of output of one call (limits.output)", b.MaxOutput)
		}
		if g.mode == abi.Data {
			err = g.answers.Replace(b, g.at, said, out)
		} else {
			err = g.answers.Add(b, g.at, abi.Events, said, out)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// event calls the plug-in and returns its output, which is the kernel's memory until the next call.
func (g *guest) event(r event.Record) ([]byte, error) {
	g.answer = nil
	input := r.Data()
	if g.mode == abi.Events {
		g.input = r.AppendStructured(g.input[:0])
		input = g.input
	}
	g.stack[0] = uint64(len(input))
	if err := g.in.Invoke(g.begin, g.stack[:1]); err != nil {
		return nil, err
	}
	g.memory.Write(uint32(g.stack[0]), input) // begin has made the room
	g.stack[0] = 0
	if err := g.in.Invoke(g.handle, g.stack[:1]); err != nil {
		return nil, err
	}
	status := uint32(g.stack[0])
	if err := g.in.Invoke(g.result, g.stack[:5]); err != nil {
		return nil, err
	}
	at, n, has, failed := g.stack[0], g.stack[1], uint32(g.stack[2]) != 0, g.stack[3]
	if status != 0 || failed != 0 {
		return nil, g.refusal(status, read(g.memory, failed, min(g.stack[4], maxError)))
	}
	if !has {
		return nil, plugins.BadOutput(g.at, "no output for event %d: silence is an error; set the output null to drop an event", g.at)
	}
	said := read(g.memory, at, n)
	if n > 0 && said == nil {
		return nil, plugins.BadOutput(g.at, "output of %d bytes at %d, outside of the blocks", n, at)
	}
	return said, nil
}

// maxError is how many bytes of a plug-in's words about a fault are shown.
const maxError = 1000

// refusal is what a plug-in says by a status or an error.
func (g *guest) refusal(status uint32, said []byte) error {
	text := strings.ToValidUTF8(string(said), "�")
	if text == "" {
		text = "it gave no reason"
	}
	return &plugins.GuestError{Reason: plugins.ReasonTrap, Index: g.at, Err: fmt.Errorf("the plug-in returned %d: %s", status, text)}
}
