package acceptance

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tried is what a backtest says of a subscription.
type tried struct {
	Name, Change                string
	Before, After, Gained, Lost int
	Functions                   *struct {
		Equal, Different, Outputs int
		Failed                    map[string]int
		Error                     string
	}
	Examples []struct{ Kind, Event, ID, Before, After string }
}

// backtest runs one over what a router keeps.
func backtest(t *testing.T, r *router, rules string, args ...string) map[string]tried {
	t.Helper()
	cmd := exec.Command(routerBinary, append([]string{"rules", "backtest", rules, "--server", r.url, "-o", "json", "--examples", "1000"}, args...)...)
	cmd.Env = append(os.Environ(), "HOOK_URL=http://127.0.0.1:1", "HOOK_SECRET="+secret)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	var report struct {
		Complete      bool
		Events        int
		Subscriptions []tried
	}
	if err := decode(out, &report); err != nil {
		t.Fatal(err)
	}
	if !report.Complete {
		t.Errorf("the backtest came no further than %d events", report.Events)
	}
	by := map[string]tried{}
	for _, s := range report.Subscriptions {
		by[s.Name] = s
	}
	return by
}

// backtestAgrees: what was in fact delivered is what a backtest of the same rules says, and of other rules it says just
// what this file computes by other means.
func backtestAgrees(t *testing.T, r *router, rules string, all []example) {
	same := backtest(t, r, rules, "--functions", "all")
	for sub := range matches {
		counts := map[string]int{}
		for _, x := range all {
			fate, _, _ := strings.Cut(fate(sub, x), " 422")
			counts[fate]++
		}
		s, state := same[sub], r.subscription(sub)
		if s.Functions == nil || s.Functions.Error != "" {
			t.Errorf("%s: functions %+v", sub, s.Functions)
			continue
		}
		taken := len(all) - counts["filtered"]
		if s.Change != "same" || s.Before != taken || s.After != taken || s.Gained != 0 || s.Lost != 0 || taken != state.Matched {
			t.Errorf("%s: the backtest says %+v; %d were taken", sub, s, state.Matched)
		}
		rejected := counts["dead: reject"]
		if f := s.Functions; f.Equal != taken || f.Different != 0 || f.Failed["reject"] != rejected || f.Outputs != taken-rejected-counts["dropped"] {
			t.Errorf("%s: the backtest says %+v of its functions; %v", sub, f, counts)
		}
	}

	body, err := os.ReadFile(rules)
	if err != nil {
		t.Fatal(err)
	}
	// one takes fewer, one others, one is gone, one is new
	changed := strings.NewReplacer(
		`"opened", "created", "edited"`, `"opened", "edited"`,
		"data.issue.number > 0 || data.issue.locked", "!(data.issue.number > 1)",
		"\n  pulls:", "\n  pulls-too:").Replace(string(body))
	file := filepath.Join(t.TempDir(), "changed.yaml")
	write(t, file, changed)
	after := map[string]func(example) bool{
		"changes": func(x example) bool { return matches["changes"](x) && text(x.doc, "action") != "created" },
		"issues": func(x example) bool {
			n, ok := number(x.doc, "issue", "number")
			return strings.HasPrefix(x.event, "issue") && !(ok && n > 1)
		},
		"pulls-too": matches["pulls"],
	}
	got := backtest(t, r, file)
	for _, sub := range slices.Sorted(maps.Keys(got)) {
		want := map[string][]string{}
		taken := 0
		for _, x := range all {
			was, is := matches[sub] != nil && matches[sub](x), after[sub] != nil && after[sub](x)
			switch {
			case was && !is:
				want["lost"] = append(want["lost"], x.id)
			case is && !was:
				want["gained"] = append(want["gained"], x.id)
			}
			if is {
				taken++
			}
		}
		said := map[string][]string{}
		for _, x := range got[sub].Examples {
			if x.Kind == "lost" || x.Kind == "gained" {
				said[x.Kind] = append(said[x.Kind], x.ID)
			}
		}
		s := got[sub]
		if s.After != taken || s.Gained != len(want["gained"]) || s.Lost != len(want["lost"]) {
			t.Errorf("%s: %d taken, %d gained, %d lost; want %d, %d, %d", sub, s.After, s.Gained, s.Lost, taken, len(want["gained"]), len(want["lost"]))
		}
		for _, kind := range []string{"gained", "lost"} {
			slices.Sort(want[kind])
			slices.Sort(said[kind])
			if !slices.Equal(want[kind], said[kind]) {
				t.Errorf("%s %s: %v; want %v", sub, kind, said[kind], want[kind])
			}
		}
	}
	if len(got) != 4 || got["changes"].Lost == 0 || got["pulls"].Change != "removed" || got["pulls-too"].Change != "created" || got["issues"].Lost == 0 {
		t.Errorf("the changed rules tell too little apart: %s", fmt.Sprint(got)[:min(500, len(fmt.Sprint(got)))])
	}
}
