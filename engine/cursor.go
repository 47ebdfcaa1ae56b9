package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace/millrace/engine/event"
)

// A cursor is how far a subscription has come in one partition: everything below read has been looked at,
// and of that only the offsets in out are not settled. That is a watermark (the first of out) and the
// acknowledged ranges above it, written from the other side: it costs memory for what is under way, not
// for what is done. The subscription's mutex guards it.
type cursor struct {
	read     event.Offset
	attached bool // fed by the partition's reader; then read may lie behind the partition's live offset
	out      pending
	recover  []event.Offset // of out: neither queued nor in hand, the feeder must read them again
	hasRow   bool           // the store holds a row of this cursor's own
	dirty    bool           // differs from what the store holds
	feeding  bool           // a feeder runs
}

// pending is a sorted list of offsets, most of which come in order and leave in nearly that order.
type pending struct {
	list []mark // from head on
	head int
	live int // marks that are not done
}

type mark struct {
	off     event.Offset
	done    bool
	taken   bool // a pump, sender or consumer has it in hand, or had it when its settlement began
	leaving bool // its settlement is on the way to the store: pending for everybody but that commit's row
}

// add enters an offset, as a rule one above all others.
func (p *pending) add(off event.Offset) {
	if n := len(p.list); n == p.head || p.list[n-1].off < off {
		p.list = append(p.list, mark{off: off})
		p.live++
		return
	}
	i, found := p.find(off)
	switch {
	case !found:
		p.list = slices.Insert(p.list, i, mark{off: off})
	case p.list[i].done:
		p.list[i].done, p.list[i].taken = false, false
	default:
		return
	}
	p.live++
}

func (p *pending) find(off event.Offset) (int, bool) {
	i, found := slices.BinarySearchFunc(p.list[p.head:], off, func(m mark, o event.Offset) int {
		switch {
		case m.off < o:
			return -1
		case m.off > o:
			return 1
		}
		return 0
	})
	return i + p.head, found
}

// has reports whether off is not settled.
func (p *pending) has(off event.Offset) bool {
	i, found := p.find(off)
	return found && !p.list[i].done
}

// at is the mark of off, nil if it is settled. It is valid until the list changes.
func (p *pending) at(off event.Offset) *mark {
	if i, found := p.find(off); found && !p.list[i].done {
		return &p.list[i]
	}
	return nil
}

// leave notes that a commit is about to settle off; false if it is not pending, or on the way in this commit.
func (p *pending) leave(off event.Offset, leaving bool) bool {
	i, found := p.find(off)
	if !found || p.list[i].done || leaving && p.list[i].leaving {
		return false
	}
	p.list[i].leaving = leaving
	return true
}

// settle marks off done and reports whether it was pending.
func (p *pending) settle(off event.Offset) bool {
	i, found := p.find(off)
	if !found || p.list[i].done {
		return false
	}
	p.list[i].done = true
	p.live--
	for p.head < len(p.list) && p.list[p.head].done {
		p.head++
	}
	switch {
	case p.head == len(p.list):
		p.list, p.head = p.list[:0], 0
	case p.head > 64 && p.head > len(p.list)/2:
		p.list, p.head = p.list[:copy(p.list, p.list[p.head:])], 0
	case len(p.list)-p.head > 64 && p.live < (len(p.list)-p.head)/2:
		// One slow delivery at the head must not make the list grow with what was done behind it.
		p.list, p.head = slices.DeleteFunc(p.list, func(m mark) bool { return m.done }), 0
	}
	return true
}

func (p *pending) clear() { p.list, p.head, p.live = p.list[:0], 0, 0 }

// What a commit under way settles is left out: the row is part of that commit, and no other row of the
// subscription is written meanwhile. A cursor row: uvarint read, uvarint count, then the pending offsets as uvarint distances.
func (c *cursor) appendRow(dst []byte, read event.Offset) []byte {
	count := c.out.live
	for _, m := range c.out.list[c.out.head:] {
		if !m.done && m.leaving {
			count--
		}
	}
	dst = binary.AppendUvarint(dst, read)
	dst = binary.AppendUvarint(dst, uint64(count))
	last := event.Offset(0)
	for _, m := range c.out.list[c.out.head:] {
		if !m.done && !m.leaving {
			dst = binary.AppendUvarint(dst, m.off-last)
			last = m.off
		}
	}
	return dst
}

var errCursorRow = errors.New("cursor row is damaged; `router subscriptions seek` sets it anew")

func parseCursorRow(b []byte) (read event.Offset, out []event.Offset, err error) {
	next := func() (v uint64) {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			err = errCursorRow
			return 0
		}
		b = b[n:]
		return v
	}
	read = next()
	count := next()
	if err != nil || count > uint64(len(b)) {
		return 0, nil, errCursorRow
	}
	last := event.Offset(0)
	for range count {
		last += next()
		out = append(out, last)
	}
	if err != nil || len(b) != 0 {
		return 0, nil, fmt.Errorf("%w: %d bytes too many", errCursorRow, len(b))
	}
	return read, out, nil
}
