package plugins

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins/meter"
)

// compiled is machine code that functions of the same module and memory limit share.
type compiled struct {
	key  string
	code wazero.CompiledModule
	size int64 // bytes of memory it takes, about
	refs int   // under Host.mu
}

// codePerByte is about how many bytes of memory the compiler makes of one of a module's: measured with
// guests of Go, Rust and C.
const codePerByte = 6

// compile returns machine code of m under a memory limit; release it.
func (h *Host) compile(ctx context.Context, m *Module, digest string, memory int64) (*compiled, error) {
	if memory < pageSize || memory > h.o.MaxMemory {
		return nil, event.Bad(event.ErrInvalid, "limits.memory", fmt.Sprintf("is %d bytes; want %d to %d", memory, pageSize, h.o.MaxMemory))
	}
	if m.shared != "" {
		digest = m.shared
	}
	key := fmt.Sprintf("%s/%d", digest, memory/pageSize)
	if c, err := h.held(key); c != nil || err != nil {
		return c, err
	}
	code, err := h.metered(m, digest, uint32(memory/pageSize))
	if err != nil {
		return nil, err
	}
	if err := h.vet(ctx, code); err != nil {
		return nil, err
	}
	h.compiling.Lock()
	defer h.compiling.Unlock()
	if c, err := h.held(key); c != nil || err != nil {
		return c, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	machine, err := compileIn(ctx, h.runtime, code)
	if err != nil && h.o.Dir != "" && h.cacheAtFault(ctx, code) {
		machine, err = compileIn(ctx, h.runtime, code)
	}
	if err != nil {
		return nil, uncompiled(err.Error())
	}
	c := &compiled{key: key, code: machine, size: codePerByte * int64(len(code)), refs: 1}
	h.mu.Lock()
	h.compiled[key] = c
	h.mu.Unlock()
	h.bytes.Add(c.size)
	return c, nil
}

// metered is m with its memory limited and its fuel counted: from the cache, if it was made before, since it
// takes as long as loading machine code does.
func (h *Host) metered(m *Module, digest string, pages uint32) ([]byte, error) {
	path := ""
	if h.o.Dir != "" {
		path = filepath.Join(h.cacheDir(), "metered", fmt.Sprintf("%s-%d-%d", digest[len("sha256:"):], pages, meter.Version))
		b, err := os.ReadFile(path)
		if err == nil && len(b) > sha256.Size && sha256.Sum256(b[sha256.Size:]) == [sha256.Size]byte(b) {
			return b[sha256.Size:], nil
		}
	}
	code, err := m.limited(pages)
	if err != nil {
		return nil, err
	}
	if code, err = meter.Instrument(code, meter.Options{}); err != nil || path == "" {
		return code, err
	}
	sum := sha256.Sum256(code)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	return code, writeWhole(path, append(sum[:], code...)) // a torn file is made again: its sum tells
}

// writeWhole writes a file that is there whole or not at all while the machine runs.
func writeWhole(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "*.tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func uncompiled(why string) error {
	return event.Bad(event.ErrInvalid, "module", "does not compile: "+bounded(why))
}

func (h *Host) held(key string) (*compiled, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errClosed
	}
	c := h.compiled[key]
	if c != nil {
		c.refs++
	}
	return c, nil
}

func (h *Host) release(ctx context.Context, c *compiled) error {
	if c == nil {
		return nil
	}
	h.mu.Lock()
	c.refs--
	last := c.refs == 0
	if last {
		delete(h.compiled, c.key)
	}
	h.mu.Unlock()
	if last {
		h.bytes.Add(-c.size)
		return c.code.Close(ctx)
	}
	return nil
}

// compileIn turns a crash of the compiler into an error: a module is not worth the process.
func compileIn(ctx context.Context, r wazero.Runtime, code []byte) (c wazero.CompiledModule, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the compiler failed: %v", p)
		}
	}()
	return r.CompileModule(ctx, code)
}

// cacheAtFault reports whether code compiles without the cache, and empties the cache if so: a damaged
// entry of it fails a compilation instead of being compiled anew.
func (h *Host) cacheAtFault(ctx context.Context, code []byte) bool {
	r := wazero.NewRuntimeWithConfig(ctx, config(h.o.MaxMemory))
	defer r.Close(ctx)
	if _, err := compileIn(ctx, r, code); err != nil {
		return false
	}
	files, err := filepath.Glob(filepath.Join(h.cacheDir(), "*", "*"))
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	return err == nil
}

// config leaves wazero's deadline check off: it makes guests several times slower and misses recursion.
// Metering ends guests instead.
func config(memory int64) wazero.RuntimeConfig {
	return wazero.NewRuntimeConfig().WithDebugInfoEnabled(false).WithMemoryLimitPages(uint32(memory / pageSize))
}

const (
	patience     = 4       // how much longer than its CPU time a compilation may take
	maxComplaint = 4 << 10 // bytes of what a child says
)

