package plugins

import (
	"bytes"
	"fmt"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/event"
)

// Bounds of a module, checked before the compiler sees it: the compiler's time and memory grow with the
// product of a function's locals and its branches, and no context stops it.
const (
	maxTable    = 64 << 10 // elements of a table: a table is host memory that no memory limit counts
	maxTables   = 8
	maxFuncs    = 200_000
	maxBody     = 4 << 20  // bytes of one function's code
	maxLocals   = 10_000   // of one function, parameters included
	maxBranches = 4 << 20  // of one function: locals × (upper bound of its blocks); about 2 s of compiling
	heavyFrom   = 1 << 18  // such products count together,
	maxHeavy    = 16 << 20 // up to this
	maxParams   = 1_000    // of one function type, and as many results
	maxNames    = 10_000   // imports, exports
)

// A Module is what the host reads of a core WASM module before it is compiled.
type Module struct {
	Imports []Extern
	Exports []Extern

	script []byte // source that the module runs; nil where the module is the function
	shared string // the digest of the module where functions share it

	bytes     []byte
	types     []int // parameters of each function type
	funcTypes []uint32
	memories  []limits
	tables    []limits
	memoryAt  span // the sections' whole extent, header included
	tableAt   span
}

// An Extern is one import or export.
type Extern struct {
	Module string // of an import
	Name   string
	Kind   Kind
}

// Kind is what an Extern is.
type Kind uint8

// The kinds of externs, numbered as modules carry them.
const (
	Func Kind = iota
	Table
	Memory
	Global
	Tag
)

func (k Kind) String() string {
	return [...]string{"function", "table", "memory", "global", "tag"}[k]
}

// Export reports whether m exports name as a kind.
func (m *Module) Export(kind Kind, name string) bool {
	for i := range m.Exports {
		if m.Exports[i].Name == name {
			return m.Exports[i].Kind == kind
		}
	}
	return false
}

// ImportsFrom reports whether m imports anything from a module.
func (m *Module) ImportsFrom(module string) bool {
	for i := range m.Imports {
		if m.Imports[i].Module == module {
			return true
		}
	}
	return false
}

type span struct{ from, to int }

type limits struct {
	ref      byte // of a table: its element type
	min, max uint32
	bounded  bool // max is given
}

// parse reads the sections of a core module. It does not validate code: the compiler does.
func parse(b []byte) (*Module, error) {
	m := &Module{bytes: b}
	r := reader{b: b, at: 8}
	for r.at < len(b) && r.err == nil {
		from := r.at
		id := r.byte("section id")
		size := r.u32("section size")
		if r.err == nil && int(size) > len(b)-r.at {
			r.fail("section %d has %d bytes, %d are left: the file is cut off", id, size, len(b)-r.at)
		}
		if r.err != nil {
			break
		}
		end := r.at + int(size)
		s := reader{b: b[:end], at: r.at}
		m.section(&s, id, span{from, end})
		if s.err == nil && id != 0 && id < 12 && id != 6 && id != 8 && id != 9 && id != 11 && s.at != end {
			s.fail("section %d has %d bytes too many", id, end-s.at)
		}
		r.err, r.at = s.err, end
	}
	if r.err != nil {
		return nil, event.Bad(event.ErrInvalid, "module", r.err.Error())
	}
	return m, nil
}

