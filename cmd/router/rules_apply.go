package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/httpapi"
	"github.com/millrace/millrace/engine/rules"
	"github.com/millrace/millrace/storage"
)

// Rules have one owner. A router that was started with --rules takes them from there alone; any other has those that
// were applied last, which it keeps, with their files, among its revisions. Definitions that were made one by one
// over the API live beside either, and none of them may be defined twice.

// sourceAPI is the source of revisions that were applied.
const sourceAPI = "api"

// Which rules a router that has both takes.
const (
	ownerFile = "file"
	ownerAPI  = "api"
)

// bundleOptions are the options for what was applied: it may have the router's variables, not its files. Where the
// API may not apply rules it may only compare, and learns no variable by that: those are the rules file's.
func (d *definitions) bundleOptions(api owned) rules.Options {
	o := rules.Options{Sinks: d.o.Sinks, Schemes: d.o.Schemes, Bridges: d.o.Bridges, Getenv: d.o.Getenv, Now: d.o.Now}
	if d.path != "" {
		o.Getenv, o.Unresolved = nil, true
	}
	for name := range api[kindFunctions] {
		o.Functions = append(o.Functions, name)
	}
	return o
}

// openRevisions reads the revisions and decides who owns the rules.
func (d *definitions) openRevisions(ctx context.Context) error {
	all, err := d.eng.Revisions(ctx)
	if err != nil {
		return err
	}
	d.turn(func() { d.revisions = all })
	applied, ok := d.applied()
	switch {
	case !ok || d.path == "":
		return nil
	case d.owner == ownerFile:
		d.log.Warn("the rules that were applied are not in force any more: the rules file owns them from now on; `router rules revisions` still lists them", "revision", applied.ID(), "path", d.path)
		return nil
	case d.owner == ownerAPI:
		d.log.Warn("the rules file is not read: rules that were applied are in force, and --rules-owner api prefers them", "revision", applied.ID(), "path", d.path)
		d.path = ""
		return nil
	}
	by := ""
	if applied.Author != "" {
		by = " by " + applied.Author
	}
	return event.Bad(event.ErrConflict, "--rules "+d.path, fmt.Sprintf("this data directory has rules that were applied over the API%s (revision %s of %s), and one owner is all that rules may have; "+
		"start with --rules-owner file to take the file and drop what was applied, or with --rules-owner api (or without --rules) to keep what was applied", by, applied.ID(), applied.Time.Format("2006-01-02 15:04:05Z")))
}

// applied is the revision in force, if it was applied over the API and defines anything.
func (d *definitions) applied() (engine.Revision, bool) {
	if len(d.revisions) == 0 || d.revisions[0].Source != sourceAPI || len(d.revisions[0].Files) == 0 {
		return engine.Revision{}, false
	}
	return d.revisions[0], true
}

// loadApplied puts what was applied last in force again.
func (d *definitions) loadApplied(ctx context.Context) error {
	r, ok := d.applied()
	if !ok {
		return d.apply(ctx, nil, d.api)
	}
	set, err := d.revised(ctx, r)
	if err == nil {
		err = d.apply(ctx, set, d.api)
	}
	if err != nil {
		return fmt.Errorf("revision %s of the rules, which was applied over the API, cannot be put in force; mend what is said here, or start with --rules FILE --rules-owner file: %w", r.ID(), err)
	}
	d.turn(func() { d.file = set })
	return nil
}

// revised reads the rules of a revision.
func (d *definitions) revised(ctx context.Context, r engine.Revision) (*rules.Set, error) {
	files, err := d.eng.RevisionFiles(ctx, r)
	if err != nil {
		return nil, err
	}
	return rules.ParseSources(ctx, files, d.bundleOptions(d.api))
}

// noteRevision is what has to be committed for a set to be the newest revision; nothing if it is that already.
func (d *definitions) noteRevision(ctx context.Context, set *rules.Set, r engine.Revision) ([]engine.Revision, []storage.Op, error) {
	if len(set.Sources) == 0 || len(d.revisions) > 0 && d.revisions[0].Revision == set.Revision && d.revisions[0].Source == r.Source {
		return d.revisions, nil, nil
	}
	r.Revision = set.Revision
	return d.eng.KeepRevision(ctx, d.revisions, r, set.Sources)
}

// RulesRevision names the revision in force, "0" while there are no rules.
func (d *definitions) RulesRevision() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.revisionID()
}

func (d *definitions) revisionID() string {
	if d.file == nil || len(d.revisions) == 0 {
		return "0"
	}
	return d.revisions[0].ID()
}

