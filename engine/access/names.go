package access

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// Roles returns the names of the roles in force, the built-in ones included, sorted.
func (g *Guard) Roles() []string { return slices.Sorted(maps.Keys(g.rules.Load().roles)) }

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
	return s + ".", ""
}

// suggest is "; did you mean x?" for the nearest of the known words, "" if none is near.
func suggest(word string, known []string) string {
	best, least := "", 3
	for _, k := range known {
		if d := distance(strings.ToLower(word), strings.ToLower(k), least); d < least && d < len(k) {
			best, least = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// distance is how many characters must be changed, left out, put in or swapped to make b of a; limit if that many.
func distance(a, b string, limit int) int {
	if len(a) > 64 || len(b) > 64 || len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	var rows [3][65]int
	for j := 0; j <= len(b); j++ {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row := &rows[(i+2)%3], &rows[i%3], &rows[(i+1)%3]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return min(limit, rows[(len(a)+1)%3][len(b)])
}
