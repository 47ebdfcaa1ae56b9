package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage"
)

// TrialOptions say what is tried. Zero means the default or none.
type TrialOptions struct {
	Host         *plugins.Host      // needed where the subscription has functions
	Secret       [32]byte           // of the store (see SecretOf): functions then see the random numbers that they see in a delivery
	Subscription event.Subscription // its filter is not looked at
	Functions    []event.Function   // those that the chain names and maybe others; Host has their modules
	// Topics are where events may go; they are checked as a delivery's are. Nil takes any topic.
	Topics   []event.Topic
	AnyTopic bool             // topics that are not in Topics are taken as well: a router may make them
	HTTP     bool             // functions that may, call other hosts in earnest; else such calls fail in words
	Verdicts bool             // results have verdicts; events then run one by one
	Reuse    bool             // records of results hold until the next Run alone, which saves making room for each
	Limits   event.Limits     // of what functions make
	Now      func() time.Time // the wall clock; time.Now
}

// A Trial runs a subscription's chain as a delivery does, and nothing comes of it: nothing is sent or stored,
// no topic is made, nobody counts it. It needs no Engine. One goroutine uses it at a time; open several
// to work side by side, they share the compiled code.
//
// A function that keeps state finds it empty at every event: see Unrepeatable.
type Trial struct {
	o      TrialOptions
	h      *chain
	topics map[string]*topicDef
	fuel   int64            // of the batch at work
	made   [][]TrialVerdict // of the batch at work, by item

	mu   sync.Mutex
	logs []string
	left int // bytes that logs may still take
}

// TrialResult is what became of one event. It borrows nothing but the records that were given.
type TrialResult struct {
	Failure  *TrialFailure  // nil: the chain went through
	Deliver  []event.Record // what would be delivered, or put into the topic that the subscription delivers to
	Outputs  []TrialOutput  // what functions put into topics by name
	Reply    *event.Reply   // where the event asks for one
	Verdicts []TrialVerdict // TrialOptions.Verdicts: in the order of the chain
	Fuel     uint64         // of an event that ran alone; else its share of what ran with it
	Logs     []string       // "warn: …", of an event that ran alone, bounded; else none
}

// TrialFailure is why the chain gave up an event. A delivery would try again, unless it is final.
type TrialFailure struct {
	Reason   string        `json:"reason"` // typed: trap, memory, output, deadline, fuel, reject, hops or attempts (a RETRY)
	Error    string        `json:"error"`
	Code     int           `json:"code,omitempty"`     // of a REJECT
	Function string        `json:"function,omitempty"` // at fault
	Digest   string        `json:"digest,omitempty"`
	Wait     time.Duration `json:"-"` // that a RETRY asks for; 0: by the schedule
	Final    bool          `json:"final"`
}

// TrialOutput is an event for a topic.
type TrialOutput struct {
	Topic string
	Event event.Record
}

// TrialVerdict is one thing that a function said about an event. Verdict is "failed" where it said nothing:
// then Reason has the typed reason, a colon and the error.
type TrialVerdict struct {
	Function, Digest string
	In               event.Record
	event.Invoked
}

// trialLogs bounds what Logs holds, in bytes.
const trialLogs = 16 << 10

// SecretOf is the secret of a store that an engine has opened once; zeros if none has.
func SecretOf(ctx context.Context, store storage.Store) (secret [32]byte, err error) {
	value, err := store.Load(ctx, tableMeta, []byte("secret"))
	copy(secret[:], value)
	return secret, err
}

