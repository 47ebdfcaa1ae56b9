package meter

import (
	"fmt"
	"slices"
)

// The weights. Fuel is meant to be about the time a guest takes, whatever machine it runs on.
const (
	weightHostCall = 64 // a call of an imported function
	weightCall     = 4
	weightIndirect = 8
	weightDivide   = 8
	weightBulk     = 40 // a bulk operation; long ones cost one more for every few bytes or elements
	weightGrow     = 64

	// maxAhead is the most that one point charges for what follows it. Code whose costliest way is longer is
	// charged in parts, so that a way through it that is short is not charged for all of it.
	maxAhead = 128
	// checkEvery is how many parts of a long way may follow one another before one of them looks whether
	// the slice is spent.
	checkEvery = 8
	// maxSets is how many changing locals of a loop are kept out of memory; see copies.
	maxSets = 24
	// maxFree is the costliest function that charges nothing itself: its callers pay for it, and need not
	// do more for it than for instructions of their own.
	maxFree = 48
)

// weight is what one instruction costs. Those that become no machine code cost nothing.
func (m *rewriter) weight(in *instr, branch int64) int64 {
	switch op := in.op; {
	case op == opNop, op == opBlock, op == opLoop, op == opElse, op == opEnd, op == opDrop, op == opLocalGet,
		op == opI32Const, op == opI64Const, op == opF32Const, op == opF64Const, op == opUnreachable:
		return 0
	case op == opBr, op == opBrIf, op == opIf:
		return branch
	case op == opBrTable:
		return 2 * branch
	case op == opCall:
		if in.x < m.imported {
			return weightHostCall
		}
		if int(in.x) >= len(m.callCost) {
			return weightCall // refused right after
		}
		return weightCall + m.callCost[in.x]
	case op == opCallIndirect:
		return weightIndirect
	case opI32DivS <= op && op <= opI32RemU, opI64DivS <= op && op <= opI64RemU:
		return weightDivide
	case op == opMemoryGrow:
		return weightGrow
	case op == opMisc:
		switch in.sub {
		case miscTableGrow:
			return weightGrow
		case miscMemoryInit, miscMemoryCopy, miscMemoryFill, miscTableInit, miscTableCopy, miscTableFill:
			return weightBulk
		}
	}
	return 1
}

// A point is where fuel is charged.
type point struct {
	at     int   // the instruction it comes before
	region int32 // before analysis ends, then unused
	loop   int32 // innermost loop around it, or -1
	cost   int64
	check  bool // whether it looks at what is left
}

// A loop is one loop of a function.
type loop struct {
	parent int32    // index of the loop around it, or -1
	sets   []uint32 // locals that change inside, up to maxSets of them
	calls  bool     // something inside calls and comes back: the global's value changes under it
	local  bool     // the counter's value is kept in a local throughout
	root   bool     // and this is the outermost such loop
}

// A state is how far the costliest way from the points of a region to here is. Region -1: nothing gets here.
type state struct {
	cost   int64
	region int32
}

var nowhere = state{region: -1}

// A frame is one open block.
type frame struct {
	op    byte
	level int   // loops around its label
	out   state // what branches to its end bring
	other state // of an if: what comes to its else
	loop  int32 // of a loop: its index
}

// A walk goes once through a body and finds its points.
//
// It keeps one state for each loop around the current instruction: how far it is from the points of that
// loop's own level. Code at a level is charged by the points of that level alone: the code after an inner
// loop by what came before it, so that leaving a loop costs nothing and its head pays only for its body.
type walk struct {
	m      *rewriter
	fn     int
	b      *body
	branch int64
	frames []frame
	levels []state
	inside []int32 // loop of each level; [0] is -1
	parent []int32 // of each region: regions that meet become one
	most   []int64 // of each region: the costliest way that begins at its points
	parts  int
	labels []uint32
	nlabel int
	ways   int
	heads  []int32 // index of the point of each region
}

// analyse finds the points of every body.
func (m *rewriter) analyse() error {
	m.callCost = make([]int64, len(m.funcs))
	w := walk{m: m}
	heavy := 0
	for i := range m.bodies {
		if err := w.body(i); err != nil {
			return err
		}
		ways, locals := w.ways, int(w.b.count)
		if ways > m.limits.Ways {
			return fmt.Errorf("function %d branches in %d ways; at most %d are allowed: split it up", w.fn, ways, m.limits.Ways)
		}
		if ways*locals > m.limits.WayLocals {
			return fmt.Errorf("function %d has %d locals and branches in %d ways; their product is %d, at most %d is allowed: split it up",
				w.fn, locals, ways, ways*locals, m.limits.WayLocals)
		}
		if work := ways * (locals + ways/128); work > heavyFrom {
			if heavy += work; heavy > m.limits.Heavy {
				return fmt.Errorf("its functions branch too much for their locals together (%d; at most %d): split the module up", heavy, m.limits.Heavy)
			}
		}
	}
	if m.free < 0 {
		return nil
	}
	return m.findFree(&w)
}

