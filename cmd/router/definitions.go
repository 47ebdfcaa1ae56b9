package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/hooks"
	"github.com/millrace/millrace/engine/protocol/mqtt"
	"github.com/millrace/millrace/engine/rules"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/js"
)

// definitions holds what is in force and who owns it: the rules file, or the API, whose definitions the
// store keeps. Every change builds the whole next specification and has the engine swap it in.
type definitions struct {
	eng   *engine.Engine
	host  *plugins.Host
	o     rules.Options
	path  string       // of the rules; "" without
	embed bool         // path is a name for o.ReadFile rather than a file on disk: the demo
	afar  *remoteRules // path is its URL; nil: the rules are files
	owner string       // ownerFile or ownerAPI: whose rules are taken where both have some; "" refuses to start
	log   *slog.Logger

	refused func(p *access.Principal, addr netip.Addr, a access.Action, k access.Kind, name string, err error) // told whom a definition was refused and why; nil: nobody is

	inlets *inlets // bridges that bring events in; nil where nothing runs
	sealed string  // a topic that the router keeps for itself; "" for none

	sources func([]hooks.Source) // puts them in force; nil: this process takes no webhooks in
	names   mqtt.Register        // what MQTT's topic names stand for

	// Whoever changes definitions holds changing from end to end, compiling included; mu guards the fields
	// and is held by readers, and by writers while they turn them.
	changing sync.Mutex

	mu      sync.Mutex
	file    *rules.Set // nil without rules
	stamp   string     // of the files as they were last read
	cache   rules.Cache
	watched []string // files that the rules name
	api     owned
	loaded  rulesState
	loads   loadCounts

	revisions []engine.Revision // newest first
}

// owned are the API's definitions: kind → name → JSON.
type owned map[string]map[string][]byte

// The kinds of definition, as they stand in paths and in the store.
const (
	kindTopics        = "topics"
	kindSubscriptions = "subscriptions"
	kindFunctions     = "functions"

	kindWithin       = "within"       // of a subscription that a tenant has made: the tenant, as a JSON string
	kindWithinPushed = "withinPushed" // the same, of a function that a tenant has pushed
)

// open loads what the API owns and the rules, and puts them in force.
func (d *definitions) open(ctx context.Context) error {
	api := owned{kindTopics: {}, kindSubscriptions: {}, kindFunctions: {}, kindWithin: {}, kindWithinPushed: {}}
	err := d.eng.Definitions(ctx, func(kind, name string, doc []byte) error {
		if api[kind] == nil {
			return fmt.Errorf("the store holds a definition of kind %q, which this build does not know", kind)
		}
		api[kind][name] = doc
		return nil
	})
	if err != nil {
		return err
	}
	d.turn(func() { d.api = api })
	if err := d.openRevisions(ctx); err != nil {
		return err
	}
	if d.afar != nil && d.path != "" {
		return d.openAfar(ctx)
	}
	for range 50 { // files that are being written are waited for
		if err = d.reload(ctx); !errors.Is(err, errChanging) || sleep(ctx, settleTime) != nil {
			break
		}
	}
	return err
}

