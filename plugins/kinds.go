package plugins

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
)

// Programs is an ABI whose guests are programs, with arguments and an environment.
type Programs interface {
	ABI
	// Once reports whether a program ends with its run, so that its instance serves no other.
	Once() bool
	// Start gives a program its arguments, of which the first is its name, and its environment, each as
	// name=value, by the function's name and configuration. An error says what is wrong with these.
	Start(name string, config map[string]string) (args, env []string, err error)
}

// Companions is an ABI whose guests each import a module of their own beside what Link made known.
type Companions interface {
	ABI
	// Companion makes the module which the next guest will find under a name, in place of what Link made
	// known under it. It is closed with the guest; Instance.Companion returns it.
	Companion(ctx context.Context, r wazero.Runtime) (name string, m api.Module, err error)
}

// A Starter is a Guest that has something to do before its first run. Start is called once, as part of making the
// instance; an error means that the module is unhealthy.
type Starter interface{ Start() error }

// An Ender is a Guest that holds more than its memory. End is called once, before its instance is closed.
type Ender interface{ End() }

// aimedProgram is guest time that a run of a program aims at: it starts anew for each, which takes a runtime
// of a language a few milliseconds.
const aimedProgram = 20 * aimedRun

// An ExitError says that a guest ended itself. It is what the GuestError of Invoke wraps.
type ExitError struct{ Status uint32 }

func (e *ExitError) Error() string { return fmt.Sprintf("the guest exited with status %d", e.Status) }

// start readies f for the kind of guests that its convention has.
func (f *Function) start() error {
	p, ok := f.abi.(Programs)
	if !ok {
		return nil
	}
	args, env, err := p.Start(f.def.Name, f.def.Config)
	if err != nil {
		return err
	}
	f.single = p.Once()
	f.cfg = f.cfg.WithArgs(args...)
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		f.cfg = f.cfg.WithEnv(name, value)
	}
	return nil
}

// isSpent reports whether in has served the only run that it may.
func (in *Instance) isSpent() bool { return in.fn.single && in.runs > 0 }

// reuse returns in for another run of the call; nil if it had its only one, and is closed.
func (f *Function) reuse(ctx context.Context, in *Instance) *Instance {
	if !in.isSpent() {
		return in
	}
	f.put(ctx, in)
	return nil
}

// accompany makes what the instance imports beside the host's modules.
func (in *Instance) accompany(ctx context.Context) error {
	c, ok := in.fn.abi.(Companions)
	if !ok {
		return nil
	}
	name, m, err := c.Companion(ctx, in.fn.host.runtime)
	if err != nil {
		return err
	}
	in.companion = m
	in.ctx.links = experimental.WithImportResolver(context.Background(), func(asked string) api.Module {
		if asked == name {
			return m
		}
		return nil
	})
	return nil
}

// Companion is the module that the instance's convention made for it; nil without one.
func (in *Instance) Companion() api.Module { return in.companion }

// Exports are the functions that the guest exports.
func (in *Instance) Exports() map[string]api.FunctionDefinition {
	return in.module.ExportedFunctionDefinitions()
}

// Redirect makes in the guest's standard input and out its standard output until the run ends, instead of
// nothing and its log. Their methods are called as host functions are: they may End the call.
func (in *Instance) Redirect(stdin io.Reader, stdout io.Writer) {
	in.stdin.from, in.stdout.to = stdin, stdout
}

// input is a guest's standard input.
type input struct{ from io.Reader }

func (i *input) Read(p []byte) (int, error) {
	if i.from == nil {
		return 0, io.EOF
	}
	return i.from.Read(p)
}

// memoryInUse is bytes of linear memory, that of a companion included.
func (in *Instance) memoryInUse() int64 {
	n := int64(in.memory.Size())
	if in.companion != nil && in.companion.Memory() != nil {
		n += int64(in.companion.Memory().Size())
	}
	return n
}