// findFree looks for functions that are so small, callees included, that their callers may pay for them:
// without loops, and called by nothing but call instructions, so that no recursion and no table leads there.
// What calls one is analysed anew.
func (m *rewriter) findFree(w *walk) error {
	var candidates []int
	for i := range m.bodies {
		b := &m.bodies[i]
		small := len(b.points) <= 1 && len(b.loops) == 0 && !b.costly && b.code.to-b.code.from <= 1024
		if small && !m.taken[m.imported+uint32(i)] {
			candidates = append(candidates, i)
		}
	}
	// Each round finds those that call nothing but what earlier rounds found. A call costs something, so
	// that rounds end before maxFree/weightCall of them.
	for found := true; found; {
		found = false
		rest := candidates[:0]
		for _, i := range candidates {
			b := &m.bodies[i]
			if slices.ContainsFunc(b.callees, func(fn uint32) bool { return !m.isFree(fn) }) {
				rest = append(rest, i)
				continue
			}
			if err := w.body(i); err != nil {
				return err
			}
			if len(b.points) == 0 || len(b.points) == 1 && b.points[0].cost <= m.free {
				b.free, found = true, true
				if len(b.points) == 1 {
					m.callCost[int(m.imported)+i] = b.points[0].cost
				}
				b.points = nil
			}
		}
		candidates = rest
	}
	for i := range m.bodies {
		b := &m.bodies[i]
		if b.free || !slices.ContainsFunc(b.callees, m.isFree) {
			continue
		}
		if err := w.body(i); err != nil {
			return err
		}
	}
	return nil
}

// isFree reports whether a function charges nothing.
func (m *rewriter) isFree(fn uint32) bool {
	return fn >= m.imported && int(fn-m.imported) < len(m.bodies) && m.bodies[fn-m.imported].free
}

// body analyses one body.
func (w *walk) body(i int) error {
	w.fn, w.b = int(w.m.imported)+i, &w.m.bodies[i]
	w.b.points, w.b.loops, w.b.callees = w.b.points[:0], w.b.loops[:0], w.b.callees[:0]
	return w.run()
}

func (w *walk) run() error {
	r := reader{b: w.m.in[:w.b.code.to], at: w.b.code.from}
	// A branch moves what locals changed: in a function with thousands of them it is no single instruction.
	w.branch = 1 + int64(w.b.count)/32
	w.frames = append(w.frames[:0], frame{op: opBlock, out: nowhere})
	w.levels, w.inside = append(w.levels[:0], nowhere), append(w.inside[:0], -1)
	w.parent, w.most, w.heads = w.parent[:0], w.most[:0], w.heads[:0]
	w.parts, w.nlabel, w.ways = 0, 0, 0
	w.point(r.at, true)
	for len(w.frames) > 0 {
		w.labels = w.labels[:0]
		in := r.next(&w.labels)
		if r.err == nil {
			w.step(&r, &in)
		}
		if r.err != nil {
			return fmt.Errorf("function %d: %w", w.fn, r.err)
		}
	}
	if r.at != w.b.code.to {
		return fmt.Errorf("function %d ends at byte %d, %d bytes before its code does", w.fn, r.at, w.b.code.to-r.at)
	}
	w.finish()
	return nil
}

func (w *walk) step(r *reader, in *instr) {
	m := w.m
	w.charge(in.at, m.weight(in, w.branch))
	switch in.op {
	case opBlock, opIf, opLoop:
		w.open(r, in)
	case opElse:
		f := &w.frames[len(w.frames)-1]
		if f.op != opIf {
			r.fail("an else without if")
			return
		}
		f.op = opElse
		f.out = w.join(f.out, *w.here())
		*w.here() = f.other
	case opEnd:
		w.close()
	case opLocalSet, opLocalTee:
		w.sets(w.inside[len(w.inside)-1], in.x)
	case opBr, opBrIf:
		w.branchTo(r, in.x)
	case opBrTable:
		if w.nlabel += len(w.labels); w.nlabel > m.limits.Labels {
			r.fail("its br_table have more than %d labels: split it up", m.limits.Labels)
			return
		}
		for _, l := range w.labels {
			w.branchTo(r, l)
		}
	}
	m.checkIndices(r, in, int(w.b.count))
	switch in.op {
	case opBlock, opBrIf, opReturn, opBr:
		w.ways++
	case opIf:
		w.ways += 2
	case opLoop:
		w.ways += 6
	case opBrTable:
		w.ways += len(w.labels) / 8
	}
	switch in.op {
	case opBr, opBrTable, opReturn, opUnreachable:
		*w.here() = nowhere
	case opRefFunc:
		if r.err == nil {
			m.taken[in.x] = true
		}
	case opCall:
		if !slices.Contains(w.b.callees[max(0, len(w.b.callees)-8):], in.x) { // most repetitions are near
			w.b.callees = append(w.b.callees, in.x)
		}
		if !m.isFree(in.x) { // those leave the fuel alone
			w.called(r)
		}
	case opCallIndirect, opMemoryGrow:
		w.b.costly = true
		w.called(r)
	case opMisc:
		w.b.bulk = w.b.bulk || in.sub == miscMemoryCopy || in.sub == miscMemoryFill
		if in.sub >= miscMemoryInit && in.sub != miscDataDrop && in.sub != miscElemDrop && in.sub != miscTableSize {
			w.b.costly = true
			w.called(r)
		}
	}
}