// OpenTrial opens the functions of a chain. Errors: event.ErrNotFound (a function or its module),
// ErrInvalid, ErrUnsupported (a module that does not work, a schema).
func OpenTrial(ctx context.Context, o TrialOptions) (*Trial, error) {
	o.Limits = o.Limits.WithDefaults()
	if o.Now == nil {
		o.Now = time.Now
	}
	t := &Trial{o: o}
	sub := &o.Subscription
	config := &subConfig{SubscriptionSpec: SubscriptionSpec{Subscription: *sub}}
	t.h = &chain{at: t, name: sub.Name, topic: sub.Topic, seed: seedOf(o.Secret, sub.Name), c: config, reuse: o.Reuse}
	if o.Topics != nil {
		t.topics = map[string]*topicDef{}
		for _, def := range o.Topics {
			schema, err := compileSchema(def)
			if err != nil {
				return nil, event.At("topics."+def.Name, err)
			}
			t.topics[def.Name] = &topicDef{def, schema}
		}
	}
	for i, name := range sub.Functions {
		f, err := t.open(ctx, name)
		if err != nil {
			return nil, errors.Join(event.At(fmt.Sprintf("functions[%d]", i), err), t.Close(ctx))
		}
		config.functions = append(config.functions, f)
		config.stateful = config.stateful || f.def.Allow.KV
	}
	return t, nil
}

func (t *Trial) open(ctx context.Context, name string) (*function, error) {
	at := slices.IndexFunc(t.o.Functions, func(f event.Function) bool { return f.Name == name })
	if at < 0 {
		var have []string
		for i := range t.o.Functions {
			have = append(have, t.o.Functions[i].Name)
		}
		return nil, unknown("function", name, have, "")
	}
	f := &function{def: t.o.Functions[at]}
	if f.def.Digest == "" {
		return f, nil // Run says so
	}
	if t.o.Host == nil {
		return nil, fmt.Errorf("this trial has no function host (TrialOptions.Host): %w", event.ErrUnsupported)
	}
	open := t.o.Host.OpenTrial
	if t.o.HTTP {
		open = t.o.Host.OpenLogged
	}
	var err error
	f.code, err = open(ctx, f.def, t.said)
	return f, err
}

func (t *Trial) said(level int, message string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	line := levelName(level) + ": " + printable(message)
	switch t.left -= len(line); {
	case t.left >= 0:
		t.logs = append(t.logs, line)
	case t.left+len(line) >= 0: // the first that does not fit
		t.logs = append(t.logs, fmt.Sprintf("warn: more was logged; the first %d bytes are shown", trialLogs))
		t.left = -trialLogs
	}
}

// Close ends the functions.
func (t *Trial) Close(ctx context.Context) error {
	var errs []error
	for _, f := range t.h.c.functions {
		if f.code != nil {
			errs = append(errs, f.code.Close(context.WithoutCancel(ctx)))
		}
	}
	return errors.Join(errs...)
}

// Unrepeatable is why what was said until now may differ from what a delivery hears, "" if nothing is known:
// "function seen keeps state".
func (t *Trial) Unrepeatable() string {
	for _, f := range t.h.c.functions {
		if f.code != nil {
			if why := f.code.Unrepeatable(); why != "" {
				return "function " + f.def.Name + ": " + why
			}
		}
	}
	return ""
}

// Run takes events through the chain, each by itself or in batches as a delivery makes them. The events have
// passed the filter, that is the caller's; an attempt of 0 is the first. An error means that a function
// cannot run at all: ctx has ended, no version of it was pushed (event.ErrUnavailable), it is not healthy.
func (t *Trial) Run(ctx context.Context, recs []event.Record) ([]TrialResult, error) {
	results := make([]TrialResult, len(recs))
	if t.o.Reuse {
		t.h.buf = t.h.buf[:0]
	}
	for at := 0; at < len(recs); {
		n, bytes := 1, recs[at].Len()
		for !t.o.Verdicts && !t.h.c.stateful && at+n < len(recs) && n < batchEvents && bytes < batchBytes {
			bytes += recs[at+n].Len()
			n++
		}
		if err := t.batch(ctx, recs[at:at+n], results[at:at+n]); err != nil {
			return nil, err
		}
		at += n
	}
	return results, nil
}