// turn changes fields under mu.
func (d *definitions) turn(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// parse reads the rules; reads is told of each file that they name.
func (d *definitions) parse(ctx context.Context, reads func(file string)) (*rules.Set, error) {
	o := d.parseOptions()
	o.Reads = reads
	if !d.embed {
		return rules.Parse(ctx, d.path, o)
	}
	text, err := o.ReadFile(d.path)
	if err != nil {
		return nil, err
	}
	return rules.ParseBytes(d.path, text, o)
}

// parseOptions are those of the router's own rules: the API's functions are known to them.
func (d *definitions) parseOptions() rules.Options {
	o := d.o
	o.Cache = &d.cache
	for name := range d.api[kindFunctions] {
		o.Functions = append(o.Functions, name)
	}
	return o
}

// remote are the options for what comes over the API: it may not read the router's environment and files.
func (d *definitions) remote(functions []string) rules.Options {
	return rules.Options{Sinks: d.o.Sinks, Schemes: d.o.Schemes, Bridges: d.o.Bridges, Functions: functions, Now: d.o.Now}
}

// ownerOf is the rules file's definition of a name, if it has one of its own.
func (d *definitions) ownerOf(kind, name string) (event.Owner, bool) {
	if d.file == nil {
		return event.Owner{}, false
	}
	var o event.Owner
	found := false
	switch kind {
	case kindTopics:
		for _, t := range d.file.Topics {
			if t.Name == name && !t.Implied {
				o, found = t.Owner, true
			}
		}
	case kindSubscriptions:
		for _, s := range d.file.Subscriptions {
			if s.Name == name {
				o, found = s.Owner, true
			}
		}
		for _, b := range d.file.Bridges {
			if b.Push != nil && b.Push.Name == name {
				o, found = b.Owner, true
			}
		}
	case kindFunctions:
		if f, ok := d.fileFunction(d.file, name); ok {
			o, found = f.Owner, true
		}
	}
	return o, found
}

func (d *definitions) refuseOwned(kind, name string) error {
	if o, ok := d.ownerOf(kind, name); ok {
		return event.Bad(event.ErrConflict, "name", fmt.Sprintf("%q is defined at %s; change it there, or remove it there first", name, d.placeOf(o)))
	}
	return nil
}

// Create makes a definition of the API's.
func (d *definitions) Create(ctx context.Context, kind string, doc []byte) ([]byte, error) {
	var head struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(doc, &head); err != nil {
		return nil, event.Invalid("", "the body is not a JSON object: "+err.Error())
	}
	if err := event.CheckName(strings.TrimSuffix(kind, "s"), head.Name); err != nil {
		return nil, err
	}
	d.changing.Lock()
	defer d.changing.Unlock()
	if err := d.refuseOwned(kind, head.Name); err != nil {
		return nil, err
	}
	if d.exists(kind, head.Name) {
		return nil, event.Bad(event.ErrConflict, "name", fmt.Sprintf("%s %q exists; PATCH changes it", strings.TrimSuffix(kind, "s"), head.Name))
	}
	return d.set(ctx, kind, head.Name, doc)
}

func (d *definitions) exists(kind, name string) bool {
	switch kind {
	case kindTopics:
		_, err := d.eng.Topic(name)
		return err == nil
	case kindSubscriptions:
		_, err := d.eng.Subscription(name)
		return err == nil
	}
	return d.api[kind][name] != nil
}

// set puts a definition of the API's in force and stores it in the same commit.
func (d *definitions) set(ctx context.Context, kind, name string, doc []byte) ([]byte, error) {
	doc, err := named(name, doc)
	if err != nil {
		return nil, err
	}
	next := d.api.clone()
	if err := d.mayDefine(d.asker(ctx), kind, name, doc); err != nil {
		return nil, err
	}
	if kind == kindSubscriptions {
		if doc, err = d.seenShadows(d.asker(ctx), doc); err != nil {
			return nil, err
		}
	}
	name = strings.Clone(name) // it may be a request's, and the definition stays
	next[kind][name] = doc
	ops := append(d.confine(access.From(ctx), next, kind, name), engine.Define(kind, name, doc))
	if err := d.apply(ctx, d.file, next, ops...); err != nil {
		if errors.Is(err, event.ErrDenied) { // it would write to the audit log
			d.asker(ctx).refused(access.Publish, access.Topic, d.sealed, err)
		}
		return nil, strip(kind, name, d.discreet(access.From(ctx), kind, name, err))
	}
	d.turn(func() { d.api = next })
	return d.told(kind, name, access.From(ctx))
}

func (o owned) clone() owned {
	next := owned{}
	for kind, m := range o {
		next[kind] = maps.Clone(m)
	}
	return next
}

// strip makes faults of the one definition that was sent read as the client wrote it.
func strip(kind, name string, err error) error {
	var f *event.Faults
	if !errors.As(err, &f) {
		return err
	}
	g := &event.Faults{Is: f.Is}
	for _, x := range f.List {
		x.At = strings.TrimPrefix(strings.TrimPrefix(x.At, kind+"."+name), ".")
		g.List = append(g.List, x)
	}
	return g
}

// named sets the name and drops what the API shows besides the definition, so that what was read can be
// sent back.
func named(name string, doc []byte) ([]byte, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(doc, &m); err != nil {
		return nil, event.Invalid("", "the body is not a JSON object: "+err.Error())
	}
	if m == nil {
		return nil, event.Invalid("", "the body is null; want a JSON object")
	}
	if err := sameName(name, m); err != nil {
		return nil, err
	}
	delete(m, "state")
	delete(m, "owner")
	delete(m, "versions")
	m["name"], _ = json.Marshal(name) // a checked name: it always marshals
	return json.Marshal(m)
}

// sameName refuses what was sent with another name than the path has: nothing is renamed.
func sameName(name string, sent map[string]json.RawMessage) error {
	raw, ok := sent["name"]
	var to string
	if !ok || json.Unmarshal(raw, &to) == nil && to == name {
		return nil
	}
	return event.Invalid("name", fmt.Sprintf("%.80s is not %q, which the path names; nothing is renamed: leave it out, or make another and delete this one", raw, name))
}

// Change patches a definition of the API's.
func (d *definitions) Change(ctx context.Context, kind, name string, patch []byte) ([]byte, error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	if err := d.refuseOwned(kind, name); err != nil {
		return nil, err
	}
	if _, err := d.show(kind, name, access.From(ctx)); err != nil {
		return nil, err
	}
	if p := d.asker(ctx); kind == kindTopics && name == d.sealed && !p.Everything() {
		err := event.Bad(event.ErrDenied, "", fmt.Sprintf("%q is the audit log (--audit-topic): only who may do everything changes how it is kept", name))
		p.refused(access.Manage, access.Topic, name, err)
		return nil, err
	}
	var sent map[string]json.RawMessage
	if err := json.Unmarshal(patch, &sent); err == nil { // else MergePatch says what is wrong
		if err := sameName(name, sent); err != nil { // a null as well, which it would take out
			return nil, err
		}
	}
	old := d.api[kind][name]
	if old == nil { // a topic that came about by being named
		t, err := d.eng.Topic(name)
		if err != nil {
			return nil, err
		}
		old = rules.ShowTopic(t.Topic)
	}
	if err := rules.CheckCarried(old, patch); err != nil {
		return nil, err
	}
	doc, err := rules.MergePatch(old, patch)
	if err != nil {
		return nil, err
	}
	return d.set(ctx, kind, name, doc)
}

// Delete removes a definition of the API's; a topic with its events.
func (d *definitions) Delete(ctx context.Context, kind, name string) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	if err := d.refuseOwned(kind, name); err != nil {
		return err
	}
	p := access.From(ctx)
	if _, err := d.show(kind, name, p); err != nil {
		return err
	}
	if kind == kindTopics && name == d.sealed {
		err := event.Bad(event.ErrDenied, "", fmt.Sprintf("%q is the audit log (--audit-topic), which nobody deletes; start the router without it first", name))
		d.asker(ctx).refused(access.Manage, access.Topic, name, err)
		return err
	}
	next := d.api.clone()
	delete(next[kind], name)
	if kind == kindTopics {
		if err := d.eng.DeleteTopic(ctx, name, engine.Define(kind, name, nil)); err != nil {
			return d.discreet(p, kind, name, err)
		}
	} else if err := d.apply(ctx, d.file, next, engine.Define(kind, name, nil)); err != nil {
		return d.discreet(p, kind, name, err)
	}
	d.turn(func() { d.api = next })
	return nil
}

