package meter

import (
	"fmt"
	"strings"
)

// Section ids, in their order but for secDataCount, which comes before secCode.
const (
	secCustom    = 0
	secType      = 1
	secImport    = 2
	secFunction  = 3
	secTable     = 4
	secMemory    = 5
	secGlobal    = 6
	secExport    = 7
	secStart     = 8
	secElement   = 9
	secCode      = 10
	secData      = 11
	secDataCount = 12
)

// place is where a section comes among the others.
func place(id byte) int {
	switch id {
	case secDataCount:
		return 2*secElement + 1
	default:
		return 2 * int(id)
	}
}

// read cuts the module into sections, counts what has an index, and analyses every body.
func (m *rewriter) read() error {
	b := m.in
	if len(b) > m.limits.Bytes {
		return fmt.Errorf("has %d bytes; at most %d are allowed", len(b), m.limits.Bytes)
	}
	if len(b) < 8 || string(b[:4]) != "\x00asm" {
		return fmt.Errorf("is no WebAssembly module: it begins with % x", b[:min(len(b), 8)])
	}
	if string(b[4:8]) != "\x01\x00\x00\x00" {
		return fmt.Errorf("is no core WebAssembly module of version 1: its version is % x", b[4:8])
	}
	r := reader{b: b, at: 8}
	last := 0
	for r.more() {
		s := section{id: r.byte("section id")}
		if s.id > secDataCount {
			r.fail("section %d is not known: build for WebAssembly 2.0, without exceptions and later proposals", s.id)
		}
		s.body = r.skip(r.u32("section size"), "section")
		if s.id != secCustom {
			if r.err == nil && place(s.id) <= last {
				r.fail("section %d is out of order or given twice", s.id)
			}
			last = place(s.id)
		}
		m.sections = append(m.sections, s)
	}
	if r.err != nil {
		return r.err
	}
	m.taken = map[uint32]bool{}
	for _, s := range m.sections {
		sr := reader{b: b[:s.body.to], at: s.body.from}
		m.readSection(&sr, s.id)
		if sr.err != nil {
			return sr.err
		}
	}
	if own := len(m.funcs) - int(m.imported); own != len(m.bodies) {
		return fmt.Errorf("declares %d functions but has code for %d", own, len(m.bodies))
	}
	return m.analyse()
}

func (m *rewriter) readSection(r *reader, id byte) {
	switch id {
	case secType:
		r.list("types", m.limits.Types, func(i int) { m.types = append(m.types, m.readType(r, i)) })
	case secImport:
		r.list("imports", m.limits.Names, func(int) { m.readImport(r) })
		m.imported = uint32(len(m.funcs))
	case secFunction:
		r.list("functions", m.limits.Functions, func(int) { m.addFunc(r) })
	case secTable:
		r.list("tables", m.limits.Tables, func(int) { m.readTable(r) })
	case secGlobal:
		r.list("globals", m.limits.Globals, func(int) {
			r.valueType("type of a global")
			r.byte("mutability")
			m.constExpr(r, nil)
			m.globals++
		})
	case secExport:
		m.exportSection(r)
	case secStart:
		m.function(r, "the start function")
	case secElement:
		m.elementSection(r)
	case secCode:
		r.list("function bodies", m.limits.Functions, func(int) { m.readBody(r) })
	default: // read when written, or copied as it is
		r.at = len(r.b)
	}
	if r.err == nil && r.at != len(r.b) {
		r.fail("section %d has %d bytes too many", id, len(r.b)-r.at)
	}
}

func (m *rewriter) readType(r *reader, i int) (t funcType) {
	if form := r.byte("form of a type"); r.err == nil && form != 0x60 {
		r.fail("type %d has form 0x%02x; only function types (0x60) are supported: build for WebAssembly 2.0, without GC types", i, form)
	}
	for _, list := range []*[]byte{&t.params, &t.results} {
		at := r.at
		n := r.u32("count")
		if r.err == nil && int64(n) > int64(m.limits.Params) {
			r.at = at
			r.fail("type %d has %d parameters or results; at most %d are allowed", i, n, m.limits.Params)
		}
		from := r.at
		for range n {
			if r.valueType("value type"); r.err != nil {
				return t
			}
		}
		*list = r.b[from:r.at]
	}
	return t
}

func (m *rewriter) readImport(r *reader) {
	module, name := r.name("an import's module"), r.name("an import's name")
	if module == TickModule {
		r.fail("imports %q %.60q, which is the host's own", module, name)
	}
	switch kind := r.byte("kind of an import"); kind {
	case 0:
		m.addFunc(r)
	case 1:
		m.readTable(r)
	case 2:
		r.limits()
	case 3:
		r.valueType("type of a global")
		r.byte("mutability")
		m.globals++
	default:
		r.fail("import %.60q %.60q is of kind %d; functions, tables, memories and globals are known", module, name, kind)
	}
	if int64(m.globals) > int64(m.limits.Globals) {
		r.fail("more than %d globals", m.limits.Globals)
	}
}

func (m *rewriter) addFunc(r *reader) {
	if len(m.funcs) >= m.limits.Functions {
		r.fail("more than %d functions", m.limits.Functions)
		return
	}
	t := r.u32("type")
	if r.err == nil && int64(t) >= int64(len(m.types)) {
		r.fail("function %d has type %d; %d types are there", len(m.funcs), t, len(m.types))
	}
	m.funcs = append(m.funcs, t)
}

