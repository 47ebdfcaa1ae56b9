package access

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// roleNames returns the names of the roles in force, the built-in ones included, sorted.
func (g *Guard) roleNames() []string { return slices.Sorted(maps.Keys(g.rules.Load().roles)) }

// fullTenant is a tenant as the prefix that it stands for: acme and acme. are both acme., so that acme does not reach
// acme2's names. why says what is wrong with it.
func fullTenant(s string) (tenant, why string) {
	if s == "" {
		return "", ""
	}
	s = strings.TrimSuffix(s, ".")
	if len(s) > event.MaxName/2 {
		return "", fmt.Sprintf("has %d bytes; a tenant has at most %d", len(s), event.MaxName/2)
	}
	if err := event.CheckName("tenant", s); err != nil || strings.HasSuffix(s, ".") || strings.Contains(s, "..") {
		return "", fmt.Sprintf("%.60q is no prefix of names; want a name such as acme, which stands for every name that begins with acme.", s)
	}
	if strings.HasPrefix(s+".", event.BridgePrefix) {
		return "", fmt.Sprintf("%.60q would own the router's bridges, whose subscriptions are called bridge.NAME; choose another name", s)
	}
	return s + ".", ""
}

// suggest is "; did you mean x?" for the nearest of the known words, "" if none is near.
func suggest(word string, known []string) string {
	if s := event.Nearest(word, known); s != "" {
		return fmt.Sprintf("; did you mean %s?", s)
	}
	return ""
}
