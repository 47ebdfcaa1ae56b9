package meter

// codeSection rewrites every body and adds the helpers' after them.
func (m *rewriter) codeSection() ([]byte, error) {
	out := make([]byte, 0, len(m.in)+len(m.in)/4)
	bodies := out
	for i := range m.bodies {
		body, err := m.code(&m.bodies[i])
		if err != nil {
			return nil, err
		}
		bodies = appendSized(bodies, body)
		m.bodies[i].points, m.bodies[i].loops = nil, nil
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

// code rewrites one body.
func (m *rewriter) code(b *body) ([]byte, error) {
	counter := uint32(b.count) // the local that is added
	a := asm{b: make([]byte, 0, b.code.to-b.code.from+32*len(b.points)+16)}
	if len(b.points) > 0 {
		a.b = appendU32(a.b, b.groups+1)
		r := reader{b: m.in, at: b.locals.from}
		r.u32("locals")
		a.b = append(a.b, m.in[r.at:b.locals.to]...)
		a.op(1, i64)
	} else {
		a.b = append(a.b, m.in[b.locals.from:b.locals.to]...)
	}
	r := reader{b: m.in[:b.code.to], at: b.code.from}
	from, points, loops := r.at, b.points, b.loops
	var labels []uint32
	for r.more() {
		labels = labels[:0]
		at := r.at
		for len(points) > 0 && points[0].at == at {
			a.op(m.in[from:at]...)
			from = at
			m.charge(&a, b, &points[0], counter)
			points = points[1:]
		}
		in := r.next(&labels)
		replaced := true
		switch in.op {
		case opLoop:
			if l := loops[0]; l.root {
				a.op(m.in[from:at]...)
				from = at
				a.index(opGlobalGet, m.fuel())
				a.index(opLocalSet, counter)
			}
			loops = loops[1:]
			replaced = false
		case opCall, opRefFunc:
			a.op(m.in[from:at]...)
			a.index(in.op, m.moved(in.x))
		case opMemoryGrow, opMisc:
			h, ok := m.helperFor(&in)
			if replaced = ok; ok {
				a.op(m.in[from:at]...)
				a.index(opCall, h)
			}
		default:
			replaced = false
		}
		if replaced {
			from = r.at
		}
	}
	a.op(m.in[from:r.at]...)
	if r.err == nil && len(points)+len(loops) > 0 {
		r.fail("%d points and %d loops lie at no instruction", len(points), len(loops))
	}
	return a.b, r.err
}

// charge takes a point's cost off the fuel. In loops that call nothing the fuel's value stays in a local
// and is only ever written to the global: a load that waits for the last store would take longer than a
// small loop's whole body. So the global is exact at every instruction, also when one traps.
func (m *rewriter) charge(a *asm, b *body, p *point, counter uint32) {
	local := p.loop >= 0 && b.loops[p.loop].local
	if local {
		a.index(opLocalGet, counter)
	} else {
		a.index(opGlobalGet, m.fuel())
	}
	a.constant(p.cost)
	a.op(opI64Sub)
	if local || p.check {
		a.index(opLocalTee, counter)
	}
	a.index(opGlobalSet, m.fuel())
	if !p.check {
		return
	}
	a.index(opLocalGet, counter)
	a.constant(0)
	a.op(opI64LtS, opIf, noResult)
	a.index(opCall, m.slow())
	if local {
		a.index(opLocalSet, counter)
	} else {
		a.op(opDrop)
	}
	a.op(opEnd)
}