// rulesSource is the revision in force and where it comes from, for metrics; "" where there is none.
func (d *definitions) rulesSource() (revision, source string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.file == nil || len(d.revisions) == 0:
		return "", ""
	case d.revisions[0].Source == sourceAPI:
		return d.revisions[0].ID(), sourceAPI
	case d.afar != nil:
		return d.revisions[0].ID(), "url"
	}
	return d.revisions[0].ID(), "file"
}

// ApplyRules puts a bundle in force.
func (d *definitions) ApplyRules(ctx context.Context, bundle []byte, how httpapi.RulesChange) ([]byte, error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	if err := d.mayApply(how); err != nil {
		return nil, err
	}
	set, err := rules.ParseBundle(ctx, bundle, d.bundleOptions(d.api))
	if err != nil {
		return nil, err
	}
	return d.applySet(ctx, set, how)
}

// RollbackRules puts an earlier revision in force again.
func (d *definitions) RollbackRules(ctx context.Context, to string, how httpapi.RulesChange) ([]byte, error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	if err := d.mayApply(how); err != nil {
		return nil, err
	}
	r, err := engine.FindRevision(d.revisions, to)
	if err != nil {
		return nil, event.At("to", err)
	}
	set, err := d.revised(ctx, r)
	if err != nil {
		return nil, err
	}
	if how.Message == "" {
		how.Message = "rollback to " + r.ID()
	}
	return d.applySet(ctx, set, how)
}

// mayApply refuses what is not the API's to change, or was meant for other rules than those in force.
func (d *definitions) mayApply(how httpapi.RulesChange) error {
	if d.path != "" {
		return event.Bad(event.ErrConflict, "rules", fmt.Sprintf("this router takes its rules from %s (--rules): change them there, it reads them again; rules are applied to a router that was started without --rules", d.path))
	}
	is := d.revisionID()
	if how.IfMatch == "" || how.IfMatch == is || len(d.revisions) > 0 && is != "0" && how.IfMatch == fmt.Sprint(d.revisions[0].Number) {
		return nil
	}
	by := ""
	if is != "0" && d.revisions[0].Author != "" {
		by = ", applied by " + d.revisions[0].Author
	}
	return event.Bad(event.ErrPrecondition, "If-Match", fmt.Sprintf("revision %.60q is not in force, %s is%s: compare with it, and apply again", how.IfMatch, is, by))
}

// revisedDoc is the answer of a change.
type revisedDoc struct {
	engine.Revision
	ID       string      `json:"id"`
	Previous string      `json:"previous"` // the revision before; the same where nothing was changed
	Changed  bool        `json:"changed"`
	Kept     int64       `json:"kept,omitempty"` // events that became dead letters of subscriptions that went
	Diff     *rulesDelta `json:"diff,omitempty"`
}

// applySet puts a set in force as a new revision, unless it is in force.
func (d *definitions) applySet(ctx context.Context, set *rules.Set, how httpapi.RulesChange) ([]byte, error) {
	previous := d.revisionID()
	if d.file != nil && d.file.Revision == set.Revision && previous != "0" && sameValues(d.file, set) {
		return json.Marshal(revisedDoc{Revision: d.revisions[0], ID: previous, Previous: previous})
	}
	delta := d.delta(ctx, set)
	if err := delta.refusal(how); err != nil {
		return nil, err
	}
	next, adopted := d.adopt(set)
	revisions, ops, err := d.eng.KeepRevision(ctx, d.revisions, engine.Revision{Revision: set.Revision, Author: how.Author, Message: how.Message, Source: sourceAPI}, set.Sources)
	if err != nil {
		return nil, err
	}
	doc := revisedDoc{Revision: revisions[0], ID: revisions[0].ID(), Previous: previous, Changed: true, Diff: delta}
	apply := applying{set: set, api: next, ops: slices.Concat(ops, adopted), lossless: !how.Drop}
	if how.Keep {
		apply.keep = delta.losing()
		apply.kept = func(_ string, n int) { doc.Kept += int64(n) }
	}
	if err := d.applyWith(ctx, apply); err != nil {
		return nil, d.forgetFiles(ctx, err)
	}
	d.turn(func() { d.file, d.api, d.revisions = set, next, revisions })
	d.log.Info("rules applied", "revision", doc.ID, "author", how.Author, "message", how.Message)
	return json.Marshal(doc)
}

// sameValues reports whether two sets of the same files mean the same: their variables may have changed.
func sameValues(a, b *rules.Set) bool { return len(rules.Diff(a, b)) == 0 }

// revisionDoc is one line of the list.
type revisionDoc struct {
	engine.Revision
	ID      string `json:"id"`
	InForce bool   `json:"inForce"`
}

