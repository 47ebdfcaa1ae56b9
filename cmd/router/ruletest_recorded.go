package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
)

// maxRecorded bounds a file of recorded events: they are held in memory, and so is the store that they go to.
const maxRecorded = 256 << 20

// readRecorded reads the events of a file that a test names, with an event a line: a CloudEvent where it has specversion,
// else the data of one. Lines that are empty do not count.
func readRecorded(g *rules.Given) error {
	if g.File == "" {
		return nil
	}
	f, err := os.Open(g.File)
	if err != nil {
		return fmt.Errorf("%s:%d: recorded events: %w", g.Owner.File, g.Owner.Line, err)
	}
	defer f.Close()
	g.Events, err = recordedEvents(f)
	if err != nil {
		return fmt.Errorf("%s: %w", g.File, err)
	}
	return nil
}

func recordedEvents(r io.Reader) (evs []event.Event, err error) {
	limits := event.Limits{}.WithDefaults()
	in := bufio.NewReader(io.LimitReader(r, maxRecorded+1))
	for line, read := 1, 0; ; line++ {
		doc, err := in.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if read += len(doc); read > maxRecorded {
			return nil, fmt.Errorf("has over %d bytes; split it", maxRecorded)
		}
		if doc = bytes.TrimSpace(doc); len(doc) > 0 {
			var ev event.Event
			if fault := recordedEvent(doc, limits, &ev); fault != nil {
				return nil, fmt.Errorf("line %d: %w", line, fault)
			}
			evs = append(evs, ev)
		}
		if err != nil {
			return evs, nil
		}
	}
}

func recordedEvent(doc []byte, limits event.Limits, ev *event.Event) error {
	if bytes.HasPrefix(doc, []byte("{")) && event.HasSpecVersion(doc) {
		err := event.ParseStructured(doc, limits, ev)
		ev.ClientID = true
		return err
	}
	ev.DataContentType, ev.Data = "application/json", doc
	return event.CheckJSON(doc)
}

// recordedTest gives the recorded events of a file or folder, and expects nothing.
func recordedTest(path, topic string) (rules.Test, error) {
	t := rules.Test{Name: path, At: sampleTime}
	info, err := os.Stat(path)
	if err != nil {
		return t, fmt.Errorf("--events: %w", err)
	}
	files := []string{path}
	if info.IsDir() {
		if topic != "" {
			return t, fmt.Errorf("--topic %s: is for one file; in a folder a file's name is its topic", clean(topic))
		}
		if files, err = filepath.Glob(filepath.Join(path, "*.ndjson")); err != nil {
			return t, err
		}
		if len(files) == 0 {
			return t, fmt.Errorf("--events %s: has no *.ndjson file; want one a topic, such as orders.ndjson", clean(path))
		}
	}
	for _, file := range files {
		g := rules.Given{Topic: topic, File: file, Owner: event.Owner{File: file, Line: 1}}
		if topic == "" {
			g.Topic = strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
		}
		if err := readRecorded(&g); err != nil {
			return t, err
		}
		t.Given = append(t.Given, g)
	}
	return t, nil
}

// recordedReport is what became of recorded events.
type recordedReport struct {
	Events        int                    `json:"events"`
	Millis        float64                `json:"ms"`
	Subscriptions []recordedSubscription `json:"subscriptions"`
}

type recordedSubscription struct {
	Name        string `json:"name"`
	Matched     uint64 `json:"matched"`
	Delivered   int    `json:"delivered"`
	Dropped     uint64 `json:"dropped"` // by functions
	Failed      uint64 `json:"failed"`  // tries
	DeadLetters int    `json:"deadLetters"`
	Reason      string `json:"reason,omitempty"` // of the first dead letter
}

// replayRecorded runs recorded events and prints what each subscription made of them. Every receiver takes
// everything, so what fails are functions.
func (t *ruleTester) replayRecorded(ctx context.Context, test *rules.Test) (err error) {
	began := time.Now()
	w, err := openWorld(ctx, t.lab, test)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close(ctx)) }()
	w.counts = true
	if err := w.run(ctx); err != nil {
		return err
	}
	r := recordedReport{Millis: millis(time.Since(began)), Subscriptions: []recordedSubscription{}}
	for _, g := range test.Given {
		r.Events += len(g.Events)
	}
	for _, i := range w.engine.Subscriptions() {
		s := w.seen[i.Name]
		r.Subscriptions = append(r.Subscriptions, recordedSubscription{i.Name, i.Matched, s.deliveredCount, i.Dropped, i.Failed, s.deadCount, s.deadReason})
	}
	if t.json {
		doc, err := json.Marshal(r)
		if err != nil {
			return err
		}
		return printJSON(t.p.stdout, doc)
	}
	tw := tabwriter.NewWriter(t.p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "SUBSCRIPTION\tMATCHED\tDELIVERED\tDROPPED\tFAILED\tDEAD LETTERS\t")
	for _, s := range r.Subscriptions {
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%d\t%d\t%s\n", s.Name, s.Matched, s.Delivered, s.Dropped, s.Failed, s.DeadLetters, clean(s.Reason))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	say(t.p.stdout, "%s in %s", plural(r.Events, "event"), rough(time.Since(began)))
	return nil
}
