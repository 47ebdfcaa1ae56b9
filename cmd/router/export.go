package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
)

// exporting is the flags of export.
type exporting struct {
	file, since, until, filter string
	format                     string
	columns                    []string
	redact                     string
	keep                       []string
	limit                      uint64
	resume                     bool
}

func exportCommand(p *program) *cobra.Command {
	o := &exporting{}
	cmd := &cobra.Command{
		Use:   "export TOPIC",
		Short: "Write the events that a topic keeps to a file: NDJSON or CSV",
		Long: `Export writes the events that lie in a topic when it begins, a CloudEvent as JSON on each line, with the position at which
it lies. CSV has a row for each: its attributes and its data as JSON, or the --columns that you name.

A file that an export which was cut off has begun is continued with --resume; what the export needs for that lies beside it,
in FILE.export, until it is complete.

--redact replaces what could name somebody, so that a sample can leave the house: strings in the data, the subject, the
partition key and the values of extensions. A letter becomes a letter, a digit a digit, the rest stays: forms and lengths are kept,
and the same value is the same pseudonym throughout the file, by a key that nobody keeps. Short or common values can be guessed
from how often they come, and member names, numbers, booleans, types, sources, ids and times stay as they are. --redact=all
replaces ids, and numbers in the data and extensions, too. --redact=data.email,ext.tenant replaces what lies at these paths and below
them, numbers too, and true by false, and nothing else; data that has no members, such as text or XML, is replaced whole where a path
leads into it. Items of a list have the list's path: data.items.email. Paths at which nothing lay are named in the end.
--keep names what is to stay, such as what your filters compare with.`,
		Example: `  router export orders -o orders.ndjson
  router export orders --since 24h --filter 'type == "order.created"' --format csv --columns time,data.total,data.country
  router export orders --since 7d --redact --keep data.country,data.status -o sample.ndjson`,
		Args: cobra.ExactArgs(1),
	}
	r := p.serverFlags(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.file, "output", "o", "-", "write to `FILE`; - is standard output")
	f.StringVar(&o.since, "since", "", "begin at this `time` (RFC 3339) or this long ago (24h); default: the earliest")
	f.StringVar(&o.until, "until", "", "end before this `time` or this long ago")
	f.StringVar(&o.filter, "filter", "", "only events for which this `expression` is true")
	f.StringVar(&o.format, "format", "", "`ndjson or csv` (default: by the file's name, else ndjson)")
	f.StringSliceVar(&o.columns, "columns", nil, "CSV: `paths`, such as id,time,data.total")
	f.StringVar(&o.redact, "redact", "", "replace strings by pseudonyms: in all; all for numbers and ids too; or what is at these `paths`")
	f.Lookup("redact").NoOptDefVal = redactStrings
	f.StringSliceVar(&o.keep, "keep", nil, "with --redact: `paths` that stay as they are")
	f.Uint64VarP(&o.limit, "limit", "n", 0, "stop after so many `events`; 0: never")
	f.BoolVar(&o.resume, "resume", false, "go on where an export to FILE was cut off")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		if err := o.check(cmd); err != nil {
			return err
		}
		return p.export(cmd.Context(), c, o, args[0])
	}
	return cmd
}

func (o *exporting) check(cmd *cobra.Command) error {
	if o.format == "" {
		o.format = formatOf(o.file)
	}
	switch {
	case o.format != "ndjson" && o.format != "csv":
		return usagef(cmd, "--format %q: want ndjson or csv", o.format)
	case len(o.columns) > 0 && o.format != "csv":
		return usagef(cmd, "--columns goes with --format csv")
	case len(o.keep) > 0 && o.redact == "":
		return usagef(cmd, "--keep goes with --redact")
	case o.resume && o.file == "-":
		return usagef(cmd, "--resume needs -o FILE: of standard output nothing is known")
	case o.resume && o.limit > 0:
		return usagef(cmd, "--limit and --resume do not go together")
	}
	if o.redact != "" {
		if _, err := newRedactor(o.redact, o.keep, nil); err != nil {
			return usagef(cmd, "%w", err)
		}
	}
	for _, path := range o.columns {
		if path == "" || strings.HasPrefix(path, ".") || strings.HasSuffix(path, ".") {
			return usagef(cmd, "%q is no path; want names with dots between, such as data.total", path)
		}
	}
	return nil
}

// formatOf is the format that a file's name asks for.
func formatOf(file string) string {
	if strings.EqualFold(filepath.Ext(file), ".csv") {
		return "csv"
	}
	return "ndjson"
}

