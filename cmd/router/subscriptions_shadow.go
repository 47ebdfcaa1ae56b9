package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine"
)

func subscriptionsShadow(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "shadow NAME",
		Short: "See how a function's version that runs beside the one in force compares",
		Long: `Shadow prints how the versions that a subscription's 'shadow' key names compare with those in force: how many events came
out the same, how many did not, and the last of these with the first place at which they differ.`,
		Example: `  router subscriptions shadow audit`,
		Args:    cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		doc, err := c.call(cmd.Context(), "GET", c.path("subscriptions", args[0], "shadow"), nil)
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(p.stdout, doc)
		}
		var answer struct {
			Shadows []engine.ShadowInfo `json:"shadows"`
		}
		if err := json.Unmarshal(doc, &answer); err != nil {
			return fmt.Errorf("%s answered something other than shadows (%w); is it a router?", c.base.Host, err)
		}
		if len(answer.Shadows) == 0 {
			say(p.stdout, "no version runs beside those in force; the key 'shadow: FUNCTION@sha256:…' of a subscription names one")
		}
		for _, s := range answer.Shadows {
			p.printShadow(s)
		}
		return nil
	}
	return cmd
}

func (p *program) printShadow(s engine.ShadowInfo) {
	say(p.stdout, "%s %s beside %s: %s", clean(s.Function), clean(shortDigest(s.Digest)), clean(shortDigest(s.Against)), clean(s.State))
	if s.Reason != "" {
		say(p.stdout, "  %s", clean(s.Reason))
	}
	say(p.stdout, "  %s: %d equal, %d equal as JSON, %d different, %d failed; %d skipped",
		plural(int(s.Runs), "event"), s.Equal, s.JSONEqual, s.Different, s.Failed, s.Skipped)
	for _, x := range s.Examples {
		say(p.stdout, "  %s  %s", clean(x.Position), clean(x.Path))
		say(p.stdout, "    - %s\n    + %s", clean(x.Old), clean(x.New))
	}
}
