// Package abi holds what calling conventions share: which verdicts about an event go together, and the JSON
// that conventions without a layout of their own speak.
package abi

import (
	"fmt"
	"math"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// Said is what the results so far say of one event. Make one with About for every event of a batch.
type Said struct {
	first   int // of Outcome.Results
	emits   int
	decided plugins.Verdict // Pass, Drop, Retry or Reject; Emit: none yet
	replied bool
}

// About begins with an event whose results will be appended to out.
func About(out *plugins.Outcome) Said {
	return Said{first: len(out.Results), decided: plugins.Emit}
}

// Nothing reports whether no verdict about the event was added.
func (s *Said) Nothing() bool { return s.emits == 0 && s.decided == plugins.Emit && !s.replied }

// Add holds r, which is not yet in out, against what was said before about the same event. A RETRY or REJECT
// discards EMITs.
func (s *Said) Add(r *plugins.Result, out *plugins.Outcome) error {
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

// onlyContentType reports whether a result's attributes are at most the type of its data.
func onlyContentType(r *plugins.Result) bool {
	return r.Count == 0 || r.Count == 1 && event.Tag(r.Attrs[0]) == event.TagDataContentType && le.Uint32(r.Attrs[4:]) != event.NoValue
}

// outputLimits bound the attributes of an Emit as those of a client; its data is bounded by the output.
var outputLimits = event.Limits{Event: math.MaxInt}

// CheckEmit makes the event that an Emit about in stands for, in scratch, and holds it to CloudEvents 1.0.
func CheckEmit(r *plugins.Result, in event.Record, scratch *event.Event) error {
	e := scratch
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
