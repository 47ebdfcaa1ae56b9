package access

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/millrace/millrace/engine/event"
)

// A Policy is what a policy file says: roles, who issues tokens, which certificates come in, limits. It does not
// change, and nil stands for the built-in roles alone.
type Policy struct {
	roles   []role // those of the file, in its order
	limits  map[string]Limits
	issuers []*issuer
	certs   []certRule
}

// ParsePolicy reads a policy file. Its path is for messages and is what the names of other files are relative to, which
// read reads; getenv is where ${env:NAME} comes from. Either may be nil where the text needs none. An error is an
// event.Faults with everything wrong, each at its file:line:column, and holds no secret.
func ParsePolicy(path string, text []byte, read func(string) ([]byte, error), getenv func(string) (string, bool)) (*Policy, error) {
	r := &policyReader{path: path, read: read, getenv: getenv}
	top := r.document(text)
	if top == nil {
		return nil, r.err()
	}
	p := &Policy{limits: map[string]Limits{}}
	f := r.record(top, "a policy", "version", "roles", "limits", "jwt", "certificates")
	if v := f["version"]; v == nil && top.Kind == yaml.MappingNode {
		r.fault(top, "has no version; write version: 1")
	} else if v != nil && (v.Kind != yaml.ScalarNode || v.Value != "1") {
		r.fault(v, "is %s; this build reads version 1", shape(v))
	}
	if n := f["roles"]; n != nil {
		r.roles(p, n)
	}
	known := p.names()
	if n := f["limits"]; n != nil {
		r.limits(p, n, known)
	}
	if n := f["jwt"]; n != nil {
		r.issuers(p, n, known)
	}
	if n := f["certificates"]; n != nil {
		r.certificates(p, n, known)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// names returns those of all roles, sorted.
func (p *Policy) names() []string { return slices.Sorted(maps.Keys(p.all())) }

// all returns every role by name with its limits, the built-in ones included.
func (p *Policy) all() map[string]*role {
	roles := map[string]*role{}
	add := func(r role) {
		if p != nil {
			r.limits = p.limits[r.name]
		}
		roles[r.name] = &r
	}
	for _, r := range builtin() {
		add(r)
	}
	if p != nil {
		for _, r := range p.roles {
			add(r)
		}
	}
	return roles
}

func (r *policyReader) roles(p *Policy, n *yaml.Node) {
	own := builtin()
	for _, f := range r.fields(n, "roles") {
		if len(p.roles) >= maxRoles {
			r.fault(f.key, "there are over %d roles", maxRoles)
			return
		}
		if why := checkRoleName(f.name); why != "" {
			r.fault(f.key, "%s", why)
			continue
		}
		if slices.ContainsFunc(own, func(b role) bool { return b.name == f.name }) {
			r.fault(f.key, "role %s is built in and means the same everywhere; give yours another name", f.name)
			continue
		}
		if f.val.Kind != yaml.SequenceNode {
			r.fault(f.val, "is %s; a role is a list of grants, such as - {allow: [publish], topics: [\"orders.*\"]}", shape(f.val))
			continue
		}
		if len(f.val.Content) > maxGrants {
			r.fault(f.val, "role %s has %d grants; at most %d are allowed", f.name, len(f.val.Content), maxGrants)
			continue
		}
		ro := role{name: f.name}
		for _, g := range f.val.Content {
			ro.grants = append(ro.grants, r.grant(g))
		}
		p.roles = append(p.roles, ro)
	}
}

func checkRoleName(s string) string {
	if event.CheckName("role", s) != nil || len(s) > 64 {
		return fmt.Sprintf("%.60q is no name of a role; want 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit", s)
	}
	return ""
}

var kindKeys = [kinds]string{Topic: "topics", Subscription: "subscriptions", Function: "functions"}

func (r *policyReader) grant(n *yaml.Node) grant {
	g := grant{at: r.place(n)}
	f := r.record(n, "a grant", "allow", kindKeys[Topic], kindKeys[Subscription], kindKeys[Function])
	var what actions
	allow := f["allow"]
	if allow == nil {
		if n.Kind == yaml.MappingNode {
			r.fault(n, "allows nothing; write allow: with some of %s", joinActions(actionNames[:]))
		}
		return g
	}
	for _, item := range r.items(allow) {
		s, ok := r.text(item)
		if !ok {
			continue
		}
		a := Action(s)
		if a.bit() == 0 {
			r.fault(item, "%.60q is no action%s; the actions are %s", item.Value, suggest(s, actionWords()), joinActions(actionNames[:]))
			continue
		}
		what |= a.bit()
		g.allow = append(g.allow, a)
	}
	reached := Admin.bit() // of the router, which has no name
	for k := Topic; k < kinds; k++ {
		on := f[kindKeys[k]]
		if on == nil {
			continue
		}
		reached |= applies[k]
		if what != 0 && what&applies[k] == 0 {
			r.fault(on, "%s say nothing about %s, for which there are %s", joinActions(g.allow), kindKeys[k], joinActions(applies[k].list()))
		}
		g.patterns[k] = r.patterns(on)
	}
	for _, a := range g.allow {
		if a.bit()&reached == 0 {
			r.fault(allow, "%s is allowed on nothing here; name %s", a, wanted(a))
		}
	}
	return g
}

// wanted is which keys a needs one of.
func wanted(a Action) string {
	var keys []string
	for k := Topic; k < kinds; k++ {
		if a.bit()&applies[k] != 0 {
			keys = append(keys, kindKeys[k])
		}
	}
	return strings.Join(keys, " or ")
}

func (r *policyReader) patterns(n *yaml.Node) []pattern {
	items := r.items(n)
	if len(items) > maxPatterns {
		r.fault(n, "has %d patterns; at most %d are allowed", len(items), maxPatterns)
		return nil
	}
	var out []pattern
	for _, item := range items {
		s, ok := r.text(item)
		if !ok {
			continue
		}
		if why := checkPattern(s); why != "" {
			r.fault(item, "pattern %.60q %s", item.Value, why)
			continue
		}
		out = append(out, pattern(s))
	}
	return out
}

func (r *policyReader) limits(p *Policy, n *yaml.Node, known []string) {
	for _, f := range r.fields(n, "limits") {
		if !slices.Contains(known, f.name) {
			r.fault(f.key, "%.60q is no role%s; the roles are %s", f.name, suggest(f.name, known), strings.Join(known, ", "))
			continue
		}
		var l Limits
		v := r.record(f.val, "a role's limits", "rate", "burst", "connections")
		if n := v["rate"]; n != nil {
			if s, ok := r.text(n); ok {
				var err error
				if l.Rate, err = event.ParseRate(s); err != nil {
					r.fault(n, "is %.60q; %v", n.Value, err)
				}
			}
		}
		if n := v["burst"]; n != nil {
			l.Burst = r.whole(n, 1, 1_000_000)
			if v["rate"] == nil {
				r.fault(n, "is a burst of no rate; write rate: too, such as 100/s")
			}
		}
		if n := v["connections"]; n != nil {
			l.Conns = r.whole(n, 1, 1_000_000)
		}
		p.limits[f.name] = l
	}
}

// roleNames returns the roles that a list names.
func (r *policyReader) roleNames(n *yaml.Node, known []string) []string {
	var out []string
	items := r.items(n)
	if len(items) > maxRoles {
		r.fault(n, "has %d roles; at most %d are allowed", len(items), maxRoles)
		return nil
	}
	for _, item := range items {
		s, ok := r.text(item)
		if !ok {
			continue
		}
		if !slices.Contains(known, s) {
			r.fault(item, "%.60q is no role here%s; the roles are %s", item.Value, suggest(s, known), strings.Join(known, ", "))
			continue
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// tenant returns the prefix that a value stands for.
func (r *policyReader) tenant(n *yaml.Node) string {
	s, ok := r.text(n)
	if !ok {
		return ""
	}
	tenant, why := fullTenant(s)
	if why == "" && s == "" {
		why = "is empty; leave the key out for all names"
	}
	if why != "" {
		r.fault(n, "%s", why)
	}
	return tenant
}

// list returns the actions of a set in their order.
func (s actions) list() []Action {
	var out []Action
	for i, a := range actionNames {
		if s&(1<<i) != 0 {
			out = append(out, a)
		}
	}
	return out
}

func actionWords() []string {
	out := make([]string, len(actionNames))
	for i, a := range actionNames {
		out[i] = string(a)
	}
	return out
}

func joinActions(list []Action) string {
	words := make([]string, len(list))
	for i, a := range list {
		words[i] = string(a)
	}
	return strings.Join(words, ", ")
}
