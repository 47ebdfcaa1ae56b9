package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/event"
)

// importing is the flags of import.
type importing struct {
	file   string
	format string
	types  string
	batch  int
	rate   perSecond
	resume bool
}

func importCommand(p *program) *cobra.Command {
	o := &importing{}
	cmd := &cobra.Command{
		Use:   "import TOPIC FILE",
		Short: "Publish the events of a file to a topic: NDJSON or CSV",
		Long: `Import publishes the lines of an NDJSON file, or the rows of a CSV file, in batches. Each batch is stored whole or not at all,
and nothing of a batch with a bad line is: the error names file and line.

A line with "specversion" is a CloudEvent and keeps its id: an import of it that is repeated within the topic's dedupe window stores
nothing twice. Any other is data, and gets an id that is this import's own: --resume stores nothing twice, a new import all. Where an event lay before, an
export's millraceposition and recordedtime, is not imported. CSV is read as by 'router publish --csv', or, with the header that
'router export' writes, as the events that it was made of. Rows have no ids.

What an import that was cut off needs to go on lies beside the file, in FILE.import, until it is complete; --resume goes on. The
batch that was under way may then be sent twice: within the dedupe window it is stored once (CSV rows: twice;
no other repeat of rows is made where it is not known whether they are stored).
FILE is - for standard input.`,
		Example: `  router import orders orders.ndjson
  router import orders big.ndjson --rate 500/s
  router export orders | router import orders-copy -`,
		Args: cobra.ExactArgs(2),
	}
	r := p.serverFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.format, "format", "", "`ndjson or csv` (default: by the file's name, else ndjson)")
	f.StringVar(&o.types, "types", "", "CSV: 'string' leaves every cell a string")
	f.IntVar(&o.batch, "batch", 1000, "`events` a request, 1 to 10,000")
	f.Var(&o.rate, "rate", "publish at most so many events, such as `500/s`")
	f.BoolVar(&o.resume, "resume", false, "go on where an import of FILE was cut off")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		o.file = args[1]
		if o.format == "" {
			o.format = formatOf(o.file)
		}
		switch {
		case o.format != "ndjson" && o.format != "csv":
			return usagef(cmd, "--format %q: want ndjson or csv", o.format)
		case o.types != "" && o.format != "csv":
			return usagef(cmd, "--types goes with CSV")
		case o.batch < 1 || o.batch > 10_000:
			return usagef(cmd, "--batch %d: want 1 to 10,000", o.batch)
		case o.rate < 0:
			return usagef(cmd, "--rate %s: want more than 0", &o.rate)
		case o.resume && o.file == "-":
			return usagef(cmd, "--resume needs a file: standard input cannot be read again")
		}
		return p.importFile(cmd.Context(), c, o, args[0])
	}
	return cmd
}

// importState lies beside a file that is not imported whole.
type importState struct {
	ID     string `json:"id"` // of the import: ids of events that bring none are made of it
	Topic  string `json:"topic"`
	Server string `json:"server"`
	Bytes  int64  `json:"bytes"`  // of the file that are imported
	Line   int    `json:"line"`   // the next one
	Events int    `json:"events"` // imported
	Head   string `json:"head"`   // a hash of the beginning of those: it must be the same file
}

// A lump is the events of one request.
type lump struct {
	body  []byte
	media string
	lines []int // of its events
	end   int64 // offset in the file after it
	next  int   // the line after it
}

// lumper cuts a file into requests; io.EOF at its end.
type lumper interface {
	next(events, size int) (*lump, error)
}

// An importer is one at work.
type importer struct {
	c     *client
	o     *importing
	url   string
	head  []byte // the beginning of the file
	state importState
	began time.Time
	sent  int // in this run
	noted bool
	doubt bool // it is not known whether what was sent last is stored
	said  *notice
}

