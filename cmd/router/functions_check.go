package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// checking is the flags of functions test.
type checking struct {
	cases, run string
	update     bool
	verbose    bool
}

func functionsTest(p *program) *cobra.Command {
	var o checking
	var output string
	cmd := &cobra.Command{
		Use:   "test [DIR|MODULE]",
		Short: "Run a function's golden pairs on the router's own host",
		Long: `Test takes the project in DIR, by default the working directory, and builds it if one of its files is newer than the module; or it
takes a MODULE as it is. It runs every NAME.in.json of the folder testdata, or of the folder itself: an event, an array of events,
or the data of one event. What the function says must be what NAME.out.json has: an answer for each event, or an array of answers,

  {"verdict": "pass"}  {"verdict": "drop"}  {"verdict": "retry", "delay": "2s"}  {"verdict": "reject", "code": 422, "reason": "…"}
  {"verdict": "emit", "data": {…}}   with the members in which the new event differs from its input; null removes one
  {"verdict": "reply", "status": 200, "data": {…}}
  {"verdict": "fail", "reason": "trap"}   a fault of the function itself

The configuration is that of function.yaml, or of NAME.config.json for one pair. Every event runs alone, then all of them in one
batch, then alone again, and must come out the same each time: a function that remembers events, or looks at the clock, will not
be the same when an event is tried again. A function that may keep state begins each pair without any. Exit code 1: it differs.`,
		Example: `  router functions test ./redact
  router fn test redact.wasm --cases ./testdata --run 'hide|refuse'
  router fn test --update`,
		Args: cobra.MaximumNArgs(1),
	}
	f := cmd.Flags()
	f.StringVar(&o.run, "run", "", "only the pairs whose name this `expression` (RE2) matches")
	f.StringVar(&o.cases, "cases", "", "`folder` of the golden pairs (default: testdata, else that of the module)")
	f.BoolVar(&o.update, "update", false, "write what comes out to NAME.out.json instead of comparing")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print what the function logs")
	p.outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		asJSON, err := asJSON(cmd, output)
		if err != nil {
			return err
		}
		pr, err := openProject(args)
		if err != nil {
			return err
		}
		only, err := regexp.Compile(o.run)
		if err != nil {
			return usagef(cmd, "--run: %v", err)
		}
		if o.cases == "" {
			o.cases = casesIn(pr)
		}
		goldens, err := readGoldens(o.cases, only.MatchString, !o.update)
		if err != nil {
			return err
		}
		if len(goldens) == 0 {
			return fmt.Errorf("--run %q matches none of the pairs in %s", o.run, o.cases)
		}
		module, err := p.loadModule(cmd.Context(), pr, !asJSON)
		if err != nil {
			return err
		}
		c := &checker{p: p, update: o.update, verbose: o.verbose && !asJSON}
		report, err := c.check(cmd.Context(), pr, module, goldens)
		if err != nil {
			return err
		}
		return p.showReport(report, asJSON)
	}
	return cmd
}

// report is how the golden pairs went.
type report struct {
	OK     bool         `json:"ok"`
	Events int          `json:"events"`
	Cases  []caseReport `json:"cases"`
}

type caseReport struct {
	Name    string   `json:"name"`
	OK      bool     `json:"ok"`
	Events  int      `json:"events"`
	Updated bool     `json:"updated,omitempty"`
	Faults  []string `json:"faults,omitempty"`
	Logged  []string `json:"logged,omitempty"`
}

func (p *program) showReport(r *report, asJSON bool) error {
	if asJSON {
		doc, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if err := printJSON(p.stdout, doc); err != nil {
			return err
		}
	} else {
		for _, c := range r.Cases {
			state := "ok"
			if c.Updated {
				state = "wrote"
			}
			if !c.OK {
				state = "FAIL"
			}
			say(p.stdout, "%-5s %s  (%s)", state, clean(c.Name), plural(c.Events, "event"))
			for _, fault := range c.Faults {
				say(p.stdout, "      %s", strings.ReplaceAll(strings.TrimSpace(fault), "\n", "\n      "))
			}
			if !c.OK && len(c.Logged) > 0 {
				say(p.stdout, "      it logged:\n        %s", lines(strings.Join(c.Logged, "\n        ")))
			}
		}
		if r.OK {
			say(p.stdout, "%s, %s: alone, in one batch and again, all the same", plural(len(r.Cases), "pair"), plural(r.Events, "event"))
		}
	}
	if !r.OK {
		return errSaid
	}
	return nil
}

