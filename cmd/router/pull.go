package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// leased is a delivery as the router hands it to pullers.
type leased struct {
	Lease    string          `json:"lease"`
	ID       string          `json:"id"`
	Attempt  int             `json:"attempt"`
	Deadline string          `json:"deadline"`
	Event    json.RawMessage `json:"event"`
}

func pullCommand(p *program) *cobra.Command {
	var max int
	var ack bool
	var wait, nack time.Duration
	cmd := &cobra.Command{
		Use:   "pull SUBSCRIPTION",
		Short: "Take deliveries from a pull subscription",
		Long: `Pull leases deliveries and prints one line each: lease, attempt, event. With --ack they are acknowledged once they
are printed, with --nack they are given back, due again after that time; without either they come back when their lease
ends. Leases of earlier calls are settled over HTTP.`,
		Example: `  router pull workers --max 10 --ack
  router pull workers --nack 30s
  router pull workers --wait 30s -o json`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.IntVarP(&max, "max", "n", 100, "take at most `N` deliveries")
	f.BoolVar(&ack, "ack", false, "acknowledge what was printed")
	f.DurationVar(&nack, "nack", 0, "give back what was printed, due again after `DELAY` (0s to 24h)")
	cmd.MarkFlagsMutuallyExclusive("ack", "nack")
	f.DurationVar(&wait, "wait", 0, "wait this long for the first delivery")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		if max < 1 {
			return usagef(cmd, "--max %d: want 1 or more", max)
		}
		back := f.Changed("nack")
		if nack < 0 || nack > 24*time.Hour {
			return usagef(cmd, "--nack %s: want 0s to 24h", nack)
		}
		if wait < 0 {
			return usagef(cmd, "--wait %s: want 0 or more", wait)
		}
		var got struct{ Deliveries []leased }
		req := map[string]any{"max": max, "wait": wait.String()}
		if err := c.callJSON(cmd.Context(), "POST", c.path("subscriptions", args[0], "pull"), req, &got); err != nil {
			return err
		}
		for _, d := range got.Deliveries {
			if err := p.printLeased(c, d); err != nil {
				return err
			}
		}
		if len(got.Deliveries) == 0 {
			say(p.stderr, "nothing to deliver")
			return nil
		}
		if back {
			return p.settle(cmd, c, args[0], got.Deliveries, "nack", map[string]any{"delay": nack.String()}, "given back")
		}
		if !ack {
			say(p.stderr, "%s, not acknowledged: back at %s", plural(len(got.Deliveries), "event"), clean(got.Deliveries[0].Deadline))
			return nil
		}
		return p.settle(cmd, c, args[0], got.Deliveries, "ack", map[string]any{}, "acknowledged")
	}
	return cmd
}

func (p *program) printLeased(c *client, d leased) error {
	if c.json {
		doc, err := json.Marshal(d)
		if err != nil {
			return err
		}
		return printJSON(p.stdout, doc)
	}
	line, err := eventLine(d.Event)
	if err != nil {
		return fmt.Errorf("%s sent an event that is not JSON: %w", c.base.Host, err)
	}
	say(p.stdout, "%s  %d  %s", clean(d.Lease), d.Attempt, line)
	return nil
}

// settle settles deliveries and says which were no longer held, and why.
func (p *program) settle(cmd *cobra.Command, c *client, subscription string, ds []leased, verb string, req map[string]any, done string) error {
	leases := make([]string, len(ds))
	for i, d := range ds {
		leases[i] = d.Lease
	}
	req["leases"] = leases
	var settled struct{ Lost, Reasons []string }
	err := c.callJSON(cmd.Context(), "POST", c.path("subscriptions", subscription, verb), req, &settled)
	if err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	for i, l := range settled.Lost {
		why := ""
		if i < len(settled.Reasons) {
			why = " (" + clean(settled.Reasons[i]) + ")"
		}
		say(p.stderr, "router: lease %s was no longer held%s", clean(l), why)
	}
	if len(settled.Lost) > 0 {
		return errSaid
	}
	say(p.stderr, "%s %s", plural(len(ds), "event"), done)
	return nil
}
