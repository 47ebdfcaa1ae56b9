package native

import (
	"fmt"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi"
)

// Layout of a result.
const (
	resultHeader = 24
	flagsKnown   = plugins.Inherit | plugins.SameData
)

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
	index int
	abi.Said
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
		*at = said{int(index), abi.About(out)}
	}
	r := plugins.Result{Index: b.Index(at.index), Verdict: plugins.Verdict(buf[4]), Flags: buf[5],
		Count: int(le.Uint16(buf[6:])), Arg: le.Uint32(buf[12:])}
	if r.Verdict > plugins.Reply || r.Flags&^flagsKnown != 0 {
		return 0, plugins.BadOutput(blame, "kind %d with flags %d; kinds are 0 to %d, flags 1 and 2", r.Verdict, r.Flags, plugins.Reply)
	}
	if err := cut(&r, buf); err != nil {
		return 0, plugins.BadOutput(blame, "%s: %w", r.Verdict, err)
	}
	if err := at.Add(&r, out); err != nil {
		return 0, plugins.BadOutput(blame, "%w", err)
	}
	if r.Verdict == plugins.Emit {
		if err := abi.CheckEmit(&r, b.Event(at.index), &g.scratch); err != nil {
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
