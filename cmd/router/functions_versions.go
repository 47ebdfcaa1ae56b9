package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func functionsRollback(p *program) *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "rollback NAME",
		Short: "Go back to a function's version before, or to another that is kept",
		Long: `Rollback puts the version before the current one in force, at once and without a restart; --to names another that the
router keeps. 'functions show NAME' lists them. Rolling back twice comes back to where it was.`,
		Example: `  router functions rollback redact
  router fn rollback redact --to sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	cmd.Flags().StringVar(&to, "to", "", "`digest` of the version (default: the one before)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		body := map[string]any{}
		setIf(body, "to", to)
		doc, err := json.Marshal(body)
		if err != nil {
			return err
		}
		shown, err := c.call(cmd.Context(), "POST", c.path("functions", args[0], "rollback"), doc, "Content-Type", "application/json")
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(p.stdout, shown)
		}
		var now functionDocument
		if err := json.Unmarshal(shown, &now); err != nil {
			return fmt.Errorf("%s answered something other than a function (%w); is it a router?", c.base.Host, err)
		}
		say(p.stdout, "%s is %s", clean(args[0]), clean(now.State.Digest))
		return nil
	}
	return cmd
}

// A logEntry is one line of a function's log, or how a call ended.
type logEntry struct {
	Time     string         `json:"time"`
	Digest   string         `json:"digest"`
	Level    string         `json:"level"`
	Message  string         `json:"message"`
	Shadow   bool           `json:"shadow"` // a version that runs beside the one in force
	Calls    int            `json:"calls"`  // that one entry sums up, if there are several
	Events   int            `json:"events"`
	Failed   int            `json:"failed"` // events
	Fuel     int64          `json:"fuel"`
	Duration string         `json:"duration"`
	Results  map[string]int `json:"results"`
	Failures []struct {
		Reason string `json:"reason"`
		Detail string `json:"detail"`
	} `json:"failures"`
}

func functionsLogs(p *program) *cobra.Command {
	var follow bool
	var limit int
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Print what a function logs and how its calls end",
		Long: `Logs prints what a function has logged of late, and for every call its events, time, fuel, what it said and what failed. With
-f it goes on until Ctrl-C, and comes back by itself when the connection is lost.`,
		Example: `  router functions logs redact
  router fn logs redact -f --limit 0`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as lines come")
	cmd.Flags().IntVar(&limit, "limit", 100, "begin with the last `N` lines")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		if limit < 0 {
			return usagef(cmd, "--limit %d: want 0 or more", limit)
		}
		wait := 250 * time.Millisecond
		for {
			n, err := p.printLogs(cmd.Context(), c, args[0], follow, limit)
			var refused *problem
			if err == nil && !follow || errors.As(err, &refused) {
				return err
			}
			if cmd.Context().Err() != nil {
				return nil
			}
			if !follow {
				return err
			}
			if n > 0 {
				wait, limit = 250*time.Millisecond, 0
			}
			why := "the router ended the stream"
			if err != nil {
				why = err.Error()
			}
			say(p.stderr, "router: %s; trying again in %s", lines(why), wait)
			if sleep(cmd.Context(), wait) != nil {
				return nil
			}
			wait = min(wait*2, 10*time.Second)
		}
	}
	return cmd
}

// printLogs prints the lines of one connection and counts them.
func (p *program) printLogs(ctx context.Context, c *client, name string, follow bool, limit int) (n int, err error) {
	u := c.path("functions", name, "logs")
	u.RawQuery = url.Values{"follow": {strconv.FormatBool(follow)}, "limit": {strconv.Itoa(limit)}}.Encode()
	req, err := c.request(ctx, "GET", u, nil)
	if err != nil {
		return 0, err
	}
	res, err := c.send(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	s := bufio.NewScanner(res.Body)
	s.Buffer(nil, 1<<20)
	for ; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		if line == "" {
			continue // to keep the connection alive
		}
		if c.json {
			if err := printJSON(p.stdout, []byte(line)); err != nil {
				return n, err
			}
			continue
		}
		var e logEntry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return n, fmt.Errorf("%s sent a line that is not JSON: %w", c.base.Host, err)
		}
		say(p.stdout, "%s", e.text())
	}
	return n, s.Err()
}

// text is an entry as lines for people: how a call ended begins with "call".
func (e *logEntry) text() string {
	at := e.Time
	if t, err := time.Parse(time.RFC3339Nano, e.Time); err == nil {
		at = t.Format("15:04:05.000")
	}
	if e.Level != "call" {
		return fmt.Sprintf("%s %-5s %s", clean(at), clean(e.Level), strings.ReplaceAll(lines(e.Message), "\n", "\n                   "))
	}
	var said []string
	for _, verdict := range slices.Sorted(maps.Keys(e.Results)) {
		said = append(said, fmt.Sprintf("%s %d", clean(verdict), e.Results[verdict]))
	}
	text := fmt.Sprintf("%s call  %s, %s", clean(at), plural(e.Events, "event"), clean(e.Duration))
	if e.Calls > 1 {
		text = fmt.Sprintf("%s calls %d with %s, %s", clean(at), e.Calls, plural(e.Events, "event"), clean(e.Duration))
	}
	if e.Fuel > 0 {
		text += fmt.Sprintf(", fuel %d", e.Fuel)
	}
	if e.Shadow {
		text += ", in the shadow"
	}
	if e.Failed > 0 {
		said = append(said, fmt.Sprintf("failed %d", e.Failed))
	}
	if len(said) > 0 {
		text += ": " + strings.Join(said, ", ")
	}
	for _, f := range e.Failures {
		text += fmt.Sprintf("\n                   %s: %s", clean(f.Reason), clean(f.Detail))
	}
	return text
}
