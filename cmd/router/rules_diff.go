package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/rules"
)

// exitDiffers is what `router rules diff --exit-code` exits with where there are differences: 1 and 2 say that it
// could not tell.
const exitDiffers = 3

// errDiffers makes the program exit with exitDiffers.
var errDiffers = errors.New("there are differences")

// packRules makes a bundle of a file or folder. Variables are the router's: here they need not be set.
func (p *program) packRules(ctx context.Context, path string) ([]byte, error) {
	bundle, _, err := p.pack(ctx, path, false)
	return bundle, err
}

// pack is packRules with the set; who only compares may have ${file:…} in it, too.
func (p *program) pack(ctx context.Context, path string, compare bool) ([]byte, *rules.Set, error) {
	getenv := func(name string) (string, bool) { v := p.env(name); return v, v != "" }
	return rules.Pack(ctx, path, rules.Options{Sinks: sinkKinds(nil), Schemes: sourceSchemes(nil), Bridges: bridgeKinds(linkProcess{}), Getenv: getenv, Unresolved: compare})
}

// sendBundle sends a bundle, compressed.
func (c *client) sendBundle(ctx context.Context, method string, query map[string]string, bundle []byte, headers []string, segments ...string) ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(bundle); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	u := c.path(segments...)
	q := u.Query()
	for key, v := range query {
		if v != "" {
			q.Set(key, v)
		}
	}
	u.RawQuery = q.Encode()
	return c.call(ctx, method, u, b.Bytes(), append(headers, "Content-Type", "application/x-tar", "Content-Encoding", "gzip")...)
}

func rulesDiff(p *program) *cobra.Command {
	var exitCode bool
	cmd := &cobra.Command{
		Use:   "diff PATH [OTHER]",
		Short: "Tell what rules would change on the running router, or between two files",
		Long: `Diff compares a rules file or folder with the rules in force on the running router and says what is created, changed and
removed, and what that does to events that are not delivered yet. Nothing is changed. With OTHER it compares two files or folders
without a router: what going from PATH to OTHER changes.

Of what is secret, or refers to a variable, only that it differs is said. It exits with 0, also where there are differences; with
--exit-code it exits with 3 where there are some, as a step of a pipeline wants it. 1 says that the rules are refused.`,
		Example: `  router rules diff millrace.yaml
  router rules diff rules/ --exit-code -o markdown
  router rules diff old.yaml new.yaml`,
		Args: cobra.RangeArgs(1, 2),
	}
	r := p.remoteFlags(cmd)
	cmd.Flags().Lookup("output").Usage = "print `text, json or markdown`"
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit with 3 where there are differences")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		markdown := r.output == "markdown"
		if markdown {
			r.output = "text"
		}
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		doc, err := p.compareRules(cmd, c, args)
		if err != nil {
			return err
		}
		var delta rulesDelta
		if err := json.Unmarshal(doc, &delta); err != nil {
			return err
		}
		switch {
		case c.json:
			err = printJSON(p.stdout, doc)
		case markdown:
			_, err = fmt.Fprint(p.stdout, delta.markdown())
		default:
			_, err = fmt.Fprint(p.stdout, delta.text(isTerminal(p.stdout)))
		}
		switch {
		case err != nil:
			return err
		case len(delta.Refused) > 0:
			return fmt.Errorf("the router would refuse these rules: %s", strings.Join(delta.Refused, "\n  "))
		case exitCode && len(delta.Changes) > 0:
			return errDiffers
		}
		return nil
	}
	return cmd
}