func (m *rewriter) readTable(r *reader) {
	t := r.byte("element type")
	if r.err == nil && t != funcref && t != externref {
		r.fail("table %d has element type 0x%02x; funcref and externref are known", len(m.tables), t)
	}
	r.limits()
	m.tables = append(m.tables, t)
	if len(m.tables) > m.limits.Tables {
		r.fail("more than %d tables", m.limits.Tables)
	}
}

func (r *reader) limits() {
	flags := r.byte("limits")
	if flags > 1 {
		r.fail("a memory or table is shared or 64-bit (flags 0x%02x): build without threads and memory64", flags)
	}
	r.u32("minimum")
	if flags == 1 {
		r.u32("maximum")
	}
}

// checkIndices refuses what would mean something that the rewriter adds: above all its globals and
// locals, by which a guest could refuel itself.
func (m *rewriter) checkIndices(r *reader, in *instr, locals int) {
	have, what := 0, ""
	switch in.op {
	case opCall, opRefFunc:
		have, what = len(m.funcs), "function"
	case opGlobalGet, opGlobalSet:
		have, what = int(m.globals), "global"
	case opLocalGet, opLocalSet, opLocalTee:
		have, what = locals, "local"
	case opCallIndirect:
		have, what = len(m.types), "type"
	case opBlock, opLoop, opIf:
		have, what = len(m.types)+1, "type"
	default:
		return
	}
	if r.err == nil && int64(in.x) >= int64(have) {
		r.at = in.at
		r.fail("an instruction is about %s %d, which does not exist", what, in.x)
	}
}

// constExpr passes over a constant expression. If copied is given, it appends the expression there, indices
// of functions moved.
func (m *rewriter) constExpr(r *reader, copied *[]byte) {
	from := r.at
	var labels []uint32
	for r.err == nil {
		in := r.next(&labels)
		m.checkIndices(r, &in, 0)
		switch in.op {
		case opI32Const, opI64Const, opF32Const, opF64Const, opGlobalGet, opRefNull:
		case opVec:
			if in.sub != vecConst {
				r.fail("vector instruction 0x%02x in a constant expression", in.sub)
			}
		case opRefFunc:
			m.taken[in.x] = true
			if copied != nil && r.err == nil {
				*copied = append(*copied, r.b[from:in.at]...)
				*copied = appendU32(append(*copied, opRefFunc), m.moved(in.x))
				from = r.at
			}
		case opEnd:
			if copied != nil && r.err == nil {
				*copied = append(*copied, r.b[from:r.at]...)
			}
			return
		default:
			r.at = in.at
			r.fail("instruction 0x%02x in a constant expression", in.op)
		}
	}
}

// function reads the index of a function that something else than a call leads to.
func (m *rewriter) function(r *reader, what string) uint32 {
	at := r.at
	i := r.u32(what)
	if r.err == nil && int64(i) >= int64(len(m.funcs)) {
		r.at = at
		r.fail("%s is function %d; %d are there", what, i, len(m.funcs))
	}
	m.taken[i] = true
	return i
}

// A body is one function's code.
type body struct {
	locals span // the vector of declarations, count included
	code   span
	typ    uint32
	groups uint32 // declarations in the vector
	count  uint64 // locals, parameters included

	callees []uint32
	costly  bool // calls indirectly, or has operations that no weight is enough for
	free    bool // its callers pay for it
	bulk    bool // copies or fills memory
	points  []point
	loops   []loop
}

func (m *rewriter) readBody(r *reader) {
	fn := int(m.imported) + len(m.bodies)
	at := r.at
	size := r.u32("size of a body")
	if r.err == nil && int64(size) > int64(m.limits.Body) {
		r.at = at
		r.fail("function %d has %d bytes of code; at most %d are allowed", fn, size, m.limits.Body)
	}
	s := r.skip(size, fmt.Sprintf("function %d", fn))
	t, err := m.typeOf(uint32(fn))
	if r.err != nil {
		return
	}
	if err != nil {
		r.fail("%v", err)
		return
	}
	b := body{typ: m.funcs[fn], count: uint64(len(t.params))}
	br := reader{b: r.b[:s.to], at: s.from}
	b.groups = br.u32("locals")
	for i := uint32(0); i < b.groups && br.err == nil; i++ {
		b.count += uint64(br.u32("locals"))
		br.valueType("type of a local")
		if b.count > uint64(m.limits.Locals) {
			br.fail("function %d has more than %d locals: split it up", fn, m.limits.Locals)
		}
	}
	if m.locals += b.count; m.locals > uint64(m.limits.AllLocals) {
		br.fail("its functions have more than %d locals together: split the module up", m.limits.AllLocals)
	}
	b.locals, b.code = span{s.from, br.at}, span{br.at, s.to}
	r.err = br.err
	m.bodies = append(m.bodies, b)
}

// localTypes lists the types of a function's locals.
func (m *rewriter) localTypes(b *body) []byte {
	types := make([]byte, 0, b.count)
	types = append(types, m.types[b.typ].params...)
	r := reader{b: m.in, at: b.locals.from}
	for range r.u32("locals") {
		n := r.u32("locals")
		t := r.byte("type of a local")
		for range n {
			types = append(types, t)
		}
	}
	return types
}

func reservedName(s string) bool { return strings.HasPrefix(s, reserved) }
