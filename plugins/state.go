package plugins

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/millrace/millrace/engine/event"
)

// Bounds of a function's state.
const (
	MaxStateKey    = 512                          // bytes of a key; at least 1
	MaxStateValue  = 64 << 10                     // bytes of a value
	MaxStateStaged = 1 << 20                      // bytes of keys and values that one call may leave written
	stateWork      = 8 << 10                      // bytes that a look at the state counts as
	maxStateTTL    = 100 * 365 * 24 * 3600 * 1000 // ms; longer is for ever
)

// What the state functions of an Instance say besides nil; any other error has ended the call.
var (
	ErrStateNotFound = errors.New("the key is not there, or has expired")
	ErrStateDenied   = errors.New("the function may not keep state: its definition lacks `allow: {kv: true}`, or no event is at work")
	ErrStateTooBig   = errors.New("the key, the value or what the call has written is too big")
	ErrStateArgument = errors.New("the key is empty, the time to live is negative, or the number is none or would overflow")
)

// StateReader is the state of one function as it is committed. It is used by the goroutine that called
// Function.Call, and not after that returned.
type StateReader interface {
	// LoadState returns the value of a key, which may be borrowed until the call ends, and when it expires:
	// Unix nanoseconds of received time, 0 for never. ok is false if there is none. An error ends the call:
	// nothing is decided.
	LoadState(ctx context.Context, key []byte) (value []byte, expires int64, ok bool, err error)
}

// A StateWrite is what a call leaves a key at.
type StateWrite struct {
	Key     string
	Value   []byte // borrowed until the outcome is used again
	Expires int64  // Unix nanoseconds of received time; 0: never
	Deleted bool
}

func (w *StateWrite) size() int { return len(w.Key) + len(w.Value) }

// Writes are what the call leaves of the function's state, each key once, runs that failed left out: to be
// kept together with the results or not at all. They are valid as long as the outcome is.
func (o *Outcome) Writes() []StateWrite { return o.staged.list }

// StateOps counts what the call has read and written of its state, runs that failed included. An addition is
// one of each.
func (o *Outcome) StateOps() (reads, writes uint64) { return o.staged.reads, o.staged.writes }

// staging holds what a call's functions write: each run sees what the runs before it left, and one that
// ended in a fault leaves nothing.
type staging struct {
	reader StateReader // nil: the state is empty
	list   []StateWrite
	at     map[string]int // index in list
	kept   int            // of list, made by runs that ended well
	undo   []undone       // what the run under way has changed of those, as it was before
	run    int            // the run under way,
	by     []int          // and which one wrote each of list last
	bytes  int

	reads, writes uint64
}

type undone struct {
	at    int
	write StateWrite
}

func (s *staging) reset() {
	clear(s.list)
	clear(s.at)
	clear(s.undo)
	s.reader, s.list, s.by, s.undo, s.kept, s.bytes, s.run = nil, s.list[:0], s.by[:0], s.undo[:0], 0, 0, 0
	s.reads, s.writes = 0, 0
}

// keep makes what the run wrote the call's.
func (s *staging) keep() {
	clear(s.undo)
	s.kept, s.undo = len(s.list), s.undo[:0]
	s.run++
}

// discard forgets what the run wrote.
func (s *staging) discard() {
	for _, w := range s.list[s.kept:] {
		delete(s.at, w.Key)
		s.bytes -= w.size()
	}
	clear(s.list[s.kept:])
	s.list, s.by = s.list[:s.kept], s.by[:s.kept]
	for i := len(s.undo) - 1; i >= 0; i-- {
		u := s.undo[i]
		s.bytes += u.write.size() - s.list[u.at].size()
		s.list[u.at] = u.write
	}
	clear(s.undo)
	s.undo = s.undo[:0]
}

// load reads a key as the event at work sees it.
func (s *staging) load(ctx context.Context, key []byte, now int64) (value []byte, expires int64, ok bool, err error) {
	if i, staged := s.at[string(key)]; staged {
		w := &s.list[i]
		value, expires, ok = w.Value, w.Expires, !w.Deleted
	} else if s.reader != nil {
		value, expires, ok, err = s.reader.LoadState(ctx, key)
	}
	if err != nil || !ok || expires != 0 && expires <= now {
		return nil, 0, false, err
	}
	return value, expires, true, nil
}

