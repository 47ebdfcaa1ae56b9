package engine

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/storage"
)

// Reader walks a topic from a cursor on, without leaving a trace. It belongs to one goroutine.
type Reader struct {
	e       *Engine
	t       *topic
	program *filters.Program
	scratch filters.Scratch
	parts   []readerPart
	turn    int // the partition to look at next
	blocks  []*storage.Block
}

type readerPart struct {
	next  event.Offset
	block *storage.Block // what is left of it
	rest  event.Record
}

// OpenTopic begins to read a topic. The filter is as in a subscription; "" passes all.
func (e *Engine) OpenTopic(ctx context.Context, name string, start event.Start, filter string) (*Reader, error) {
	t, err := e.topic(name)
	if err != nil {
		return nil, err
	}
	r := &Reader{e: e, t: t}
	if filter != "" {
		if r.program, err = filters.Compile(strings.Clone(filter)); err != nil {
			return nil, event.Invalid("filter", err.Error())
		}
	}
	offsets, err := t.resolve(ctx, start)
	if err != nil {
		return nil, err
	}
	for _, off := range offsets {
		r.parts = append(r.parts, readerPart{next: off})
	}
	return r, nil
}

// OpenSubscription begins to read what a subscription puts out: the topic that it delivers to.
func (e *Engine) OpenSubscription(ctx context.Context, name string, start event.Start, filter string) (*Reader, error) {
	s, err := e.subscription(name)
	if err != nil {
		return nil, err
	}
	d := s.config.Load().shown().Deliver
	if d.Face != event.Stream && d.Face != event.ToTopic {
		return nil, event.Bad(event.ErrConflict, "subscription", fmt.Sprintf("%q delivers by %s; only one with `deliver: {stream: …}` or `{topic: …}` can be streamed", name, d.Face))
	}
	return e.OpenTopic(ctx, d.Topic, start, filter)
}

