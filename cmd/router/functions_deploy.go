package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

func functionsDeploy(p *program) *cobra.Command {
	var module, name string
	var o subscribing
	cmd := &cobra.Command{
		Use:   "deploy NAME --on TOPIC --to URL",
		Short: "Put a function to work in one step: module, topic and subscription",
		Long: `Deploy pushes the module of function NAME with the settings of its function.yaml, makes the topic where there is none, and
makes or changes a subscription that runs the function on the topic's events and delivers what it lets through. What is there
already and as it should be stays, so it can be run again. A step that fails says what was made before it and how to undo that.

The module is --module, a file or a project's folder, which is built; by default the folder NAME.`,
		Example: `  router functions deploy redact --on orders --to https://example.com/hook
  router fn deploy redact --on orders --filter 'data.total > 100' --to-topic masked --module build/redact.wasm`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&module, "module", "", "module or project's `folder` (default NAME)")
	f.StringVar(&name, "subscription", "", "`name` of the subscription (default NAME)")
	f.StringVar(&o.topic, "on", "", "the `topic` whose events it handles")
	f.StringVar(&o.filter, "filter", "", "only events for which this `expression` is true")
	f.StringVar(&o.url, "to", "", "deliver to the webhook at this `URL`")
	f.StringArrayVar(&o.secrets, "secret", nil, "webhook: sign with this `whsec_…`")
	f.BoolVar(&o.pull, "pull", false, "deliver to whoever pulls")
	f.StringVar(&o.toTopic, "to-topic", "", "deliver into this `topic`")
	f.BoolVar(&o.stream, "stream", false, "deliver to whoever streams")
	cmd.MarkFlagsMutuallyExclusive("to", "pull", "to-topic", "stream")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if o.topic == "" {
			return usagef(cmd, "no topic: say whose events it handles with --on")
		}
		if module == "" {
			module = args[0]
		}
		if name == "" {
			name = args[0]
		}
		o.functions = []string{args[0]}
		sub := map[string]any{"name": name}
		if err := o.fill(cmd, sub); err != nil {
			return err
		}
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		if _, err := os.Stat(module); errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w; name the module or the project's folder with --module", err)
		}
		pr, err := openProject([]string{module})
		if err != nil {
			return err
		}
		d := &deployment{c: c, name: args[0]}
		bytes, err := p.loadModule(cmd.Context(), pr, !c.json)
		if err != nil {
			return err
		}
		settings, err := pr.settings()
		if err != nil {
			return err
		}
		if err := d.deploy(cmd.Context(), bytes, settings, sub); err != nil {
			return d.after(err)
		}
		return d.print(p, sub)
	}
	return cmd
}

// A deployment is what deploy has done so far.
type deployment struct {
	c    *client
	name string
	done []deployed
}

type deployed struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	State  string `json:"state"` // made, changed, unchanged
	Digest string `json:"digest,omitempty"`

	undo string // the command
}

// functionDocument is what the router shows of a function, in part.
type functionDocument struct {
	State struct {
		Digest string `json:"digest"`
	} `json:"state"`
}

func (d *deployment) deploy(ctx context.Context, module []byte, settings, sub map[string]any) error {
	if err := d.function(ctx, module, settings); err != nil {
		return fmt.Errorf("function %s: %w", d.name, err)
	}
	topic := fmt.Sprint(sub["topic"])
	if err := d.topic(ctx, topic); err != nil {
		return fmt.Errorf("topic %s: %w", topic, err)
	}
	if err := d.subscription(ctx, sub); err != nil {
		return fmt.Errorf("subscription %s: %w", sub["name"], err)
	}
	return nil
}

// push uploads a module and then the settings. It reports the digest before, "" for a new function, and after.
func (c *client) push(ctx context.Context, name string, module []byte, settings map[string]any) (before, after string, err error) {
	var doc functionDocument
	err = c.callJSON(ctx, "GET", c.path("functions", name), nil, &doc)
	if err != nil && !hasStatus(err, http.StatusNotFound) {
		return "", "", err
	}
	before, err = doc.State.Digest, nil
	if after = digestOf(module); after != before {
		if _, err := c.call(ctx, "PUT", c.path("functions", name), module, "Content-Type", "application/wasm"); err != nil {
			return before, "", err
		}
	}
	if len(settings) > 0 {
		err = c.callJSON(ctx, "PUT", c.path("functions", name), settings, nil)
	}
	return before, after, err
}

