package plugins

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/millrace/millrace/engine/event"
)

// Options say how a Host works. The zero value of a field means its default.
type Options struct {
	Engines []Engine // what runs scripts; none by default
	ABIs    []ABI    // the conventions that it runs, in the order in which they are tried; none by default
	Dir     string   // modules and the compile cache live here, made if missing; "": memory only
	Cache   string   // with Dir: the compile cache lives here instead, and may be shared by several hosts; what is in it is run

	MaxModule int   // bytes of a module; 64 MiB
	MaxMemory int64 // bytes of linear memory that a function's limits may ask for; 1 GiB
	Instances int   // of one function at work at once; GOMAXPROCS
	Memory    int64 // bytes of linear memory and machine code that all functions aim to stay within; 256 MiB

	// Idle is how long an instance is kept that nobody calls; 1 min. Machine code is kept ten times as long
	// where that of all functions together is little.
	Idle time.Duration

	// Compiler is the command, with its arguments, that compiles modules which this host has not compiled
	// before: a program that ends in CompileMain with the arguments that the host adds. Without one they
	// are compiled in this process, whose time and memory a hostile module may then take.
	Compiler      []string
	CompileTime   time.Duration // of CPU that one compilation may take there, whole seconds; 30 s
	CompileMemory int64         // bytes that it may take; 1 GiB

	// Fetch sends what functions ask for by HTTP, to hosts that their definitions allow. It follows no
	// redirects, ends with ctx, and says event.ErrDenied of addresses that the process does not allow and
	// ErrTooBig of answers over MaxBody. Calls overlap. Default: nothing is sent.
	Fetch func(ctx context.Context, r *Request) (*Response, error)

	// Log takes what functions log and print: bounded in length and rate, UTF-8, otherwise as the guest
	// wrote it. Levels are 0 debug, 1 info, 2 warn, 3 error. Calls may overlap. Default: nowhere.
	Log func(function string, level int, message string)
	Now func() time.Time // the true time, for the guests' clock; time.Now
}

func (o Options) withDefaults() Options {
	if o.MaxModule == 0 {
		o.MaxModule = 64 << 20
	}
	if o.MaxMemory == 0 {
		o.MaxMemory = 1 << 30
	}
	if o.Instances == 0 {
		o.Instances = runtime.GOMAXPROCS(0)
	}
	if o.Memory == 0 {
		o.Memory = 256 << 20
	}
	if o.CompileTime == 0 {
		o.CompileTime = 30 * time.Second
	}
	if o.CompileMemory == 0 {
		o.CompileMemory = 1 << 30
	}
	if o.Idle == 0 {
		o.Idle = time.Minute
	}
	if o.Log == nil {
		o.Log = func(string, int, string) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func (o Options) validate() error {
	var errs []error
	if o.MaxModule < 0 {
		errs = append(errs, fmt.Errorf("option MaxModule: %d bytes; want 1 or more, or 0 for 64 MiB", o.MaxModule))
	}
	if o.MaxMemory < pageSize || o.MaxMemory > 4<<30 {
		errs = append(errs, fmt.Errorf("option MaxMemory: %d bytes; want %d to %d", o.MaxMemory, pageSize, int64(4)<<30))
	}
	if o.Memory < 0 {
		errs = append(errs, fmt.Errorf("option Memory: %d bytes; want 1 or more, or 0 for 256 MiB", o.Memory))
	}
	if o.CompileTime < time.Second {
		errs = append(errs, fmt.Errorf("option CompileTime: %s; want 1s or more, or 0 for 30s", o.CompileTime))
	}
	if o.CompileMemory < 1<<20 {
		errs = append(errs, fmt.Errorf("option CompileMemory: %d bytes; want 1 MiB or more, or 0 for 1 GiB", o.CompileMemory))
	}
	if o.Idle < 0 {
		errs = append(errs, fmt.Errorf("option Idle: %s; want more than 0, or 0 for 1m", o.Idle))
	}
	if o.Instances < 0 {
		errs = append(errs, fmt.Errorf("option Instances: %d; want 1 or more, or 0 for GOMAXPROCS", o.Instances))
	}
	return errors.Join(errs...)
}

// A Host keeps modules and runs functions. Its methods may be called at the same time.
type Host struct {
	o       Options
	runtime wazero.Runtime
	cache   wazero.CompilationCache

	engines []inspectedEngine // as Options.Engines has them

	files   sync.Mutex    // a module is written, or found and kept, or removed: one at a time
	made    time.Time     // the zero of now
	closing chan struct{} // closed by Close
	reaped  chan struct{} // closed when reap has ended; nil before it began

	bytes   atomic.Int64 // of instances and machine code
	busy    atomic.Int64 // instances at work or being made
	waiters atomic.Int64 // calls that wait for room

	compiling sync.Mutex                 // one module at a time: compiling takes all the memory and CPU that it can get
	vetting   sync.Mutex                 // one child process at a time
	vetted    map[[sha256.Size]byte]bool // under mu

	mu       sync.Mutex
	closed   bool
	memory   map[string][]byte    // modules by digest, where there is no Dir
	compiled map[string]*compiled // by key
	warm     *compiled            // what Put compiled last, for the Open that follows,
	warmed   time.Duration        // since when
	open     map[*Function]struct{}
	room     chan struct{} // closed and made anew when there may be room
}

// NewHost makes a host and its directory. Close it.
func NewHost(ctx context.Context, o Options) (*Host, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("functions: %w", err)
	}
	h := &Host{
		o: o, made: time.Now(), closing: make(chan struct{}), room: make(chan struct{}), vetted: map[[sha256.Size]byte]bool{},
		memory: map[string][]byte{}, compiled: map[string]*compiled{}, open: map[*Function]struct{}{},
		engines: make([]inspectedEngine, len(o.Engines)),
	}
	if err := h.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("functions: %w", err), h.Close(ctx))
	}
	return h, nil
}

