package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// changingFlags are the flags of whoever puts rules in force.
type changingFlags struct {
	author, message, match string
	keep, drop, yes        bool
}

func (o *changingFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.author, "author", "", "who changes the rules (default: $USER)")
	f.StringVarP(&o.message, "message", "m", "", "why, for the list of revisions")
	f.StringVar(&o.match, "if-match", "", "only if this `revision` is in force; 0: only if there are no rules yet")
	f.BoolVar(&o.keep, "keep", false, "move what subscriptions that go have not delivered to their dead-letter topics")
	f.BoolVar(&o.drop, "drop", false, "let what subscriptions that go have not delivered go with them")
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	cmd.MarkFlagsMutuallyExclusive("keep", "drop")
}

// query and headers are the flags as the API takes them.
func (o *changingFlags) query(p *program) map[string]string {
	q := map[string]string{"author": o.author, "message": o.message}
	if o.author == "" {
		q["author"] = p.env("USER")
	}
	switch {
	case o.keep:
		q["undelivered"] = "keep"
	case o.drop:
		q["undelivered"] = "drop"
	}
	return q
}

func (o *changingFlags) headers(match string) []string {
	if o.match != "" {
		match = o.match
	}
	if match == "" {
		return nil
	}
	return []string{"If-Match", `"` + strings.Trim(match, `"`) + `"`}
}

func rulesApply(p *program) *cobra.Command {
	var o changingFlags
	var dry bool
	cmd := &cobra.Command{
		Use:   "apply PATH",
		Short: "Put rules in force on the running router, as a whole and as a new revision",
		Long: `Apply sends a rules file or folder with the modules, scripts and schemas that it names, shows what that changes, and puts it
in force: all of it or nothing. Variables (${env:…}) are those of the router. What was in force before stays among the router's
revisions, for 'router rules rollback'.

Where a subscription goes that has events undelivered nothing is changed, unless --keep moves them to its dead-letter topic or
--drop lets them go. If somebody else changes the rules between the look and the change, nothing is changed either.

A router that was started with --rules takes them from there and refuses this.`,
		Example: `  router rules apply rules/ --author ci --message "$(git log -1 --format=%s)" -y
  router rules apply millrace.yaml --dry-run`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	o.flags(cmd)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only show what would change")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		ctx := cmd.Context()
		bundle, _, err := p.pack(ctx, args[0], dry)
		if err != nil {
			return err
		}
		doc, err := c.sendBundle(ctx, "POST", nil, bundle, nil, "rules", "diff")
		if err != nil {
			return err
		}
		var delta rulesDelta
		if err := json.Unmarshal(doc, &delta); err != nil {
			return err
		}
		if dry && c.json {
			return printJSON(p.stdout, doc)
		}
		if !c.json {
			fmt.Fprint(p.stdout, delta.text(isTerminal(p.stdout)))
		}
		if len(delta.Refused) > 0 {
			return fmt.Errorf("nothing was changed: %s", strings.Join(delta.Refused, "\n  "))
		}
		if dry {
			return nil
		}
		if len(delta.Changes) > 0 && !o.yes {
			if err := p.confirm("Put these rules in force?"); err != nil {
				return err
			}
		}
		answer, err := c.sendBundle(ctx, "PUT", o.query(p), bundle, o.headers(delta.Revision), "rules")
		return p.sayRevised(c, answer, err)
	}
	return cmd
}

// confirm asks a person. Whoever cannot be asked has to say so beforehand.
func (p *program) confirm(question string) error {
	if !isTerminal(p.stdin) || !isTerminal(p.stdout) {
		return nil // a pipeline: what it was told to do is what it does
	}
	fmt.Fprintf(p.stdout, "%s [y/N] ", question)
	answer, err := bufio.NewReader(p.stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("nothing was changed")
	}
	return nil
}