func (d *deployment) function(ctx context.Context, module []byte, settings map[string]any) error {
	before, after, err := d.c.push(ctx, d.name, module, settings)
	if after == "" {
		return err
	}
	x := deployed{Kind: "function", Name: d.name, State: "changed", Digest: after, undo: "router functions rollback " + d.name}
	switch before {
	case "":
		x.State, x.undo = "made", "router functions delete "+d.name
	case after:
		x.State = "unchanged"
	}
	d.done = append(d.done, x)
	return err
}

func (d *deployment) topic(ctx context.Context, name string) error {
	x := deployed{Kind: "topic", Name: name, State: "unchanged"}
	err := d.c.callJSON(ctx, "GET", d.c.path("topics", name), nil, nil)
	if hasStatus(err, http.StatusNotFound) {
		x.State, x.undo = "made", "router topics delete "+name
		err = d.c.callJSON(ctx, "POST", d.c.path("topics"), map[string]any{"name": name}, nil)
	}
	if err == nil {
		d.done = append(d.done, x)
	}
	return err
}

func (d *deployment) subscription(ctx context.Context, sub map[string]any) error {
	name := fmt.Sprint(sub["name"])
	x := deployed{Kind: "subscription", Name: name, State: "made", undo: "router subscriptions delete " + name}
	at := d.c.path("subscriptions", name)
	var there map[string]any
	err := d.c.callJSON(ctx, "GET", at, nil, &there)
	switch {
	case hasStatus(err, http.StatusNotFound):
		err = d.c.callJSON(ctx, "POST", d.c.path("subscriptions"), sub, nil)
	case err == nil && sameSubscription(there, sub):
		x.State = "unchanged"
	case err == nil:
		x.State, x.undo = "changed", ""
		change := map[string]any{"filter": nil} // null takes away what an earlier deployment had
		for k, v := range sub {
			if k != "name" {
				change[k] = v
			}
		}
		err = d.patch(ctx, at.String(), change)
	}
	if err == nil {
		d.done = append(d.done, x)
	}
	return err
}

func (d *deployment) patch(ctx context.Context, at string, change map[string]any) error {
	body, err := json.Marshal(change)
	if err != nil {
		return err
	}
	u, err := d.c.base.Parse(at)
	if err != nil {
		return err
	}
	_, err = d.c.call(ctx, "PATCH", u, body, "Content-Type", "application/merge-patch+json")
	return err
}

// sameSubscription reports whether a subscription is as deploy would make it. The router shows more than
// was sent, defaults and all, and hides secrets, which therefore count as changed.
func sameSubscription(there, want map[string]any) bool {
	if filter, _ := there["filter"].(string); filter != "" && want["filter"] == nil {
		return false
	}
	for k, v := range want {
		if !covers(there[k], v) {
			return false
		}
	}
	return true
}

// covers reports whether have holds all that want does.
func covers(have, want any) bool {
	switch w := want.(type) {
	case map[string]any:
		h, ok := have.(map[string]any)
		if !ok {
			return false
		}
		for k, v := range w {
			if !covers(h[k], v) {
				return false
			}
		}
		return true
	default:
		return compact(have) == compact(want)
	}
}

// after adds to an error what the steps before it have done.
func (d *deployment) after(err error) error {
	var b strings.Builder
	for _, x := range d.done {
		if x.State == "unchanged" {
			continue
		}
		fmt.Fprintf(&b, "\n%s %s was %s before that", x.Kind, x.Name, x.State)
		if x.undo != "" {
			b.WriteString("; undo it with '" + x.undo + "'")
		}
	}
	if b.Len() == 0 {
		return fmt.Errorf("%w\nnothing was changed", err)
	}
	return fmt.Errorf("%w%s\nor put right what is wrong and deploy again: what was done stays", err, b.String())
}

func (d *deployment) print(p *program, sub map[string]any) error {
	if d.c.json {
		doc, err := json.Marshal(d.done)
		if err != nil {
			return err
		}
		return printJSON(p.stdout, doc)
	}
	for _, x := range d.done {
		say(p.stdout, "%-12s %-20s %-9s %s", x.Kind, clean(x.Name), x.State, clean(x.Digest))
	}
	say(p.stderr, "next: router publish %s '{…}' --type T, and see what becomes of it with: router functions logs %s -f", clean(fmt.Sprint(sub["topic"])), clean(d.name))
	return nil
}
