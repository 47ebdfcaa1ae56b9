package rules

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Change is one definition that two sets do not have alike.
type Change struct {
	Kind   string      `json:"kind"` // topic, function, subscription, host, schedule, source, bridge or mqtt
	Name   string      `json:"name"`
	Change string      `json:"change"` // created, changed or removed
	Keys   []KeyChange `json:"keys,omitempty"`
}

// The ways of a Change.
const (
	Created = "created"
	Changed = "changed"
	Removed = "removed"
)

// KeyChange is one key of a definition that was changed: its values with defaults, "" where it is not there.
// Of what is secret, or refers to something, only that it differs is told.
type KeyChange struct {
	Key    string `json:"key"`
	Old    string `json:"old"`
	New    string `json:"new"`
	Hidden bool   `json:"hidden,omitempty"` // the values are not shown; Old and New may read the same
}

// Key returns how a key, or anything below it, was changed; nil if it was not.
func (c *Change) Key(key string) *KeyChange {
	for i, k := range c.Keys {
		if k.Key == key || strings.HasPrefix(k.Key, key+".") {
			return &c.Keys[i]
		}
	}
	return nil
}

// Diff tells how new differs from old, by kind and name. Two ways to write the same are no difference. Topics that
// are only named make none. Either may be nil: nothing is defined.
func Diff(old, new *Set) []Change {
	if old == nil {
		old = &Set{}
	}
	if new == nil {
		new = &Set{}
	}
	var all []Change
	for _, kind := range []struct {
		name string
		of   func(*Set) map[string]compared
	}{{"topic", comparedTopics}, {"function", comparedFunctions}, {"subscription", comparedSubscriptions}, {"host", comparedHosts}, {"schedule", comparedSchedules}, {"source", comparedHooks}, {"bridge", comparedBridges}, {"mqtt", comparedMappings}} {
		was, is := kind.of(old), kind.of(new)
		names := make([]string, 0, len(was)+len(is))
		for name := range was {
			names = append(names, name)
		}
		for name := range is {
			if _, both := was[name]; !both {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			a, before := was[name]
			b, after := is[name]
			c := Change{Kind: kind.name, Name: name, Change: Changed}
			switch {
			case !after:
				c.Change = Removed
			case !before:
				c.Change = Created
			default:
				if c.Keys = diffKeys(a, b); len(c.Keys) == 0 {
					continue
				}
			}
			all = append(all, c)
		}
	}
	return all
}

// compared is a definition as Diff looks at it.
type compared struct {
	effective *doc
	digest    string // of a function's module
	hidden    hiddenValues
}

func comparedTopics(s *Set) map[string]compared {
	all := make(map[string]compared, len(s.Topics))
	for _, t := range s.Topics {
		if !t.Implied {
			all[t.Name] = compared{effective: t.effective}
		}
	}
	return all
}

func comparedFunctions(s *Set) map[string]compared {
	all := make(map[string]compared, len(s.Functions))
	for _, f := range s.Functions {
		all[f.Name] = compared{f.effective, f.Digest, f.hidden}
	}
	return all
}

func comparedSubscriptions(s *Set) map[string]compared {
	all := make(map[string]compared, len(s.Subscriptions))
	for _, x := range s.Subscriptions {
		all[x.Name] = compared{x.effective, "", x.hidden}
	}
	return all
}

func comparedHosts(s *Set) map[string]compared {
	all := make(map[string]compared, len(s.Hosts))
	for _, h := range s.Hosts {
		all[h.Name] = compared{effective: h.effective}
	}
	return all
}

func comparedSchedules(s *Set) map[string]compared {
	all := make(map[string]compared, len(s.Schedules))
	for _, x := range s.Schedules {
		all[x.Name] = compared{effective: x.effective, hidden: x.hidden}
	}
	return all
}

func comparedHooks(s *Set) map[string]compared {
	all := make(map[string]compared, len(s.Hooks))
	for _, x := range s.Hooks {
		all[x.Name] = compared{effective: x.effective, hidden: x.hidden}
	}
	return all
}

func diffKeys(a, b compared) []KeyChange {
	var keys []KeyChange
	if a.digest != b.digest {
		keys = append(keys, KeyChange{Key: "digest", Old: a.digest, New: b.digest})
	}
	keys = diffDocs(keys, "", a.effective, b.effective)
	for i := range keys {
		_, was := a.hidden[keys[i].Key]
		_, is := b.hidden[keys[i].Key]
		keys[i].Hidden = was || is
	}
	for _, path := range a.hidden.differ(b.hidden) {
		if !slices.ContainsFunc(keys, func(k KeyChange) bool {
			return k.Key == path || strings.HasPrefix(path, k.Key+".") || strings.HasPrefix(path, k.Key+"[")
		}) {
			keys = append(keys, KeyChange{Key: path, Old: hidden, New: hidden, Hidden: true})
		}
	}
	return keys
}

// diffDocs adds where two documents differ. Lists are compared as a whole: what moved within one says little.
func diffDocs(keys []KeyChange, path string, a, b *doc) []KeyChange {
	if a != nil && b != nil && a.kind == mapping && b.kind == mapping {
		below := func(key string) string { return strings.TrimPrefix(path+"."+key, ".") }
		bs := b.index()
		for i, key := range a.keys {
			if j, both := bs[key]; both {
				keys = diffDocs(keys, below(key), a.items[i], b.items[j])
			} else {
				keys = diffDocs(keys, below(key), a.items[i], nil)
			}
		}
		as := a.index()
		for j, key := range b.keys {
			if _, both := as[key]; !both {
				keys = diffDocs(keys, below(key), nil, b.items[j])
			}
		}
		return keys
	}
	if was, is := a.shown(), b.shown(); was != is {
		keys = append(keys, KeyChange{Key: path, Old: was, New: is})
	}
	return keys
}

// shown is a document in one line: a single value as it is, anything else as JSON.
func (d *doc) shown() string {
	switch {
	case d == nil:
		return ""
	case d.kind == scalar:
		return d.text
	}
	var b bytes.Buffer
	if err := json.Compact(&b, d.appendJSON(nil)); err != nil {
		return ""
	}
	return b.String()
}

// hiddenValues are hashes of the values that are not shown, by their path.
type hiddenValues map[string][sha256.Size]byte

// differ lists the paths whose values differ, of those that both have.
func (h hiddenValues) differ(o hiddenValues) (paths []string) {
	for path, sum := range h {
		if other, both := o[path]; both && other != sum {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

// hiddenOf gathers what mask does not show of a definition.
func (p *parser) hiddenOf(n *node) hiddenValues {
	var all hiddenValues
	var walk func(n *node, path string, secret bool)
	walk = func(n *node, path string, secret bool) {
		if n.kind == scalar && (n.refs || secret || looksLikeURL(n.raw) && shownText(n.raw, false).keep) {
			if all == nil {
				all = hiddenValues{}
			}
			if text, ok := p.text(n); ok { // else nobody knows what it is here
				all[path] = sha256.Sum256([]byte(text))
			}
		}
		for i, item := range n.items {
			switch n.kind {
			case mapping:
				key := n.keys[i].raw
				walk(item, strings.TrimPrefix(path+"."+key, "."), secret || secretKey(key))
			default:
				walk(item, fmt.Sprintf("%s[%d]", path, i), secret)
			}
		}
	}
	walk(n, "", false)
	return all
}