// RulesRevisions lists the revisions, newest first.
func (d *definitions) RulesRevisions(context.Context) ([]byte, error) {
	d.mu.Lock()
	all, is := d.revisions, d.revisionID()
	d.mu.Unlock()
	docs := make([]revisionDoc, len(all))
	for i, r := range all {
		docs[i] = revisionDoc{r, r.ID(), r.ID() == is}
	}
	return json.Marshal(struct {
		InForce   string        `json:"inForce"`
		Revisions []revisionDoc `json:"revisions"`
	}{is, docs})
}

// conflicts is what rules and the API both define. Where both say the same the rules take it over: see adopt.
func (d *definitions) conflicts(set *rules.Set) error {
	var errs []error
	both := func(kind, name string, o event.Owner, undo string) {
		errs = append(errs, event.Bad(event.ErrConflict, fmt.Sprintf("%s:%d", o.File, o.Line), fmt.Sprintf("%s %q is defined here and, otherwise, over the API (/v1/%ss/%s): remove it here, or %s", kind, name, kind, name, undo)))
	}
	for _, t := range set.Topics {
		if doc := d.api[kindTopics][t.Name]; doc != nil && !t.Implied && !t.Made() && !d.sameAs(kindTopics, doc, set, t.Name) {
			both("topic", t.Name, t.Owner, "make them agree with PATCH, after which the rules take it over")
		}
	}
	for _, s := range set.Subscriptions {
		if doc := d.api[kindSubscriptions][s.Name]; doc != nil && !d.sameAs(kindSubscriptions, doc, set, s.Name) {
			both("subscription", s.Name, s.Owner, "make them agree with PATCH, after which the rules take it over with its cursor")
		}
	}
	for _, f := range set.Functions {
		if d.api[kindFunctions][f.Name] != nil && !f.Pushed {
			both("function", f.Name, f.Owner, fmt.Sprintf("write `wasm: pushed` here to keep the version that was pushed, or `router functions delete %s`", f.Name))
		}
	}
	return errors.Join(errs...)
}

// sameAs reports whether a definition of the API's is what the rules say.
func (d *definitions) sameAs(kind string, doc []byte, set *rules.Set, name string) bool {
	switch kind {
	case kindTopics:
		api, err := rules.ParseTopic(doc, d.remote(nil))
		i := slices.IndexFunc(set.Topics, func(t rules.Topic) bool { return t.Name == name })
		return err == nil && i >= 0 && sameTopic(api.Topic, set.Topics[i].Topic)
	default:
		api, err := rules.ParseSubscription(doc, d.remote(nil))
		i := slices.IndexFunc(set.Subscriptions, func(s rules.Subscription) bool { return s.Name == name })
		return err == nil && i >= 0 && api.Fingerprint == set.Subscriptions[i].Fingerprint
	}
}

// adopt is the API's definitions without those that the rules take over, and what has to be committed for that.
func (d *definitions) adopt(set *rules.Set) (owned, []storage.Op) {
	next := d.api.clone()
	var ops []storage.Op
	take := func(kind, name string) {
		if next[kind][name] != nil {
			delete(next[kind], name)
			ops = append(ops, engine.Define(kind, name, nil))
		}
	}
	for _, t := range set.Topics {
		if !t.Implied && !t.Made() {
			take(kindTopics, t.Name)
		}
	}
	for _, s := range set.Subscriptions {
		take(kindSubscriptions, s.Name)
	}
	return next, ops
}

// takeFile puts what the rules file says in force, as a revision if it is another than before.
func (d *definitions) takeFile(ctx context.Context, set *rules.Set) error {
	if err := d.conflicts(set); err != nil {
		return err
	}
	next, adopted := d.adopt(set)
	revisions, ops, err := d.noteRevision(ctx, set, engine.Revision{Source: d.source()})
	if err != nil {
		return err
	}
	if err := d.apply(ctx, set, next, slices.Concat(ops, adopted)...); err != nil {
		return d.forgetFiles(ctx, err)
	}
	d.turn(func() { d.file, d.api, d.revisions = set, next, revisions })
	return nil
}

// forgetFiles lets go of the files of a revision that was refused, and returns why it was.
func (d *definitions) forgetFiles(ctx context.Context, why error) error {
	if err := d.eng.SweepRevisions(context.WithoutCancel(ctx), d.revisions); err != nil {
		d.log.Warn("files of rules that were refused stay until the next start", "error", err)
	}
	return why
}

// source names the rules file in revisions: never as those are named that were applied over the API.
func (d *definitions) source() string {
	if d.path == sourceAPI {
		return "./" + d.path
	}
	return d.path
}