// exportState lies beside a file that is not complete. The key of the pseudonyms is in it: it goes once it is.
type exportState struct {
	Topic  string   `json:"topic"`
	Query  string   `json:"query"` // what else the export was asked for: a resumed one must ask for the same
	Cursor string   `json:"cursor"`
	Ends   []uint64 `json:"ends"` // next offset of each partition when it began
	Bytes  int64    `json:"bytes"`
	Events uint64   `json:"events"`
	Key    string   `json:"key,omitempty"`
	Met    []uint64 `json:"met,omitempty"` // values that lay at each path of --redact
}

// exportPage is how many events one request reads.
const exportPage = 1000

// An export is one at work.
type export struct {
	c     *client
	o     *exporting
	until time.Time
	query url.Values
	state exportState
	out   *bufio.Writer
	file  *os.File // nil: standard output
	made  int64    // bytes written so far
	row   rowWriter
	hide  *redactor
	done  []bool // partitions that were read to where they ended
	said  *notice
}

func (p *program) export(ctx context.Context, c *client, o *exporting, topic string) (err error) {
	x := &export{c: c, o: o, said: p.notice()}
	if err := x.begin(ctx, topic); err != nil {
		return err
	}
	sink := io.Writer(p.stdout)
	if o.file != "-" {
		if err := x.openFile(); err != nil {
			return err
		}
		sink = x.file
		defer func() { err = errors.Join(err, x.file.Close()) }()
	}
	x.out = bufio.NewWriterSize(countingWriter{sink, &x.made}, 256<<10)
	x.row = rowWriter{format: o.format, columns: o.columns, w: x.out}
	if err := x.row.begin(x.state.Events > 0); err != nil {
		return err
	}
	err = x.pages(ctx)
	x.said.end()
	if err != nil {
		if o.file != "-" && x.state.Cursor != "" {
			err = fmt.Errorf("%w\n%s is not complete: it has %s; go on with --resume", err, o.file, plural(int(x.state.Events), "event"))
		}
		return err
	}
	if x.hide != nil && x.state.Events > 0 {
		for _, path := range x.hide.missed() {
			say(p.stderr, "nothing was replaced at %s: no event has it; is it misspelt?", clean(path))
		}
	}
	if o.file != "-" {
		if err := os.Remove(x.stateFile()); err != nil && !os.IsNotExist(err) {
			return err
		}
		say(p.stderr, "%s of %s written to %s", plural(int(x.state.Events), "event"), clean(topic), clean(o.file))
	}
	return nil
}

func (x *export) stateFile() string { return x.o.file + ".export" }

// begin finds where the export ends: what is published meanwhile is not of it.
func (x *export) begin(ctx context.Context, topic string) error {
	o := x.o
	asked, err := json.Marshal(struct {
		Since, Until, Filter, Format, Redact string
		Columns, Keep                        []string
	}{o.since, o.until, o.filter, o.format, o.redact, o.columns, o.keep})
	if err != nil {
		return err
	}
	x.state = exportState{Topic: topic, Query: string(asked)}
	if o.until != "" {
		if x.until, err = event.ParseSince(o.until, time.Now()); err != nil {
			return fmt.Errorf("--until: %w", err)
		}
	}
	var key []byte
	switch {
	case o.resume:
		if err := x.load(topic); err != nil {
			return err
		}
		if key, err = base64.StdEncoding.DecodeString(x.state.Key); err != nil {
			return fmt.Errorf("%s: %w", x.stateFile(), err)
		}
	default:
		var def struct {
			State struct {
				Partitions []struct{ Next uint64 }
			}
		}
		if err := x.c.callJSON(ctx, http.MethodGet, x.c.path("topics", topic), nil, &def); err != nil {
			return err
		}
		for _, part := range def.State.Partitions {
			x.state.Ends = append(x.state.Ends, part.Next)
		}
	}
	x.done = make([]bool, len(x.state.Ends))
	for i, end := range x.state.Ends {
		x.done[i] = end == 0
	}
	if o.redact != "" {
		if x.hide, err = newRedactor(o.redact, o.keep, key); err != nil {
			return err
		}
		x.state.Key = base64.StdEncoding.EncodeToString(x.hide.key)
		copy(x.hide.met, x.state.Met)
		x.state.Met = x.hide.met
	}
	x.query = url.Values{"limit": {strconv.Itoa(exportPage)}}
	if o.filter != "" {
		x.query.Set("filter", o.filter)
	}
	if x.state.Cursor == "" && o.since != "" {
		x.query.Set("since", o.since)
	}
	return nil
}

// load reads what an export that was cut off has left.
func (x *export) load(topic string) error {
	b, err := os.ReadFile(x.stateFile())
	if os.IsNotExist(err) {
		return fmt.Errorf("%s is not there: the export to %s is complete, or was never begun", x.stateFile(), x.o.file)
	}
	if err != nil {
		return err
	}
	want := x.state.Query
	if err := json.Unmarshal(b, &x.state); err != nil {
		return fmt.Errorf("%s: %w; begin anew without --resume", x.stateFile(), err)
	}
	if x.state.Topic != topic || x.state.Query != want {
		return fmt.Errorf("%s is of an export of topic %s that asked for something else; repeat its flags, or begin anew without --resume", x.stateFile(), x.state.Topic)
	}
	return nil
}

