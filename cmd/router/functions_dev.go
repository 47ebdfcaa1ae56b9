package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Watching looks at every file's size and time: no library, no limits of the system's on watches, and it works
// on network file systems and in containers' mounted folders.
const (
	watchEvery  = 300 * time.Millisecond
	watchSettle = 100 * time.Millisecond // an editor may write several files, or one in steps
)

func functionsDev(p *program) *cobra.Command {
	var name string
	var local bool
	cmd := &cobra.Command{
		Use:   "dev [DIR]",
		Short: "Build, test and push a function whenever a file changes",
		Long: `Dev watches the project in DIR, by default the working directory. Whenever a file changes it builds the project, runs its
golden pairs and, if they are as expected, pushes the module to a running router, where it takes over between two batches. A round
that fails says why, and the version before stays in force. Files are looked at every 300 ms. Stop it with Ctrl-C.`,
		Example: `  router functions dev ./redact
  router fn dev --local`,
		Args: cobra.MaximumNArgs(1),
	}
	r := p.remoteFlags(cmd)
	cmd.Flags().Lookup("output").Hidden = true
	cmd.Flags().StringVar(&name, "name", "", "`name` of the function on the router (default: that of the folder)")
	cmd.Flags().BoolVar(&local, "local", false, "build and test alone; push nowhere")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		pr, err := openProject(args)
		if err != nil {
			return err
		}
		if pr.language == "" {
			return usagef(cmd, "%s is a file; name the folder of the project", args[0])
		}
		if name == "" {
			name = pr.name
		}
		if local {
			c = nil
		}
		d := &developing{p: p, c: c, pr: pr, name: name}
		say(p.stderr, "watching %s; Ctrl-C stops", clean(shortPath(pr.dir)))
		d.watch(cmd.Context())
		return nil
	}
	return cmd
}

// developing is a project that is watched.
type developing struct {
	p     *program
	c     *client // nil: push nowhere
	pr    *project
	name  string
	round int
}

// watch works through a round at once and then after every change, until ctx ends.
func (d *developing) watch(ctx context.Context) {
	for {
		before := d.stamp()
		d.work(ctx)
		for d.stamp() == before { // a change during the round counts
			if sleep(ctx, watchEvery) != nil {
				return
			}
		}
		for last := ""; last != d.stamp(); {
			last = d.stamp()
			if sleep(ctx, watchSettle) != nil {
				return
			}
		}
	}
}

// work is one round. What goes wrong is printed: only the end of ctx ends watching.
func (d *developing) work(ctx context.Context) {
	d.round++
	say(d.p.stdout, "%s round %d", time.Now().Format("15:04:05"), d.round)
	if err := d.try(ctx); err != nil && ctx.Err() == nil {
		say(d.p.stdout, "  failed: %s", strings.ReplaceAll(lines(err.Error()), "\n", "\n  "))
	}
}

func (d *developing) try(ctx context.Context) error {
	start := time.Now()
	b, err := d.p.build(ctx, d.pr, false)
	if err != nil {
		return err
	}
	say(d.p.stdout, "  built   %s in %s  %s", sizeText(int64(b.Bytes)), since(start), b.Digest)
	module, err := readModule(d.pr.module)
	if err != nil {
		return err
	}
	start = time.Now()
	goldens, err := readGoldens(casesIn(d.pr), func(string) bool { return true }, true)
	if err != nil {
		return err
	}
	c := &checker{p: d.p}
	r, err := c.check(ctx, d.pr, module, goldens)
	if err != nil {
		return err
	}
	if !r.OK {
		for _, cr := range slices.DeleteFunc(r.Cases, func(cr caseReport) bool { return cr.OK }) {
			say(d.p.stdout, "  FAIL    %s\n          %s", clean(cr.Name), strings.ReplaceAll(strings.TrimSpace(strings.Join(cr.Faults, "\n")), "\n", "\n          "))
		}
		return fmt.Errorf("golden pairs differ; nothing was pushed")
	}
	say(d.p.stdout, "  tested  %s, %s in %s", plural(len(r.Cases), "pair"), plural(r.Events, "event"), since(start))
	if d.c == nil {
		return nil
	}
	start = time.Now()
	settings, err := d.pr.settings()
	if err != nil {
		return err
	}
	before, after, err := d.c.push(ctx, d.name, module, settings)
	if err != nil {
		return err
	}
	state := "in force"
	if before == after {
		state = "in force already"
	}
	say(d.p.stdout, "  pushed  %s in %s: %s", clean(d.name), since(start), state)
	return nil
}

func since(start time.Time) string {
	return time.Since(start).Round(time.Millisecond).String()
}

// stamp changes when a file of the project does, apart from what building makes.
func (d *developing) stamp() string {
	var b strings.Builder
	for path, info := range d.pr.files() {
		fmt.Fprintln(&b, path, info.Size(), info.ModTime().UnixNano())
	}
	return b.String()
}
