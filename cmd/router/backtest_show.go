package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/millrace/millrace/engine"
)

// showBacktest prints a report for people.
func showBacktest(w io.Writer, r *engine.BacktestReport, before, after string) {
	say(w, "%s", backtestHead(r))
	say(w, "before: %s", clean(before))
	say(w, "after:  %s", clean(after))
	changed, same := sortBacktest(r)
	if len(changed) > 0 {
		say(w, "")
		t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
		fmt.Fprintln(t, "SUBSCRIPTION\tRULES\tBEFORE\tAFTER\tGAINED\tLOST\tDIFFERENT\tFAILED")
		for _, s := range changed {
			fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n", clean(s.Name), s.Change, s.Before, s.After, s.Gained, s.Lost, differentText(s), failedText(s))
		}
		_ = t.Flush() // to where the rest goes
	}
	say(w, "")
	say(w, "%s", sameText(len(changed), same))
	for _, s := range changed {
		showExamples(w, s)
	}
	for _, n := range r.Notes {
		say(w, "note: %s", clean(n))
	}
}

func backtestHead(r *engine.BacktestReport) string {
	first, last := "", ""
	for _, t := range r.Topics {
		for _, p := range t.Partitions {
			if p.First != "" && (first == "" || p.First < first) {
				first = p.First
			}
			last = max(last, p.Last)
		}
	}
	s := fmt.Sprintf("%s of %s", plural(int(r.Events), "event"), plural(len(r.Topics), "topic"))
	if first != "" {
		s += fmt.Sprintf(", received %s to %s", seconds(first), seconds(last))
	}
	if !r.Complete {
		s += fmt.Sprintf("; not the whole range: %s", r.Stopped)
		if r.InRange > 0 {
			s += fmt.Sprintf(" after %d of %d events", r.Events, r.InRange)
		}
	}
	return s
}

// seconds cuts the fraction off a time.
func seconds(t string) string {
	whole, _, ok := strings.Cut(t, ".")
	if !ok {
		return t
	}
	return whole + "Z"
}

// sortBacktest tells those that changed anything, the most changed first, from how many did not.
func sortBacktest(r *engine.BacktestReport) (changed []*engine.BacktestSubscription, same int) {
	for i := range r.Subscriptions {
		s := &r.Subscriptions[i]
		if changes(s) == 0 && failures(s) == 0 && s.Change == "same" && (s.Functions == nil || s.Functions.Error == "") {
			same++
			continue
		}
		changed = append(changed, s)
	}
	slices.SortStableFunc(changed, func(a, b *engine.BacktestSubscription) int {
		return int(min(changes(b), 1<<30)) - int(min(changes(a), 1<<30))
	})
	return changed, same
}

func changes(s *engine.BacktestSubscription) uint64 {
	n := s.Gained + s.Lost
	if s.Functions != nil {
		n += s.Functions.Different
	}
	return n
}

func failures(s *engine.BacktestSubscription) (n uint64) {
	if s.Functions != nil {
		for _, k := range s.Functions.Failed {
			n += k
		}
	}
	return n
}

func differentText(s *engine.BacktestSubscription) string {
	if s.Functions == nil {
		return "-"
	}
	return strconv.FormatUint(s.Functions.Different, 10)
}

// failedText is how many a function failed, by reason where there are any.
func failedText(s *engine.BacktestSubscription) string {
	switch f := s.Functions; {
	case f == nil:
		return "-"
	case f.Error != "":
		return "cannot run"
	case len(f.Failed) == 0:
		return "0"
	default:
		var parts []string
		for _, reason := range slices.Sorted(maps.Keys(f.Failed)) {
			parts = append(parts, fmt.Sprintf("%d %s", f.Failed[reason], clean(reason)))
		}
		return strings.Join(parts, ", ")
	}
}

func sameText(changed, same int) string {
	switch {
	case changed == 0 && same == 0:
		return "neither side has a subscription"
	case changed == 0:
		return fmt.Sprintf("nothing changes: %s as before", takes(same))
	case same == 0:
		return "no other subscription"
	default:
		return takes(same) + " as before"
	}
}

func takes(n int) string {
	if n == 1 {
		return "1 subscription takes the same events"
	}
	return fmt.Sprintf("%d subscriptions take the same events", n)
}

func showExamples(w io.Writer, s *engine.BacktestSubscription) {
	if s.Functions != nil && s.Functions.Error != "" {
		say(w, "\n%s: its functions cannot run: %s", clean(s.Name), clean(s.Functions.Error))
	}
	if len(s.Examples) == 0 {
		return
	}
	say(w, "\n%s", clean(s.Name))
	for _, x := range s.Examples {
		path := ""
		if x.Path != "" {
			path = "  at " + clean(x.Path)
		}
		say(w, "  %s  %s  %s %s%s", x.Kind, clean(x.Event), clean(x.Type), clean(x.ID), path)
		say(w, "    before  %s", clean(x.Before))
		say(w, "    after   %s", clean(x.After))
		if x.Explain != "" {
			say(w, "    %s", clean(x.Explain))
		}
	}
}

// markdownBacktest prints a report as the comment of a pull request: a short table, examples folded.
func markdownBacktest(w io.Writer, r *engine.BacktestReport, before, after string) {
	changed, same := sortBacktest(r)
	title := "Rules backtest: nothing changes"
	if r.Changed > 0 || r.Failed > 0 {
		title = fmt.Sprintf("Rules backtest: %d gained, %d lost, %d different, %d failed", r.Gained, r.Lost, r.Different, r.Failed)
	}
	say(w, "### %s\n", title)
	say(w, "%s. Before: %s. After: %s.\n", markdownText(backtestHead(r)), markdownText(before), markdownText(after))
	if len(changed) > 0 {
		say(w, "| Subscription | Rules | Before | After | Gained | Lost | Different | Failed |")
		say(w, "|---|---|--:|--:|--:|--:|--:|--:|")
		for _, s := range changed {
			say(w, "| %s | %s | %d | %d | %d | %d | %s | %s |", markdownText(s.Name), s.Change, s.Before, s.After, s.Gained, s.Lost, differentText(s), markdownText(failedText(s)))
		}
		say(w, "")
	}
	say(w, "%s.", sameText(len(changed), same))
	for _, s := range changed {
		if len(s.Examples) == 0 {
			continue
		}
		say(w, "\n<details><summary>%s: %s</summary>\n", markdownText(s.Name), plural(len(s.Examples), "example"))
		say(w, "| | Event | Before | After |\n|---|---|---|---|")
		for _, x := range s.Examples {
			kind := x.Kind
			if x.Path != "" {
				kind += " at " + x.Path
			}
			say(w, "| %s | %s %s | %s | %s |", markdownText(kind), markdownText(x.Event), markdownText(x.ID), markdownText(x.Before), markdownText(x.After))
		}
		say(w, "\n</details>")
	}
	for _, n := range r.Notes {
		say(w, "\n> %s", markdownText(n))
	}
}

// markdownText makes text from outside one cell of plain text: nothing in it is markup, a link or a mention.
func markdownText(s string) string {
	var b strings.Builder
	for _, c := range clean(s) {
		switch c {
		case '<':
			b.WriteString("&lt;")
		case '>':
			b.WriteString("&gt;")
		case '&':
			b.WriteString("&amp;")
		case '@': // nobody is called
			b.WriteString("&#64;")
		case '|', '*', '_', '`', '[', ']', '~', '#', '\\', '!':
			b.WriteByte('\\')
			b.WriteRune(c)
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}