// PushFunction stores a module as a function's version, or takes its settings.
func (d *definitions) PushFunction(ctx context.Context, name, contentType string, body []byte) ([]byte, error) {
	if err := event.CheckName("function", name); err != nil {
		return nil, err
	}
	d.changing.Lock()
	defer d.changing.Unlock()
	if err := d.refusePush(name); err != nil {
		return nil, err
	}
	settings := map[string]json.RawMessage{}
	if old := d.api[kindFunctions][name]; old != nil {
		if err := json.Unmarshal(old, &settings); err != nil {
			return nil, err
		}
	}
	switch base, _, _ := strings.Cut(contentType, ";"); strings.TrimSpace(base) {
	case "application/wasm", "text/javascript", "application/javascript":
		if base = strings.TrimSpace(base); base != "application/wasm" {
			var err error
			if body, err = plugins.Script(js.Language, body); err != nil {
				return nil, err
			}
		}
		digest, err := d.host.Put(ctx, body)
		if err != nil {
			return nil, err
		}
		settings["wasm"], _ = json.Marshal(digest)
	case "application/json":
		var sent map[string]json.RawMessage
		if err := json.Unmarshal(body, &sent); err != nil {
			return nil, event.Invalid("", "the body is not a JSON object: "+err.Error())
		}
		if digest, ok := sent["module"]; ok {
			sent["wasm"] = digest
			delete(sent, "module")
		}
		maps.Copy(settings, sent)
		if sent["wasm"] != nil {
			if err := d.mayRun(d.asker(ctx), name, settings); err != nil {
				return nil, err
			}
		}
		if settings["wasm"] == nil {
			return nil, event.Invalid("module", "missing: push the module first as application/wasm, or name it by digest, sha256:…")
		}
	default:
		return nil, event.Invalid("Content-Type", fmt.Sprintf("%.60q; a module is application/wasm, a script text/javascript, settings are application/json", contentType))
	}
	doc, err := json.Marshal(settings)
	if err != nil {
		return nil, err
	}
	return d.setFunction(ctx, name, doc)
}