// sayRevised prints what a change came to.
func (p *program) sayRevised(c *client, answer []byte, err error) error {
	if err != nil {
		return err
	}
	if c.json {
		return printJSON(p.stdout, answer)
	}
	var doc revisedDoc
	if err := json.Unmarshal(answer, &doc); err != nil {
		return fmt.Errorf("the answer is not the expected JSON: %w", err)
	}
	if !doc.Changed {
		say(p.stdout, "revision %s is in force already", clean(doc.ID))
		return nil
	}
	if doc.Kept > 0 {
		say(p.stdout, "%s kept as dead letters", countEvents(uint64(doc.Kept)))
	}
	say(p.stdout, "revision %s is in force", clean(doc.ID))
	return nil
}

func rulesRollback(p *program) *cobra.Command {
	var o changingFlags
	cmd := &cobra.Command{
		Use:   "rollback [REVISION]",
		Short: "Put the rules of an earlier revision in force again",
		Long: `Rollback puts the rules of an earlier revision in force again, with its modules, as a new revision: that of REVISION, which
'router rules revisions' lists, or the one before the last. What holds for 'router rules apply' holds here: events of subscriptions
that go need --keep or --drop.`,
		Example: `  router rules rollback
  router rules rollback 3 --message "the new filter misses refunds"`,
		Args: cobra.MaximumNArgs(1),
	}
	r := p.remoteFlags(cmd)
	o.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		list, err := c.revisions(cmd)
		if err != nil {
			return err
		}
		to := ""
		switch {
		case len(args) > 0:
			to = args[0]
		case len(list.Revisions) < 2:
			return errors.New("there is no earlier revision; `router rules revisions` lists them")
		default:
			to = list.Revisions[1].ID
		}
		if !o.yes {
			if err := p.confirm(fmt.Sprintf("Put revision %s in force again?", clean(to))); err != nil {
				return err
			}
		}
		body, err := json.Marshal(map[string]string{"to": to})
		if err != nil {
			return err
		}
		u := c.path("rules", "rollback")
		q := u.Query()
		for key, v := range o.query(p) {
			if v != "" {
				q.Set(key, v)
			}
		}
		u.RawQuery = q.Encode()
		answer, err := c.call(cmd.Context(), "POST", u, body, append(o.headers(list.InForce), "Content-Type", "application/json")...)
		if err == nil && !c.json {
			var doc revisedDoc
			if json.Unmarshal(answer, &doc) == nil && doc.Diff != nil {
				fmt.Fprint(p.stdout, doc.Diff.text(isTerminal(p.stdout)))
			}
		}
		return p.sayRevised(c, answer, err)
	}
	return cmd
}

// revisionsDoc is the list as the router answers it.
type revisionsDoc struct {
	InForce   string        `json:"inForce"`
	Revisions []revisionDoc `json:"revisions"`
}

func (c *client) revisions(cmd *cobra.Command) (list revisionsDoc, err error) {
	err = c.callJSON(cmd.Context(), "GET", c.path("rules", "revisions"), nil, &list)
	return list, err
}

func rulesRevisions(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revisions",
		Short: "List the rules that were in force on the running router",
		Long: `Revisions lists, newest first, the last 50 states of the rules: who applied them, when and why, or which file they were
read from. The one in force has a star.`,
		Example: `  router rules revisions
  router rules revisions -o json`,
		Args: cobra.NoArgs,
	}
	r := p.remoteFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		if c.json {
			doc, err := c.call(cmd.Context(), "GET", c.path("rules", "revisions"), nil)
			if err != nil {
				return err
			}
			return printJSON(p.stdout, doc)
		}
		list, err := c.revisions(cmd)
		if err != nil {
			return err
		}
		t := tabwriter.NewWriter(p.stdout, 0, 4, 2, ' ', 0)
		fmt.Fprintln(t, "REVISION\tTIME\tSOURCE\tAUTHOR\tFILES\tMESSAGE")
		for _, x := range list.Revisions {
			id := x.ID
			if x.InForce {
				id += "*"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\n", clean(id), x.Time.UTC().Format(time.RFC3339), clean(x.Source), clean(x.Author), len(x.Files), clean(x.Message))
		}
		return t.Flush()
	}
	return cmd
}
