package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// A shadow is another version of a function that runs on what the one in force has answered already, and
// is compared with it. Nothing that it says goes anywhere. It takes what is left over: one call at a time on
// an instance of its own, at most half of the time; what does not fit into its queue is skipped.

const (
	shadowQueue    = 64      // batches that wait
	shadowBytes    = 4 << 20 // of events and outcomes in them
	shadowExamples = 20
	shadowText     = 1 << 10 // bytes of a value in an example
	shadowRest     = time.Second
)

// shadow is shared by the definitions of its subscription that want the same; the last to leave stops it.
type shadow struct {
	function string
	digest   string
	base     string // the version that it is compared with
	print    string
	say      func(level int, message string)
	refs     atomic.Int32
	stop     context.CancelFunc
	jobs     chan *shadowJob
	held     atomic.Int64 // bytes in jobs

	mu   sync.Mutex
	info ShadowInfo
}

// ShadowInfo is how a shadow compares. Runs are Equal, JSONEqual, Different and Failed together.
type ShadowInfo struct {
	Function  string          `json:"function"`
	Digest    string          `json:"digest"`
	Against   string          `json:"against"` // the version in force that it is compared with
	State     string          `json:"state"`   // starting, running or broken
	Reason    string          `json:"reason,omitempty"`
	Since     time.Time       `json:"since"`
	Runs      uint64          `json:"runs"`      // events that were compared
	Equal     uint64          `json:"equal"`     // byte for byte
	JSONEqual uint64          `json:"jsonEqual"` // apart from how JSON is written
	Different uint64          `json:"different"`
	Failed    uint64          `json:"failed"`  // where the version in force did not
	Skipped   uint64          `json:"skipped"` // events that were not looked at
	Examples  []ShadowExample `json:"examples"`
}

// ShadowExample is an event at which the two differed.
type ShadowExample struct {
	Position string    `json:"position"`
	Time     time.Time `json:"time"`
	Path     string    `json:"path"` // the first difference: verdict, data.email, subject, results[1].data
	Old      string    `json:"old"`  // what is there; bounded
	New      string    `json:"new"`
}

type shadowJob struct {
	call plugins.Call
	out  plugins.Outcome
	size int64
}

// planShadows finds or starts the shadows that a definition names. The definition holds them from then on,
// those before a fault included.
func (e *Engine) planShadows(c *subConfig, before *subConfig) error {
	for i, ref := range c.Shadow {
		name, short, _ := strings.Cut(ref, "@")
		at := slices.IndexFunc(c.functions, func(f *function) bool { return f.def.Name == name })
		if at < 0 {
			continue // of the half without functions; rules check the names
		}
		f := c.functions[at]
		if e.o.Host == nil {
			return event.At("shadow", event.ErrUnsupported)
		}
		digest, err := e.o.Host.Resolve(short)
		if err != nil {
			return event.At(fmt.Sprintf("shadow[%d]", i), err)
		}
		def := f.def
		def.Digest = digest
		def.Allow.HTTP = nil // what it would send is sent already
		print := printOf(f.def) + " " + printOf(def)
		if before != nil {
			if j := slices.IndexFunc(before.shadows, func(s *shadow) bool { return s.print == print }); j >= 0 {
				before.shadows[j].refs.Add(1)
				c.shadows = append(c.shadows, before.shadows[j])
				continue
			}
		}
		c.shadows = append(c.shadows, e.startShadow(c.Name, f, def, print))
	}
	return nil
}

func (e *Engine) startShadow(subscription string, f *function, def event.Function, print string) *shadow {
	ctx, stop := context.WithCancel(e.shadowLife())
	s := &shadow{
		function: def.Name, digest: def.Digest, base: f.digest(), print: print, stop: stop, jobs: make(chan *shadowJob, shadowQueue),
		info: ShadowInfo{Function: def.Name, Digest: def.Digest, Against: f.digest(), State: "starting", Since: e.now().UTC()},
	}
	s.say = func(level int, message string) {
		e.o.Log.Log(context.Background(), slogLevel(level), message, "function", def.Name, "shadow", subscription)
		f.book.message(logLine{Digest: def.Digest, Level: levelName(level), Shadow: true, Message: message})
	}
	s.refs.Store(1)
	e.shadowing.Go(func() { s.work(ctx, e, def) })
	return s
}

func (s *shadow) release() {
	if s.refs.Add(-1) == 0 {
		s.stop()
	}
}