// A checker runs golden pairs.
type checker struct {
	p       *program
	update  bool
	verbose bool

	mu     sync.Mutex
	logged []string
}

func (c *checker) log(_ string, level int, message string) {
	line := fmt.Sprintf("%-5s %s", [...]string{"debug", "info", "warn", "error"}[min(max(level, 0), 3)], message)
	c.mu.Lock()
	defer c.mu.Unlock()
	const most = 50 // of one pair
	if len(c.logged) < most {
		c.logged = append(c.logged, line)
	}
	if c.verbose {
		say(c.p.stderr, "      %s", clean(line))
	}
}

func (c *checker) takeLogged() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.logged
	c.logged = nil
	return l
}

// check runs the pairs on a host of its own. An error is one of the module or of the pairs themselves.
func (c *checker) check(ctx context.Context, pr *project, module []byte, goldens []*golden) (r *report, err error) {
	host, err := authorHost(ctx, plugins.Options{Log: c.log})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, host.Close(context.WithoutCancel(ctx))) }()
	stop := c.p.busy("compiling")
	digest, err := host.Put(ctx, module)
	stop()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", pr.module, err)
	}
	def, err := pr.definition(digest)
	if err != nil {
		return nil, err
	}
	r = &report{OK: true, Cases: make([]caseReport, len(goldens))}
	for _, same := range byConfig(goldens) {
		d := def
		if same[0].g.config != nil {
			d.Config = same[0].g.config
		}
		if err := c.checkConfig(ctx, host, d, same, r); err != nil {
			return nil, err
		}
	}
	for _, cr := range r.Cases {
		r.OK = r.OK && cr.OK
		r.Events += cr.Events
	}
	return r, nil
}

// placed is a pair and its place in the report.
type placed struct {
	g  *golden
	at int
}

// byConfig groups pairs that run with the same configuration, in order.
func byConfig(goldens []*golden) [][]placed {
	var groups [][]placed
	at := map[string]int{}
	for i, g := range goldens {
		key := compact(g.config)
		k, ok := at[key]
		if !ok {
			k = len(groups)
			at[key] = k
			groups = append(groups, nil)
		}
		groups[k] = append(groups[k], placed{g, i})
	}
	return groups
}

// checkConfig runs the pairs that share a configuration: every event alone, all in one batch, alone again.
// Where a function may keep state, each pair begins without any, and its order and its batch are its own.
func (c *checker) checkConfig(ctx context.Context, host *plugins.Host, def event.Function, pairs []placed, r *report) error {
	f, err := host.Open(ctx, def)
	if err != nil {
		return err
	}
	defer f.Close(context.WithoutCancel(ctx))
	var all []event.Record
	for _, x := range pairs {
		all = append(all, x.g.events...)
	}
	alone, again := make([]string, 0, len(all)), make([]string, len(all))
	var batch []string
	for _, x := range pairs {
		got, err := callEach(ctx, f, x.g.events)
		if err != nil {
			return err
		}
		r.Cases[x.at] = c.caseOf(x.g, got)
		if r.Cases[x.at].Updated {
			if err := x.g.write(got); err != nil {
				return err
			}
		}
		alone = append(alone, got...)
	}
	if def.Allow.KV {
		for _, x := range pairs {
			texts, err := callFunction(ctx, f, x.g.events, &sampleState{})
			if err != nil {
				return err
			}
			batch = append(batch, texts...)
			if texts, err = callEach(ctx, f, x.g.events); err != nil {
				return err
			}
			copy(again[len(batch)-len(texts):], texts)
		}
	} else {
		if batch, err = callFunction(ctx, f, all, nil); err != nil {
			return err
		}
		for i, e := range slices.Backward(all) {
			texts, err := callFunction(ctx, f, []event.Record{e}, nil)
			if err != nil {
				return err
			}
			again[i] = texts[0]
		}
	}
	c.takeLogged()
	for _, x := range pairs {
		n := len(x.g.events)
		cr := &r.Cases[x.at]
		cr.unlike("in a batch with others comes out otherwise than alone: does the function keep something from event to event?",
			alone[:n], batch[:n], isTerminal(c.p.stdout))
		cr.unlike("comes out otherwise the second time: an event that is tried again must be decided alike, so no clock, no count and no order of a map may show",
			alone[:n], again[:n], isTerminal(c.p.stdout))
		alone, batch, again = alone[n:], batch[n:], again[n:]
	}
	return nil
}

