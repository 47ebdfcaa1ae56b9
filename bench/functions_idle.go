package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// What this program calls itself with: to compile a module, and to open functions and wait.
const (
	compileCommand = "compile-module"
	idleCommand    = "idle-functions"
)

// idleFor stands for the minute after which a router gives up an instance that nobody calls.
const idleFor = time.Second

// idleMemory is what functions may take together under `router serve --memory 512MiB`: a quarter.
const idleMemory = 128 << 20

// coldStarts is how many cold starts a round has; their median counts.
const coldStarts = 5

// measureCold measures how long a Go function that was compiled before takes to its first answer in a new process's host:
// reading, metering and machine code come from the cache, the runtime is initialised.
func measureCold() measurement {
	return measurement{name: "cold start of a Go function", gives: []string{"cold-go"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			dir := filepath.Join(l.dir, "cold")
			module, err := l.module(ctx, "Go")
			if err != nil {
				return err
			}
			digest, err := l.keep(ctx, dir, module)
			if err != nil {
				return err
			}
			var took []float64
			for range coldStarts {
				d, err := l.coldStart(ctx, dir, digest)
				if err != nil {
					return err
				}
				took = append(took, float64(d.Microseconds()))
			}
			put("cold-go", median(took))
			return nil
		}}
}

// keep puts a module into a folder of functions, compiled.
func (l *lab) keep(ctx context.Context, dir string, module []byte) (string, error) {
	h, err := l.host(ctx, plugins.Options{Dir: dir})
	if err != nil {
		return "", err
	}
	digest, err := h.Put(ctx, module)
	return digest, errors.Join(err, h.Close(context.WithoutCancel(ctx)))
}

func (l *lab) coldStart(ctx context.Context, dir, digest string) (took time.Duration, err error) {
	start := time.Now()
	h, err := l.host(ctx, plugins.Options{Dir: dir})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, h.Close(context.WithoutCancel(ctx))) }()
	f, err := h.Open(ctx, event.Function{Name: "bench", Digest: digest})
	if err != nil {
		return 0, err
	}
	err = pass(ctx, f, orders(1, enrichData()), &plugins.Outcome{})
	return time.Since(start), err
}

// idleFunctions is how many functions are opened; a quick run's are fewer.
func (o options) idleFunctions() int {
	if o.quick {
		return 8
	}
	return 50
}

// measureManyIdle measures the memory of many functions that nobody calls, in a process of their own.
func measureManyIdle() measurement {
	return measurement{name: "many idle functions", gives: []string{"idle-functions", "idle-functions-code"}, once: true,
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			dir := filepath.Join(l.dir, "idle")
			if err := l.keepMany(ctx, dir, l.o.idleFunctions()); err != nil {
				return err
			}
			cmd := exec.CommandContext(ctx, l.self, idleCommand, dir, idleFor.String())
			cmd.SysProcAttr = withParent()
			var said bytes.Buffer
			cmd.Stderr = &said
			text, err := cmd.Output()
			if err != nil {
				return fmt.Errorf("%w: %s", err, said.String())
			}
			var r idleReport
			if err := json.Unmarshal(text, &r); err != nil {
				return fmt.Errorf("%w in %q", err, text)
			}
			if r.Functions != l.o.idleFunctions() {
				return fmt.Errorf("%d functions were opened, want %d", r.Functions, l.o.idleFunctions())
			}
			put("idle-functions", r.Idle-r.Before)
			put("idle-functions-code", r.Cold-r.Before)
			return nil
		}}
}

// keepMany keeps n Go modules that differ, on as many hosts at once as there are cores: compiling takes the time.
func (l *lab) keepMany(ctx context.Context, dir string, n int) error {
	module, err := l.module(ctx, "Go")
	if err != nil {
		return err
	}
	errs := make([]error, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			h, err := l.host(ctx, plugins.Options{Dir: dir})
			for i := w; i < n && err == nil; i += len(errs) {
				_, err = h.Put(ctx, variantOf(module, i))
			}
			if h != nil {
				err = errors.Join(err, h.Close(context.WithoutCancel(ctx)))
			}
			errs[w] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// variantOf is a module that does the same and is another: with a custom section that says which.
func variantOf(module []byte, i int) []byte {
	name, text := "bench", fmt.Sprintf("%08d", i)
	section := append([]byte{0, byte(1 + len(name) + len(text)), byte(len(name))}, name+text...)
	return append(slices.Clip(module), section...)
}

// idleReport is resident memory in MiB of a process before it opened its functions, once their instances were given up,
// and once their machine code was as well.
type idleReport struct {
	Functions          int
	Before, Idle, Cold float64
}

// openAndIdle is the process of measureManyIdle: it opens and calls all functions of a folder and waits.
func openAndIdle(ctx context.Context, args []string, stdout io.Writer) (err error) {
	if len(args) != 2 {
		return fmt.Errorf("want the functions' folder and how long an instance is kept, not %d arguments", len(args))
	}
	idle, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	h, err := (&lab{self: self}).host(ctx, plugins.Options{Dir: args[0], Memory: idleMemory, Idle: idle})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close(context.WithoutCancel(ctx))) }()
	digests, err := h.Digests()
	if err != nil {
		return err
	}
	r := idleReport{Functions: len(digests)}
	if r.Before, err = resident(); err != nil {
		return err
	}
	var open []*plugins.Function
	for i, d := range digests {
		f, err := h.Open(ctx, event.Function{Name: "bench-" + strconv.Itoa(i), Digest: d})
		if err != nil {
			return err
		}
		if err := pass(ctx, f, orders(1, enrichData()), &plugins.Outcome{}); err != nil {
			return err
		}
		open = append(open, f)
	}
	for _, w := range []struct {
		until func(f *plugins.Function) bool
		into  *float64
	}{
		{func(f *plugins.Function) bool { return f.Stats().Instances == 0 }, &r.Idle},
		{func(f *plugins.Function) bool { return !f.Compiled() }, &r.Cold},
	} {
		for late := time.Now().Add(time.Minute); slices.ContainsFunc(open, func(f *plugins.Function) bool { return !w.until(f) }); {
			if time.Now().After(late) {
				return errors.New("functions that nobody called for a minute still take memory")
			}
			if err := sleep(ctx, 10*time.Millisecond); err != nil {
				return err
			}
		}
		if *w.into, err = resident(); err != nil {
			return err
		}
	}
	return json.NewEncoder(stdout).Encode(r)
}

// resident is this process's memory in MiB, free pages given back.
func resident() (float64, error) {
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	line, _, _ := strings.Cut(rest, " kB")
	v, err := strconv.ParseFloat(strings.TrimSpace(line), 64)
	return v / 1024, err
}