// vet compiles code in a child process if no compilation of it went well before: the compiler's time and
// memory are bounded by nothing but the process that it runs in. The child leaves its work in the cache.
func (h *Host) vet(ctx context.Context, code []byte) error {
	if len(h.o.Compiler) == 0 {
		return nil
	}
	sum := sha256.Sum256(code)
	mark := filepath.Join(h.cacheDir(), "vetted", compilerVersion()+"-"+hex.EncodeToString(sum[:]))
	before := func() bool {
		if h.o.Dir != "" {
			_, err := os.Stat(mark)
			return err == nil
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.vetted[sum]
	}
	if before() { // code that comes back waits for nobody's new module
		return nil
	}
	h.vetting.Lock()
	defer h.vetting.Unlock()
	if before() {
		return nil
	}
	if err := h.compileApart(ctx, code); err != nil {
		return err
	}
	if h.o.Dir == "" {
		h.mu.Lock()
		h.vetted[sum] = true
		h.mu.Unlock()
		return nil
	}
	// Losing the mark costs a compilation, so it is not synced.
	if err := os.MkdirAll(filepath.Dir(mark), 0o700); err != nil {
		return err
	}
	return os.WriteFile(mark, nil, 0o600)
}

// compilerVersion tells compilers apart whose code is not each other's.
func compilerVersion() string {
	version := "unknown"
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, d := range b.Deps {
			if d.Path == "github.com/tetratelabs/wazero" {
				version = d.Version
			}
		}
	}
	return version + "-" + runtime.GOARCH
}

func (h *Host) compileApart(ctx context.Context, code []byte) error {
	ctx, cancel := context.WithTimeout(ctx, patience*h.o.CompileTime)
	defer cancel()
	dir := ""
	if h.o.Dir != "" {
		dir = h.cacheDir()
	}
	argv := slices.Clone(h.o.Compiler[1:])
	argv = append(argv, dir)
	for _, n := range []int64{h.o.MaxMemory, int64(h.o.CompileTime / time.Second), h.o.CompileMemory} {
		argv = append(argv, strconv.FormatInt(n, 10))
	}
	cmd := exec.CommandContext(ctx, h.o.Compiler[0], argv...)
	cmd.Stdin = bytes.NewReader(code)
	said := &head{}
	cmd.Stderr = said
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err == nil {
		return nil
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("compile in another process (%s): %w", h.o.Compiler[0], err)
	}
	if why, ok := strings.CutPrefix(said.String(), complaint); ok {
		return uncompiled(why)
	}
	if used := exit.UserTime() + exit.SystemTime(); used >= h.o.CompileTime || ctx.Err() == context.DeadlineExceeded {
		return event.Bad(event.ErrTooLarge, "module", fmt.Sprintf("takes too long to compile: ended after %s of CPU time, %s are allowed; split up its largest functions", used.Round(time.Second), h.o.CompileTime))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if outOfMemory(said.String()) {
		return event.Bad(event.ErrTooLarge, "module", fmt.Sprintf("takes more than %d MiB to compile; split up its largest functions", h.o.CompileMemory>>20))
	}
	return uncompiled(fmt.Sprintf("the compiler failed (%v): %s", exit, said.String()))
}

// outOfMemory reports whether a child that ended itself was at the bound of its memory. Go's runtime says so, or runs
// into the memory that it did not get for its own collector: a fault on its own stack, goroutine 0, which no module
// causes.
func outOfMemory(said string) bool {
	return strings.Contains(said, "out of memory") || strings.Contains(said, "cannot allocate memory") ||
		strings.HasPrefix(said, "SIGSEGV: segmentation violation") && strings.Contains(said, "goroutine 0 ")
}

// complaint begins what a child says about a module.
const complaint = "module: "

// CompileMain is the child process that Options.Compiler starts: it compiles the module that it reads, within
// bounds on CPU time and memory, and leaves the machine code in the cache. args are those that the host
// added. It returns the exit code.
func CompileMain(args []string, stdin io.Reader, stderr io.Writer) int {
	fail := func(err error) int {
		fmt.Fprintf(stderr, "%s%v\n", complaint, err)
		return 1
	}
	if len(args) != 4 {
		return fail(fmt.Errorf("compile: %d arguments; want the cache's directory, the memory limit, seconds and bytes", len(args)))
	}
	var n [3]int64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(args[1+i], 10, 64); err != nil {
			return fail(fmt.Errorf("compile: argument %d: %w", 1+i, err))
		}
	}
	memory := n[0]
	if err := limitProcess(time.Duration(n[1])*time.Second, uint64(n[2])); err != nil {
		return fail(fmt.Errorf("compile: limit the process: %w", err))
	}
	code, err := io.ReadAll(stdin)
	if err != nil {
		return fail(fmt.Errorf("compile: read the module: %w", err))
	}
	ctx := context.Background()
	cfg := config(memory)
	if args[0] != "" {
		cache, err := wazero.NewCompilationCacheWithDir(args[0])
		if err != nil {
			return fail(fmt.Errorf("compile: cache: %w", err))
		}
		defer cache.Close(ctx)
		cfg = cfg.WithCompilationCache(cache)
	}
	r := wazero.NewRuntimeWithConfig(ctx, cfg)
	defer r.Close(ctx)
	if _, err := compileIn(ctx, r, code); err != nil {
		return fail(err)
	}
	return 0
}

// head keeps the first bytes that are written to it.
type head struct{ b []byte }

func (t *head) Write(p []byte) (int, error) {
	t.b = append(t.b, p[:min(len(p), maxComplaint-len(t.b))]...)
	return len(p), nil
}

func (t *head) String() string { return string(t.b) }