// Next returns the next event that passes the filter, waiting until there is one, ctx ends, or the router
// drains (event.ErrUnavailable). The record is read-only and stays valid.
func (r *Reader) Next(ctx context.Context) (event.Record, error) {
	for {
		moved := r.t.moved()
		for {
			rec, ok, more, err := r.TryNext(ctx)
			if err != nil || ok {
				return rec, err
			}
			if !more {
				break
			}
		}
		if r.e.draining.Load() {
			return nil, fmt.Errorf("the router is shutting down: %w", event.ErrUnavailable)
		}
		select {
		case <-moved:
		case <-r.t.ended:
			return nil, event.Bad(event.ErrGone, "topic", fmt.Sprintf("%q was deleted", r.t.name))
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// scanLimit bounds how many events one TryNext passes over.
const scanLimit = 10_000

// TryNext is Next without waiting: ok is false at the end of what is stored, or, with more, after it passed
// over 10,000 events that the filter did not pass.
func (r *Reader) TryNext(ctx context.Context) (rec event.Record, ok, more bool, err error) {
	for range scanLimit {
		rec, err := r.step(ctx)
		if err != nil || rec == nil {
			return nil, false, false, err
		}
		if r.program.Match(rec, &r.scratch) {
			return rec, true, false, nil
		}
	}
	return nil, false, true, ctx.Err()
}

// step returns the next event of any partition, nil at the end of all.
func (r *Reader) step(ctx context.Context) (event.Record, error) {
	for range r.parts {
		p := &r.parts[r.turn]
		for {
			for len(p.rest) > 0 {
				rec := p.rest[:p.rest.Len():p.rest.Len()]
				p.rest = p.rest[len(rec):]
				if rec.Offset() >= p.next {
					p.next = rec.Offset() + 1
					return rec, nil
				}
			}
			if p.next >= r.t.parts[r.turn].log.Bounds().Next {
				break
			}
			blocks, err := r.t.parts[r.turn].log.Read(ctx, p.next, 1, r.blocks[:0])
			if err != nil {
				return nil, r.overtaken(err)
			}
			if len(blocks) == 0 {
				break
			}
			p.block, p.rest = blocks[0], event.Record(blocks[0].Records)
		}
		r.turn = (r.turn + 1) % len(r.parts)
	}
	return nil, nil
}

// overtaken names the earliest cursor when the ring has turned over.
func (r *Reader) overtaken(err error) error {
	var trimmed *storage.TrimmedError
	if !errors.As(err, &trimmed) {
		return err
	}
	return r.t.overtaken(trimmed.From)
}

func (t *topic) overtaken(from event.Offset) error {
	heads := make([]event.Offset, len(t.parts))
	for i, p := range t.parts {
		heads[i] = p.log.Bounds().Head
	}
	return event.Bad(event.ErrGone, "cursor", fmt.Sprintf("offset %d has left the ring of topic %q; the earliest cursor is %s", from, t.name, t.cursor(heads)))
}

// Cursor is the position after everything that was returned or passed over.
func (r *Reader) Cursor() string {
	offsets := make([]event.Offset, len(r.parts))
	for i := range r.parts {
		offsets[i] = r.parts[i].next
	}
	return r.t.cursor(offsets)
}

// Offsets appends the next offset of each partition to dst: where Cursor stands.
func (r *Reader) Offsets(dst []event.Offset) []event.Offset {
	for i := range r.parts {
		dst = append(dst, r.parts[i].next)
	}
	return dst
}

// CursorAt is the position before the given offset of each partition of the topic that is read.
func (r *Reader) CursorAt(offsets []event.Offset) string { return r.t.cursor(offsets) }

// Close ends the reader; it holds nothing that must be given back.
func (r *Reader) Close() {}

// cursor: the topic's incarnation and last fork, the number of partitions, the next offset of each; uvarints, base64url.
func (t *topic) cursor(offsets []event.Offset) string {
	b := make([]byte, 0, 32)
	b = binary.AppendUvarint(b, uint64(t.lastFork())<<32|uint64(t.serial))
	b = binary.AppendUvarint(b, uint64(len(offsets)))
	for _, off := range offsets {
		b = binary.AppendUvarint(b, off)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// CursorOffsets is the next offset of each partition that a cursor stands at. Clients of the API must not look into
// cursors; this is for those that are of this build.
func CursorOffsets(cursor string) ([]event.Offset, error) {
	_, offsets, err := openCursor(cursor)
	return offsets, err
}

func openCursor(s string) (serial uint64, offsets []event.Offset, err error) {
	malformed := event.Invalid("cursor", fmt.Sprintf("%.80q is not a cursor of this router: pass one back as it was given", s))
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return 0, nil, malformed
	}
	next := func() (v uint64) {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			err = malformed
			return 0
		}
		b = b[n:]
		return v
	}
	serial, count := next(), next()
	if err != nil || count == 0 || count > uint64(len(b)) { // each takes a byte at least: a short text asks for no memory
		return 0, nil, malformed
	}
	offsets = make([]event.Offset, 0, count)
	for range count {
		offsets = append(offsets, next())
	}
	if err != nil || len(b) != 0 {
		return 0, nil, malformed
	}
	return serial, offsets, nil
}

func (t *topic) parseCursor(s string) ([]event.Offset, error) {
	serial, offsets, err := openCursor(s)
	if err != nil {
		return nil, err
	}
	if uint32(serial) != t.serial || len(offsets) != len(t.parts) {
		return nil, event.Bad(event.ErrGone, "cursor", fmt.Sprintf("it is of another topic, or of one of the name %q that was deleted and made again", t.name))
	}
	if err := t.checkFork(uint32(serial>>32), offsets); err != nil {
		return nil, err
	}
	for i, off := range offsets {
		switch b := t.parts[i].log.Bounds(); {
		case off < b.Head:
			return nil, t.overtaken(off)
		case off > b.Next:
			return nil, event.Bad(event.ErrGone, "cursor", fmt.Sprintf("offset %d lies ahead of topic %q, whose next is %d", off, t.name, b.Next))
		}
	}
	return offsets, nil
}

// Event returns one event of a topic.
func (e *Engine) Event(ctx context.Context, name string, pos event.Position) (event.Record, error) {
	t, err := e.topic(name)
	if err != nil {
		return nil, err
	}
	if int(pos.Partition) >= len(t.parts) {
		return nil, event.Bad(event.ErrNotFound, "position", fmt.Sprintf("%s: topic %q has %d partitions, numbered from 0", pos, name, len(t.parts)))
	}
	log := t.parts[pos.Partition].log
	switch b := log.Bounds(); {
	case pos.Offset < b.Head:
		return nil, t.overtaken(pos.Offset)
	case pos.Offset >= b.Next:
		return nil, event.Bad(event.ErrNotFound, "position", fmt.Sprintf("%s: the partition's next offset is %d", pos, b.Next))
	}
	_, rec, err := readOne(ctx, log, pos.Offset)
	return rec, err
}

// Schema returns a topic's JSON Schema, nil if it has none.
func (e *Engine) Schema(_ context.Context, name string) ([]byte, error) {
	t, err := e.topic(name)
	if err != nil {
		return nil, err
	}
	return t.def.Load().Topic.Schema, nil
}
