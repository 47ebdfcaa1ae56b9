package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// maxReplyWait is the longest that a router keeps a producer waiting.
const maxReplyWait = 30 * time.Second

// publishAndWait publishes one event and prints the reply to it.
func (p *program) publishAndWait(cmd *cobra.Command, c *client, o *publishing, u *url.URL, media string, body []byte) error {
	seconds := int((o.wait + time.Second - 1) / time.Second)
	req, err := c.request(cmd.Context(), "POST", u, bytes.NewReader(body), "Content-Type", media, "Prefer", "wait="+strconv.Itoa(seconds))
	if err != nil {
		return err
	}
	res, err := c.http.Do(req) // not send: a reply may have any status
	if err != nil {
		return c.explain(err)
	}
	defer res.Body.Close()
	replied := res.Header.Get("Content-Location") != ""
	if !replied && res.StatusCode >= 300 {
		return readProblem(res)
	}
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("reading the answer of %s: %w", c.base.Host, err)
	}
	if len(answer) > maxAnswer {
		return fmt.Errorf("the answer of %s has over %d bytes", c.base.Host, maxAnswer)
	}
	if !replied {
		if err := p.showPublished(c, o, answer, &published{topic: u.Path}); err != nil {
			return err
		}
		say(p.stderr, "no reply within %ds; a later one will be at %s", seconds, clean(res.Header.Get("Location")))
		return errSaid
	}
	if res.StatusCode != http.StatusOK {
		say(p.stderr, "status %d", res.StatusCode)
	}
	if isTerminal(p.stdout) {
		answer = []byte(lines(string(answer)) + "\n")
	}
	if _, err = p.stdout.Write(answer); err == nil && res.StatusCode >= 400 {
		err = errSaid
	}
	return err
}
