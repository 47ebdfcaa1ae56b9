package meter

import "fmt"

// write puts the sections together again, those that metering needs added.
func (m *rewriter) write() error {
	m.helperAt = map[helperKey]uint32{}
	m.tickType()
	m.slow() // the first helper: every function may call it
	code, err := m.codeSection()
	if err != nil {
		return err
	}
	out := make([]byte, 0, len(m.in)+len(code))
	out = append(out, m.in[:8]...)
	added := []byte{secType, secImport, secFunction, secGlobal, secExport, secCode}
	emit := func(id byte, s section) error {
		if id == secCode {
			out = appendSized(append(out, id), code)
			return nil
		}
		body, err := m.section(id, s)
		if err != nil {
			return err
		}
		if body != nil {
			out = appendSized(append(out, id), body)
		}
		return nil
	}
	for _, s := range m.sections {
		if s.id != secCustom {
			for len(added) > 0 && place(added[0]) <= place(s.id) {
				id := added[0]
				added = added[1:]
				if id != s.id { // it had none
					if err := emit(id, section{}); err != nil {
						return err
					}
				}
			}
		}
		if err := emit(s.id, s); err != nil {
			return err
		}
	}
	for _, id := range added {
		if err := emit(id, section{}); err != nil {
			return err
		}
	}
	if most := m.limits.Growth*len(m.in) + 64<<10; len(out) > most {
		return fmt.Errorf("has %d bytes, and %d with metering built in; at most %d are allowed: it consists of little but loops and calls",
			len(m.in), len(out), most)
	}
	m.out = out
	return nil
}

// section returns the new content of a section; s is where the old one is, if there is one.
func (m *rewriter) section(id byte, s section) ([]byte, error) {
	r := reader{b: m.in[:s.body.to], at: s.body.from}
	var out []byte
	switch id {
	case secCustom:
		return m.custom(&r), r.err
	case secType:
		out = m.vector(&r, len(m.newTypes))
		for _, t := range m.newTypes {
			out = append(out, t...)
		}
	case secImport:
		out = m.vector(&r, 1)
		out = append(appendName(appendName(out, TickModule), TickName), 0)
		out = appendU32(out, uint32(m.tickType()))
	case secFunction:
		out = m.vector(&r, len(m.helpers))
		for _, h := range m.helpers {
			out = appendU32(out, h.typ)
		}
	case secGlobal:
		out = m.globalSection(&r)
	case secExport:
		out = m.exportSection(&r)
	case secStart:
		out = appendU32(nil, m.moved(m.function(&r, "the start function")))
		if r.more() {
			r.fail("the start section is too long")
		}
	case secElement:
		out = m.elementSection(&r)
	default:
		return m.in[s.body.from:s.body.to], nil
	}
	return out, r.err
}

// vector copies a section that is a vector, its count raised by more.
func (m *rewriter) vector(r *reader, more int) []byte {
	n := uint32(0)
	if r.more() {
		n = r.u32("count")
	}
	return append(appendU32(nil, n+uint32(more)), r.b[r.at:]...)
}

func (m *rewriter) globalSection(r *reader) []byte {
	n := uint32(0)
	if r.more() {
		n = r.u32("count")
	}
	out := appendU32(nil, n+2)
	for range n {
		from := r.at
		r.valueType("type of a global")
		r.byte("mutability")
		out = append(out, r.b[from:r.at]...)
		m.constExpr(r, &out)
	}
	for range 2 {
		out = append(out, i64, 1, opI64Const, 0, opEnd)
	}
	return out
}

func (m *rewriter) exportSection(r *reader) []byte {
	n := uint32(0)
	var items []byte
	if r.more() {
		at := r.at
		r.list("exports", m.limits.Names, func(int) {
			n++
			name := r.name("an export's name")
			if reservedName(name) {
				r.fail("exports %.60q: names that begin with %q are the host's own", name, reserved)
			}
			kind := r.byte("kind of an export")
			if kind > 3 {
				r.fail("export %.60q is of kind %d; functions, tables, memories and globals are known", name, kind)
			}
			index := r.u32("index")
			switch have := uint32(len(m.funcs)); {
			case kind == 0 && index < have:
				m.taken[index] = true
				index = m.moved(index)
			case kind == 0, kind == 3 && index >= m.globals:
				r.fail("export %.60q is a function or global %d, which does not exist", name, index)
			}
			items = appendU32(append(appendName(items, name), kind), index)
		})
		if r.more() {
			r.fail("the export section at byte %d is too long", at)
		}
	}
	out := append(appendU32(nil, n+2), items...)
	out = appendU32(append(appendName(out, GlobalFuel), 3), m.fuel())
	return appendU32(append(appendName(out, GlobalGrant), 3), m.grant())
}

func (m *rewriter) elementSection(r *reader) []byte {
	var out []byte
	elements := 0
	n := 0
	r.list("element segments", m.limits.Segments, func(int) {
		n++
		flags := r.u32("flags of an element segment")
		if flags > 7 {
			r.fail("an element segment has flags %d; at most 7 are known", flags)
			return
		}
		out = appendU32(out, flags)
		if flags&1 == 0 { // active: table if not 0, offset
			if flags&2 != 0 {
				out = appendU32(out, r.u32("table"))
			}
			m.constExpr(r, &out)
		}
		if flags&3 != 0 {
			kind := r.byte("element kind")
			if ok := kind == 0; flags&4 != 0 && kind != funcref && kind != externref || flags&4 == 0 && !ok {
				r.fail("an element segment is of kind 0x%02x, which is not known", kind)
			}
			out = append(out, kind)
		}
		count := len(out)
		items := uint32(0)
		r.list("elements", m.limits.Elements-elements, func(int) {
			items++
			if flags&4 != 0 {
				m.constExpr(r, &out)
			} else {
				out = appendU32(out, m.moved(m.function(r, "an element")))
			}
		})
		elements += int(items)
		out = insert(out, count, appendU32(nil, items))
	})
	if r.more() {
		r.fail("the element section is too long")
	}
	return append(appendU32(nil, uint32(n)), out...)
}

// insert puts b into dst at a place.
func insert(dst []byte, at int, b []byte) []byte {
	dst = append(dst, b...)
	copy(dst[at+len(b):], dst[at:len(dst)-len(b)])
	copy(dst[at:], b)
	return dst
}
