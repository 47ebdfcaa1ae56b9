package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/native"
	"github.com/millrace/millrace/plugins/meter"
)

// A recipe is how a guest is built from source. "{out}" stands for the module's file and "{tmp}" for a folder.
type recipe struct {
	dir     string // below the repository
	env     []string
	command []string
	needs   string // a file without which the guest cannot be built here; below the repository unless it begins with /
}

// recipes are the guests by name; the samples' are those of the SDKs' documents.
func recipes() map[string]recipe {
	c := func(dir, file string, more ...string) recipe {
		command := append([]string{"clang-19", "-O3", "-mbulk-memory", "-Wl,--strip-all", "-o", "{out}", file}, more...)
		return recipe{dir: dir, command: command, needs: "/usr/bin/clang-19"}
	}
	reactor := []string{"--target=wasm32-wasi", "-mexec-model=reactor"}
	return map[string]recipe{
		"pass":    c("bench/testdata", "pass.c", "--target=wasm32-unknown-unknown", "-nostdlib", "-Wl,--no-entry"),
		"hostile": c("plugins/abi/native/testdata", "hostile.c", reactor...),
		"C":       c("sdk/c/examples/enrich", "enrich.c", append(reactor, "-I../..")...),
		"Rust": {dir: "sdk/rust/examples/enrich", needs: "/usr/lib/rustlib/wasm32-unknown-unknown/lib",
			env: []string{"PATH=/usr/bin:/bin", "CARGO_TARGET_DIR={tmp}"}, // Debian's: it has the target that rustup's may lack
			command: []string{"sh", "-c", "cargo build --locked --offline --quiet --release --target wasm32-unknown-unknown && " +
				"cp {tmp}/wasm32-unknown-unknown/release/*.wasm {out}"}},
		"AssemblyScript": {dir: "sdk/assemblyscript", needs: "scripts/npm/node_modules/assemblyscript/bin/asc.js",
			command: []string{"node", "../../scripts/npm/node_modules/assemblyscript/bin/asc.js", "examples/enrich/enrich.ts", "-o", "{out}", "-O3",
				"--runtime", "minimal", "--exportStart", "_initialize", "--enable", "bulk-memory", "--use", "abort=assembly/abort/abort"}},
		"Go": {dir: "sdk/go/examples/enrich", env: []string{"GOOS=wasip1", "GOARCH=wasm"},
			command: []string{"go", "build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", "{out}", "."}},
	}
}

// module builds a guest once.
func (l *lab) module(ctx context.Context, name string) ([]byte, error) {
	return l.build(ctx, name, recipes()[name])
}

func (l *lab) build(ctx context.Context, name string, r recipe) ([]byte, error) {
	out := filepath.Join(l.dir, "guest-"+name+".wasm")
	if b, err := os.ReadFile(out); !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	root, err := repository(ctx)
	if err != nil {
		return nil, err
	}
	if needs := r.needs; needs != "" {
		if !filepath.IsAbs(needs) {
			needs = filepath.Join(root, needs)
		}
		if _, err := os.Stat(needs); err != nil {
			return nil, fmt.Errorf("%w: %s is not there, which builds the function in %s; `make bench` installs it", errMissing, needs, r.dir)
		}
	}
	place := strings.NewReplacer("{out}", out, "{tmp}", filepath.Join(l.dir, "build-"+name))
	args := make([]string, len(r.command))
	for i, a := range r.command {
		args[i] = place.Replace(a)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = filepath.Join(root, r.dir), os.Environ()
	for _, e := range r.env {
		cmd.Env = append(cmd.Env, place.Replace(e))
	}
	if said, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the function in %s: %w\n%s", r.dir, err, said)
	}
	return os.ReadFile(out)
}

// repository is the folder of the router's module.
func repository(ctx context.Context) (string, error) {
	said, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/millrace/millrace").Output()
	if err != nil {
		return "", fmt.Errorf("find the module's folder: %w", err)
	}
	return strings.TrimSpace(string(said)), nil
}

// host is a host of functions as the router makes it.
func (l *lab) host(ctx context.Context, o plugins.Options) (*plugins.Host, error) {
	if o.ABIs == nil {
		o.ABIs = []plugins.ABI{native.ABI{}}
	}
	o.Compiler = []string{l.self, compileCommand}
	return plugins.NewHost(ctx, o)
}

// function opens a guest on a host.
func (l *lab) function(ctx context.Context, h *plugins.Host, guest string, limits event.FunctionLimits) (*plugins.Function, error) {
	module, err := l.module(ctx, guest)
	if err != nil {
		return nil, err
	}
	digest, err := h.Put(ctx, module)
	if err != nil {
		return nil, err
	}
	return h.Open(ctx, event.Function{Name: "bench", Digest: digest, Limits: limits})
}