func (t *Trial) batch(ctx context.Context, recs []event.Record, results []TrialResult) error {
	h := t.h
	h.items = h.items[:0]
	for _, rec := range recs {
		h.items = append(h.items, item{rec: rec, attempt: max(rec.Attempt(), 1)})
	}
	t.fuel, t.made = 0, make([][]TrialVerdict, len(recs))
	t.mu.Lock()
	t.logs, t.left = nil, trialLogs
	t.mu.Unlock()
	if err := h.run(ctx); err != nil {
		return err
	}
	named := make([]int, len(recs)) // outputs that functions made
	for i := range h.fates {
		named[i] = len(h.fates[i].outputs)
	}
	if f := h.c.Deliver.Face; f == event.ToTopic || f == event.Stream {
		h.collect(ctx)
	}
	all, at := make([]event.Record, 0, len(h.level)), 0
	for i := range results {
		r, x := &results[i], &h.fates[i]
		from := len(all)
		for ; at < len(h.level) && h.level[at].origin == i; at++ {
			if !x.failed {
				all = append(all, h.level[at].rec)
			}
		}
		r.Verdicts, r.Fuel = t.made[i], uint64(t.fuel)/uint64(len(recs))
		if x.failed {
			r.Failure = trialFailure(&x.failure)
			continue
		}
		r.Deliver, r.Reply = all[from:len(all):len(all)], x.reply
		for _, o := range x.outputs[:named[i]] {
			r.Outputs = append(r.Outputs, TrialOutput{o.event.Topic, event.Record(o.event.AppendRecord(nil))})
		}
	}
	if len(recs) == 1 {
		t.mu.Lock()
		results[0].Logs = t.logs
		t.mu.Unlock()
	}
	return nil
}

func trialFailure(f *failure) *TrialFailure {
	return &TrialFailure{Reason: f.reason, Error: clip(printable(errText(f.err)), 1024), Code: event.Code(f.err),
		Function: f.function, Digest: f.digest, Wait: f.wait, Final: f.final}
}

// outputTo implements around.
func (t *Trial) outputTo(_ context.Context, topic string, ev *event.Event) (output, error) {
	def := t.topics[topic]
	switch {
	case def != nil:
	case t.topics == nil || t.o.AnyTopic:
		if err := event.CheckName("topic", topic); err != nil {
			return output{}, err
		}
		def = &topicDef{Topic: event.Topic{Name: strings.Clone(topic)}}
	default:
		have := make([]string, 0, len(t.topics))
		for name := range t.topics {
			have = append(have, name)
		}
		return output{}, unknown("topic", topic, have, "")
	}
	own, err := ownOutput(def, ev, t.o.Limits, t.o.Now())
	return output{event: own}, err
}

// discarded implements around.
func (t *Trial) discarded(string) {}

// ran implements around.
func (t *Trial) ran(h *chain, f *function, _ time.Duration) {
	t.fuel += h.out.Fuel
	if !t.o.Verdicts {
		return
	}
	add := func(in link, said event.Invoked) {
		t.made[in.origin] = append(t.made[in.origin], TrialVerdict{f.def.Name, f.digest(), in.rec, said})
	}
	next := 0
	for i := range h.out.Results {
		r := &h.out.Results[i]
		in := h.level[r.Index]
		said := event.Invoked{Verdict: strings.ToLower(r.Verdict.String())}
		switch r.Verdict {
		case plugins.Pass:
			next++
		case plugins.Emit:
			var made event.Event
			r.Event(in.rec, &made)
			if made.Topic == "" {
				said.Event = h.next[next].rec
				next++
				break
			}
			said.Topic, made.Topic = strings.Clone(made.Topic), ""
			said.Event = event.Record(made.AppendRecord(nil))
		case plugins.Reject:
			said.Code, said.Reason = int(r.Arg), clip(printable(string(r.Data)), 512)
		case plugins.Retry:
			said.Delay = int64(r.Arg)
		case plugins.Reply:
			said.Code = int(replyOf(r).Status)
		}
		add(in, said)
	}
	for _, x := range h.out.Failures {
		add(h.level[x.Index], event.Invoked{Verdict: "failed", Reason: string(x.Reason) + ": " + clip(printable(errText(x.Err)), 512)})
	}
}
