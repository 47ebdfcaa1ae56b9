package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
)

// rulesState is how the last load of the rules went, for /readyz.
type rulesState struct {
	Path     string       `json:"path"` // or URL
	Revision string       `json:"revision"`
	Loaded   time.Time    `json:"loaded"`
	Error    string       `json:"error,omitempty"` // of the last load; the rules before it are in force
	Remote   *remoteState `json:"remote,omitempty"`
}

// loadCounts are loads of the rules since the start, and how long the last that was applied took.
type loadCounts struct {
	applied, refused uint64
	parse, apply     time.Duration
}

func (d *definitions) rulesState() *rulesState {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r, ok := d.applied(); ok && d.path == "" {
		return &rulesState{Path: sourceAPI, Revision: r.Revision, Loaded: r.Time}
	}
	if d.path == "" {
		return nil
	}
	s := d.loaded
	if d.afar != nil {
		s.Remote = d.afar.state()
	}
	return &s
}

// loadStats are for the metrics: the counts, and how the last load went; ok is false without rules.
func (d *definitions) loadStats() (counts loadCounts, state rulesState, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.loads, d.loaded, d.path != ""
}

// errChanging: the files changed while they were read, so that what was read may be half of two versions.
var errChanging = errors.New("the rules changed while they were read")

// settleTime is how long files must have been left alone before they are read: one that is cut off may be good
// rules with half of the subscriptions, and those that are gone lose their place.
const settleTime = 100 * time.Millisecond

// reload reads the rules file again. A bad one changes nothing and is reported. It is errChanging while somebody
// writes it: nothing is noted then, and the next look finds it changed.
func (d *definitions) reload(ctx context.Context) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	if d.path == "" {
		return d.loadApplied(ctx)
	}
	var files []string // that the rules name, also those that cannot be read: they may come
	var stamps strings.Builder
	begin, top := time.Now(), stampOf(d.path)
	set, err := d.parse(ctx, func(file string) {
		files = append(files, file)
		stamps.WriteString(stampOf(file))
	})
	stamp := top + stamps.String()
	if !d.embed && stampOf(d.path)+stampsOf(files) != stamp {
		return fmt.Errorf("%s: %w", d.path, errChanging)
	}
	parsed := time.Now()
	if err == nil {
		err = d.takeFile(ctx, set)
	}
	d.turn(func() { d.watched, d.stamp = files, stamp })
	d.noteLoad(set, err)
	d.noteTimes(begin, parsed, err)
	return err
}

// noteTimes notes how long a load took that began, and had the rules read, at a time.
func (d *definitions) noteTimes(begin, parsed time.Time, err error) {
	if err == nil {
		d.turn(func() { d.loads.parse, d.loads.apply = parsed.Sub(begin), time.Since(parsed) })
	}
}

// logLoaded says what is in force now, and how long it took.
func (d *definitions) logLoaded() {
	counts, state, _ := d.loadStats()
	d.log.Info("rules reloaded", "path", state.Path, "revision", state.Revision, "read", counts.parse.Round(time.Millisecond), "applied", counts.apply.Round(time.Millisecond))
}

// noteLoad notes how a load of the rules went.
func (d *definitions) noteLoad(set *rules.Set, err error) {
	d.turn(func() {
		d.loaded.Path = d.path
		if err != nil {
			d.loaded.Error = err.Error()
			d.loads.refused++
			return
		}
		d.loads.applied++
		d.file = set
		d.loaded = rulesState{Path: d.path, Revision: set.Revision, Loaded: time.Now().UTC()}
	})
}

// noteUnchanged notes that the rules in force are those that there are.
func (d *definitions) noteUnchanged() { d.turn(func() { d.loaded.Error = "" }) }

// placeOf is where the rules define something, for who must go there.
func (d *definitions) placeOf(o event.Owner) string {
	at := fmt.Sprintf("%s:%d", o.File, o.Line)
	switch {
	case d.afar != nil:
		return d.afar.shown + " (" + at + ")"
	case d.path == "":
		return at + " of the rules that were applied"
	}
	return at
}
