package meter

import "slices"

// A helper is a function that the rewriter adds after the module's own.
type helper struct {
	typ  uint32
	code []byte
}

// A helperKey is the instruction that a helper stands for.
type helperKey struct {
	op, sub byte
	x, y    uint32
}

// How much of a bulk operation one unit of fuel pays for, as shifts.
const (
	bytesPerFuel    = 3  // copied: 8 bytes
	filledPerFuel   = 2  // filled, which wazero is slower at: 4 bytes
	elementsPerFuel = 1  // 2 elements
	fuelPerPage     = 10 // growing by a page is 1,024
	chunk           = 64 << 10
	short           = 256 // bytes that an operation's weight pays for
)

// typeIndex adds a function type, once.
func (m *rewriter) typeIndex(params, results []byte) uint32 {
	t := appendSized([]byte{0x60}, params)
	t = appendSized(t, results)
	for i, have := range m.newTypes {
		if slices.Equal(have, t) {
			return uint32(len(m.types) + i)
		}
	}
	m.newTypes = append(m.newTypes, t)
	return uint32(len(m.types) + len(m.newTypes) - 1)
}

func (m *rewriter) tickType() uint32 { return m.typeIndex([]byte{i64}, []byte{i64}) }

// add adds a helper unless there is one for the same key and returns its index.
func (m *rewriter) add(key helperKey, params, results []byte, locals []byte, code func(a *asm)) uint32 {
	if i, ok := m.helperAt[key]; ok {
		return i
	}
	i := uint32(len(m.funcs)) + 1 + uint32(len(m.helpers))
	m.helperAt[key] = i
	a := asm{}
	a.b = appendU32(a.b, uint32(len(locals)))
	for _, l := range locals {
		a.op(1, l)
	}
	code(&a)
	a.op(opEnd)
	m.helpers = append(m.helpers, helper{typ: m.typeIndex(params, results), code: a.b})
	return i
}

// slow is the function that asks the host for more fuel: () -> fuel.
func (m *rewriter) slow() uint32 {
	return m.add(helperKey{}, nil, []byte{i64}, []byte{i64}, func(a *asm) {
		a.index(opGlobalGet, m.grant())
		a.index(opGlobalGet, m.fuel())
		a.op(opI64Sub)
		a.index(opLocalSet, 0)
		// The host may end the call from inside tick: what it is told there must not be found in the globals
		// again.
		a.constant(0)
		a.index(opGlobalSet, m.fuel())
		a.constant(0)
		a.index(opGlobalSet, m.grant())
		a.index(opLocalGet, 0)
		a.index(opCall, m.tick())
		a.index(opLocalTee, 0)
		a.index(opGlobalSet, m.grant())
		a.index(opLocalGet, 0)
		a.index(opGlobalSet, m.fuel())
		a.index(opLocalGet, 0)
	})
}

// helperFor returns the function that stands for an instruction, if it needs one.
func (m *rewriter) helperFor(in *instr) (uint32, bool) {
	key := helperKey{op: in.op, sub: in.sub, x: in.x, y: in.y}
	ppp := []byte{i32, i32, i32}
	if in.op == opMemoryGrow {
		return m.add(key, []byte{i32}, []byte{i32}, []byte{i32}, m.memoryGrow), true
	}
	switch in.sub {
	case miscMemoryCopy:
		return m.add(key, ppp, nil, []byte{i32}, m.memoryCopy), true
	case miscMemoryFill:
		return m.add(key, ppp, nil, []byte{i32}, m.memoryFill), true
	case miscMemoryInit:
		return m.add(key, ppp, nil, []byte{i32}, func(a *asm) { m.memoryInit(a, in.x) }), true
	case miscTableInit:
		if int64(in.y) >= int64(len(m.tables)) {
			return 0, false // invalid, as the compiler will say
		}
		return m.add(key, ppp, nil, nil, func(a *asm) { m.tableBulk(a, in, in.y, 2) }), true
	case miscTableCopy:
		if int64(in.x) >= int64(len(m.tables)) {
			return 0, false
		}
		return m.add(key, ppp, nil, nil, func(a *asm) { m.tableBulk(a, in, in.x, 2) }), true
	case miscTableFill:
		if int64(in.x) >= int64(len(m.tables)) {
			return 0, false
		}
		return m.add(key, []byte{i32, m.tables[in.x], i32}, nil, nil, func(a *asm) { m.tableBulk(a, in, in.x, 2) }), true
	case miscTableGrow:
		if int64(in.x) >= int64(len(m.tables)) {
			return 0, false
		}
		return m.add(key, []byte{m.tables[in.x], i32}, []byte{i32}, []byte{i32}, func(a *asm) { m.tableGrow(a, in.x) }), true
	}
	return 0, false
}