// orders are n events of a type with data each.
func orders(n int, data []byte) *plugins.Call {
	c := &plugins.Call{}
	for i := range n {
		e := event.Event{ID: fmt.Sprintf("id-%d", i), Source: "/bench", Type: "order", Topic: "orders", DataContentType: "application/json", Data: data}
		r := event.Record(e.AppendRecord(nil))
		r.SetPlace(event.Position{Offset: uint64(i + 1)}, 1e18)
		c.Events, c.Attempts = append(c.Events, r), append(c.Attempts, 1)
	}
	return c
}

// pass calls f and is strict about what comes of it: one result for each event, no failure.
func pass(ctx context.Context, f *plugins.Function, c *plugins.Call, out *plugins.Outcome) error {
	if err := f.Call(ctx, c, out); err != nil {
		return err
	}
	if len(out.Failures) > 0 {
		return fmt.Errorf("event %d failed: %s: %w", out.Failures[0].Index, out.Failures[0].Reason, out.Failures[0].Err)
	}
	if len(out.Results) != len(c.Events) {
		return fmt.Errorf("%d results of %d events", len(out.Results), len(c.Events))
	}
	return nil
}

// hostBatch is how many events a call of the host's rows has.
const hostBatch = 64

// measureCalls measures what the host itself takes: with a guest that passes events without a look, and beside it what
// the engine takes to call into a guest at all.
func measureCalls() measurement {
	return measurement{name: "calls of a function that does nothing", gives: []string{"fn-event", "fn-allocs", "fn-call", "fn-bare", "fn-metered"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) (err error) {
			h, err := l.host(ctx, plugins.Options{})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, h.Close(context.WithoutCancel(ctx))) }()
			f, err := l.function(ctx, h, "pass", event.FunctionLimits{})
			if err != nil {
				return err
			}
			var out plugins.Outcome
			many, one := orders(hostBatch, eventData(1)), orders(1, eventData(1))
			calls := []func() error{
				func() error { return pass(ctx, f, many, &out) },
				repeated(func() error { return pass(ctx, f, one, &out) }),
			}
			for _, metered := range []bool{false, true} {
				call, done, err := l.emptyCall(ctx, metered)
				if err != nil {
					return err
				}
				defer done()
				calls = append(calls, call)
			}
			took, err := inTurns(ctx, l.length(), calls)
			if err != nil {
				return err
			}
			put("fn-event", took[0]/hostBatch)
			put("fn-call", took[1]/repeats)
			put("fn-bare", took[2]/repeats)
			put("fn-metered", took[3]/repeats)
			allocs, err := allocations(calls[0], 2000)
			put("fn-allocs", allocs/hostBatch)
			return err
		}}
}

// allocations are those of one call, of n that are made.
func allocations(call func() error, n int) (float64, error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		if err := call(); err != nil {
			return 0, err
		}
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / float64(n), nil
}

// emptyCall makes a call of an export that does nothing, on the engine itself: what a call of a guest takes at the least.
func (l *lab) emptyCall(ctx context.Context, metered bool) (call func() error, done func(), err error) {
	module, err := l.module(ctx, "pass")
	if err != nil {
		return nil, nil, err
	}
	v, err := newVariant(ctx, module, variantOptions{metered: metered})
	if err != nil {
		return nil, nil, err
	}
	fn, stack := v.mod.ExportedFunction("nothing"), make([]uint64, 1)
	return repeated(func() error {
		if metered {
			v.gauge.Grant(meter.Slice)
		}
		return fn.CallWithStack(ctx, stack)
	}), func() { v.close(ctx) }, nil
}

// repeats is how many times repeated does what takes so little that reading the clock would be measured with it.
const repeats = 100

func repeated(do func() error) func() error {
	return func() error {
		for range repeats {
			if err := do(); err != nil {
				return err
			}
		}
		return nil
	}
}

// turn is how long one thing is measured before it is the next one's.
const turn = 500 * time.Microsecond

// inTurns does several things in turns for d altogether, so that what else the machine does hits all of them, and returns
// how many nanoseconds each takes: the quickest tenth of its turns, since what disturbs a turn only makes it longer.
func inTurns(ctx context.Context, d time.Duration, do []func() error) ([]float64, error) {
	turns := make([][]float64, len(do))
	for begin := time.Now(); time.Since(begin) < d || len(turns[0]) < 10; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for i, f := range do {
			n, start := 0, time.Now()
			for ; time.Since(start) < turn; n++ {
				if err := f(); err != nil {
					return nil, err
				}
			}
			turns[i] = append(turns[i], float64(time.Since(start).Nanoseconds())/float64(n))
		}
	}
	took := make([]float64, len(do))
	for i := range turns {
		slices.Sort(turns[i])
		took[i] = percentile(turns[i], 0.1)
	}
	return took, nil
}
