package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
	"github.com/millrace/millrace/plugins"
)

// ruleTesting is the flags of rules test.
type ruleTesting struct {
	run, junit, events, topic string
	functions                 []string
	timeout                   time.Duration
	verbose, allowEmpty       bool
}

func rulesTest(p *program) *cobra.Command {
	var o ruleTesting
	var output string
	cmd := &cobra.Command{
		Use:   "test PATH",
		Short: "Run the tests of a rules file on the router's own code, in memory",
		Long: `Test runs what stands under 'tests' in a rules file or folder: events are published to a router in memory, with the same store,
filters, functions, retries and connectors as one that serves. The test plays the receivers and consumers, and the clock jumps to
whatever is due next, so that days of retries pass in milliseconds. Nothing is sent anywhere. Each test has a router of its own.

  tests:
    - name: a large German order reaches the hook, redacted
      given: {topic: orders, event: {type: order.created, data: {total: 250, country: DE, email: a@b.c}}}
      answers: {big-eu-orders: [503, 200]}
      expect:
        big-eu-orders: [{data: {total: 250, email: "***"}}]
        audit: 1

With --events it runs recorded events instead and prints what each subscription made of them: a file, or a folder of files
named TOPIC.ndjson, with an event a line. Variables are those of this shell. Exit code 1: a test has failed; 2: there is none.`,
		Example: `  router rules test millrace.yaml
  router rules test rules/ --run 'hook|audit' -v --junit report.xml
  router rules test millrace.yaml --events recorded/`,
		Args: cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	f.StringVar(&o.run, "run", "", "only the tests whose name this `expression` (RE2) matches")
	f.StringVar(&o.junit, "junit", "", "write the results to `file` as JUnit XML too")
	f.StringVar(&o.events, "events", "", "run the recorded events of this file or `folder` instead of the tests")
	f.StringVar(&o.topic, "topic", "", "with --events FILE: the `topic` of its events (default: the file's name without .ndjson)")
	f.StringArrayVar(&o.functions, "function", nil, "give a function that is pushed to the router this module, `NAME=FILE`")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "how long one test may take by this machine's clock")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print what functions log, and what the router warns of")
	f.BoolVar(&o.allowEmpty, "allow-empty", false, "rules without tests are no mistake")
	p.outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		asJSON, err := asJSON(cmd, output)
		if err != nil {
			return err
		}
		only, err := regexp.Compile(o.run)
		if err != nil {
			return usagef(cmd, "--run: %v", err)
		}
		switch {
		case o.timeout <= 0:
			return usagef(cmd, "--timeout %s: want a time above 0", o.timeout)
		case o.topic != "" && o.events == "":
			return usagef(cmd, "--topic names the topic of --events; give that too")
		}
		t := &ruleTester{p: p, o: o, json: asJSON}
		return t.test(cmd, args[0], only)
	}
	return cmd
}

// A ruleTester is one run of rules test.
type ruleTester struct {
	p    *program
	o    ruleTesting
	json bool
	lab  *ruleLab
}

func (t *ruleTester) test(cmd *cobra.Command, path string, only *regexp.Regexp) (err error) {
	ctx := cmd.Context()
	getenv := func(name string) (string, bool) { v := t.p.env(name); return v, v != "" }
	set, err := rules.Parse(ctx, path, rules.Options{Sinks: testKinds(), Schemes: sourceSchemes(nil), Bridges: bridgeKinds(linkProcess{}), Getenv: getenv})
	if err != nil {
		return err
	}
	var tests []rules.Test
	if t.o.events != "" {
		recorded, err := recordedTest(t.o.events, t.o.topic)
		if err != nil {
			return err
		}
		tests = []rules.Test{recorded}
	} else if tests, err = t.chosen(cmd, path, set, only); err != nil || len(tests) == 0 {
		return err
	}
	stop := t.p.busy("compiling")
	close, err := t.open(ctx, set)
	stop()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, close()) }()
	if t.o.events != "" {
		return t.replayRecorded(ctx, &tests[0])
	}
	return t.runAll(ctx, path, tests)
}

// chosen are the tests to run. That there are none is a mistake unless it is allowed: who mistypes a path or an
// expression must not take that for success.
func (t *ruleTester) chosen(cmd *cobra.Command, path string, set *rules.Set, only *regexp.Regexp) (tests []rules.Test, err error) {
	for _, x := range set.Tests {
		if only.MatchString(x.Name) {
			tests = append(tests, x)
		}
	}
	switch {
	case len(tests) > 0:
		return tests, nil
	case len(set.Tests) > 0:
		return nil, usagef(cmd, "--run %q matches none of the %s in %s", t.o.run, plural(len(set.Tests), "test"), clean(path))
	case !t.o.allowEmpty:
		return nil, usagef(cmd, "%s has no tests: write some under `tests`, or say --allow-empty", clean(path))
	}
	say(t.p.stderr, "%s has no tests", clean(path))
	return nil, nil
}

