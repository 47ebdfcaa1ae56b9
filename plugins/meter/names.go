package meter

import "strings"

// custom returns the new content of a custom section, or nil to leave it out. Function names move along, so
// that a trap's stack trace still names functions; debugging information is about bytes that are
// elsewhere now.
func (m *rewriter) custom(r *reader) []byte {
	from := r.at
	name := r.name("a custom section's name")
	switch {
	case r.err != nil:
		return nil
	case name == "name":
		out := append(appendName(nil, name), m.names(r)...)
		return out
	case strings.HasPrefix(name, ".debug_"), strings.HasPrefix(name, "reloc."), name == "linking", name == "sourceMappingURL":
		return nil
	}
	return r.b[from:]
}

// names copies the subsections that wazero reads: the module's, functions' and locals' names.
func (m *rewriter) names(r *reader) (out []byte) {
	for r.more() {
		id := r.byte("subsection id")
		s := r.skip(r.u32("subsection size"), "subsection")
		sub := reader{b: r.b[:s.to], at: s.from, err: r.err}
		var body []byte
		switch id {
		case 0:
			body = appendName(nil, sub.name("the module's name"))
		case 1:
			body = m.nameMap(&sub, m.moved)
		case 2:
			n := uint32(0)
			var items []byte
			sub.list("functions with names of locals", len(m.funcs), func(int) {
				n++
				items = appendU32(items, m.moved(sub.u32("function")))
				items = append(items, m.nameMap(&sub, func(i uint32) uint32 { return i })...)
			})
			body = append(appendU32(nil, n), items...)
		default:
			continue
		}
		if sub.more() {
			sub.fail("a subsection of names is too long")
		}
		if r.err = sub.err; r.err == nil {
			out = appendSized(append(out, id), body)
		}
	}
	return out
}

func (m *rewriter) nameMap(r *reader, moved func(uint32) uint32) []byte {
	n := uint32(0)
	var items []byte
	r.list("names", len(r.b), func(int) {
		n++
		items = appendU32(items, moved(r.u32("index")))
		items = appendName(items, r.name("a name"))
	})
	return append(appendU32(nil, n), items...)
}