// pay charges the i64 on the stack.
func (m *rewriter) pay(a *asm, amount func()) {
	a.index(opGlobalGet, m.fuel())
	amount()
	a.op(opI64Sub)
	a.index(opGlobalSet, m.fuel())
	a.index(opGlobalGet, m.fuel())
	a.constant(0)
	a.op(opI64LtS, opIf, noResult)
	a.index(opCall, m.slow())
	a.op(opDrop, opEnd)
}

// perUnit pushes local >> shift as an i64.
func perUnit(a *asm, local uint32, shift int64) func() {
	return func() {
		a.index(opLocalGet, local)
		a.op(opI64ExtendU)
		a.constant(shift)
		a.op(opI64ShrU)
	}
}

// The locals of the helpers for ranges of memory, in the order of the instructions' operands.
const (
	dst   = 0
	src   = 1 // or value
	size  = 2
	piece = 3
)

// whole handles a range that fits in one chunk and returns; it leaves larger ones to what follows.
func (m *rewriter) whole(a *asm, shift int64, do func(n uint32)) {
	a.index(opLocalGet, size)
	a.constant32(chunk)
	a.op(opI32LeU, opIf, noResult)
	m.pay(a, perUnit(a, size, shift))
	do(size)
	a.op(opReturn, opEnd)
}

// outside does the whole operation at once and returns if the range at local ends beyond the memory. It
// traps then, and has written nothing.
func (m *rewriter) outside(a *asm, local uint32, do func(n uint32)) {
	a.index(opLocalGet, local)
	a.op(opI64ExtendU)
	a.index(opLocalGet, size)
	a.op(opI64ExtendU, opI64Add, opMemorySize, 0, opI64ExtendU)
	a.constant(16)
	a.op(opI64Shl, opI64GtU, opIf, noResult)
	do(size)
	a.op(opReturn, opEnd)
}

// pieces repeats body, piece being the next chunk's size, until size is 0. Body takes it off size.
func (m *rewriter) pieces(a *asm, shift int64, body func()) {
	a.op(opLoop, noResult)
	a.constant32(chunk)
	a.index(opLocalGet, size)
	a.constant32(chunk)
	a.index(opLocalGet, size)
	a.op(opI32LtU, opSelect)
	a.index(opLocalSet, piece)
	m.pay(a, perUnit(a, piece, shift))
	body()
	a.index(opLocalGet, size)
	a.index(opBrIf, 0)
	a.op(opEnd)
}

func add32(a *asm, op byte, local, by uint32) {
	a.index(opLocalGet, local)
	a.index(opLocalGet, by)
	a.op(op)
	a.index(opLocalSet, local)
}

func (m *rewriter) memoryCopy(a *asm) {
	do := func(n uint32) {
		a.index(opLocalGet, dst)
		a.index(opLocalGet, src)
		a.index(opLocalGet, n)
		a.op(opMisc, miscMemoryCopy, 0, 0)
	}
	m.whole(a, bytesPerFuel, do)
	m.outside(a, dst, do)
	m.outside(a, src, do)
	// Ranges may overlap: the pieces go the way that reads before it overwrites.
	a.index(opLocalGet, dst)
	a.index(opLocalGet, src)
	a.op(opI32LeU, opIf, noResult)
	m.pieces(a, bytesPerFuel, func() {
		do(piece)
		add32(a, opI32Add, dst, piece)
		add32(a, opI32Add, src, piece)
		add32(a, opI32Sub, size, piece)
	})
	a.op(opElse)
	m.pieces(a, bytesPerFuel, func() {
		add32(a, opI32Sub, size, piece)
		for _, l := range []uint32{dst, src} {
			a.index(opLocalGet, l)
			a.index(opLocalGet, size)
			a.op(opI32Add)
		}
		a.index(opLocalGet, piece)
		a.op(opMisc, miscMemoryCopy, 0, 0)
	})
	a.op(opEnd)
}