// openFile opens the file, without what was written after the state was last noted.
func (x *export) openFile() error {
	flags := os.O_WRONLY | os.O_CREATE
	if !x.o.resume {
		flags |= os.O_TRUNC
	}
	file, err := os.OpenFile(x.o.file, flags, 0o600)
	if err != nil {
		return err
	}
	x.file = file
	if !x.o.resume {
		return nil
	}
	info, err := file.Stat()
	if err == nil && info.Size() < x.state.Bytes {
		err = fmt.Errorf("%s has %d bytes, the export had written %d; begin anew without --resume", x.o.file, info.Size(), x.state.Bytes)
	}
	if err == nil {
		err = file.Truncate(x.state.Bytes)
	}
	if err == nil {
		_, err = file.Seek(x.state.Bytes, io.SeekStart)
	}
	x.made = x.state.Bytes
	if err != nil {
		return errors.Join(err, file.Close())
	}
	return nil
}

// pages reads and writes a page after another, noting after each how far the file is whole.
func (x *export) pages(ctx context.Context) error {
	for {
		var page struct {
			Events []json.RawMessage `json:"events"`
			Next   string            `json:"next"`
		}
		u := x.c.path("topics", x.state.Topic, "events")
		u.RawQuery = x.query.Encode()
		if x.state.Cursor != "" {
			x.query.Del("since")
			x.query.Set("after", x.state.Cursor)
			u.RawQuery = x.query.Encode()
		}
		if err := x.c.callJSON(ctx, http.MethodGet, u, nil, &page); err != nil {
			return err
		}
		enough := false
		for _, doc := range page.Events {
			wrote, err := x.one(doc)
			if err != nil {
				return err
			}
			if wrote {
				x.state.Events++
			}
			if enough = x.o.limit > 0 && x.state.Events == x.o.limit; enough {
				break
			}
		}
		if err := x.row.flush(); err != nil {
			return err
		}
		moved := page.Next != x.state.Cursor
		x.state.Cursor, x.state.Bytes = page.Next, x.made
		if x.file != nil {
			if err := x.note(); err != nil {
				return err
			}
		}
		x.said.say("%d events, %s", x.state.Events, sizeText(x.made))
		x.passed(page.Next)
		// A page without events whose cursor moved has passed over what the filter does not take.
		if enough || len(page.Events) == 0 && !moved || !slices.Contains(x.done, false) {
			return nil
		}
	}
}

// passed marks the partitions of which a cursor stands at their end or behind it: the filter may take none of the last events,
// nor of those that are published meanwhile without end. The cursor of a router of another version may be no such; then the
// events alone tell.
func (x *export) passed(cursor string) {
	offsets, err := engine.CursorOffsets(cursor)
	if err != nil || len(offsets) != len(x.done) {
		return
	}
	for i, at := range offsets {
		x.done[i] = x.done[i] || uint64(at) >= x.state.Ends[i]
	}
}

// one writes an event if it is of the export.
func (x *export) one(doc json.RawMessage) (bool, error) {
	var head struct {
		Position string `json:"millraceposition"`
		Received string `json:"recordedtime"`
	}
	if err := json.Unmarshal(doc, &head); err != nil {
		return false, fmt.Errorf("%s sent an event that is not JSON: %w", x.c.base.Host, err)
	}
	pos, err := event.ParsePosition(head.Position)
	if err != nil {
		return false, fmt.Errorf("%s sent an event without its position (%w); is it a router?", x.c.base.Host, err)
	}
	if int(pos.Partition) >= len(x.done) {
		return false, nil
	}
	if end := x.state.Ends[pos.Partition]; pos.Offset+1 >= end {
		x.done[pos.Partition] = true
		if pos.Offset >= end {
			return false, nil // published since
		}
	}
	if !x.until.IsZero() {
		if at, err := event.ParseTime(head.Received); err == nil && !at.Before(x.until) {
			return false, nil
		}
	}
	if x.hide != nil {
		if doc, err = x.hide.event(doc); err != nil {
			return false, err
		}
	}
	return true, x.row.write(doc)
}

// note keeps how far the file is whole. It replaces the note before, so that one of the two is always there.
func (x *export) note() error {
	b, err := json.Marshal(x.state)
	if err != nil {
		return err
	}
	return replaceFile(x.stateFile(), append(b, '\n'))
}

// replaceFile writes a small file beside another and puts it in its place.
func replaceFile(name string, b []byte) error {
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

type countingWriter struct {
	w io.Writer
	n *int64
}

func (c countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	*c.n += int64(n)
	return n, err
}