// called notes that the loops around have a call in them, unless it is one that does not come back.
func (w *walk) called(r *reader) {
	if r.at < len(r.b) && r.b[r.at] == opUnreachable {
		return
	}
	for l := w.inside[len(w.inside)-1]; l >= 0 && !w.b.loops[l].calls; l = w.b.loops[l].parent {
		w.b.loops[l].calls = true
	}
}

// sets notes that a local changes in a loop.
func (w *walk) sets(l int32, local uint32) {
	if l < 0 || uint64(local) >= w.b.count {
		return
	}
	if s := &w.b.loops[l].sets; len(*s) < maxSets && !slices.Contains(*s, local) {
		*s = append(*s, local)
	}
}

func (w *walk) here() *state { return &w.levels[len(w.levels)-1] }

func (w *walk) open(r *reader, in *instr) {
	if len(w.frames) > w.m.limits.Depth {
		r.fail("blocks are nested deeper than %d", w.m.limits.Depth)
		return
	}
	f := frame{op: in.op, level: len(w.levels) - 1, out: nowhere, other: *w.here()}
	if in.op == opLoop {
		f.loop = int32(len(w.b.loops))
		w.b.loops = append(w.b.loops, loop{parent: w.inside[len(w.inside)-1]})
		dead := w.here().region < 0
		if w.m.ahead == 0 {
			w.here().cost = 1
		}
		w.levels, w.inside = append(w.levels, nowhere), append(w.inside, f.loop)
		if !dead {
			w.point(r.at, true)
			w.charge(r.at, 1) // a loop of nothing but branches is work too
		}
	}
	w.frames = append(w.frames, f)
}

func (w *walk) close() {
	f := w.frames[len(w.frames)-1]
	w.frames = w.frames[:len(w.frames)-1]
	if f.op == opLoop {
		dead := w.here().region < 0
		l := &w.b.loops[f.loop]
		for _, local := range l.sets {
			w.sets(l.parent, local)
		}
		w.levels, w.inside = w.levels[:len(w.levels)-1], w.inside[:len(w.inside)-1]
		if dead {
			*w.here() = nowhere
		}
		return
	}
	s := w.join(f.out, *w.here())
	if f.op == opIf {
		s = w.join(s, f.other)
	}
	*w.here() = s
}

func (w *walk) branchTo(r *reader, label uint32) {
	if int64(label) >= int64(len(w.frames)) {
		r.fail("a branch leaves %d blocks; it is in %d", label+1, len(w.frames))
		return
	}
	f := &w.frames[len(w.frames)-1-int(label)]
	if f.op == opLoop || w.here().region < 0 {
		return
	}
	f.out = w.join(f.out, w.levels[f.level])
}

// point begins a region at the current level.
func (w *walk) point(at int, check bool) {
	region := int32(len(w.parent))
	w.parent, w.most = append(w.parent, region), append(w.most, 0)
	w.b.points = append(w.b.points, point{at: at, region: region, loop: w.inside[len(w.inside)-1], check: check})
	*w.here() = state{region: region}
}

// charge adds what the instruction at a place costs.
func (w *walk) charge(at int, cost int64) {
	s := w.here()
	if s.region < 0 || cost == 0 {
		return
	}
	if s.cost > 0 && s.cost+cost > w.m.ahead {
		w.parts++
		w.point(at, w.parts%checkEvery == 0)
		s = w.here()
	}
	s.cost += cost
	s.region = w.find(s.region)
	w.most[s.region] = max(w.most[s.region], s.cost)
}

func (w *walk) find(region int32) int32 {
	for w.parent[region] != region {
		w.parent[region] = w.parent[w.parent[region]]
		region = w.parent[region]
	}
	return region
}

func (w *walk) join(a, b state) state {
	switch {
	case a.region < 0:
		return b
	case b.region < 0:
		return a
	}
	x, y := w.find(a.region), w.find(b.region)
	if w.m.ahead == 0 { // the next instruction is to have a point of its own
		return state{cost: 1, region: x}
	}
	if x != y {
		w.parent[y] = x
		w.most[x] = max(w.most[x], w.most[y])
	}
	return state{cost: max(a.cost, b.cost), region: x}
}

// finish turns regions into costs and decides which loops keep the counter in a local.
func (w *walk) finish() {
	kept := w.b.points[:0]
	for _, p := range w.b.points {
		if p.cost = w.most[w.find(p.region)]; p.cost > 0 {
			kept = append(kept, p)
		}
	}
	w.b.points = kept
	for i := range w.b.loops {
		l := &w.b.loops[i]
		switch {
		case l.parent >= 0 && w.b.loops[l.parent].local:
			l.local = true
			l.sets = w.b.loops[l.parent].sets // what the loops around it change lives across its tick as well
		case !l.calls:
			l.local, l.root = true, true
		}
	}
}
