package engine

import (
	"math"
	"math/bits"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Traces tell what became of an event at a subscription, after it is settled too. Whenever a try of a step
// ends, one is noted in the subscription's memory, under the mutex that is held anyway; the flush writes
// them, see traceBook. A crash loses those of the last flush.

// traceVerdict is how a try ended.
type traceVerdict uint8

const (
	traceDelivered traceVerdict = iota // taken by the receiver, acknowledged, or in its topic
	traceFiltered                      // the functions put nothing out
	traceRetry                         // failed, and tried again
	traceDead                          // failed for good: its dead letter is written
	traceHeld                          // not tried: it asked to be delivered later
)

func (v traceVerdict) String() string {
	return [...]string{"delivered", "filtered", "retry", "dead-lettered", "held"}[v]
}

// traced is how tries ended that have everything but their offset in common: as a rule the first tries of
// neighbours, of which there are 64 in one.
type traced struct {
	what    traceVerdict
	part    event.Partition
	attempt uint32
	base    event.Offset // a multiple of 64
	mask    uint64       // of the offsets from base on
	at      int64        // Unix ns, of the first
	by      *subConfig   // whose functions were at work; nil: none
	outs    uint32       // events that each put into topics
	out     outPlace     // of the first's first; those of the others follow one by one
	why     *tracedWhy   // of one that failed
}

type outPlace struct {
	topic uint32 // serial
	pos   event.Position
}

type tracedWhy struct {
	reason   string // typed
	function string // at fault
	text     string // of the error, clipped
	code     int
	due      int64 // of the next try, Unix ns
}

// Bounds of what waits in a subscription's memory for the flush.
const (
	maxTraced   = 2048
	tracedReach = 4                      // entries from the last one back into which another may be taken
	tracedSpan  = 100 * time.Millisecond // between the first and the last of an entry
)

// tracer is a subscription's traces that are not written yet. Its mutex guards it.
type tracer struct {
	list []traced
	lost uint64 // there was no room
}

// add notes one try; x.mask has one bit.
func (t *tracer) add(x traced) {
	for i := len(t.list) - 1; i >= max(0, len(t.list)-tracedReach); i-- {
		if t.list[i].take(&x) {
			return
		}
	}
	if len(t.list) == maxTraced {
		t.lost++
		return
	}
	t.list = append(t.list, x)
}

// take makes x part of r if they have all in common.
func (r *traced) take(x *traced) bool {
	if r.base != x.base || r.part != x.part || r.mask&x.mask != 0 || r.what != x.what || r.attempt != x.attempt || r.by != x.by ||
		r.why != nil || x.why != nil || r.outs != x.outs || x.at-r.at > int64(tracedSpan) || x.at < r.at {
		return false
	}
	if r.outs > 0 {
		next := r.out
		next.pos.Offset += event.Offset(bits.OnesCount64(r.mask)) * event.Offset(r.outs)
		if x.out != next || x.mask < r.mask {
			return false
		}
	}
	r.mask |= x.mask
	return true
}

// sampled reports whether an event's tries are traced: all of them or none.
func sampled(t event.Trace, pos event.Position) bool {
	switch {
	case t.Off() || foreign(pos):
		return false
	case t.Sample >= 1 || t.Sample == 0: // the default
		return true
	}
	x := (pos.Offset+1)*0x9E3779B97F4A7C15 ^ uint64(pos.Partition)*0xC2B2AE3D27D4EB4F
	x = (x ^ x>>31) * 0xBF58476D1CE4E5B9
	return float64((x^x>>29)>>11) < t.Sample*(1<<53)
}

// note records how a try of an item ended. The caller holds s.mu.
func (s *subscription) note(it item, x traced) {
	pos := it.rec.Position()
	if !sampled(s.topic.def.Load().Trace, pos) {
		return
	}
	x.part, x.base, x.mask = pos.Partition, pos.Offset&^63, 1<<(pos.Offset&63)
	x.attempt = it.attempt
	if x.by != nil && len(x.by.digests) == 0 {
		x.by = nil
	}
	s.traces.add(x)
	s.soil()
}

// noteDone is note of a step that puts nothing into topics. The caller holds s.mu.
func (s *subscription) noteDone(it item, by *subConfig, what traceVerdict) {
	s.note(it, traced{what: what, at: s.e.now().UnixNano(), by: by})
}

// noteSettled is note of a settlement that is committed. The caller holds s.mu.
func (s *subscription) noteSettled(st *settlement, at int64, first outPlace) {
	x := traced{what: traceDelivered, at: at, by: st.made, outs: uint32(min(len(st.outputs), math.MaxUint16)), out: first}
	switch {
	case st.park != nil && st.park.behind:
		return // it waits for those before it
	case st.park != nil:
		x.what = traceRetry
		if st.failed == nil {
			x.what, st.it.attempt = traceHeld, st.park.attempt
		}
		x.why = &tracedWhy{due: st.park.due}
	case st.dead != "":
		x.what, x.why = traceDead, &tracedWhy{}
	case st.filtered:
		x.what = traceFiltered
	}
	if f := st.failed; f != nil {
		x.why.reason, x.why.function, x.why.code, x.why.text = f.reason, f.function, event.Code(f.err), clip(printable(errText(f.err)), storyReason)
		x.by = f.made
	}
	s.note(st.it, x)
}
