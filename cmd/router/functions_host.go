package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// authorHost is the host that runs functions for their authors: that of the router, one call at a time.
func authorHost(ctx context.Context, o plugins.Options) (*plugins.Host, error) {
	o.ABIs, o.Engines, o.Instances = abis(), engines(), 1
	return plugins.NewHost(ctx, o)
}

// abiName is what authors call a calling convention.
func abiName(abi plugins.ABI) string {
	if abi == nil {
		return ""
	}
	t := reflect.TypeOf(abi)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	pkg := t.PkgPath()
	if name := pkg[strings.LastIndexByte(pkg, '/')+1:]; name != "native" {
		return name
	}
	return "millrace_v1"
}

// loadModule reads the module of a project, building it first where there is source that is newer.
func (p *program) loadModule(ctx context.Context, pr *project, show bool) ([]byte, error) {
	if pr.language != "" && !toolchains[pr.language].source && !pr.upToDate() {
		if _, err := p.build(ctx, pr, show); err != nil {
			return nil, err
		}
	}
	return readModule(pr.module)
}

// upToDate reports whether a project's module is younger than every file that it may be made of.
func (pr *project) upToDate() bool {
	module, err := os.Stat(pr.module)
	if err != nil {
		return false
	}
	for path, info := range pr.files() {
		if strings.HasPrefix(path, filepath.Join(pr.dir, "testdata")+string(filepath.Separator)) || path == filepath.Join(pr.dir, settingsFile) {
			continue
		}
		if !info.ModTime().Before(module.ModTime()) {
			return false
		}
	}
	return true
}

// unwatched are folders that building writes to, or that are too large to look at.
var unwatched = []string{"node_modules", "target", "build"}

// files calls yield for every file of a project, in order, apart from what building makes and what lies below
// hidden folders.
func (pr *project) files() iter.Seq2[string, fs.FileInfo] {
	return func(yield func(string, fs.FileInfo) bool) {
		// An error is a file that went away while it was looked at: the next look sees that.
		_ = filepath.WalkDir(pr.dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			if e.IsDir() {
				if path != pr.dir && (strings.HasPrefix(e.Name(), ".") || slices.Contains(unwatched, e.Name())) {
					return fs.SkipDir
				}
				return nil
			}
			if path == pr.module && !toolchains[pr.language].source || filepath.Ext(path) == ".wasm" || e.Name() == "Cargo.lock" || e.Name() == "go.sum" {
				return nil
			}
			if info, err := os.Stat(path); err == nil && !yield(path, info) {
				return fs.SkipAll
			}
			return nil
		})
	}
}

// sampleTime is when the events of golden pairs were received, unless they have a time.
var sampleTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// readSamples reads events for trying a function: a CloudEvent, an array of them, or anything else, which
// is the data of one event. In CloudEvents specversion is enough; what is missing is filled in. The records
// have places of their own, from first on. Array says that several were asked for, also if it is one.
func readSamples(name string, doc []byte, first uint64) (records []event.Record, array bool, err error) {
	var docs []json.RawMessage
	trimmed := strings.TrimSpace(string(doc))
	switch {
	case strings.HasPrefix(trimmed, "[") && json.Unmarshal(doc, &docs) == nil && len(docs) > 0 && event.HasSpecVersion(docs[0]):
		array = true
	case strings.HasPrefix(trimmed, "{") && event.HasSpecVersion([]byte(trimmed)):
		docs = []json.RawMessage{json.RawMessage(trimmed)}
	default:
		e := event.Event{ID: name, Source: "/test", Type: "test", Topic: "test", Data: doc}
		if json.Valid(doc) {
			e.DataContentType, e.Data = "application/json", []byte(trimmed)
		}
		return []event.Record{sampleRecord(&e, first)}, false, nil
	}
	for i, d := range docs {
		if !event.HasSpecVersion(d) {
			return nil, false, fmt.Errorf("%s: the first of the array is a CloudEvent and number %d is not (no specversion); want all of them or none", name, i+1)
		}
		e, err := readSample(fmt.Sprintf("%s-%d", name, i+1), d)
		if err != nil {
			if array {
				err = fmt.Errorf("event %d: %w", i+1, err)
			}
			return nil, false, fmt.Errorf("%s: %w", name, err)
		}
		records = append(records, sampleRecord(&e, first+uint64(i)))
	}
	return records, array, nil
}

