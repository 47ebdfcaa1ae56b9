package plugins

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math/rand/v2"
	"reflect"
	"strings"
	"time"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"

	"github.com/millrace/millrace/engine/event"
)

// An Instance is one guest at work: its memory, and what its host functions answer from. One goroutine
// uses it at a time.
type Instance struct {
	fn        *Function
	module    api.Module
	memory    api.Memory
	guest     Guest
	companion api.Module // what it imports beside the host's modules; nil: nothing
	ctx       guestContext
	made      time.Time         // the zero of its monotonic clock
	size      uint32            // bytes of memory when it was made
	used      time.Duration     // when it was put back last, as Host.now counts
	fuel      api.MutableGlobal // what is left of the slice; nil while the guest starts
	grantOf   api.MutableGlobal // the slice, for the guest
	spent     spending
	granted   int64 // the slice at work
	fetches   int   // requests of the run
	counts    int64 // bytes of memory as the function's stats have them
	runs      int
	stackAt   int  // the field of its exports that holds their stack, from 1
	deep      bool // a stack has grown beyond maxStack

	batch   Batch // batch.call is nil outside a run
	random  *rand.ChaCha8
	seeded  int // the event that random was seeded for, from 1; 0: none
	hash    hash.Hash
	seed    [sha256.Size]byte
	scratch [16]byte
	stdin   input
	stdout  lines
	stderr  lines
	ended   error    // why a host function ended the call
	staged  *staging // of the run under way; nil outside one
}

// guestContext is what host functions are called with. It knows the instance and nothing of the values
// of the caller's context, which no guest may depend on.
type guestContext struct {
	context.Context
	in    *Instance
	links context.Context // holds the instance's own imports while it is linked
}

func (c *guestContext) Value(key any) any {
	if c.links != nil {
		return c.links.Value(key)
	}
	return nil
}

// InstanceOf returns the instance that called a host function.
func InstanceOf(ctx context.Context) *Instance { return ctx.(*guestContext).in }

// Memory is the guest's memory. It may be read after a fault. A host function that a module's start function
// calls finds none: that ends the start.
func (in *Instance) Memory() api.Memory {
	if in.memory == nil {
		in.End(errors.New("its start function calls a host function that needs the memory, which is not there yet; call it from _initialize or later"))
	}
	return in.memory
}

// Export returns an exported function; nil if there is none.
func (in *Instance) Export(name string) api.Function {
	fn := in.module.ExportedFunction(name)
	if fn != nil {
		in.stackAt = stackField(fn)
	}
	return fn
}

// maxStack is how many bytes of machine stack an instance may keep from call to call. It is host memory that no
// memory limit counts, up to some 80 MiB for each export, and never shrinks.
const maxStack = 2 << 20

// stackField finds the field of wazero's functions that holds their stack: its index from 1, 0 if this engine has
// none. No method tells its size.
func stackField(fn api.Function) int {
	if t := reflect.TypeOf(fn); t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct {
		for i := range t.Elem().NumField() {
			if f := t.Elem().Field(i); f.Name == "stack" && f.Type.Kind() == reflect.Slice {
				return i + 1
			}
		}
	}
	return 0
}

// Invoke calls an export with its parameters in stack, which then holds its results. An error is a
// *GuestError, or the context's if that ended the call; the instance is then spent.
func (in *Instance) Invoke(fn api.Function, stack []uint64) error {
	err := fn.CallWithStack(&in.ctx, stack)
	if err == nil {
		in.deep = in.deep || in.stackAt > 0 && reflect.ValueOf(fn).Elem().Field(in.stackAt-1).Len() > maxStack
		return nil
	}
	if in.ended != nil {
		return in.ended
	}
	return in.fault(err)
}

// fault names what ended a guest. WASM has no trap for running out of memory: memory.grow says no and
// the guest gives up in its own way, so that reason is told by the traces of it.
func (in *Instance) fault(err error) *GuestError {
	g := &GuestError{Reason: ReasonTrap, Index: -1}
	var exit *sys.ExitError
	said := in.stderr.first()
	if errors.As(err, &exit) {
		g.Err = &ExitError{exit.ExitCode()}
	} else {
		g.Err = errors.New(trap(err.Error()))
	}
	limit := in.fn.def.Limits.Memory
	spent := int64(in.memory.Size()) > limit-limit/16
	aborted := exit != nil || strings.Contains(g.Err.Error(), "unreachable")
	if in.stderr.oom || spent && aborted {
		g.Reason = ReasonMemory
		g.Err = fmt.Errorf("out of memory (%d of %d KiB in use): %w", in.memory.Size()/1024, limit/1024, g.Err)
	}
	if said != "" {
		g.Err = fmt.Errorf("%w; it said: %s", g.Err, said)
	}
	return g
}

// trap shortens the words for a trap to its kind and the innermost frames.
func trap(s string) string {
	kind, trace, _ := strings.Cut(strings.TrimPrefix(s, "wasm error: "), "\nwasm stack trace:\n\t")
	frames := strings.SplitN(trace, "\n\t", 4)
	if trace != "" {
		kind += " in " + strings.Join(frames[:min(len(frames), 3)], ", ")
	}
	return bounded(kind)
}

// Guest is the instance as its convention sees it; nil while it is being made.
func (in *Instance) Guest() Guest { return in.guest }

// At tells one event at work from every other of this instance's; 0 is none.
func (in *Instance) At() int {
	if in.batch.call == nil {
		return 0
	}
	return in.runs<<16 | in.cursor() + 1
}

