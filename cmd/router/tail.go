package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func tailCommand(p *program) *cobra.Command {
	var filter, since string
	var max int
	var ofSubscription bool
	cmd := &cobra.Command{
		Use:   "tail TOPIC",
		Short: "Print a topic's events as they come",
		Long: `Tail prints one line an event, with -o json the CloudEvent as JSON. When the connection is lost it comes back by
itself and goes on after the last event it printed. Stop it with Ctrl-C.`,
		Example: `  router tail orders
  router tail orders --since 10m --filter 'type == "order.created" && data.total > 100'
  router tail live --subscription -o json`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&filter, "filter", "", "print only events for which this `expression` is true")
	f.StringVar(&since, "since", "", "begin at this `time` (RFC 3339) or this long ago (10m); default: from now on")
	f.IntVarP(&max, "max", "n", 0, "stop after `N` events; 0: never")
	f.BoolVar(&ofSubscription, "subscription", false, "the name is a subscription's (deliver: stream): print what it puts out")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		kind := "topics"
		if ofSubscription {
			kind = "subscriptions"
		}
		u := c.path(kind, args[0], "stream")
		q := url.Values{}
		if filter != "" {
			q.Set("filter", filter)
		}
		if since != "" {
			q.Set("since", since)
		}
		u.RawQuery = q.Encode()
		fl := &follower{c: c, url: u, first: 250 * time.Millisecond, lost: func(err error, wait time.Duration) {
			why := "the router ended the stream"
			if err != nil {
				why = err.Error()
			}
			say(p.stderr, "router: %s; trying again in %s", lines(why), wait)
		}}
		n := 0
		err = fl.follow(cmd.Context(), func(e streamEvent) error {
			if err := p.printEvent(c, e.data); err != nil {
				return err
			}
			if n++; n == max {
				return errEnough
			}
			return nil
		})
		if errors.Is(err, errEnough) || errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}
	return cmd
}

// printEvent prints a structured CloudEvent as one line.
func (p *program) printEvent(c *client, doc []byte) error {
	if c.json {
		return printJSON(p.stdout, doc)
	}
	line, err := eventLine(doc)
	if err != nil {
		return fmt.Errorf("%s sent an event that is not JSON: %w", c.base.Host, err)
	}
	say(p.stdout, "%s", line)
	return nil
}

// eventLine is "time type id subject=… key=… data" of a structured CloudEvent, safe for a terminal.
func eventLine(doc []byte) (string, error) {
	var e struct {
		ID, Type, Time, Subject, PartitionKey string
		DataContentType                       string
		Data                                  json.RawMessage
		DataBase64                            string `json:"data_base64"`
	}
	if err := json.Unmarshal(doc, &e); err != nil {
		return "", err
	}
	parts := []string{clean(e.Time), clean(e.Type), clean(e.ID)}
	if e.Time == "" {
		parts[0] = "-"
	}
	if e.Subject != "" {
		parts = append(parts, "subject="+clean(e.Subject))
	}
	if e.PartitionKey != "" {
		parts = append(parts, "key="+clean(e.PartitionKey))
	}
	switch {
	case e.DataBase64 != "":
		parts = append(parts, fmt.Sprintf("base64:%s", clean(e.DataBase64)))
	case len(e.Data) > 0:
		parts = append(parts, strings.ReplaceAll(string(cleanJSON(e.Data)), "\n", " "))
	}
	return strings.Join(parts, "  "), nil
}
