package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/event"
)

// publishing is the flags of publish.
type publishing struct {
	file        string
	ndjson, csv bool
	contentType string
	types       string
	dryRun      bool
	wait        time.Duration
	query       map[string]*string // type, key, subject, id
}

func publishCommand(p *program) *cobra.Command {
	o := publishing{query: map[string]*string{}}
	cmd := &cobra.Command{
		Use:   "publish TOPIC [DATA]",
		Short: "Publish events to a topic",
		Long: `Publish sends one event, or with NDJSON and CSV many, and returns once the router has them safely stored.
The data is DATA, or what --file names, or what comes in on standard input.

What fits into one request (10,000 events, 16 MiB) is stored whole or not at all; longer NDJSON and CSV is sent in several
requests, each whole or not at all. A JSON text of NDJSON that has "specversion" is a CloudEvent, any other is data.
A whole CloudEvent, with a source, "deliverat" or other extensions: --content-type application/cloudevents+json.

With --wait the first reply to the event, by a function, a webhook with "reply: true" or a puller, is printed as it is. Without one in time, or with one of 400 or more, it exits with 1; the event is stored all the same.`,
		Example: `  router publish orders '{"total": 250, "country": "DE"}' --type order.created --key customer-7
  router publish orders --file orders.ndjson
  tail -n 100 orders.csv | router publish orders --csv --file -
  router publish orders '{"total": 250}' --type order.ask --wait 5s`,
		Args: cobra.RangeArgs(1, 2),
	}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.file, "file", "f", "", "read the data from `F`; - is standard input")
	f.BoolVar(&o.ndjson, "ndjson", false, "the data is NDJSON: an event a line (default for .ndjson and .jsonl)")
	f.BoolVar(&o.csv, "csv", false, "the data is CSV with a header row: an event a row (default for .csv)")
	f.StringVar(&o.contentType, "content-type", "", "the data's `media type` (default: by the file's name, else JSON if it is JSON, else text); application/json refuses what is no JSON")
	f.StringVar(&o.types, "types", "", "CSV: 'string' leaves every cell a string")
	f.BoolVar(&o.dryRun, "dry-run", false, "store nothing; show which subscriptions would match and why")
	f.DurationVar(&o.wait, "wait", 0, "wait for a reply to the event, up to 30s, and print it")
	for _, name := range []string{"type", "key", "subject", "id"} {
		o.query[name] = f.String(name, "", map[string]string{
			"type":    "the event's type",
			"key":     "the ordering key: events that share it keep their order",
			"subject": "the event's subject",
			"id":      "the event's id: a repeat within the topic's dedupe window is stored once",
		}[name])
	}
	cmd.MarkFlagsMutuallyExclusive("ndjson", "csv", "content-type")
	cmd.MarkFlagsMutuallyExclusive("wait", "dry-run")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		return p.publish(cmd, c, &o, args)
	}
	return cmd
}

func (p *program) publish(cmd *cobra.Command, c *client, o *publishing, args []string) error {
	if o.wait < 0 || o.wait > maxReplyWait || o.wait > 0 && o.wait < time.Second {
		return usagef(cmd, "--wait %s: want 1s to %s", o.wait, maxReplyWait)
	}
	if kind := o.kind(); o.wait > 0 && (kind == ndjsonType || kind == csvType) {
		return usagef(cmd, "--wait goes with one event; NDJSON and CSV may hold many")
	}
	in, err := p.publishInput(cmd, o, args)
	if err != nil {
		return err
	}
	defer in.Close()
	u := c.path("topics", args[0], "events")
	q := url.Values{}
	for name, v := range o.query {
		if *v != "" {
			q.Set(name, *v)
		}
	}
	if o.types != "" {
		q.Set("types", o.types)
	}
	if o.dryRun {
		q.Set("dryRun", "true")
	}
	u.RawQuery = q.Encode()

	kind := o.kind()
	var cut cutter
	switch kind {
	case ndjsonType:
		cut = &ndjsonCutter{dec: json.NewDecoder(in)}
	case csvType:
		cut = newCSVCutter(in)
	default:
		cut = &wholeCutter{in: in}
	}
	limits := event.Limits{}.WithDefaults()
	sum := published{topic: args[0]}
	for {
		body, err := cut.next(limits.Events, limits.Body)
		if err == io.EOF {
			break
		}
		if err != nil {
			return sum.so(fmt.Errorf("%s: %w", o.source(), err))
		}
		media := kind
		if media == "" {
			media = sniff(body)
		}
		if o.wait > 0 {
			return p.publishAndWait(cmd, c, o, u, media, body)
		}
		answer, err := c.call(cmd.Context(), "POST", u, body, "Content-Type", media)
		if err != nil {
			return sum.so(err)
		}
		if err := p.showPublished(c, o, answer, &sum); err != nil {
			return err
		}
	}
	if sum.requests == 0 {
		return fmt.Errorf("%s holds no events: nothing was published", o.source())
	}
	if sum.requests > 1 && !c.json && !o.dryRun {
		say(p.stdout, "%s published to %s in %d requests", plural(sum.events, "event"), sum.topic, sum.requests)
	}
	return nil
}

