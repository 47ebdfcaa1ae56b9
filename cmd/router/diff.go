package main

import "strings"

// maxDiff bounds the lines, from the first that differs, of which a difference is worked out and shown;
// around is how many lines are shown about one that differs.
const (
	maxDiff = 2000
	around  = 3
)

// diffLines shows two texts that differ, line by line: "-" stands before lines that only want has, "+" before
// those that only got has, and two spaces before lines of both, of which those far from any difference are
// left out. With colour, lines that differ are red and green.
func diffLines(want, got string, colour bool) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	// What they begin with alike is not worth the table, and may be all that a bound would leave.
	skip := 0
	for skip < min(len(a), len(b)) && a[skip] == b[skip] {
		skip++
	}
	skip = max(0, skip-around)
	a, b = a[skip:], b[skip:]
	a, b = a[:min(len(a), maxDiff)], b[:min(len(b), maxDiff)]
	// common[i][j] is the length of the longest common subsequence of a[i:] and b[j:].
	common := make([][]int16, len(a)+1)
	for i := range common {
		common[i] = make([]int16, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var lines []diffLine
	if skip > 0 {
		lines = append(lines, diffLine{'…', ""})
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			lines = append(lines, diffLine{' ', a[i]})
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			lines = append(lines, diffLine{'-', a[i]})
			i++
		default:
			lines = append(lines, diffLine{'+', b[j]})
			j++
		}
	}
	return showDiff(lines, colour)
}

type diffLine struct {
	mark rune
	text string
}

// showDiff prints the lines that differ with a few around them.
func showDiff(all []diffLine, colour bool) string {
	near := make([]bool, len(all))
	for i, l := range all {
		if l.mark != '-' && l.mark != '+' {
			continue
		}
		for k := max(0, i-around); k <= min(len(all)-1, i+around); k++ {
			near[k] = true
		}
	}
	var b strings.Builder
	for i, l := range all {
		switch {
		case l.mark == '…':
			b.WriteString("  …\n")
		case !near[i]:
			if i == 0 || near[i-1] {
				b.WriteString("  …\n")
			}
		case l.mark == ' ' || !colour:
			b.WriteString(string(l.mark) + " " + clean(l.text) + "\n")
		case l.mark == '-':
			b.WriteString("\x1b[31m- " + clean(l.text) + "\x1b[0m\n")
		default:
			b.WriteString("\x1b[32m+ " + clean(l.text) + "\x1b[0m\n")
		}
	}
	return b.String()
}