// open compiles the functions.
func (t *ruleTester) open(ctx context.Context, set *rules.Set) (close func() error, err error) {
	dir, err := os.MkdirTemp("", "millrace-test-")
	if err != nil {
		return nil, err
	}
	t.lab = &ruleLab{set: set, log: slog.New(slog.DiscardHandler)}
	if t.o.verbose {
		t.lab.log = slog.New(slog.NewTextHandler(t.p.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	shut := func() error {
		var err error
		if t.lab.host != nil {
			err = t.lab.host.Close(context.WithoutCancel(ctx))
		}
		return errors.Join(err, os.RemoveAll(dir))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, shut())
		}
	}()
	if t.lab.host, err = plugins.NewHost(ctx, plugins.Options{ABIs: abis(), Engines: engines(), Dir: dir, Cache: t.p.compileCache()}); err != nil {
		return nil, err
	}
	pushed, err := t.pushed()
	if err != nil {
		return nil, err
	}
	var functions []event.Function
	for _, f := range set.Functions {
		def, module := f.Function, f.Module
		if m := pushed[def.Name]; m != nil {
			module = m
			delete(pushed, def.Name)
		}
		switch {
		case module != nil:
			if def.Digest, err = t.lab.host.Put(ctx, module); err != nil {
				return nil, event.At(fmt.Sprintf("%s:%d: functions.%s", def.Owner.File, def.Owner.Line, def.Name), err)
			}
		default:
			return nil, fmt.Errorf("%s:%d: function %s has no module here, for it is pushed to the router; give one with --function %s=FILE",
				def.Owner.File, def.Owner.Line, def.Name, def.Name)
		}
		functions = append(functions, def)
	}
	if len(pushed) > 0 {
		return nil, fmt.Errorf("--function %s: the rules define no such function", sortedKeys(pushed)[0])
	}
	t.lab.spec = specOf(set, functions)
	return shut, nil
}

// compileCache is where machine code is kept from one run to the next, in the user's own cache folder; "" if there is
// none: then every run compiles anew.
func (p *program) compileCache() string {
	base := p.env("XDG_CACHE_HOME") // XDG Base Directory Specification 0.8: a relative one does not count
	if !filepath.IsAbs(base) {
		home := p.env("HOME")
		if !filepath.IsAbs(home) {
			return ""
		}
		base = filepath.Join(home, ".cache")
	}
	dir := filepath.Join(base, "millrace", "compiled")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return ""
	}
	return dir
}

// pushed reads the modules that --function names.
func (t *ruleTester) pushed() (map[string][]byte, error) {
	modules := map[string][]byte{}
	for _, arg := range t.o.functions {
		name, file, ok := strings.Cut(arg, "=")
		if !ok {
			return nil, fmt.Errorf("--function %s: want NAME=FILE", clean(arg))
		}
		module, err := readModule(file)
		if err != nil {
			return nil, err
		}
		modules[name] = module
	}
	return modules, nil
}

// ruleResult is how one test went.
type ruleResult struct {
	Name   string   `json:"name"`
	At     string   `json:"at"` // file:line
	OK     bool     `json:"ok"`
	Millis float64  `json:"ms"`
	Faults []string `json:"faults,omitempty"`
	Logged []string `json:"logged,omitempty"`
	took   time.Duration
}

// runAll runs tests side by side, and reports on them in their order.
func (t *ruleTester) runAll(ctx context.Context, path string, tests []rules.Test) error {
	began := time.Now()
	results := make([]ruleResult, len(tests))
	done := make([]chan struct{}, len(tests))
	for i := range done {
		done[i] = make(chan struct{})
	}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	reported := make(chan int)
	go func() { // as they come, in order
		failed := 0
		for i := range results {
			<-done[i]
			if !results[i].OK {
				failed++
			}
			if !t.json {
				t.report(&results[i])
			}
		}
		reported <- failed
	}()
	for i := range tests {
		g.Go(func() error {
			defer close(done[i])
			results[i] = t.runOne(ctx, &tests[i])
			return nil
		})
	}
	err := g.Wait()
	failed := <-reported
	took := time.Since(began)
	if t.o.junit != "" {
		err = errors.Join(err, writeJUnit(t.o.junit, path, results, took))
	}
	if t.json {
		doc, fault := json.Marshal(map[string]any{"ok": failed == 0, "tests": results, "failed": failed, "ms": millis(took)})
		err = errors.Join(err, fault)
		if fault == nil {
			err = errors.Join(err, printJSON(t.p.stdout, doc))
		}
	} else if failed == 0 {
		say(t.p.stdout, "%s, all good, %s", plural(len(results), "test"), rough(took))
	} else {
		say(t.p.stdout, "%s, %d failed, %s", plural(len(results), "test"), failed, rough(took))
	}
	if err == nil && failed > 0 {
		err = errSaid
	}
	return err
}