// Name is the function's name.
func (in *Instance) Name() string { return in.fn.def.Name }

// Config is a value of the function's configuration.
func (in *Instance) Config(key []byte) (string, bool) {
	in.Work(len(key))
	v, ok := in.fn.def.Config[string(key)]
	return v, ok
}

// Now is when the event at work was received, in Unix nanoseconds: the same in every attempt. While the
// guest is initialised it is 0.
func (in *Instance) Now() int64 {
	if in.batch.call == nil {
		return 0
	}
	return in.batch.Event(in.cursor()).Received()
}

// Clock is the true time in Unix nanoseconds.
func (in *Instance) Clock() int64 {
	if in.batch.call != nil && !in.fn.timed.Load() { // written once: instances share it
		in.fn.timed.Store(true)
	}
	return in.fn.host.o.Now().UnixNano()
}

// Random fills p with the next bytes of a stream that is the same in every attempt at the event at work,
// and differs from event to event, from subscription to subscription and from function to function.
func (in *Instance) Random(p []byte) {
	at := 0
	if in.batch.call != nil {
		at = in.cursor() + 1
	}
	if in.random == nil || at != in.seeded {
		in.reseed(at)
	}
	for len(p) > 0 {
		part := p[:min(len(p), workSlice)]
		in.Work(len(part))
		_, _ = in.random.Read(part) // never fails
		p = p[len(part):]
	}
}

func (in *Instance) reseed(at int) {
	in.hash.Reset()
	if at == 0 {
		_, _ = in.hash.Write(borrow(in.fn.def.Digest))
	} else {
		r := in.batch.Event(at - 1)
		b := in.scratch[:]
		binary.LittleEndian.PutUint32(b[0:], r.Partition())
		binary.LittleEndian.PutUint64(b[4:], r.Offset())
		binary.LittleEndian.PutUint32(b[12:], uint32(len(in.fn.def.Name)))
		_, _ = in.hash.Write(in.batch.call.Key[:])
		_, _ = in.hash.Write(b)
		_, _ = in.hash.Write(borrow(in.fn.def.Name))
		// In a chain all outputs of a function for one event have its position; their ids tell them apart.
		_, _ = in.hash.Write(borrow(r.Attr(event.TagID)))
	}
	in.hash.Sum(in.seed[:0])
	if in.random == nil {
		in.random = rand.NewChaCha8(in.seed)
	} else {
		in.random.Seed(in.seed)
	}
	in.seeded = at
}

// cursor is the event at work, held inside the batch whatever the guest claims.
func (in *Instance) cursor() int {
	if c := in.guest.Cursor(); c >= 0 && c < in.batch.Len() {
		return c
	}
	return in.batch.Len() - 1
}

// Log passes a message of the guest on, within the function's budget.
func (in *Instance) Log(level int, message []byte) {
	in.fn.log(min(max(level, 0), 3), message)
}

// End makes the call that is under way fail with err: for host functions that must not return.
func (in *Instance) End(err error) {
	in.ended = err
	panic(err) // wazero unwinds the guest and returns it as the call's error
}

// run hands a batch to the guest and appends to out. A fault leaves out as it was
// and names the event to blame if it can. An error is the context's.
func (in *Instance) run(ctx context.Context, b Batch, out *Outcome) (*GuestError, error) {
	results, bytes := len(out.Results), len(out.Buf)
	b.MaxOutput, b.MaxResults = in.fn.def.Limits.Output, maxResults
	in.batch = b
	in.ctx.Context = ctx
	in.seeded = -1
	in.runs++
	in.staged = &out.staged
	in.ended, in.fetches = nil, 0
	in.begin(b.Len())
	err := in.guest.Handle(&in.batch, out)
	in.end()
	out.Fuel += in.spent.fuel
	in.flush()
	in.count()
	var fault *GuestError
	if err != nil {
		clear(out.Results[results:])
		out.Results, out.Buf = out.Results[:results], out.Buf[:bytes]
		out.staged.discard()
		if fault, err = split(err); fault != nil && fault.Index < 0 {
			fault.Index = in.guest.Cursor()
		}
	}
	out.staged.keep()
	in.staged = nil
	in.batch = Batch{}
	in.Redirect(nil, nil)
	in.ctx.Context = context.Background()
	return fault, err
}

// split tells a guest's fault from the end of a context.
func split(err error) (fault *GuestError, other error) {
	if errors.As(err, &fault) {
		return fault, nil
	}
	return nil, err
}

// grown reports whether the guest has taken most of what it may since it was made.
func (in *Instance) grown() bool {
	if in.deep {
		return true
	}
	limit := in.fn.def.Limits.Memory
	return in.memory.Size() > in.size && int64(in.memory.Size()) > limit/4*3
}

// count brings the function's stats up to the memory in use.
func (in *Instance) count() {
	if n := in.memoryInUse(); n != in.counts {
		in.fn.stats.bytes.Add(n - in.counts)
		in.fn.host.bytes.Add(n - in.counts)
		in.counts = n
	}
}

func (in *Instance) close(ctx context.Context) error {
	in.fn.stats.instances.Add(-1)
	in.fn.stats.bytes.Add(-in.counts)
	in.fn.host.bytes.Add(-in.counts)
	defer in.fn.drop()
	if e, ok := in.guest.(Ender); ok {
		e.End()
	}
	err := in.module.Close(ctx)
	if in.companion != nil {
		err = errors.Join(err, in.companion.Close(ctx))
	}
	return err
}
