package access

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Table prints who may do what, for people to read: every role with what it allows, then who comes in as what. A nil p
// prints the built-in roles. It shows no secret.
func (p *Policy) Table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "ROLE\tMAY\tON\tLIMITS")
	roles := builtin()
	var limits map[string]Limits
	if p != nil {
		roles, limits = append(roles, p.roles...), p.limits
	}
	for _, r := range roles {
		name, bounds := r.name, limits[r.name].String()
		for _, row := range r.rows() {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", name, row.may, row.on, bounds)
			name, bounds = "", ""
		}
	}
	if p != nil && len(p.issuers) > 0 {
		fmt.Fprintln(t, "\nTOKENS OF\tISSUER\tKEYS\tROLES\tTENANT")
		for _, is := range p.issuers {
			fmt.Fprintf(t, "jwt:%s\t%s\t%s\t%s\t%s\n", is.name, is.issuer, is.keysShown(), is.rolesShown(), is.tenantShown())
		}
	}
	if p != nil && len(p.certs) > 0 {
		fmt.Fprintln(t, "\nCERTIFICATES\tROLES\tTENANT")
		for _, c := range p.certs {
			fmt.Fprintf(t, "%s\t%s\t%s\n", c, strings.Join(c.roles, ", "), orAll(c.tenant))
		}
	}
	return t.Flush()
}

type tableRow struct{ may, on string }

func (r *role) rows() []tableRow {
	if r.all {
		return []tableRow{{r.about, "everything"}}
	}
	var out []tableRow
	for _, g := range r.grants {
		if slices.Contains(g.allow, Admin) {
			out = append(out, tableRow{string(Admin), Router.String()})
		}
		for k := Topic; k < kinds; k++ {
			if list := g.on(k); len(list) > 0 && len(g.patterns[k]) > 0 {
				out = append(out, tableRow{joinActions(list), kindKeys[k] + " " + joinPatterns(g.patterns[k])})
			}
		}
	}
	if len(out) == 0 {
		out = []tableRow{{"nothing", ""}}
	}
	return out
}

// on is what g allows that means something for k.
func (g *grant) on(k Kind) []Action {
	var what actions
	for _, a := range g.allow {
		what |= a.bit()
	}
	return (what & applies[k]).list()
}

func joinPatterns(list []pattern) string {
	words := make([]string, len(list))
	for i, p := range list {
		words[i] = string(p)
	}
	return strings.Join(words, ", ")
}

// String is the limits as a table shows them, "" if there are none.
func (l Limits) String() string {
	var parts []string
	if l.Rate != 0 {
		parts = append(parts, showRate(l.Rate))
	}
	if l.Burst != 0 {
		parts = append(parts, fmt.Sprintf("bursts of %d", l.Burst))
	}
	if l.Conns != 0 {
		parts = append(parts, fmt.Sprintf("%d connections", l.Conns))
	}
	return strings.Join(parts, ", ")
}

// showRate writes a rate by the unit of which it is one or more.
func showRate(r float64) string {
	unit := "/s"
	for _, u := range []struct {
		name  string
		times float64
	}{{"/m", 60}, {"/h", 60}, {"/d", 24}} {
		if r >= 1 {
			break
		}
		r, unit = r*u.times, u.name
	}
	return strconv.FormatFloat(r, 'g', 6, 64) + unit
}

func (is *issuer) keysShown() string {
	switch {
	case is.url != "":
		return is.url + " (" + strings.Join(is.algs, " ") + ")"
	case is.algs[0][0] == 'H':
		return "a secret (" + strings.Join(is.algs, " ") + ")"
	}
	return strconv.Itoa(len(is.set.all)) + " of a file (" + strings.Join(is.algs, " ") + ")"
}

func (is *issuer) rolesShown() string {
	var parts []string
	if len(is.fixed) > 0 {
		parts = append(parts, strings.Join(is.fixed, ", "))
	}
	switch {
	case is.claim != "" && is.mapped != nil:
		var pairs []string
		for said, ours := range is.mapped {
			pairs = append(pairs, said+" → "+strings.Join(ours, " "))
		}
		slices.Sort(pairs)
		parts = append(parts, "by claim "+is.claim+": "+strings.Join(pairs, ", "))
	case is.claim != "":
		parts = append(parts, "by claim "+is.claim+", but for admin")
	}
	return strings.Join(parts, "; ")
}

func (is *issuer) tenantShown() string {
	if is.tenantIn != "" {
		return "by claim " + is.tenantIn
	}
	return orAll(is.tenant)
}

func orAll(tenant string) string {
	if tenant == "" {
		return "all"
	}
	return tenant + "*"
}

// String is what a rule is about.
func (r certRule) String() string {
	var parts []string
	if r.subject != "" {
		parts = append(parts, "subject "+string(r.subject))
	}
	if r.san != "" {
		parts = append(parts, "san "+string(r.san))
	}
	return strings.Join(parts, ", ")
}

// An Explanation says why somebody may do something or not.
type Explanation struct {
	Allowed bool   `json:"allowed"`
	Seen    bool   `json:"seen"` // false: answered as what does not exist
	Why     string `json:"why"`  // the grant that allows it, or what is missing
}

// Explain says which grant lets p do a to the named resource, or that none does. It is for whoever administers the
// router: it tells what Check hides.
func (p *Principal) Explain(a Action, k Kind, name string) Explanation {
	e := Explanation{Allowed: p.Check(a, k, name) == nil, Seen: p.Sees(k, name)}
	switch {
	case p == nil:
		e.Why = "nobody is asking"
	case a.bit() == 0:
		e.Why = fmt.Sprintf("%.60q is no action%s; the actions are %s", a, suggest(string(a), actionWords()), joinActions(actionNames[:]))
	case k >= kinds:
		e.Why = k.String() + " is no kind of resource"
	case k == Router && a == Admin && p.Tenant != "":
		e.Why = fmt.Sprintf("%s is of tenant %s; the whole router shows every tenant's", p.Name, p.Tenant)
	case !strings.HasPrefix(name, p.Tenant) && k != Router:
		e.Why = fmt.Sprintf("%.249q does not begin with %s, the tenant of %s", name, p.Tenant, p.Name)
	case p.all:
		e.Why = fmt.Sprintf("%s may do everything%s", p.Name, map[bool]string{true: "", false: " within " + p.Tenant}[p.Tenant == ""])
	case e.Allowed && k == Router:
		e.Why = fmt.Sprintf("a role of %s (%s) allows %s", p.Name, strings.Join(p.Roles, ", "), a)
	case e.Allowed:
		r := p.grants.which(a.bit(), k, name)
		e.Why = fmt.Sprintf("%s allows %s on %s %s", r.from, a, kindKeys[k], r.on)
	case k != Router && a.bit()&applies[k] == 0:
		e.Why = fmt.Sprintf("%s is nothing that is done to a %s, but by who may do everything; there are %s", a, k, joinActions(applies[k].list()))
	case len(p.Roles) == 0:
		e.Why = p.Name + " has no role"
	default:
		e.Why = fmt.Sprintf("no role of %s (%s) allows %s on %s %.249q", p.Name, strings.Join(p.Roles, ", "), a, k, name)
		if k == Router {
			e.Why = strings.TrimSuffix(e.Why, ` ""`)
		}
	}
	return e
}