func (m *Module) section(r *reader, id byte, at span) {
	switch id {
	case 1:
		m.typeSection(r)
	case 2:
		r.list("import", maxNames, func(int) {
			e := Extern{Module: r.name(), Name: r.name(), Kind: Kind(r.byte("kind"))}
			switch e.Kind {
			case Func:
				m.funcTypes = append(m.funcTypes, r.u32("type"))
			case Table:
				r.limits(true)
			case Memory:
				r.limits(false)
			case Global:
				r.byte("type")
				r.byte("mutability")
			default:
				r.fail("import %.60q %.60q is of kind %d, which this build does not know", e.Module, e.Name, e.Kind)
			}
			m.Imports = append(m.Imports, e)
		})
	case 3:
		r.list("function", maxFuncs, func(int) { m.funcTypes = append(m.funcTypes, r.u32("type")) })
	case 4:
		m.tableAt = at
		r.list("table", maxTables, func(int) { m.tables = append(m.tables, r.limits(true)) })
	case 5:
		m.memoryAt = at
		r.list("memory", 1, func(int) { m.memories = append(m.memories, r.limits(false)) })
	case 7:
		r.list("export", maxNames, func(int) {
			e := Extern{Name: r.name(), Kind: Kind(r.byte("kind"))}
			if e.Kind > Global {
				r.fail("export %.60q is of kind %d, which this build does not know", e.Name, e.Kind)
			}
			r.u32("index")
			m.Exports = append(m.Exports, e)
		})
	case 10:
		m.codeSection(r)
	}
}

func (m *Module) typeSection(r *reader) {
	r.list("type", maxFuncs, func(i int) {
		if form := r.byte("form"); r.err == nil && form != 0x60 {
			r.fail("type %d has form 0x%02x; only function types (0x60) are supported: build for WebAssembly 2.0, without GC types", i, form)
		}
		params := 0
		for k := range 2 {
			n := r.u32("count")
			if n > maxParams {
				r.fail("type %d has %d parameters or results; at most %d are allowed", i, n, maxParams)
				return
			}
			if k == 0 {
				params = int(n)
			}
			for range n {
				r.byte("value type")
			}
		}
		m.types = append(m.types, params)
	})
}

func (m *Module) codeSection(r *reader) {
	imported, heavy := 0, uint64(0)
	for _, e := range m.Imports {
		if e.Kind == Func {
			imported++
		}
	}
	r.list("function body", maxFuncs, func(i int) {
		size := r.u32("size")
		if r.err != nil {
			return
		}
		if size > maxBody || int(size) > len(r.b)-r.at {
			r.fail("function %d has %d bytes of code; %d are left and at most %d allowed", imported+i, size, len(r.b)-r.at, maxBody)
			return
		}
		end := r.at + int(size)
		locals := uint64(0)
		if k := imported + i; k < len(m.funcTypes) && int(m.funcTypes[k]) < len(m.types) {
			locals = uint64(m.types[m.funcTypes[k]])
		}
		body := reader{b: r.b[:end], at: r.at}
		for range body.u32("locals") {
			locals += uint64(body.u32("locals"))
			body.byte("value type")
			if body.err != nil || locals > maxLocals {
				break
			}
		}
		if body.err == nil && locals > maxLocals {
			body.fail("function %d has more than %d locals; split it up", imported+i, maxLocals)
		}
		if body.err == nil {
			// A block, loop or if is one of these bytes; some of them are operands, so this is an upper bound.
			blocks := uint64(0)
			for _, c := range body.b[body.at:] {
				if c >= 0x02 && c <= 0x04 {
					blocks++
				}
			}
			if locals*blocks > maxBranches {
				body.fail("function %d has %d locals and up to %d blocks, more than the compiler can be trusted with (%d together); split it up",
					imported+i, locals, blocks, maxBranches)
			}
			if locals*blocks > heavyFrom {
				heavy += locals * blocks
			}
			if heavy > maxHeavy {
				body.fail("its functions have more locals × blocks together than the compiler can be trusted with (%d); split the module up", maxHeavy)
			}
		}
		r.err, r.at = body.err, end
	})
}

