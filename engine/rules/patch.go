package rules

import "slices"

// MergePatch applies an RFC 7396 merge patch to a definition: null removes a key, mappings are merged, any
// other value takes the place of the old one. Both are JSON or YAML; what comes out is JSON. References are
// left alone. The result is not checked: parse it.
func MergePatch(old, patch []byte) ([]byte, error) {
	was, err := readDoc(old)
	if err != nil {
		return nil, err
	}
	change, err := readDoc(patch)
	if err != nil {
		return nil, err
	}
	p := newParser(Options{})
	if change.kind != mapping {
		p.bad(change, "a merge patch is a mapping of the keys to change, this is %s", change.kind)
		return nil, p.err()
	}
	return merge(plain(was), plain(change)).appendJSON(nil), nil
}

// readDoc reads JSON or YAML as it is.
func readDoc(text []byte) (*node, error) {
	p := newParser(Options{})
	p.api = true
	n := p.read(&source{text: text})
	return n, p.err()
}

// merge is MergePatch of RFC 7396, section 2; neither argument is changed.
func merge(target, patch *doc) *doc {
	if patch.kind != mapping {
		return patch
	}
	out := &doc{kind: mapping}
	if target != nil && target.kind == mapping {
		out.keys, out.items = slices.Clone(target.keys), slices.Clone(target.items)
	}
	for i, key := range patch.keys {
		at := slices.Index(out.keys, key)
		switch value := patch.items[i]; {
		case value.kind == null && at >= 0:
			out.keys, out.items = slices.Delete(out.keys, at, at+1), slices.Delete(out.items, at, at+1)
		case value.kind == null:
		case at >= 0:
			out.items[at] = merge(out.items[at], value)
		default:
			out.set(key, merge(nil, value))
		}
	}
	return out
}