// published counts what went out.
type published struct {
	topic            string
	events, requests int
}

// so adds to an error in a later request what earlier ones have done.
func (s *published) so(err error) error {
	if s.requests == 0 || errors.Is(err, context.Canceled) && s.events == 0 {
		return err
	}
	return fmt.Errorf("after %s in %s had been published: %w", plural(s.events, "event"), plural(s.requests, "request"), err)
}

// showPublished prints the router's answer to one request.
func (p *program) showPublished(c *client, o *publishing, answer []byte, sum *published) error {
	sum.requests++
	if c.json {
		return printJSON(p.stdout, answer)
	}
	if o.dryRun {
		return p.showDryRun(c, answer, sum)
	}
	var a struct {
		Accepted int
		Events   []struct{ ID, Position string }
	}
	if err := json.Unmarshal(answer, &a); err != nil {
		return fmt.Errorf("%s answered something other than the expected JSON (%w); is it a router?", c.base.Host, err)
	}
	sum.events += a.Accepted
	const few = 20
	if n := len(a.Events); n > few {
		say(p.stdout, "%s  %s to %s", plural(a.Accepted, "event"), clean(a.Events[0].Position), clean(a.Events[n-1].Position))
		return nil
	}
	for _, e := range a.Events {
		say(p.stdout, "%s  %s", clean(e.Position), clean(e.ID))
	}
	return nil
}

// showDryRun prints for each event which subscriptions would take it, and why the others would not.
func (p *program) showDryRun(c *client, answer []byte, sum *published) error {
	var a struct {
		Events []struct{ Matches []event.Match }
	}
	if err := json.Unmarshal(answer, &a); err != nil {
		return fmt.Errorf("%s answered something other than the expected JSON (%w); is it a router?", c.base.Host, err)
	}
	for _, e := range a.Events {
		sum.events++
		for _, m := range e.Matches {
			takes := "takes it"
			if !m.Matched {
				takes = "does not take it"
			}
			why := ""
			if m.Why != "" {
				why = ": " + clean(m.Why)
			}
			say(p.stdout, "event %d: %s %s%s", sum.events, clean(m.Subscription), takes, why)
		}
	}
	say(p.stderr, "nothing was stored")
	return nil
}

// publishInput opens what is to be published.
func (p *program) publishInput(cmd *cobra.Command, o *publishing, args []string) (io.ReadCloser, error) {
	switch {
	case len(args) == 2 && o.file != "":
		return nil, usagef(cmd, "both DATA and --file are given; want one")
	case len(args) == 2:
		return io.NopCloser(strings.NewReader(args[1])), nil
	case o.file == "" && isTerminal(p.stdin):
		return nil, usagef(cmd, "nothing to publish: give DATA, --file F, or pipe something in")
	case o.file == "" || o.file == "-":
		return io.NopCloser(p.stdin), nil
	}
	return os.Open(o.file)
}

// source is how errors name the input.
func (o *publishing) source() string {
	if o.file == "" || o.file == "-" {
		return "the input"
	}
	return o.file
}

const (
	ndjsonType = "application/x-ndjson"
	csvType    = "text/csv"
)

