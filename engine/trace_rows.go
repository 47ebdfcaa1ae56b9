package engine

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/bits"
	"slices"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Tries are stored in rows of a block of offsets each: what a flush found of it, of all subscriptions. To find
// those of one event means to read the rows of its block.

const (
	traceBlock   = 8 // bits of an offset within its block
	traceVersion = 1
	traceDigest  = 8 // bytes that a digest is cut to; enough to find the module
)

// traceKey is the key of a row. The flush's time tells rows of one block apart, and how old they are.
func traceKey(topic uint32, p event.Partition, block uint64, at int64) []byte {
	k := be.AppendUint64(be.AppendUint32(be.AppendUint32(make([]byte, 0, 24), topic), p), block)
	return be.AppendUint64(k, uint64(at))
}

func splitTraceKey(k []byte) (block uint64, at int64) {
	return be.Uint64(k[8:]), int64(be.Uint64(k[16:]))
}

// A row: version u8, uvarint-sized revision of the rules, then entries. One begins with a byte of flags: the
// verdict in the lower three bits, and those below. tracedBy alone says whose entries follow: uvarint
// subscription, uvarint-sized digests. The others: the offset within the block u8, or with tracedMany the
// group of 64 u8 and a mask u64; uvarint ms before the row's time; with tracedAgain uvarint attempt, else it is
// the first; with tracedOut uvarint outputs, topic, partition, offset; with tracedFailed uvarint code, 1 + ms to the next
// try or 0, uvarint-sized reason, function and text.
const (
	tracedMany   = 1 << 3
	tracedOut    = 1 << 4
	tracedFailed = 1 << 5
	tracedAgain  = 1 << 6
	tracedBy     = 1 << 7
)

// traceRow is a row that is being made.
type traceRow struct {
	traceRowAt
	key   []byte
	value []byte
	sub   uint32 // whose entries came last
	by    *subConfig
}

func appendTraceBy(b []byte, sub uint32, short []byte) []byte {
	b = binary.AppendUvarint(append(b, tracedBy), uint64(sub))
	return append(binary.AppendUvarint(b, uint64(len(short))), short...)
}

// appendTraced adds an entry whose subscription the row knows.
func appendTraced(b []byte, x *traced, at int64) []byte {
	flags := byte(x.what)
	many := bits.OnesCount64(x.mask) > 1
	if many {
		flags |= tracedMany
	}
	if x.outs > 0 {
		flags |= tracedOut
	}
	if x.why != nil {
		flags |= tracedFailed
	}
	if x.attempt != 1 {
		flags |= tracedAgain
	}
	b = append(b, flags)
	low := byte(x.base) // of a block
	if many {
		b = be.AppendUint64(append(b, low>>6), x.mask)
	} else {
		b = append(b, low+byte(bits.TrailingZeros64(x.mask)))
	}
	b = binary.AppendUvarint(b, uint64(max(0, at-x.at)/int64(time.Millisecond)))
	if x.attempt != 1 {
		b = binary.AppendUvarint(b, uint64(x.attempt))
	}
	if x.outs > 0 {
		b = binary.AppendUvarint(b, uint64(x.outs))
		b = binary.AppendUvarint(b, uint64(x.out.topic))
		b = binary.AppendUvarint(b, uint64(x.out.pos.Partition))
		b = binary.AppendUvarint(b, x.out.pos.Offset)
	}
	if w := x.why; w != nil {
		b = binary.AppendUvarint(b, uint64(max(0, w.code)))
		due := uint64(0)
		if w.due != 0 {
			due = 1 + uint64(max(0, w.due-x.at)/int64(time.Millisecond))
		}
		b = binary.AppendUvarint(b, due)
		for _, s := range []string{w.reason, w.function, w.text} {
			b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
		}
	}
	return b
}

// tryRow is an entry as it is read.
type tryRow struct {
	traced
	sub      uint32
	digests  []byte // traceDigest bytes each
	revision string
}

var errTraceRow = errors.New("a row of traces is damaged")

// readTraces calls fn for the entries of a row that are of an offset within the block, or of all if it is below
// 0. It borrows value.
func readTraces(key, value []byte, low int, fn func(tryRow)) error {
	if len(key) != 24 || len(value) == 0 || value[0] != traceVersion {
		return errTraceRow
	}
	_, at := splitTraceKey(key)
	r := rowReader{b: value[1:]}
	x := tryRow{revision: borrow(r.sized())}
	x.part = be.Uint32(key[4:])
	for len(r.b) > 0 && !r.bad {
		flags := r.u8()
		if flags&tracedBy != 0 {
			x.sub, x.digests = uint32(r.uvarint()), r.sized()
			continue
		}
		x.what = traceVerdict(flags & 7)
		if x.what > traceHeld {
			return errTraceRow
		}
		if flags&tracedMany != 0 {
			x.base = event.Offset(r.u8()&3) << 6
			x.mask = r.u64()
		} else {
			o := r.u8()
			x.base, x.mask = event.Offset(o)&^63, 1<<(o&63)
		}
		x.at = at - int64(r.uvarint())*int64(time.Millisecond)
		x.attempt, x.outs, x.out, x.why = 1, 0, outPlace{}, nil
		if flags&tracedAgain != 0 {
			x.attempt = uint32(r.uvarint())
		}
		if flags&tracedOut != 0 {
			x.outs = uint32(r.uvarint())
			x.out = outPlace{uint32(r.uvarint()), event.Position{Partition: uint32(r.uvarint()), Offset: r.uvarint()}}
		}
		if flags&tracedFailed != 0 {
			w := tracedWhy{code: int(r.uvarint())}
			if ms := int64(r.uvarint()); ms > 0 {
				w.due = x.at + (ms-1)*int64(time.Millisecond)
			}
			w.reason, w.function, w.text = borrow(r.sized()), borrow(r.sized()), borrow(r.sized())
			x.why = &w
		}
		if !r.bad && (low < 0 || event.Offset(low)&^63 == x.base && x.mask&(1<<(low&63)) != 0) {
			fn(x)
		}
	}
	if r.bad {
		return errTraceRow
	}
	return nil
}

func (r *rowReader) u8() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

// shortDigests is what a row keeps of a definition's versions.
func shortDigests(c *subConfig) []byte {
	if c == nil {
		return nil
	}
	var short []byte
	for sum := range slices.Chunk(c.digests, sumSize) {
		short = append(short, sum[:traceDigest]...)
	}
	return short
}

// digestTexts are digests as they are shown: cut, since that is how they are kept.
func digestTexts(short []byte) []string {
	var texts []string
	for sum := range slices.Chunk(short, traceDigest) {
		texts = append(texts, "sha256:"+hex.EncodeToString(sum))
	}
	return texts
}