// caseOf compares what came of a pair with what is expected of it.
func (c *checker) caseOf(g *golden, got []string) caseReport {
	cr := caseReport{Name: g.name, OK: true, Events: len(g.events), Logged: c.takeLogged(), Updated: c.update}
	if c.update {
		return cr
	}
	if fault := g.compare(got, isTerminal(c.p.stdout)); fault != "" {
		cr.OK, cr.Faults = false, append(cr.Faults, fault)
	}
	return cr
}

// callEach runs events one by one, the state of one being what those before it have left.
func callEach(ctx context.Context, f *plugins.Function, events []event.Record) ([]string, error) {
	var all []string
	state := &sampleState{}
	for _, e := range events {
		texts, err := callFunction(ctx, f, []event.Record{e}, state)
		if err != nil {
			return nil, err
		}
		all = append(all, texts...)
	}
	return all, nil
}

// callFunction runs events as one batch and returns what came of each. The state, if it is not nil, takes what
// they write.
func callFunction(ctx context.Context, f *plugins.Function, events []event.Record, state *sampleState) ([]string, error) {
	var out plugins.Outcome
	call := plugins.Call{Events: events, Attempts: make([]uint32, len(events))}
	for i := range call.Attempts {
		call.Attempts[i] = 1
	}
	if state != nil {
		call.State = state
	}
	if err := f.Call(ctx, &call, &out); err != nil {
		return nil, err
	}
	if state != nil {
		state.take(out.Writes())
	}
	return answersOf(events, &out), nil
}

// sampleState is what a function keeps while its pairs run. One goroutine uses it.
type sampleState struct {
	values map[string]plugins.StateWrite
}

func (s *sampleState) take(writes []plugins.StateWrite) {
	if s.values == nil {
		s.values = map[string]plugins.StateWrite{}
	}
	for _, w := range writes {
		w.Value = slices.Clone(w.Value) // it is the outcome's
		s.values[w.Key] = w
	}
}

// LoadState returns what was written last.
func (s *sampleState) LoadState(_ context.Context, key []byte) (value []byte, expires int64, ok bool, err error) {
	w, ok := s.values[string(key)]
	return w.Value, w.Expires, ok && !w.Deleted, nil
}

// unlike adds a fault for every event whose answers differ between two runs.
func (cr *caseReport) unlike(why string, first, second []string, colour bool) {
	for i := range first {
		if first[i] != second[i] {
			cr.OK = false
			cr.Faults = append(cr.Faults, fmt.Sprintf("event %d %s\n%s", i+1, why, diffLines(first[i], second[i], colour)))
		}
	}
}

// document is the text of NAME.out.json for these answers.
func (g *golden) document(answers []string) string {
	if !g.array {
		return answers[0]
	}
	return "[\n  " + strings.ReplaceAll(strings.Join(answers, ",\n"), "\n", "\n  ") + "\n]"
}

// compare says how the answers differ from what is expected; "" if they do not.
func (g *golden) compare(got []string, colour bool) string {
	if g.want == nil {
		return fmt.Sprintf("%s is missing; --update writes it. What came out:\n%s", shortPath(g.out), lines(g.document(got)))
	}
	want, have := g.document(g.want), g.document(got)
	if want == have {
		return ""
	}
	return fmt.Sprintf("- is %s, + is what came out:\n%s", clean(shortPath(g.out)), diffLines(want, have, colour))
}

func (g *golden) write(got []string) error {
	return os.WriteFile(g.out, []byte(g.document(got)+"\n"), 0o666)
}
