package access

import (
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

const (
	maxStars    = 8   // of one pattern: what matching costs is bounded by length × stars
	maxPatterns = 256 // of one grant
	maxGrants   = 256 // of one role
	maxRoles    = 256 // of one policy, and of one principal
)

// A pattern matches names; * stands for any run of characters, the empty one included.
type pattern string

// checkPattern says what is wrong with s as a pattern, "" if nothing.
func checkPattern(s string) string {
	if s == "" {
		return "is empty; want a name, or a pattern such as orders.* or *"
	}
	if len(s) > event.MaxName {
		return fmt.Sprintf("has %d bytes; names have at most %d", len(s), event.MaxName)
	}
	if n := strings.Count(s, "*"); n > maxStars {
		return fmt.Sprintf("has %d stars; at most %d are allowed", n, maxStars)
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '*':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return fmt.Sprintf("has %q at %d; a pattern is made of A-Z a-z 0-9 . _ - and *, which stands for anything, and begins with a letter, digit or *", c, i)
		}
	}
	return ""
}

// match reports whether name fits. It goes back to the last star only, so it is at most len(p) × len(name) steps.
func (p pattern) match(name string) bool {
	i, j := 0, 0
	star, from := -1, 0
	for j < len(name) {
		switch {
		case i < len(p) && p[i] == '*':
			star, from = i, j
			i++
		case i < len(p) && p[i] == name[j]:
			i++
			j++
		case star >= 0:
			from++
			i, j = star+1, from
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}

// A grant is one row of a role: these actions on the names of these patterns.
type grant struct {
	allow    []Action
	patterns [kinds][]pattern // none of Router
	at       string           // file:line:column; "" of a built-in role
}

// reach is a compiled grant: one pattern and what it allows.
type reach struct {
	what actions
	on   pattern
	from string // the grant, for Explain
}

// grants is what a set of roles allows together.
type grants struct {
	router   bool    // the whole router
	anywhere actions // everything that is allowed on something
	reach    [kinds][]reach
}

func (g *grants) allow(bit actions, k Kind, name string) bool { return g.which(bit, k, name) != nil }

// which returns what allows one of the actions of bit; nil if nothing does.
func (g *grants) which(bit actions, k Kind, name string) *reach {
	for i := range g.reach[k] {
		if r := &g.reach[k][i]; r.what&bit != 0 && (r.on == "*" || r.on.match(name)) {
			return r
		}
	}
	return nil
}

// add compiles one more grant of a role in.
func (g *grants) add(role string, gr grant) {
	from := "role " + role
	if gr.at != "" {
		from += " (" + gr.at + ")"
	}
	var what actions
	for _, a := range gr.allow {
		what |= a.bit()
	}
	if what&Admin.bit() != 0 {
		g.router = true
		g.anywhere |= Admin.bit()
	}
	for k := Topic; k < kinds; k++ {
		here := what & applies[k]
		if here == 0 {
			continue
		}
		for _, on := range gr.patterns[k] {
			g.anywhere |= here
			g.reach[k] = append(g.reach[k], reach{here, on, from})
		}
	}
}

// A role is named grants.
type role struct {
	name    string
	grants  []grant
	all     bool // everything; grants are not looked at
	limits  Limits
	builtin bool
	about   string
}

// administers reports whether the role holds the whole router: who may make keys may make one of any role.
func (r *role) administers() bool {
	return r.all || slices.ContainsFunc(r.grants, func(g grant) bool { return slices.Contains(g.allow, Admin) })
}

func everywhere(about string, allow ...Action) role {
	gr := grant{allow: allow}
	for k := Topic; k < kinds; k++ {
		gr.patterns[k] = []pattern{"*"}
	}
	return role{grants: []grant{gr}, builtin: true, about: about}
}

// builtin returns the roles that there are without a policy: on every name within the principal's tenant.
func builtin() []role {
	roles := []role{
		{builtin: true, all: true, about: "everything"},
		everywhere("publish to topics", Publish),
		everywhere("take events from subscriptions, and read", Consume, Read),
		everywhere("read events, definitions and state", Read),
		everywhere("read, consume, and pause, seek, redrive, purge, replay", Read, Consume, Operate),
		everywhere("everything but the router's own administration", Read, Publish, Manage, Deploy, Invoke, Operate),
	}
	for i, name := range [...]string{"admin", "publisher", "consumer", "reader", "operator", "developer"} {
		roles[i].name = name
	}
	return roles
}

// raise is the wider of two limits, none (0) being the widest.
func raise[T int | float64](a, b T) T {
	if a == 0 || b == 0 {
		return 0
	}
	return max(a, b)
}