// refusePush refuses to set the version of a function that the rules file gives a module.
func (d *definitions) refusePush(name string) error {
	if f, ok := d.fileFunction(d.file, name); ok && !f.Pushed {
		return event.Bad(event.ErrConflict, "name", fmt.Sprintf("function %q is defined at %s with a module of its own; `wasm: pushed` there lets versions be pushed", name, d.placeOf(f.Owner)))
	}
	return nil
}

// setFunction is set, but nothing where the definition is what it was.
func (d *definitions) setFunction(ctx context.Context, name string, doc []byte) ([]byte, error) {
	doc, err := named(name, doc)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(doc, d.api[kindFunctions][name]) {
		return d.told(kindFunctions, name, access.From(ctx))
	}
	return d.set(ctx, kindFunctions, name, doc)
}

// Rollback puts a version of a function in force that was before: the one that to names, which may be
// abbreviated, or the last but the current one.
func (d *definitions) Rollback(ctx context.Context, name, to string) ([]byte, error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	f, err := d.eng.Function(name)
	if err != nil {
		return nil, err
	}
	if err := d.refusePush(name); err != nil {
		return nil, err
	}
	digests := []string{}
	for _, v := range f.Versions {
		if v.Digest != f.Digest {
			digests = append(digests, v.Digest)
		}
	}
	switch {
	case to != "":
		if to, err = plugins.ResolveDigest(to, append(digests, f.Digest)); errors.Is(err, event.ErrNotFound) {
			err = event.Bad(event.ErrNotFound, "to", fmt.Sprintf("no version %.90q of function %q is kept; `GET /v1/functions/%s` lists them", to, name, name))
		}
		if err != nil {
			return nil, event.At("to", err)
		}
	case len(digests) == 0:
		return nil, event.Bad(event.ErrConflict, "to", fmt.Sprintf("function %q has had no other version; push one", name))
	default:
		to = digests[0]
	}
	settings := map[string]json.RawMessage{}
	if old := d.api[kindFunctions][name]; old != nil {
		if err := json.Unmarshal(old, &settings); err != nil {
			return nil, err
		}
	}
	if settings["wasm"], err = json.Marshal(to); err != nil {
		return nil, err
	}
	doc, err := json.Marshal(settings)
	if err != nil {
		return nil, err
	}
	return d.setFunction(ctx, name, doc)
}

// CheckRules says what is wrong with a rules file, as `router rules validate` does.
func (d *definitions) CheckRules(ctx context.Context, yaml []byte) error {
	_, err := rules.ParseBytes("rules.yaml", yaml, d.remote(nil))
	return err
}