// rough is a duration for people.
func rough(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

func (t *ruleTester) report(r *ruleResult) {
	state := "ok"
	if !r.OK {
		state = "FAIL"
	}
	say(t.p.stdout, "%-5s %s  %s", state, clean(r.Name), rough(r.took))
	if !r.OK {
		say(t.p.stdout, "      %s", clean(r.At))
	}
	for _, fault := range r.Faults {
		say(t.p.stdout, "      %s", strings.ReplaceAll(fault, "\n", "\n      "))
	}
	if t.o.verbose || !r.OK {
		for _, line := range r.Logged {
			say(t.p.stdout, "      log: %s", clean(line))
		}
	}
}

// runOne runs one test in a router of its own.
func (t *ruleTester) runOne(ctx context.Context, test *rules.Test) (r ruleResult) {
	began := time.Now()
	r = ruleResult{Name: test.Name, At: fmt.Sprintf("%s:%d", test.Owner.File, test.Owner.Line)}
	defer func() {
		r.took = time.Since(began)
		r.Millis, r.OK = millis(r.took), len(r.Faults) == 0
	}()
	whole := *test
	whole.Given = slices.Clone(test.Given)
	for i := range whole.Given {
		if err := readRecorded(&whole.Given[i]); err != nil {
			r.Faults = append(r.Faults, lines(err.Error()))
			return r
		}
	}
	limited, cancel := context.WithTimeout(ctx, t.o.timeout)
	defer cancel()
	w, err := openWorld(limited, t.lab, &whole)
	if err == nil {
		if err = w.run(limited); err == nil {
			r.Faults = w.compare(isTerminal(t.p.stdout))
		}
		r.Logged = w.functionLogs()
		err = errors.Join(err, w.close(limited))
	}
	if err != nil {
		r.Faults = append(r.Faults, lines(err.Error()))
	}
	return r
}

// compare says how what came of the test differs from what it expects.
func (w *ruleWorld) compare(colour bool) (faults []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	faults = slices.Clone(w.refused)
	for i := range w.test.Expect {
		x := &w.test.Expect[i]
		s, name := w.seen[x.Subscription], x.Subscription
		amiss := compareEvents(name, x.Delivered, s.delivered, colour)
		amiss = append(amiss, compareEvents(name+" deadLetters", x.DeadLetters, s.dead, colour)...)
		amiss = append(amiss, compareAttempts(name+" attempts", x.Attempts, s.attempts, colour)...)
		info, err := w.engine.Subscription(name)
		if err != nil {
			faults = append(faults, err.Error())
			continue
		}
		if is := info.State == "disabled"; x.Disabled != nil && *x.Disabled != is {
			amiss = append(amiss, fmt.Sprintf("%s disabled: wanted %t, got %t", name, *x.Disabled, is))
		}
		if len(amiss) > 0 {
			missing := x.Delivered != nil && len(s.delivered) < max(x.Delivered.Count, len(x.Delivered.List)) || x.Attempts != nil && len(s.attempts) < max(x.Attempts.Count, len(x.Attempts.List))
			amiss[len(amiss)-1] += w.why(name, missing)
		}
		faults = append(faults, amiss...)
	}
	for i := range w.test.Topics {
		x := &w.test.Topics[i]
		faults = append(faults, compareEvents("topic "+x.Topic, &x.Events, w.landed[x.Topic], colour)...)
	}
	return append(faults, compareReply(w.test.Reply, w.reply, colour)...)
}

// why is what a subscription did with the events of its topic, for one that did not do what was expected. Where
// something is missing, the events that its filter did not take are named.
func (w *ruleWorld) why(name string, missing bool) string {
	var b strings.Builder
	def, s := w.subs[name], w.seen[name]
	came := append(slices.Clone(w.given[def.Topic]), w.landed[def.Topic]...)
	passed := 0 // by the filter
	for i, rec := range came {
		if !missing {
			break
		}
		x := def.Program.Explain(rec)
		if x.Matched {
			continue
		}
		if passed++; passed > mostShown {
			fmt.Fprintf(&b, "\nand more events that it does not match")
			break
		}
		fmt.Fprintf(&b, "\nevent %d of %s, %s: %s", i+1, def.Topic, clean(rec.Attr(event.TagType)), clean(x.String()))
	}
	if len(came) == 0 && missing {
		fmt.Fprintf(&b, "\nno event came into its topic, %s", def.Topic)
	}
	for i, rec := range s.dead {
		if i == mostShown {
			break
		}
		e := shown(rec)
		fmt.Fprintf(&b, "\ndead letter: reason %v, attempts %v: %v", e["reason"], e["ext.deadletterattempts"], clean(fmt.Sprint(e["ext.deadletterdetail"])))
	}
	info, err := w.engine.Subscription(name)
	if err != nil {
		return b.String()
	}
	if info.Dropped > 0 {
		fmt.Fprintf(&b, "\nits functions dropped %s", plural(int(info.Dropped), "event"))
	}
	if info.Reason != "" {
		fmt.Fprintf(&b, "\nit is %s: %s", info.State, clean(info.Reason))
	}
	if info.Outstanding > 0 || info.Parked > 0 {
		fmt.Fprintf(&b, "\n%d wait for their time", max(int64(info.Outstanding), info.Parked))
		if !w.left.IsZero() {
			fmt.Fprintf(&b, "; the next is due %s after the start, and the clock stopped before", w.left.Sub(w.began).Round(slack))
		}
	}
	return b.String()
}