// kind is the media type that flags or the file's name ask for, "" if the data decides.
func (o *publishing) kind() string {
	ext := strings.ToLower(filepath.Ext(o.file))
	media, _, _ := strings.Cut(strings.ToLower(o.contentType), ";")
	switch media = strings.TrimSpace(media); {
	case o.ndjson, media == ndjsonType, o.contentType == "" && !o.csv && (ext == ".ndjson" || ext == ".jsonl"):
		return ndjsonType
	case o.csv, media == csvType, o.contentType == "" && ext == ".csv":
		return csvType
	}
	return o.contentType
}

// sniff is the media type of data that nobody has named one for.
func sniff(data []byte) string {
	switch {
	case json.Valid(data):
		return "application/json"
	case utf8.Valid(data) && !bytes.ContainsRune(data, 0):
		return "text/plain; charset=utf-8"
	}
	return "application/octet-stream"
}

// A cutter cuts input into request bodies of at most so many events and bytes. A body with a single event
// may be larger: the router then names its limit. next returns io.EOF at the end.
type cutter interface {
	next(events, size int) ([]byte, error)
}

// wholeCutter sends the whole input as one event.
type wholeCutter struct {
	in   io.Reader
	done bool
}

func (w *wholeCutter) next(_, size int) ([]byte, error) {
	if w.done {
		return nil, io.EOF
	}
	w.done = true
	b, err := io.ReadAll(io.LimitReader(w.in, int64(size)+1))
	if err == nil && len(b) > size {
		err = fmt.Errorf("is larger than one request may be (%d bytes)", size)
	}
	if err == nil && len(b) == 0 {
		return nil, io.EOF
	}
	return b, err
}

// ndjsonCutter cuts a sequence of JSON texts.
type ndjsonCutter struct {
	dec  *json.Decoder
	held json.RawMessage
	read int
}

func (n *ndjsonCutter) next(events, size int) ([]byte, error) {
	var body bytes.Buffer
	for count := 0; count < events; count++ {
		if n.held == nil {
			var text json.RawMessage
			err := n.dec.Decode(&text)
			if err == io.EOF {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("event %d (byte %d): %w", n.read+1, n.dec.InputOffset(), err)
			}
			n.held = text
			n.read++
		}
		if count > 0 && body.Len()+len(n.held)+1 > size {
			break
		}
		body.Write(n.held)
		body.WriteByte('\n')
		n.held = nil
	}
	if body.Len() == 0 {
		return nil, io.EOF
	}
	return body.Bytes(), nil
}

// csvCutter cuts CSV between rows and repeats the header row in every body.
type csvCutter struct {
	r      *csv.Reader
	header []string
	held   []string
}

func newCSVCutter(in io.Reader) *csvCutter {
	b := bufio.NewReader(in)
	if bom, _ := b.Peek(3); string(bom) == "\xef\xbb\xbf" {
		_, _ = b.Discard(3) // what was peeked is there
	}
	return &csvCutter{r: csv.NewReader(b)}
}

func (c *csvCutter) next(events, size int) ([]byte, error) {
	if c.header == nil {
		row, err := c.r.Read()
		if err != nil {
			return nil, err // io.EOF: nothing at all
		}
		c.header = row
	}
	var body bytes.Buffer
	w := csv.NewWriter(&body)
	write := func(row []string) error {
		if len(row) == 1 && row[0] == "" { // encoding/csv would write an empty line, which reads as no row
			w.Flush()
			body.WriteString("\"\"\n")
			return w.Error()
		}
		return w.Write(row)
	}
	if err := write(c.header); err != nil {
		return nil, err
	}
	count := 0
	for ; count < events; count++ {
		if c.held == nil {
			row, err := c.r.Read()
			if err == io.EOF {
				break
			}
			if err != nil {
				return nil, err
			}
			c.held = row
		}
		w.Flush()
		if count > 0 && body.Len()+csvSize(c.held) > size {
			break
		}
		if err := write(c.held); err != nil {
			return nil, err
		}
		c.held = nil
	}
	w.Flush()
	if count == 0 {
		return nil, io.EOF
	}
	return body.Bytes(), w.Error()
}

// csvSize is at least the number of bytes that a row takes.
func csvSize(row []string) int {
	n := 0
	for _, cell := range row {
		n += 2*len(cell) + 3
	}
	return n
}