// offer hands over a call of the version in force, if there is room. It never waits.
func (s *shadow) offer(call *plugins.Call, out *plugins.Outcome) {
	size := int64(len(out.Buf))
	for _, r := range call.Events {
		size += int64(len(r))
	}
	if len(s.jobs) == cap(s.jobs) || s.held.Load()+size > shadowBytes {
		s.skip(len(call.Events))
		return
	}
	j := &shadowJob{size: size}
	buf := make([]byte, 0, size) // copies: the originals keep whole blocks of the log in memory
	own := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		at := len(buf)
		buf = append(buf, b...)
		return buf[at:len(buf):len(buf)]
	}
	j.call.Key = call.Key
	j.call.Attempts = slices.Clone(call.Attempts)
	for _, r := range call.Events {
		j.call.Events = append(j.call.Events, event.Record(own(r)))
	}
	j.out.Results = slices.Clone(out.Results)
	for i := range j.out.Results {
		r := &j.out.Results[i]
		r.Attrs, r.Data = own(r.Attrs), own(r.Data)
	}
	j.out.Failures = slices.Clone(out.Failures)
	s.held.Add(size)
	select {
	case s.jobs <- j:
	default: // another worker of the subscription was faster
		s.held.Add(-size)
		s.skip(len(call.Events))
	}
}

func (s *shadow) skip(n int) {
	s.mu.Lock()
	s.info.Skipped += uint64(n)
	s.mu.Unlock()
}

// work opens the version and compares until ctx ends.
func (s *shadow) work(ctx context.Context, e *Engine, def event.Function) {
	code, err := e.o.Host.OpenLogged(ctx, def, s.say)
	if err == nil {
		defer func() { e.logClose("shadow", def.Name, code.Close(context.WithoutCancel(ctx))) }()
	} else if ctx.Err() == nil {
		e.o.Log.Warn("a shadow does not start", "function", def.Name, "digest", def.Digest, "error", err)
	}
	s.stand(err)
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-s.jobs:
			s.held.Add(-j.size)
			if err != nil {
				s.skip(len(j.call.Events))
				continue
			}
			began := time.Now()
			s.compare(ctx, code, j, e.now)
			pause(ctx, min(time.Since(began), shadowRest))
		}
	}
}

func (s *shadow) stand(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info.State, s.info.Reason = "running", ""
	if err != nil {
		s.info.State, s.info.Reason = "broken", clip(err.Error(), 512)
	}
}

func (s *shadow) compare(ctx context.Context, code *plugins.Function, j *shadowJob, now func() time.Time) {
	var out plugins.Outcome
	if err := code.Call(ctx, &j.call, &out); err != nil {
		s.skip(len(j.call.Events)) // nothing was decided
		s.stand(err)
		return
	}
	s.stand(nil)
	was, is := answers(len(j.call.Events), &j.out), answers(len(j.call.Events), &out)
	for i, in := range j.call.Events {
		d := differ(in, was[i], is[i])
		s.mu.Lock()
		s.info.Runs++
		switch {
		case d == nil:
			s.info.Equal++
		case d.json:
			s.info.JSONEqual++
		case is[i].failure != "" && was[i].failure == "":
			s.info.Failed++
		default:
			s.info.Different++
		}
		if d != nil && !d.json {
			x := ShadowExample{Position: in.Position().String(), Time: now().UTC(), Path: clip(d.path, 256), Old: shown(d.was), New: shown(d.is)}
			s.info.Examples = append(s.info.Examples, x)
			if over := len(s.info.Examples) - shadowExamples; over > 0 {
				s.info.Examples = slices.Delete(s.info.Examples, 0, over)
			}
		}
		s.mu.Unlock()
	}
}

// shown makes a value fit into an example.
func shown(v string) string { return clip(strings.ToValidUTF8(v, "\uFFFD"), shadowText) }

// Shadows tells how the shadows of a subscription compare, newest examples first; none is an empty list.
func (e *Engine) Shadows(name string) ([]ShadowInfo, error) {
	s, err := e.subscription(name)
	if err != nil {
		return nil, err
	}
	infos := []ShadowInfo{}
	for _, sh := range s.config.Load().shadows {
		sh.mu.Lock()
		info := sh.info
		info.Examples = append([]ShadowExample{}, sh.info.Examples...)
		sh.mu.Unlock()
		slices.Reverse(info.Examples)
		infos = append(infos, info)
	}
	return infos, nil
}