// compareRules is the difference as JSON.
func (p *program) compareRules(cmd *cobra.Command, c *client, args []string) ([]byte, error) {
	ctx := cmd.Context()
	if len(args) == 1 {
		bundle, _, err := p.pack(ctx, args[0], true)
		if err != nil {
			return nil, err
		}
		return c.sendBundle(ctx, "POST", nil, bundle, nil, "rules", "diff")
	}
	_, old, err := p.pack(ctx, args[0], true)
	if err != nil {
		return nil, err
	}
	_, next, err := p.pack(ctx, args[1], true)
	if err != nil {
		return nil, err
	}
	delta := rulesDelta{Revision: old.Revision, Changes: []ruleChange{}}
	for _, x := range rules.Diff(old, next) {
		delta.Changes = append(delta.Changes, ruleChange{Change: x})
	}
	return json.Marshal(delta)
}

// shownKeys and shownValue bound what is printed of a change.
const (
	shownKeys  = 20
	shownValue = 100
)

var changeMarks = map[string]string{rules.Created: "+", rules.Changed: "~", rules.Removed: "-"}

var changeColours = map[string]string{rules.Created: "\x1b[32m", rules.Changed: "\x1b[33m", rules.Removed: "\x1b[31m"}

// text shows a difference to people: a line for each definition, below it its keys, and after "!" what the change
// does to what is there.
func (x *rulesDelta) text(colour bool) string {
	var b strings.Builder
	for _, c := range x.Changes {
		line := fmt.Sprintf("%s %s %s", changeMarks[c.Change.Change], c.Kind, clean(c.Name))
		if colour {
			line = changeColours[c.Change.Change] + line + "\x1b[0m"
		}
		b.WriteString(line + "\n")
		for _, k := range c.shown() {
			b.WriteString("    " + k + "\n")
		}
		for _, effect := range c.Effects {
			b.WriteString("    ! " + clean(effect) + "\n")
		}
	}
	b.WriteString(x.sum() + "\n")
	return b.String()
}

// shown is a change's keys, a line each.
func (c *ruleChange) shown() (list []string) {
	for i, k := range c.Keys {
		if i == shownKeys {
			return append(list, fmt.Sprintf("and %s more", plural(len(c.Keys)-i, "key")))
		}
		list = append(list, k.Key+": "+shownChange(k))
	}
	return list
}

func shownChange(k rules.KeyChange) string {
	short := func(s string) string {
		if s == "" {
			return "(none)"
		}
		if s = clean(s); len([]rune(s)) > shownValue {
			s = string([]rune(s)[:shownValue-1]) + "…"
		}
		return s
	}
	if k.Hidden && k.Old == k.New {
		return short(k.Old) + " has another value"
	}
	if k.Key == "digest" {
		return shortDigest(short(k.Old)) + " → " + shortDigest(short(k.New))
	}
	return short(k.Old) + " → " + short(k.New)
}

func (x *rulesDelta) sum() string {
	count := map[string]int{}
	for _, c := range x.Changes {
		count[c.Change.Change]++
	}
	if len(x.Changes) == 0 {
		return "no difference"
	}
	return fmt.Sprintf("%d created, %d changed, %d removed", count[rules.Created], count[rules.Changed], count[rules.Removed])
}

// markdown is the same as a comment of a pull request.
func (x *rulesDelta) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "### Rules: %s\n", x.sum())
	if len(x.Changes) == 0 {
		return b.String()
	}
	cell := func(s string) string {
		return strings.NewReplacer("|", "\\|", "<", "&lt;", "`", "'").Replace(clean(s))
	}
	b.WriteString("\n| | what | changes |\n|---|---|---|\n")
	for _, c := range x.Changes {
		var parts []string
		for _, k := range c.shown() {
			parts = append(parts, "`"+cell(k)+"`")
		}
		for _, effect := range c.Effects {
			parts = append(parts, "**"+cell(effect)+"**")
		}
		fmt.Fprintf(&b, "| %s | %s `%s` | %s |\n", c.Change.Change, c.Kind, cell(c.Name), strings.Join(parts, "<br>"))
	}
	for _, why := range x.Refused {
		fmt.Fprintf(&b, "\n**Refused:** %s\n", cell(why))
	}
	return b.String()
}
