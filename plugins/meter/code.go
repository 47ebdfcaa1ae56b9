package meter

// codeSection rewrites every body and adds the helpers' after them.
func (m *rewriter) codeSection() ([]byte, error) {
	bodies := make([]byte, 0, len(m.in)+len(m.in)/4)
	for i := range m.bodies {
		b := &m.bodies[i]
		w := bodyWriter{m: m, body: b, counter: uint32(b.count), r: reader{b: m.in[:b.code.to], at: b.code.from}}
		if err := w.run(); err != nil {
			return nil, err
		}
		bodies = appendSized(bodies, w.b)
		b.points, b.loops = nil, nil
	}
	for i := range m.helpers {
		bodies = appendSized(bodies, m.helpers[i].code)
	}
	head := appendU32(nil, uint32(len(m.bodies)+len(m.helpers)))
	return append(head, bodies...), nil
}

// An asm appends instructions.
type asm struct{ b []byte }

func (a *asm) op(ops ...byte)              { a.b = append(a.b, ops...) }
func (a *asm) index(op byte, index uint32) { a.b = appendU32(append(a.b, op), index) }
func (a *asm) constant(v int64)            { a.b = appendS64(append(a.b, opI64Const), v) }
func (a *asm) constant32(v int32)          { a.b = appendS64(append(a.b, opI32Const), int64(v)) }

// An open is a block whose content is being rewritten.
type open struct {
	depth int    // of its label, the function's being 0
	tick  *point // of a loop whose tick is outlined: the point at its head
	loop  *loop
}

// A bodyWriter rewrites one body.
type bodyWriter struct {
	asm
	m       *rewriter
	body    *body
	r       reader
	from    int    // what was read from here on is not written yet
	counter uint32 // the local that is added; in bodies with bulk the next one is too
	depth   int    // open blocks of the rewritten body
	open    []open
	types   []byte // of locals, once they are asked for
}

func (w *bodyWriter) run() error {
	m, b := w.m, w.body
	added := []byte{1, i64}
	if b.bulk {
		added = append(added, 1, i32)
	}
	w.b = make([]byte, 0, b.code.to-b.code.from+48*len(b.points)+16)
	w.b = appendU32(w.b, b.groups+uint32(len(added)/2))
	r := reader{b: m.in, at: b.locals.from}
	r.u32("locals")
	w.op(m.in[r.at:b.locals.to]...)
	w.op(added...)
	w.from, w.depth, w.open = w.r.at, 1, []open{{}}
	points, loops := b.points, b.loops
	var labels []uint32
	for w.r.more() {
		at := w.r.at
		for len(points) > 0 && points[0].at == at {
			w.flush(at)
			w.charge(&points[0])
			points = points[1:]
		}
		labels = labels[:0]
		in := w.r.next(&labels)
		switch in.op {
		case opBlock, opIf:
			w.open = append(w.open, open{depth: w.depth})
			w.depth++
		case opLoop:
			var head *point
			if len(points) > 0 && points[0].at == w.r.at {
				head = &points[0]
			}
			w.flush(at)
			if w.beginLoop(&in, &loops[0], head) {
				points = points[1:]
			}
			loops = loops[1:]
		case opEnd:
			w.end(at)
		case opBr, opBrIf:
			w.flush(at)
			w.index(in.op, w.label(in.x))
			w.from = w.r.at
		case opBrTable:
			w.flush(at)
			w.index(in.op, uint32(len(labels)-1))
			for _, l := range labels {
				w.b = appendU32(w.b, w.label(l))
			}
			w.from = w.r.at
		case opCall, opRefFunc:
			w.flush(at)
			w.index(in.op, m.moved(in.x))
			w.from = w.r.at
		case opMemoryGrow, opMisc:
			if h, ok := m.helperFor(&in); ok {
				w.flush(at)
				w.bulk(&in, h)
			}
		}
	}
	w.flush(w.r.at)
	if w.r.err == nil && len(points)+len(loops) > 0 {
		w.r.fail("%d points and %d loops lie at no instruction", len(points), len(loops))
	}
	return w.r.err
}

// flush copies what was read before a place and is to stay as it is.
func (w *bodyWriter) flush(at int) {
	w.op(w.m.in[w.from:at]...)
	w.from = at
}

// label is the label that l has become.
func (w *bodyWriter) label(l uint32) uint32 {
	return uint32(w.depth - 1 - w.open[len(w.open)-1-int(l)].depth)
}

// local reports whether the counter is in its local where p is.
func (w *bodyWriter) local(p *point) bool { return p.loop >= 0 && w.body.loops[p.loop].local }

// take charges for a point and leaves what remains in the counter.
//
// In loops that call nothing, the counter is only ever written to the global: a load that waits for the
// last store would take longer than a small loop's whole body. So the global is exact at every instruction,
// also when one traps.
func (w *bodyWriter) take(p *point) {
	if w.local(p) {
		w.index(opLocalGet, w.counter)
	} else {
		w.index(opGlobalGet, w.m.fuel())
	}
	w.constant(p.cost)
	w.op(opI64Sub)
	w.index(opLocalTee, w.counter)
	w.index(opGlobalSet, w.m.fuel())
}