func (m *rewriter) memoryFill(a *asm) {
	do := func(n uint32) {
		a.index(opLocalGet, dst)
		a.index(opLocalGet, src)
		a.index(opLocalGet, n)
		a.op(opMisc, miscMemoryFill, 0)
	}
	m.whole(a, filledPerFuel, do)
	m.outside(a, dst, do)
	m.pieces(a, filledPerFuel, func() {
		do(piece)
		add32(a, opI32Add, dst, piece)
		add32(a, opI32Sub, size, piece)
	})
}

// memoryInit goes from the last piece to the first: how long the segment is, or whether it was dropped, is
// not to be asked; but if its last piece is there, so are the others.
func (m *rewriter) memoryInit(a *asm, segment uint32) {
	init := func() {
		a.index(opLocalGet, size)
	}
	op := func() {
		a.op(opMisc, miscMemoryInit)
		a.b = appendU32(a.b, segment)
		a.op(0)
	}
	do := func(uint32) {
		a.index(opLocalGet, dst)
		a.index(opLocalGet, src)
		init()
		op()
	}
	m.whole(a, bytesPerFuel, do)
	m.outside(a, dst, do)
	// A source that ends beyond 4 GiB would wrap around below.
	a.index(opLocalGet, src)
	a.index(opLocalGet, size)
	a.op(opI32Add)
	a.index(opLocalGet, src)
	a.op(opI32LtU, opIf, noResult)
	do(size)
	a.op(opReturn, opEnd)
	m.pieces(a, bytesPerFuel, func() {
		add32(a, opI32Sub, size, piece)
		for _, l := range []uint32{dst, src} {
			a.index(opLocalGet, l)
			a.index(opLocalGet, size)
			a.op(opI32Add)
		}
		a.index(opLocalGet, piece)
		op()
	})
}

// memoryGrow charges for pages that were added: a refused growth is cheap.
func (m *rewriter) memoryGrow(a *asm) {
	a.index(opLocalGet, 0)
	a.op(opMemoryGrow, 0)
	a.index(opLocalTee, 1)
	a.constant32(-1)
	a.op(opI32Ne, opIf, noResult)
	m.pay(a, func() {
		a.index(opLocalGet, 0)
		a.op(opI64ExtendU)
		a.constant(fuelPerPage)
		a.op(opI64Shl)
	})
	a.op(opEnd)
	a.index(opLocalGet, 1)
}

// tableBulk charges for the elements and does the instruction: a table is small enough to be filled between
// two ticks. A range longer than the table traps, and costs no more than the table.
func (m *rewriter) tableBulk(a *asm, in *instr, table, n uint32) {
	m.pay(a, func() {
		a.index(opLocalGet, n)
		a.op(opMisc, miscTableSize)
		a.b = appendU32(a.b, table)
		a.index(opLocalGet, n)
		a.op(opMisc, miscTableSize)
		a.b = appendU32(a.b, table)
		a.op(opI32LtU, opSelect, opI64ExtendU)
		a.constant(elementsPerFuel)
		a.op(opI64ShrU)
	})
	for l := range uint32(3) {
		a.index(opLocalGet, l)
	}
	a.op(opMisc, in.sub)
	a.b = appendU32(a.b, in.x)
	if in.sub != miscTableFill {
		a.b = appendU32(a.b, in.y)
	}
}

func (m *rewriter) tableGrow(a *asm, table uint32) {
	a.index(opLocalGet, 0)
	a.index(opLocalGet, 1)
	a.op(opMisc, miscTableGrow)
	a.b = appendU32(a.b, table)
	a.index(opLocalTee, 2)
	a.constant32(-1)
	a.op(opI32Ne, opIf, noResult)
	m.pay(a, perUnit(a, 1, elementsPerFuel))
	a.op(opEnd)
	a.index(opLocalGet, 2)
}
