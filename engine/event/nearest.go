package event

import "strings"

// Nearest returns what comes nearest to a name among others, "" if nothing is near: one that differs in case alone, else
// one that is a few letters off, a third of the shorter at most and one at least. It is for messages.
func Nearest(name string, among []string) string {
	best, at := "", 0
	if name == "" || len(name) > maxNear {
		return ""
	}
	for _, s := range among {
		if strings.EqualFold(s, name) {
			return s
		}
		limit := max(1, min(len(name), len(s))/3)
		if d := distance(name, s, limit); d <= limit && (best == "" || d < at) {
			best, at = s, d
		}
	}
	return best
}

// maxNear bounds what is compared: longer names are not typed.
const maxNear = 64

// distance counts the letters to add, drop, change or swap; past limit it may be any number above it.
func distance(a, b string, limit int) int {
	if len(a)-len(b) > limit || len(b)-len(a) > limit {
		return limit + 1
	}
	before, last, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(last[j]+1, next[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, last, next = last, next, before
	}
	return last[len(b)]
}
