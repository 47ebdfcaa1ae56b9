// Command bench measures the router beside its own limits, in one run on one machine: absolute figures drift
// by a third from minute to minute and from machine to machine, ratios within a run do not. `make bench` runs it.
//
// Router, do-nothing server and receiver are processes of their own; the load generator is this one. All
// share the machine's cores in the same way, so that a ratio tells what the router adds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/millrace/millrace/plugins"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := doMain(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// options of a run.
type options struct {
	rounds  int
	seconds float64 // of one measurement, after a warm-up of a quarter of it
	quick   bool
	only    string
	json    bool
	check   bool
	dir     string // where data directories are made
	router  string // binary; "" builds it
	profile string // folder for the routers' CPU profiles
	backlog int    // events
}

// doMain is main with its surroundings; it returns the exit code.
func doMain(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == compileCommand {
		return plugins.CompileMain(args[1:], stdin, stderr)
	}
	if len(args) > 0 && args[0] == idleCommand {
		if err := openAndIdle(ctx, args[1:], stdout); err != nil {
			fmt.Fprintln(stderr, "bench functions:", err)
			return 1
		}
		return 0
	}
	if len(args) > 0 && args[0] == fanCommand {
		if err := serveFan(ctx, stdin, stdout); err != nil {
			fmt.Fprintln(stderr, "bench fan:", err)
			return 1
		}
		return 0
	}
	if len(args) > 0 && args[0] == nothingCommand {
		if err := serveNothing(ctx, args[1:], stdin, stdout); err != nil {
			fmt.Fprintln(stderr, "bench nothing:", err)
			return 1
		}
		return 0
	}
	o, err := parseOptions(args, stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	rep, err := run(ctx, o, newProgress(stderr))
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	if o.json {
		err = rep.printJSON(stdout)
	} else {
		err = rep.print(stdout)
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	if len(rep.Failed) > 0 {
		return 1
	}
	if o.check && len(rep.below()) > 0 {
		fmt.Fprintln(stderr, "bench: below the floor:", strings.Join(rep.below(), ", "))
		return 1
	}
	return 0
}

func parseOptions(args []string, stdout, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.IntVar(&o.rounds, "rounds", 3, "rounds over all measurements; medians are shown")
	f.Float64Var(&o.seconds, "seconds", 2, "`s` that each measurement takes in a round")
	f.BoolVar(&o.quick, "quick", false, "one short round: shows that everything runs; its figures mean little")
	f.StringVar(&o.only, "only", "", "measure these `rows` alone, by key or group, separated by commas; \"list\" prints them")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.BoolVar(&o.check, "check", false, "exit with 1 if a floor is missed")
	f.StringVar(&o.dir, "dir", "", "make data directories in this `folder`, on the disk to measure (the system's for temporary files)")
	f.StringVar(&o.router, "router", "", "measure this `binary` rather than build the tree's")
	f.StringVar(&o.profile, "cpuprofile", "", "keep CPU profiles of the routers in this `folder`")
	f.IntVar(&o.backlog, "backlog", 1_000_000, "`events` of the backlog")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.only == "list" {
		for _, r := range rows() {
			fmt.Fprintf(stdout, "%-18s %-10s %s\n", r.key, r.group, r.name)
		}
		return o, flag.ErrHelp
	}
	if o.quick {
		o.rounds, o.seconds, o.backlog = 1, min(o.seconds, 0.4), min(o.backlog, 100_000)
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.rounds < 1 || o.rounds > 100:
		return o, fmt.Errorf("-rounds %d: want 1 to 100", o.rounds)
	case !(o.seconds >= 0.1 && o.seconds <= 600):
		return o, fmt.Errorf("-seconds %g: want 0.1 to 600", o.seconds)
	case o.backlog < 10_000 || o.backlog > 100_000_000:
		return o, fmt.Errorf("-backlog %d: want 10,000 to 100,000,000", o.backlog)
	}
	return o, nil
}

// chosen returns the rows named by only, each for itself or as a group; all if it is empty.
func chosen(only string) ([]row, error) {
	all := rows()
	if only == "" {
		return all, nil
	}
	var picked []row
	for _, key := range strings.Split(only, ",") {
		key = strings.TrimSpace(key)
		n := len(picked)
		for _, r := range all {
			if r.key == key || r.group == key && key != "" {
				picked = append(picked, r)
			}
		}
		if len(picked) == n {
			return nil, fmt.Errorf("-only: there is no row or group %q; -only list prints them", key)
		}
	}
	return picked, nil
}

// run measures what the chosen rows need, round by round, and makes the report.
func run(ctx context.Context, o options, bar *progress) (_ *report, err error) {
	picked, err := chosen(o.only)
	if err != nil {
		return nil, err
	}
	wanted, err := needed(picked, measurements())
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	l, err := newLab(ctx, o, bar)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	vals := newValues()
	bar.steps(stepsOf(wanted, o.rounds))
	for round := range o.rounds {
		for _, m := range wanted {
			if m.once && round > 0 || vals.failed(m) {
				continue
			}
			bar.step(fmt.Sprintf("round %d of %d: %s", round+1, o.rounds, m.name))
			if err := m.run(ctx, l, vals.newest, vals.put); err != nil {
				if ctx.Err() != nil {
					bar.end()
					return nil, errors.New("interrupted")
				}
				vals.fail(m, err)
				bar.say("%s: %v", m.name, err)
			}
		}
	}
	bar.end()
	rep := vals.report(picked, wanted, o)
	rep.Machine = l.machine()
	rep.Took = time.Since(begin).Round(time.Second).String()
	return rep, nil
}

func stepsOf(wanted []measurement, rounds int) int {
	n := 0
	for _, m := range wanted {
		if m.once {
			n++
		} else {
			n += rounds
		}
	}
	return n
}