func (h *Host) start(ctx context.Context) (err error) {
	h.cache = wazero.NewCompilationCache()
	if h.o.Dir != "" {
		if err := os.MkdirAll(h.modules(), 0o700); err != nil {
			return err
		}
		if err := syncDir(h.o.Dir); err != nil {
			return err
		}
		if h.cache, err = wazero.NewCompilationCacheWithDir(h.cacheDir()); err != nil {
			return fmt.Errorf("compile cache in %s: %w", h.cacheDir(), err)
		}
	}
	h.runtime = wazero.NewRuntimeWithConfig(ctx, config(h.o.MaxMemory).WithCompilationCache(h.cache))
	if err := linkWASI(ctx, h.runtime); err != nil {
		return err
	}
	if err := linkMeter(ctx, h.runtime); err != nil {
		return err
	}
	if err := linkScript(ctx, h.runtime); err != nil {
		return err
	}
	for _, abi := range h.o.ABIs {
		if err := abi.Link(ctx, h.runtime); err != nil {
			return err
		}
	}
	h.reaped = make(chan struct{})
	go h.reap()
	return nil
}

// Put checks and compiles a module and keeps it under its digest, "sha256:<hex>": the version of a
// function. It is on disk, synced, when Put returns. To put a module again is nothing. Faults of the
// module are event.ErrInvalid, ErrTooLarge or ErrUnsupported and say in words what to do.
func (h *Host) Put(ctx context.Context, module []byte) (digest string, err error) {
	m, _, err := h.inspect(module)
	if err != nil {
		return "", err
	}
	digest = digestOf(module)
	limit := event.FunctionLimits{}.WithDefaults().Memory
	if len(m.memories) > 0 { // a function whose limits are wide may still be made of it
		limit = min(max(limit, int64(m.memories[0].min)*pageSize), h.o.MaxMemory)
	}
	c, err := h.compile(ctx, m, digest, limit)
	if err != nil {
		return "", err
	}
	h.mu.Lock()
	old := h.warm
	h.warm, h.warmed = c, h.now()
	h.mu.Unlock()
	if err := h.release(ctx, old); err != nil {
		return "", err
	}
	if h.o.Dir == "" {
		h.mu.Lock()
		h.memory[digest] = append([]byte{}, module...)
		h.mu.Unlock()
		return digest, nil
	}
	h.files.Lock()
	defer h.files.Unlock()
	if kept, err := h.Module(digest); err == nil && len(kept) == len(module) {
		return digest, h.touch(digest)
	}
	if err := writeSynced(h.path(digest), module); err != nil {
		return "", fmt.Errorf("keep module %s: %w", digest, err)
	}
	return digest, nil
}

// Module returns the bytes of a module, or event.ErrNotFound. Bytes that no longer have the digest are
// an error that names the file.
func (h *Host) Module(digest string) ([]byte, error) {
	if sum, ok := cutDigest(digest); !ok || len(sum) != sha256.Size {
		return nil, event.Bad(event.ErrInvalid, "digest", fmt.Sprintf("is %.90q; a digest is sha256: and 64 hexadecimal digits in lower case", digest))
	}
	h.mu.Lock()
	b, ok := h.memory[digest]
	h.mu.Unlock()
	if ok {
		return b, nil
	}
	missing := event.Bad(event.ErrNotFound, "digest", fmt.Sprintf("no module %s is kept here; push it", digest))
	if h.o.Dir == "" {
		return nil, missing
	}
	b, err := os.ReadFile(h.path(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing
	}
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	if got := digestOf(b); got != digest {
		return nil, fmt.Errorf("module %s: the file %s is damaged (its digest is %s); push the module again", digest, h.path(digest), got)
	}
	return b, nil
}

// Close closes every function, waiting for calls under way, and frees everything.
func (h *Host) Close(ctx context.Context) error {
	h.mu.Lock()
	first := !h.closed
	h.closed = true
	var open []*Function
	for f := range h.open {
		open = append(open, f)
	}
	h.mu.Unlock()
	for _, f := range open {
		if err := f.Close(ctx); err != nil {
			return err
		}
	}
	if first {
		close(h.closing)
	}
	if h.reaped != nil {
		<-h.reaped
	}
	h.mu.Lock()
	warm := h.warm
	h.warm = nil
	h.mu.Unlock()
	err := h.release(ctx, warm)
	if h.runtime != nil {
		err = errors.Join(err, h.runtime.Close(ctx))
	}
	if h.cache != nil {
		err = errors.Join(err, h.cache.Close(ctx))
	}
	return err
}

var errClosed = fmt.Errorf("%w: the function is closed", event.ErrUnavailable)

func (h *Host) modules() string { return filepath.Join(h.o.Dir, "modules") }
func (h *Host) cacheDir() string {
	if h.o.Cache != "" {
		return h.o.Cache
	}
	return filepath.Join(h.o.Dir, "compiled")
}

func (h *Host) path(digest string) string {
	return filepath.Join(h.modules(), digest[len("sha256:"):]+".wasm")
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func cutDigest(s string) ([]byte, bool) {
	if len(s) < 7 || s[:7] != "sha256:" {
		return nil, false
	}
	b, err := hex.DecodeString(s[7:])
	return b, err == nil && "sha256:"+hex.EncodeToString(b) == s
}

// writeSynced writes a file that is there whole or not at all, also after a power cut.
func writeSynced(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "*.tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path) // after Close: Windows renames no file that is open
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes what was renamed in a folder survive a power cut. Windows cannot: there it is up to NTFS's journal.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
