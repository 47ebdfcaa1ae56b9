package rules

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
	if target == nil || target.kind != mapping {
		target = &doc{}
	}
	change := patch.index()
	for i, key := range target.keys {
		if at, ok := change[key]; !ok {
			out.set(key, target.items[i])
		} else if patch.items[at].kind != null {
			out.set(key, merge(target.items[i], patch.items[at]))
		}
	}
	had := target.index()
	for i, key := range patch.keys {
		if _, ok := had[key]; !ok && patch.items[i].kind != null {
			out.set(key, merge(nil, patch.items[i]))
		}
	}
	return out
}