func (p *program) importFile(ctx context.Context, c *client, o *importing, topic string) error {
	im := &importer{c: c, o: o, said: p.notice(), began: time.Now()}
	im.state.ID = rand.Text()
	u := c.path("topics", topic, "events")
	if o.types != "" {
		u.RawQuery = "types=" + o.types
	}
	im.url = u.String()
	in := p.stdin
	if o.file != "-" {
		file, err := os.Open(o.file)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := im.open(file, topic); err != nil {
			return err
		}
		in = file
	}
	var cut lumper
	if o.format == "csv" {
		cut = newCSVLumper(in, o.file, &im.state)
	} else {
		cut = newLineLumper(in, o.file, &im.state)
	}
	err := im.run(ctx, cut)
	im.said.end()
	if err != nil {
		if im.state.Events > 0 || im.doubt {
			err = fmt.Errorf("%w\n%s imported to %s before it%s", err, plural(im.state.Events, "event"), topic, im.resumable())
		} else if im.noted && o.file != "-" && !o.resume { // nothing was stored: there is nothing to go on from
			err = errors.Join(err, os.Remove(im.stateFile()))
		}
		return err
	}
	if o.file != "-" {
		if err := os.Remove(im.stateFile()); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	if im.state.Events == 0 {
		return fmt.Errorf("%s holds no events: nothing was imported", o.file)
	}
	say(p.stderr, "%s imported to %s", plural(im.state.Events, "event"), clean(topic))
	return nil
}

func (im *importer) resumable() string {
	if im.o.file == "-" {
		return ""
	}
	return "; mend what is wrong and go on with --resume"
}

func (im *importer) stateFile() string { return im.o.file + ".import" }

// headBytes is how much of a file tells it from another.
const headBytes = 4096

// open finds where to begin.
func (im *importer) open(file *os.File, topic string) error {
	im.head = make([]byte, headBytes)
	n, err := io.ReadFull(file, im.head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	im.head = im.head[:n]
	was := importState{ID: im.state.ID, Topic: topic, Server: im.c.base.Redacted()}
	im.state = was
	if im.o.resume {
		b, err := os.ReadFile(im.stateFile())
		if os.IsNotExist(err) {
			return fmt.Errorf("%s is not there: the import of %s is complete, or was never begun", im.stateFile(), im.o.file)
		}
		if err == nil {
			err = json.Unmarshal(b, &im.state)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", im.stateFile(), err)
		}
		if im.state.Topic != was.Topic || im.state.Server != was.Server {
			return fmt.Errorf("%s is of an import to topic %s at %s; go on with that, or begin anew without --resume", im.stateFile(), im.state.Topic, im.state.Server)
		}
		if im.state.Head != im.headHash() {
			return fmt.Errorf("%s is not the file whose import was cut off; begin anew without --resume", im.o.file)
		}
	}
	_, err = file.Seek(0, io.SeekStart)
	return err
}

// headHash is of the beginning of what is imported: what comes after it may be mended.
func (im *importer) headHash() string {
	sum := sha256.Sum256(im.head[:min(int64(len(im.head)), im.state.Bytes)])
	return hex.EncodeToString(sum[:])
}

// run sends one lump after another.
func (im *importer) run(ctx context.Context, cut lumper) error {
	limits := event.Limits{}.WithDefaults()
	for {
		l, err := cut.next(im.o.batch, limits.Body-1024)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !im.noted { // whatever becomes of the first lump, its ids can be made again
			if err := im.note(); err != nil {
				return err
			}
		}
		if err := im.send(ctx, l); err != nil {
			return err
		}
		im.sent += len(l.lines)
		im.state.Events += len(l.lines)
		im.state.Bytes, im.state.Line = l.end, l.next
		if err := im.note(); err != nil {
			return err
		}
		im.said.say("%d events, %.0f/s", im.state.Events, float64(im.sent)/time.Since(im.began).Seconds())
		if im.o.rate > 0 {
			due := im.began.Add(time.Duration(float64(im.sent) / float64(im.o.rate) * float64(time.Second)))
			if err := sleep(ctx, time.Until(due)); err != nil {
				return err
			}
		}
	}
}

// note keeps how far the import is.
func (im *importer) note() error {
	im.noted = true
	if im.o.file == "-" {
		return nil
	}
	im.state.Head = im.headHash()
	b, err := json.Marshal(im.state)
	if err != nil {
		return err
	}
	return replaceFile(im.stateFile(), append(b, '\n'))
}

// importPatience is how long a router that is busy is waited for.
const importPatience = 30 * time.Second

// send publishes a lump, again where the router was busy. Behind a 503 a lump may be stored all the same: only one whose events
// have ids is sent again then.
func (im *importer) send(ctx context.Context, l *lump) error {
	began, wait := time.Now(), 200*time.Millisecond
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, im.url, bytes.NewReader(l.body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", l.media)
		req.Header.Set("Prefer", "return=minimal")
		if im.c.token != "" {
			req.Header.Set("Authorization", "Bearer "+im.c.token)
		}
		res, err := im.c.send(req)
		if err == nil {
			im.doubt = false
			_, err = io.Copy(io.Discard, io.LimitReader(res.Body, maxAnswer))
			return errors.Join(err, res.Body.Close())
		}
		var busy *problem
		refused := errors.As(err, &busy) && busy.Status < http.StatusInternalServerError
		im.doubt = !refused
		if im.doubt && l.media == csvType {
			return fmt.Errorf("%s:%d to %d: it is not known whether these rows are stored, and rows have no ids by which a repeat would be: %w",
				im.o.file, l.lines[0], l.lines[len(l.lines)-1], err)
		}
		if busy == nil || busy.Status != http.StatusServiceUnavailable && busy.Status != http.StatusTooManyRequests || time.Since(began) > importPatience {
			return im.at(l, err)
		}
		if s, bad := strconv.Atoi(busy.RetryAfter); bad == nil && s > 0 {
			wait = min(time.Duration(s)*time.Second, importPatience)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// at names the lines that a refusal is about, where it is about events.
func (im *importer) at(l *lump, err error) error {
	var p *problem
	if !errors.As(err, &p) {
		return err
	}
	var said []string
	for _, x := range p.Errors {
		rest, ok := strings.CutPrefix(x.At, "events[")
		if !ok {
			continue
		}
		number, member, _ := strings.Cut(rest, "]")
		if n, bad := strconv.Atoi(number); bad == nil && n < len(l.lines) {
			member = strings.TrimPrefix(member, ".")
			if member != "" {
				member += ": "
			}
			said = append(said, fmt.Sprintf("%s:%d: %s%s", im.o.file, l.lines[n], member, clean(x.Detail)))
		}
	}
	first, last := l.lines[0], l.lines[len(l.lines)-1]
	whole := fmt.Errorf("%s:%d to %d: nothing of these lines was stored: %w", im.o.file, first, last, err)
	if im.doubt {
		whole = fmt.Errorf("%s:%d to %d: it is not known whether these lines are stored: %w", im.o.file, first, last, err)
	}
	if len(said) == 0 {
		return whole
	}
	return fmt.Errorf("%s\nnothing of lines %d to %d was stored", strings.Join(said, "\n"), first, last)
}
