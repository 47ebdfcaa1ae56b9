package mqttname

import (
	"testing"
)

// Any two texts: nothing panics, and what is said of them fits together.
func FuzzNames(f *testing.F) {
	for _, c := range matches {
		f.Add(c.filter, c.name, "{1}/x")
	}
	f.Add("a/#/b", "a\x00", "{{}")
	f.Add("+/#", "/", "{2}{1}")
	f.Fuzz(func(t *testing.T, filter, name, template string) {
		if tp, err := ParseTemplate(template); err == nil {
			if p := tp.Pattern(); !tp.IsZero() && tp.Max() == 0 && ValidFilter(p) {
				if made, ok := tp.Append(nil, func(string) (string, bool) { return name, true }); ok && ValidName(string(made)) && made[0] != '$' && !Match(p, string(made)) {
					t.Errorf("%q makes %q, which %q does not match", template, made, p)
				}
			}
			pieces := make([]string, 4)
			if tp.Max() <= len(pieces) && tp.Unfill(name, pieces) {
				if again := string(tp.AppendPieces(nil, pieces)); again != name {
					t.Errorf("%q of %q: %q gives back %q", template, name, pieces, again)
				}
			}
		}
		if !ValidFilter(filter) {
			return
		}
		if !Overlap(filter, filter) || MoreSpecific(filter, filter) {
			t.Errorf("%q and itself", filter)
		}
		if (Before(filter, template) != "") != MoreSpecific(filter, template) {
			t.Errorf("%q and %q: Before is not MoreSpecific", filter, template)
		}
		if !ValidName(name) {
			return
		}
		if (Differs(filter, name) == "") != Match(filter, name) {
			t.Errorf("%q and %q: Differs is not Match", filter, name)
		}
		if ValidFilter(name) && Overlap(filter, name) != Match(filter, name) { // a name is a filter without wildcards
			t.Errorf("%q and %q: Overlap is not Match", filter, name)
		}
		var trie Trie[int]
		trie.Add(filter, 1)
		found := false
		trie.Match(name, func(int) bool { found = true; return true })
		if found != Match(filter, name) {
			t.Errorf("%q and %q: a trie says %v", filter, name, found)
		}
		if found && len(Capture(filter, name)) != Wildcards(filter) {
			t.Errorf("%q and %q: %q", filter, name, Capture(filter, name))
		}
		trie.Remove(filter, 1)
		if !trie.root.empty() {
			t.Errorf("%q is not removed whole", filter)
		}
	})
}
