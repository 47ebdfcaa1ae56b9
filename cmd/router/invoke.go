package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// invoking is the flags of invoke.
type invoking struct {
	file, version, contentType string
	query                      map[string]*string // type, key, subject, id
}

func invokeCommand(p *program) *cobra.Command {
	o := invoking{query: map[string]*string{}}
	cmd := &cobra.Command{
		Use:   "invoke FUNCTION [DATA]",
		Short: "Call a function with one event and print what it says",
		Long: `Invoke has a running router call a function with one event, which is stored nowhere. If the function replies, the body of the
reply is printed as it is; else what the function says about the event. The event is DATA, or what --file names, or what comes in
on standard input: a CloudEvent if it has "specversion", else the data of one.`,
		Example: `  router invoke redact '{"total": 250, "email": "ada@example.com"}' --type order.created
  router invoke redact --file order.json -o json
  router invoke redact --file order.json --version sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08`,
		Args: cobra.RangeArgs(1, 2),
	}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.file, "file", "f", "", "read the event from `F`; - is standard input")
	f.StringVar(&o.version, "version", "", "call the version of this `digest` instead of the current one")
	f.StringVar(&o.contentType, "content-type", "", "the data's `media type` (default: JSON if it is JSON, else text)")
	for name, usage := range map[string]string{
		"type": "the event's type", "key": "the ordering key", "subject": "the event's subject", "id": "the event's id",
	} {
		o.query[name] = f.String(name, "", usage)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		body, err := p.invokeInput(cmd, &o, args)
		if err != nil {
			return err
		}
		return p.invoke(cmd, c, &o, args[0], body)
	}
	return cmd
}

// invokeInput reads the event.
func (p *program) invokeInput(cmd *cobra.Command, o *invoking, args []string) ([]byte, error) {
	in := p.stdin
	switch {
	case len(args) == 2 && o.file != "":
		return nil, usagef(cmd, "both DATA and --file are given; want one")
	case len(args) == 2:
		return []byte(args[1]), nil
	case o.file == "" && isTerminal(p.stdin):
		return nil, usagef(cmd, "nothing to call it with: give DATA, --file F, or pipe something in")
	case o.file != "" && o.file != "-":
		return os.ReadFile(o.file)
	}
	return io.ReadAll(io.LimitReader(in, maxAnswer))
}

func (p *program) invoke(cmd *cobra.Command, c *client, o *invoking, name string, body []byte) error {
	u := c.path("functions", name, "invoke")
	q := url.Values{}
	for name, v := range o.query {
		if *v != "" {
			q.Set(name, *v)
		}
	}
	if o.version != "" {
		q.Set("version", o.version)
	}
	u.RawQuery = q.Encode()
	media := o.contentType
	if media == "" {
		if media = sniff(body); isCloudEvent(body) {
			media = "application/cloudevents+json"
		}
	}
	req, err := c.request(cmd.Context(), "POST", u, bytes.NewReader(body), "Content-Type", media)
	if err != nil {
		return err
	}
	res, err := c.http.Do(req) // not send: a reply may have any status
	if err != nil {
		return c.explain(err)
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 && !isReply(res) {
		return readProblem(res)
	}
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("reading the answer of %s: %w", c.base.Host, err)
	}
	if len(answer) > maxAnswer {
		return fmt.Errorf("the answer of %s has over %d bytes", c.base.Host, maxAnswer)
	}
	return p.showInvoked(c, res, answer)
}

func isCloudEvent(body []byte) bool {
	var e struct {
		SpecVersion string `json:"specversion"`
	}
	return json.Unmarshal(body, &e) == nil && e.SpecVersion != ""
}

// isReply tells what a function replied from what the router says itself, whatever their status and type: the
// router lets no browser run a reply with the rights of its own pages.
func isReply(res *http.Response) bool {
	return strings.HasPrefix(res.Header.Get("Content-Security-Policy"), "sandbox")
}

// invoked is what the router answers where the function does not reply.
type invoked struct {
	Results []struct {
		Verdict string          `json:"verdict"`
		Code    int             `json:"code"`
		Reason  string          `json:"reason"`
		Delay   string          `json:"delay"`
		Event   json.RawMessage `json:"event"`
		Topic   string          `json:"topic"`
	} `json:"results"`
	Fuel int64  `json:"fuel"`
	Time string `json:"time"`
}

// showInvoked prints a reply's body as it is, or the results.
func (p *program) showInvoked(c *client, res *http.Response, answer []byte) error {
	if isReply(res) {
		if res.StatusCode != http.StatusOK {
			say(p.stderr, "status %d", res.StatusCode)
		}
		if isTerminal(p.stdout) {
			answer = []byte(lines(strings.TrimSuffix(string(answer), "\n")) + "\n")
		}
		_, err := p.stdout.Write(answer)
		return err
	}
	var in invoked
	if err := json.Unmarshal(answer, &in); err != nil || in.Results == nil {
		return fmt.Errorf("%s answered something other than the results of a function; is it a router?", c.base.Host)
	}
	if c.json {
		return printJSON(p.stdout, answer)
	}
	for _, r := range in.Results {
		line := clean(r.Verdict)
		switch r.Verdict {
		case "emit":
			text, err := eventLine(r.Event)
			if err != nil {
				return fmt.Errorf("%s sent an event that is not JSON: %w", c.base.Host, err)
			}
			if r.Topic != "" {
				line += " to " + clean(r.Topic)
			}
			line += "  " + text
		case "reject":
			line += fmt.Sprintf("  %d %s", r.Code, clean(r.Reason))
		case "retry":
			line += "  " + clean(r.Delay)
		}
		say(p.stdout, "%s", strings.TrimSpace(line))
	}
	note := clean(in.Time)
	if in.Fuel > 0 {
		note += fmt.Sprintf(", fuel %d", in.Fuel)
	}
	say(p.stderr, "%s", note)
	return nil
}