// spent pushes whether the slice is used up.
func (w *bodyWriter) spent() {
	w.index(opLocalGet, w.counter)
	w.constant(0)
	w.op(opI64LtS)
}

// again asks for more and charges for p anew, where its code lies before.
func (w *bodyWriter) again(p *point) {
	w.index(opCall, w.m.slow())
	w.constant(p.cost)
	w.op(opI64Add)
	w.index(opLocalTee, w.counter)
	w.index(opGlobalSet, w.m.fuel())
}

// charge writes a point that is not at the head of an outlined loop. The call of tick lies on the way back of a loop
// that is gone through once: the compiler lays such a way behind what follows, so that the usual way takes
// no jump.
func (w *bodyWriter) charge(p *point) {
	if !p.check {
		w.take(p)
		return
	}
	w.op(opBlock, noResult, opLoop, noResult, opBlock, noResult)
	w.take(p)
	w.spent()
	w.op(opBrIf, 0, opBr, 2, opEnd)
	w.again(p)
	w.op(opBr, 0, opEnd, opUnreachable, opEnd)
}

// beginLoop writes a loop's opcode. If it has a point at its head and takes no parameters, the call of tick
// lies behind the loop's end and goes back to the head; it reports whether it wrote the point.
//
//	block $done (result …)
//	  loop $head
//	    block $tick
//	      take; spent; br_if $tick
//	      block (result …)
//	        the loop's body, a branch to it being one to $head
//	      end
//	      br $done
//	    end
//	    again; br $head
//	  end
//	  unreachable
//	end
//
// The innermost block is there for validation: a body that leaves too much on the stack stays invalid.
func (w *bodyWriter) beginLoop(in *instr, l *loop, head *point) bool {
	if l.root {
		w.index(opGlobalGet, w.m.fuel())
		w.index(opLocalSet, w.counter)
	}
	if head == nil || in.x > 0 && len(w.m.types[in.x-1].params) > 0 {
		w.open = append(w.open, open{depth: w.depth})
		w.depth++
		return false
	}
	w.op(opBlock)
	w.op(w.m.in[in.at+1 : w.r.at]...)
	w.op(opLoop, noResult, opBlock, noResult)
	w.from = w.r.at
	w.open = append(w.open, open{depth: w.depth + 1, tick: head, loop: l})
	w.depth += 4
	w.take(head)
	w.spent()
	w.op(opBrIf, 0, opBlock)
	w.op(w.m.in[in.at+1 : w.r.at]...)
	return true
}

// end writes the end of a block, with what belongs behind an outlined loop.
func (w *bodyWriter) end(at int) {
	o := w.open[len(w.open)-1]
	w.open = w.open[:len(w.open)-1]
	w.depth--
	if o.tick == nil {
		return
	}
	w.flush(at)
	w.from = w.r.at
	w.depth -= 3
	w.op(opEnd, opBr, 2, opEnd)
	if o.loop.local {
		w.copies(o.loop.sets)
	}
	w.again(o.tick)
	w.op(opBr, 0, opEnd, opUnreachable, opEnd)
}

// bulk writes what stands for an operation on a range. Short copies and fills are what their weight pays for; they
// stay in line, since a call costs as much as they do.
func (w *bodyWriter) bulk(in *instr, helper uint32) {
	if in.op != opMisc || in.sub != miscMemoryCopy && in.sub != miscMemoryFill {
		w.index(opCall, helper)
		w.from = w.r.at
		return
	}
	n := w.counter + 1
	w.index(opLocalTee, n)
	w.constant32(short)
	w.op(opI32LeU, opIf)
	w.b = appendS64(w.b, int64(w.m.typeIndex([]byte{i32, i32}, nil)))
	w.index(opLocalGet, n)
	w.flush(w.r.at)
	w.op(opElse)
	w.index(opLocalGet, n)
	w.index(opCall, helper)
	w.op(opEnd)
}

// copies gives the locals that a loop changes new values, equal to the old ones. A value that lives across a
// call is stored where it is made: without copies that would be in every round of the loop.
func (w *bodyWriter) copies(sets []uint32) {
	if w.types == nil {
		w.types = w.m.localTypes(w.body)
	}
	for _, l := range sets {
		switch t := w.types[l]; t {
		case i32:
			w.index(opLocalGet, l)
			w.op(opI32Const, 0, opI32Or)
		case i64:
			w.index(opLocalGet, l)
			w.op(opI64Const, 0, opI64Or)
		case f32:
			w.index(opLocalGet, l)
			w.op(opI32ReinterpretF32, opI32Const, 0, opI32Or, opF32ReinterpretI32)
		case f64:
			w.index(opLocalGet, l)
			w.op(opI64ReinterpretF64, opI64Const, 0, opI64Or, opF64ReinterpretI64)
		case v128:
			w.index(opLocalGet, l)
			w.index(opLocalGet, l)
			w.op(opVec, vecOr)
		default:
			continue
		}
		w.index(opLocalSet, l)
	}
}
