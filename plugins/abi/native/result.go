package native

import (
	"fmt"
	"math"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// Layout of a result.
const (
	resultHeader = 24
	flagsKnown   = plugins.Inherit | plugins.SameData
)

// outputLimits bound the attributes of an Emit as those of a client; its data is bounded by the output.
var outputLimits = event.Limits{Event: math.MaxInt}

// results copies what handle returned to out and checks it: every event of the batch has results, in
// order, in a combination that means something.
func (g *guest) results(b *plugins.Batch, packed uint64, out *plugins.Outcome) error {
	ptr, n := uint32(packed>>32), uint32(packed)
	if packed == 0 {
		return plugins.BadOutput(-1, "%s returned 0: the guest gave up", handleFn)
	}
	if uint64(n) > uint64(b.MaxOutput) {
		return plugins.BadOutput(-1, "%d bytes of results; the function's limit is %d (limits.output)", n, b.MaxOutput)
	}
	view, ok := g.in.Memory().Read(ptr, n)
	if !ok {
		return plugins.BadOutput(-1, "%s returned %d bytes at %d, outside the memory of %d bytes", handleFn, n, ptr, g.in.Memory().Size())
	}
	start := len(out.Buf)
	out.Buf = append(out.Buf, view...)
	rest := out.Buf[start:len(out.Buf):len(out.Buf)]

	at := said{index: -1}
	for count := 0; len(rest) > 0; count++ {
		if count == b.MaxResults {
			return plugins.BadOutput(-1, "more than %d results of one call", b.MaxResults)
		}
		size, err := g.result(b, &at, rest, out)
		if err != nil {
			return err
		}
		rest = rest[size:]
	}
	if at.index+1 < b.Len() {
		return plugins.BadOutput(at.index+1, "no result for event %d of %d: silence is an error; return DROP to drop an event", at.index+1, b.Len())
	}
	return nil
}

// said is what the results so far say of the event that they have come to.
type said struct {
	index   int
	first   int // of out.Results
	emits   int
	decided plugins.Verdict // Pass, Drop, Retry or Reject; Emit: none yet
	replied bool
}

// result reads one result at the start of buf, appends it and returns its size.
func (g *guest) result(b *plugins.Batch, at *said, buf []byte, out *plugins.Outcome) (int, error) {
	blame := max(at.index, 0)
	if len(buf) < resultHeader {
		return 0, plugins.BadOutput(blame, "%d bytes after the last result; a result has %d or more", len(buf), resultHeader)
	}
	size, index := le.Uint32(buf), le.Uint32(buf[8:])
	if index < uint32(b.Len()) {
		blame = int(index)
	}
	if size < resultHeader || size%8 != 0 || uint64(size) > uint64(len(buf)) {
		return 0, plugins.BadOutput(blame, "a result of %d bytes where %d are left; want a multiple of 8 from %d", size, len(buf), resultHeader)
	}
	buf = buf[:size:size]
	switch {
	case index >= uint32(b.Len()):
		return 0, plugins.BadOutput(blame, "a result for event %d of a batch of %d", index, b.Len())
	case int(index) < at.index:
		return 0, plugins.BadOutput(blame, "a result for event %d after one for event %d; results come in order", index, at.index)
	case int(index) > at.index+1:
		return 0, plugins.BadOutput(at.index+1, "no result for event %d: silence is an error; return DROP to drop an event", at.index+1)
	case int(index) > at.index:
		*at = said{index: int(index), first: len(out.Results), decided: plugins.Emit}
	}
	r := plugins.Result{Index: b.Index(at.index), Verdict: plugins.Verdict(buf[4]), Flags: buf[5],
		Count: int(le.Uint16(buf[6:])), Arg: le.Uint32(buf[12:])}
	if r.Verdict > plugins.Reply || r.Flags&^flagsKnown != 0 {
		return 0, plugins.BadOutput(blame, "kind %d with flags %d; kinds are 0 to %d, flags 1 and 2", r.Verdict, r.Flags, plugins.Reply)
	}
	if err := cut(&r, buf); err != nil {
		return 0, plugins.BadOutput(blame, "%s: %w", r.Verdict, err)
	}
	if err := at.add(&r, out); err != nil {
		return 0, plugins.BadOutput(blame, "%w", err)
	}
	if r.Verdict == plugins.Emit {
		if err := g.check(&r, b.Event(at.index)); err != nil {
			return 0, plugins.BadOutput(blame, "EMIT: %w", err)
		}
	}
	out.Results = append(out.Results, r)
	return int(size), nil
}

// cut finds a result's attributes and data.
func cut(r *plugins.Result, buf []byte) error {
	off, n := uint64(le.Uint32(buf[16:])), uint64(le.Uint32(buf[20:]))
	end := uint64(len(buf))
	if off != 0 || n != 0 {
		if off < resultHeader || off+n > end {
			return fmt.Errorf("data at %d+%d of a result of %d bytes", off, n, end)
		}
		end = off
		r.Data = buf[off : off+n : off+n]
	}
	attrs := buf[resultHeader:end]
	size, err := event.CheckAttrs(attrs, r.Count)
	if err != nil {
		return err
	}
	r.Attrs = attrs[:size:size]
	return nil
}

// add holds a verdict against those before it about the same event. A RETRY or REJECT discards EMITs.
func (s *said) add(r *plugins.Result, out *plugins.Outcome) error {
	switch {
	case r.Verdict == plugins.Emit:
	case r.Verdict == plugins.Reply && r.Flags == 0 && onlyContentType(r):
	case r.Flags != 0 || r.Count != 0:
		return fmt.Errorf("%s with flags %d and %d attributes; only EMIT has them, and REPLY one, datacontenttype", r.Verdict, r.Flags, r.Count)
	}
	switch r.Verdict {
	case plugins.Emit:
		if s.decided != plugins.Emit && s.decided != plugins.Pass {
			return fmt.Errorf("EMIT after %s", s.decided)
		}
		s.emits++
		return nil
	case plugins.Reply:
		if s.replied {
			return fmt.Errorf("REPLY twice")
		}
		if r.Arg != 0 && (r.Arg < 200 || r.Arg > 599) {
			return fmt.Errorf("REPLY with status %d; want 200 to 599, or 0 for 200", r.Arg)
		}
		s.replied = true
		return nil
	}
	if s.decided != plugins.Emit {
		return fmt.Errorf("%s after %s", r.Verdict, s.decided)
	}
	s.decided = r.Verdict
	if s.emits == 0 {
		return nil
	}
	if r.Verdict != plugins.Retry && r.Verdict != plugins.Reject {
		return fmt.Errorf("%s after EMIT; only RETRY and REJECT may follow, and discard it", r.Verdict)
	}
	kept := out.Results[:s.first]
	for _, x := range out.Results[s.first:] {
		if x.Verdict != plugins.Emit {
			kept = append(kept, x)
		}
	}
	clear(out.Results[len(kept):])
	out.Results = kept
	return nil
}

// contentTypeTag is the tag of datacontenttype.
const contentTypeTag = 5

// onlyContentType reports whether a result's attributes are at most the type of its data.
func onlyContentType(r *plugins.Result) bool {
	return r.Count == 0 || r.Count == 1 && r.Attrs[0] == contentTypeTag && le.Uint32(r.Attrs[4:]) != event.NoValue
}

// check makes the event that an Emit stands for and holds it to CloudEvents 1.0.
func (g *guest) check(r *plugins.Result, in event.Record) error {
	e := &g.scratch
	r.Event(in, e)
	if e.ID == "" {
		e.ID = "-" // the engine names it
	}
	topic := e.Topic
	err := e.Validate(outputLimits)
	if err == nil && topic != "" {
		err = event.CheckName("topic", topic)
	}
	*e = event.Event{Extensions: e.Extensions[:0]}
	return err
}