// stage notes a write, whose value it copies.
func (s *staging) stage(key []byte, value []byte, expires int64, deleted bool) error {
	i, staged := s.at[string(key)]
	size := s.bytes + len(key) + len(value)
	if staged {
		size -= s.list[i].size()
	}
	if size > MaxStateStaged && !deleted {
		return ErrStateTooBig
	}
	s.bytes = size
	w := StateWrite{Value: append([]byte(nil), value...), Expires: expires, Deleted: deleted}
	if staged {
		w.Key = s.list[i].Key
		if i < s.kept && s.by[i] != s.run { // once: a guest in a loop must not fill the host with what it overwrites
			s.undo = append(s.undo, undone{i, s.list[i]})
		}
		s.list[i], s.by[i] = w, s.run
		return nil
	}
	if s.at == nil {
		s.at = map[string]int{}
	}
	w.Key = string(key)
	s.at[w.Key] = len(s.list)
	s.list, s.by = append(s.list, w), append(s.by, s.run)
	return nil
}

// AllowsState reports whether the function may keep state.
func (in *Instance) AllowsState() bool { return in.fn.def.Allow.KV }

// state says what the event at work may do with a key; now is its received time, which the time to live
// runs on.
func (in *Instance) state(key []byte) (s *staging, now int64, err error) {
	switch {
	case !in.fn.def.Allow.KV || in.staged == nil || in.batch.call == nil:
		return nil, 0, ErrStateDenied
	case len(key) == 0:
		return nil, 0, ErrStateArgument
	case len(key) > MaxStateKey:
		return nil, 0, ErrStateTooBig
	}
	in.Work(stateWork)
	return in.staged, in.Now(), nil
}

// loadState reads a key. A state that cannot be read ends the call and does not return: whatever the guest
// was told would be wrong.
func (in *Instance) loadState(s *staging, key []byte, now int64) (value []byte, expires int64, ok bool) {
	s.reads++
	value, expires, ok, err := s.load(in.ctx.Context, key, now)
	if err != nil {
		in.End(fmt.Errorf("function %s: its state cannot be read: %w: %w", in.fn.def.Name, event.ErrUnavailable, err))
	}
	return value, expires, ok
}

// StateGet returns the value of a key, borrowed until the next call of a state function.
func (in *Instance) StateGet(key []byte) ([]byte, error) {
	s, now, err := in.state(key)
	if err != nil {
		return nil, err
	}
	value, _, ok := in.loadState(s, key, now)
	if !ok {
		return nil, ErrStateNotFound
	}
	return value, nil
}

// StatePut sets a key, for ttl milliseconds of received time from the event at work on; 0 is for ever.
func (in *Instance) StatePut(key, value []byte, ttl int64) error {
	s, now, err := in.state(key)
	switch {
	case err != nil:
		return err
	case ttl < 0:
		return ErrStateArgument
	case len(value) > MaxStateValue:
		return ErrStateTooBig
	}
	expires := int64(0)
	if ttl > 0 && ttl <= maxStateTTL {
		expires = now + ttl*1e6
	}
	s.writes++
	in.Work(len(value))
	return s.stage(key, value, expires, false)
}

// StateDelete removes a key; one that is not there is ErrStateNotFound.
func (in *Instance) StateDelete(key []byte) error {
	s, now, err := in.state(key)
	if err != nil {
		return err
	}
	if _, _, ok := in.loadState(s, key, now); !ok {
		return ErrStateNotFound
	}
	s.writes++
	return s.stage(key, nil, 0, true)
}

// StateAdd adds to a number and returns what it is then. Numbers are kept as decimal text; a key that is not
// there is 0. A number that expires keeps its time.
func (in *Instance) StateAdd(key []byte, delta int64) (int64, error) {
	s, now, err := in.state(key)
	if err != nil {
		return 0, err
	}
	value, expires, ok := in.loadState(s, key, now)
	n := int64(0)
	if ok {
		if n, err = strconv.ParseInt(string(value), 10, 64); err != nil {
			return 0, ErrStateArgument
		}
	}
	if delta > 0 && n > math.MaxInt64-delta || delta < 0 && n < math.MinInt64-delta {
		return 0, ErrStateArgument
	}
	n += delta
	s.writes++
	return n, s.stage(key, strconv.AppendInt(in.scratch[:0], n, 10), expires, false)
}
