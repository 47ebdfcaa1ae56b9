package mqttname

import (
	"fmt"
	"strings"
)

// Differs says in words where filter differs from a name that it does not match; "" of one that it matches.
func Differs(filter, name string) string {
	if hidden(filter, name) {
		return "it begins with a wildcard, which takes no name that begins with $"
	}
	for level := 1; ; level++ {
		f, filters, moreFilter := strings.Cut(filter, "/")
		n, names, moreName := strings.Cut(name, "/")
		switch {
		case f == "#":
			return ""
		case f != "+" && f != n:
			return fmt.Sprintf("its level %d is %s; the name has %s there", level, shown(f), shown(n))
		case !moreName && (!moreFilter || filters == "#"):
			return ""
		case !moreName:
			return fmt.Sprintf("it goes on after level %d; the name ends there", level)
		case !moreFilter:
			return fmt.Sprintf("it ends after level %d; the name goes on", level)
		}
		filter, name = filters, names
	}
}

// Before says in words why a goes before b, of two filters that match one name; "" where it does not: see MoreSpecific.
func Before(a, b string) string {
	for level := 1; ; level++ {
		la, restA, moreA := strings.Cut(a, "/")
		lb, restB, moreB := strings.Cut(b, "/")
		ra, rb := rank(la), rank(lb)
		switch {
		case ra > rb:
			return ""
		case ra < rb:
			return fmt.Sprintf("level %d is %s there and %s here", level, [...]string{"text", "+"}[ra], lb)
		case !moreA && moreB:
			return fmt.Sprintf("it ends after level %d and this goes on", level)
		case !moreA || !moreB:
			return ""
		}
		a, b = restA, restB
	}
}