// limited returns the module's bytes with the maximum of its memory set to pages and of its tables to at
// most maxTable. Every other byte is kept.
func (m *Module) limited(pages uint32) ([]byte, error) {
	bad := func(format string, args ...any) ([]byte, error) {
		return nil, event.Bad(event.ErrInvalid, "module", fmt.Sprintf(format, args...))
	}
	if len(m.memories) == 0 {
		return bad("has no memory of its own; every guest exports one named \"memory\"")
	}
	mem := m.memories[0]
	if mem.min > pages {
		return bad("wants %d KiB of memory to begin with; the function's limit is %d KiB: raise limits.memory or build with a smaller initial memory",
			uint64(mem.min)*64, uint64(pages)*64)
	}
	if !mem.bounded || mem.max > pages {
		mem.max, mem.bounded = pages, true
	}
	memory := mem.append([]byte{1}, false)
	table := appendU32(nil, uint32(len(m.tables)))
	for i, t := range m.tables {
		if t.min > maxTable || t.bounded && t.max > maxTable {
			return bad("table %d may grow to %d elements; at most %d are allowed: tables are host memory beyond the memory limit", i, max(t.min, t.max), maxTable)
		}
		if !t.bounded {
			t.max, t.bounded = maxTable, true
		}
		table = t.append(table, true)
	}
	out := make([]byte, 0, len(m.bytes)+32)
	at := 0
	for _, s := range []struct {
		span
		id   byte
		body []byte
	}{{m.tableAt, 4, table}, {m.memoryAt, 5, memory}} {
		if s.to == 0 {
			continue
		}
		if s.from < at { // section order is the compiler's to check; edits go forward only
			return bad("its memory section comes before its table section")
		}
		out = append(out, m.bytes[at:s.from]...)
		out = append(out, s.id)
		out = appendU32(out, uint32(len(s.body)))
		out = append(out, s.body...)
		at = s.to
	}
	return append(out, m.bytes[at:]...), nil
}

func (l limits) append(dst []byte, table bool) []byte {
	if table {
		dst = append(dst, l.ref)
	}
	dst = append(dst, 1)
	dst = appendU32(dst, l.min)
	return appendU32(dst, l.max)
}

func appendU32(dst []byte, v uint32) []byte {
	for ; v >= 0x80; v >>= 7 {
		dst = append(dst, byte(v)|0x80)
	}
	return append(dst, byte(v))
}

// A reader cuts a module's encoding apart. After the first fault it returns zeros.
type reader struct {
	b   []byte
	at  int
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("at byte %d: %s", r.at, fmt.Sprintf(format, args...))
	}
}

func (r *reader) byte(what string) byte {
	if r.err != nil {
		return 0
	}
	if r.at >= len(r.b) {
		r.fail("%s is missing: the file is cut off", what)
		return 0
	}
	r.at++
	return r.b[r.at-1]
}

func (r *reader) u32(what string) uint32 {
	v := uint64(0)
	for shift := 0; shift < 35; shift += 7 {
		c := r.byte(what)
		v |= uint64(c&0x7F) << shift
		if c&0x80 == 0 {
			if v > 0xFFFFFFFF {
				break
			}
			return uint32(v)
		}
	}
	r.fail("%s is no 32-bit number", what)
	return 0
}

func (r *reader) name() string {
	n := r.u32("length of a name")
	if r.err == nil && int(n) > len(r.b)-r.at {
		r.fail("a name of %d bytes is cut off", n)
	}
	if r.err != nil {
		return ""
	}
	s := r.b[r.at : r.at+int(n)]
	r.at += int(n)
	if !utf8.Valid(s) {
		r.fail("a name is not UTF-8")
	}
	return string(bytes.Clone(s))
}

func (r *reader) list(what string, most uint32, item func(i int)) {
	n := r.u32("number of items")
	if n > most {
		r.fail("%d items of kind %s; at most %d are allowed", n, what, most)
	}
	for i := 0; i < int(n) && r.err == nil; i++ {
		item(i)
	}
}

func (r *reader) limits(table bool) (l limits) {
	if table {
		if l.ref = r.byte("element type"); r.err == nil && l.ref != 0x70 && l.ref != 0x6F {
			r.fail("a table's element type is 0x%02x; funcref and externref are supported", l.ref)
		}
	}
	flags := r.byte("limits")
	if flags > 1 {
		r.fail("a memory or table is shared or 64-bit (flags 0x%02x); build without threads and memory64", flags)
	}
	l.min = r.u32("minimum")
	if l.bounded = flags == 1; l.bounded {
		if l.max = r.u32("maximum"); l.max < l.min {
			r.fail("a maximum of %d is below the minimum of %d", l.max, l.min)
		}
	}
	return l
}