// readSample reads one CloudEvent, giving it an id, a source and a type if it has none.
func readSample(id string, doc []byte) (event.Event, error) {
	var has map[string]json.RawMessage
	if err := json.Unmarshal(doc, &has); err != nil {
		return event.Event{}, err
	}
	given := ""
	for _, d := range [][2]string{{"id", id}, {"source", "/test"}, {"type", "test"}} {
		if _, ok := has[d[0]]; !ok {
			v, err := json.Marshal(d[1])
			if err != nil {
				return event.Event{}, err
			}
			given += fmt.Sprintf("%q:%s,", d[0], v)
		}
	}
	// In front, so that every other byte stays as it was written.
	doc = []byte("{" + given + strings.TrimSpace(string(doc))[1:])
	e := event.Event{}
	err := event.ParseStructured(doc, event.Limits{}.WithDefaults(), &e)
	e.Topic = "test"
	return e, err
}

func sampleRecord(e *event.Event, offset uint64) event.Record {
	received := sampleTime
	if t, err := event.ParseTime(e.Time); err == nil {
		received = t
	}
	r := event.Record(e.AppendRecord(nil))
	r.SetPlace(event.Position{Offset: offset}, received.UnixNano())
	r.SetAttempt(1, 0)
	return r
}

// A golden is one golden pair.
type golden struct {
	name   string
	events []event.Record
	array  bool              // the input is an array, so the output is one of as many
	config map[string]string // of NAME.config.json; nil: the project's
	out    string            // the file with what is expected
	want   []string          // canonical answers, one an event; nil if the file is missing
}

// casesIn says where the golden pairs of a project lie: in its testdata, else beside it.
func casesIn(pr *project) string {
	dir := filepath.Join(pr.dir, "testdata")
	if found, _ := filepath.Glob(filepath.Join(dir, "*.in.json")); len(found) > 0 {
		return dir
	}
	return pr.dir
}

// readGoldens reads the pairs in a folder, in order of their names. Without expect the outputs are not read.
func readGoldens(dir string, match func(name string) bool, expect bool) ([]*golden, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.in.json"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no golden pairs in %s: write an event, or its data, to NAME.in.json there; "+
			"'router functions test --update' writes what comes of it to NAME.out.json", dir)
	}
	var all []*golden
	offset := uint64(0)
	for _, file := range files {
		g := &golden{name: strings.TrimSuffix(filepath.Base(file), ".in.json")}
		g.out = filepath.Join(dir, g.name+".out.json")
		doc, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if g.events, g.array, err = readSamples(g.name, doc, offset); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		offset += uint64(len(g.events)) // also of those left out: randomness depends on it
		if !match(g.name) {
			continue
		}
		if g.config, err = readConfig(filepath.Join(dir, g.name+".config.json")); err != nil {
			return nil, err
		}
		if expect {
			if err := g.readWant(); err != nil {
				return nil, err
			}
		}
		all = append(all, g)
	}
	return all, nil
}

// readConfig reads a function's configuration from JSON; nil without the file.
func readConfig(file string) (map[string]string, error) {
	b, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	config := map[string]string{}
	if err := json.Unmarshal(b, &config); err != nil {
		return nil, fmt.Errorf("%s: %w; want an object of strings", file, err)
	}
	return config, nil
}

// readWant reads what is expected of a pair.
func (g *golden) readWant() error {
	b, err := os.ReadFile(g.out)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	docs := []json.RawMessage{b}
	if g.array {
		docs = nil
		if err := json.Unmarshal(b, &docs); err != nil {
			return fmt.Errorf("%s: %w; its input is an array of events, so want an array of what comes of each", g.out, err)
		}
		if len(docs) != len(g.events) {
			return fmt.Errorf("%s: is an array of %d; its input has %s: want what comes of each, which is an answer or an array of answers",
				g.out, len(docs), plural(len(g.events), "event"))
		}
	}
	g.want = []string{} // there, even if the input has no events
	for i, doc := range docs {
		text, err := wantedAnswers(g.events[i], doc)
		if err != nil {
			return fmt.Errorf("%s: event %d: %w", g.out, i+1, err)
		}
		g.want = append(g.want, text)
	}
	return nil
}
