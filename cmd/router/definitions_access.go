package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage"
)

// What definitions name belongs to somebody as well: whoever defines a subscription must be allowed to do by himself
// what it will do for him. A context without a principal may do nothing.

// Has says whether something exists.
func (d *definitions) Has(kind access.Kind, name string) bool {
	var err error
	switch kind {
	case access.Topic:
		_, err = d.eng.Topic(name)
	case access.Subscription:
		_, err = d.eng.Subscription(name)
	case access.Function:
		_, err = d.eng.Function(name)
	}
	return err == nil
}

// askedBy is who asks for something about definitions, and from where.
type askedBy struct {
	*access.Principal
	addr netip.Addr
	note func(p *access.Principal, addr netip.Addr, a access.Action, k access.Kind, name string, err error) // nil: nobody
}

func (d *definitions) asker(ctx context.Context) askedBy {
	return askedBy{access.From(ctx), access.AddrFrom(ctx), d.refused}
}

// refused has err audited and counted as that of a call is.
func (p askedBy) refused(a access.Action, k access.Kind, name string, err error) {
	if p.note != nil {
		p.note(p.Principal, p.addr, a, k, name, err)
	}
}

// mayDefine asks, of what a definition names, for what the definition makes of it.
func (d *definitions) mayDefine(p askedBy, kind, name string, doc []byte) error {
	if p.Everything() {
		return nil
	}
	s, err := d.alone(kind, name, doc, nil)
	if err != nil || kind != kindSubscriptions {
		return err
	}
	if err := d.mayUse(p, access.Read, access.Topic, s.Topic, "topic"); err != nil {
		return err
	}
	for _, t := range []struct{ name, at string }{{s.Deliver.Topic, "deliver.topic"}, {s.DeadLetter, "deadLetter"}} {
		if t.name == "" {
			continue
		}
		if err := mayAt(p, access.Publish, access.Topic, t.name, t.at); err != nil {
			return err
		}
		if !d.Has(access.Topic, t.name) { // it is made
			if err := mayAt(p, access.Manage, access.Topic, t.name, t.at); err != nil {
				return err
			}
		}
	}
	for i, name := range s.Functions {
		if err := d.mayUse(p, access.Invoke, access.Function, name, fmt.Sprintf("functions[%d]", i)); err != nil {
			return err
		}
	}
	for i, version := range s.Shadow {
		name, _, _ := strings.Cut(version, "@")
		if err := d.mayUse(p, access.Invoke, access.Function, name, fmt.Sprintf("shadow[%d]", i)); err != nil {
			return err
		}
	}
	if t, err := d.eng.Topic(s.Topic); err == nil && !bytes.Equal(doc, d.api[kind][name]) {
		_, err = d.alone(kind, name, doc, func(string) []byte { return t.Schema })
		return err
	}
	return nil
}

// alone says what is wrong with a definition whatever others there are: nothing of theirs is in such an error, although what
// it quotes may be a name of theirs. So it is told as it is, before discreet looks for names.
func (d *definitions) alone(kind, name string, doc []byte, schema func(topic string) []byte) (s rules.Subscription, err error) {
	o := d.remote(nil) // without the functions' names, which an error would suggest
	o.Schema = schema
	switch kind {
	case kindTopics:
		_, err = rules.ParseTopic(doc, o)
	case kindFunctions:
		if _, ok := d.fileFunction(d.file, name); !ok { // else the file has the definition
			_, err = rules.ParseFunction(doc, o)
		}
	case kindSubscriptions:
		s, err = rules.ParseSubscription(doc, o)
	}
	return s, strip(kind, name, err)
}

// confine has the functions of a subscription that a tenant makes or changes, and those that it pushes, emit to the
// tenant's topics alone: they name topics while they run, so that there is nothing to ask beforehand. Who has no tenant
// leaves it as it is.
func (d *definitions) confine(p *access.Principal, next owned, kind, name string) []storage.Op {
	within := map[string]string{kindSubscriptions: kindWithin, kindFunctions: kindWithinPushed}[kind]
	was := next[within][name]
	switch {
	case within == "":
		return nil
	case p != nil && p.Tenant != "":
		if kind == kindFunctions && d.api[kind][name] != nil && wider(was, p.Tenant) {
			return nil // the versions of the tenant within it can be run still
		}
		doc, _ := json.Marshal(p.Tenant) // of a string: cannot fail
		next[within][name] = doc
		return []storage.Op{engine.Define(within, name, doc)}
	case d.api[kind][name] == nil && was != nil: // of one of that name that there was before
		delete(next[within], name)
		return []storage.Op{engine.Define(within, name, nil)}
	}
	return nil
}

// wider reports whether a tenant has more than the one that a definition is confined to.
func wider(confined []byte, tenant string) bool {
	var was string
	return json.Unmarshal(confined, &was) == nil && strings.HasPrefix(was, tenant)
}

// mayUse is mayAt of what must be there.
func (d *definitions) mayUse(p askedBy, a access.Action, k access.Kind, name, at string) error {
	err := mayAt(p, a, k, name, at)
	if err == nil && !d.Has(k, name) {
		err = event.At(at, access.NotFound(k, name))
	}
	return err
}

// mayAt asks whether p may do something with what stands at a place of a definition.
func mayAt(p askedBy, a access.Action, k access.Kind, name, at string) error {
	err := p.Check(a, k, name)
	if err == nil {
		return nil
	}
	p.refused(a, k, name, err)
	if errors.Is(err, event.ErrNotFound) {
		err = access.NotFound(k, name)
	}
	return event.At(at, err)
}

// mayRun asks whether p may make a function of a module that is named by its digest: what somebody else has pushed is
// not there for him.
func (d *definitions) mayRun(p askedBy, name string, settings map[string]json.RawMessage) error {
	var digest string
	if p.Everything() || json.Unmarshal(settings["wasm"], &digest) != nil {
		return nil
	}
	if slices.Contains(d.versions(p.Principal), digest) {
		return nil
	}
	p.refused(access.Deploy, access.Function, name, noVersion(digest))
	return event.Invalid("module", fmt.Sprintf("%.90q is no version of a function that you may see; push the module itself", digest))
}

// noVersion is why a version is refused whether there is one or not.
func noVersion(ref string) error {
	return fmt.Errorf("%.90q is no version that may be seen: %w", ref, event.ErrNotFound)
}

// versions are those of the functions that p may see.
func (d *definitions) versions(p *access.Principal) []string {
	all := []string{}
	for _, f := range d.eng.Functions() {
		if !p.Sees(access.Function, f.Name) {
			continue
		}
		if f.Digest != "" && !slices.Contains(all, f.Digest) {
			all = append(all, f.Digest)
		}
		for _, v := range f.Versions {
			if !slices.Contains(all, v.Digest) {
				all = append(all, v.Digest)
			}
		}
	}
	return all
}

// runnable are the versions that p may run as a function of that name, which gives them its config and secrets, and what it
// may reach: its own. Who may deploy it may run all that he may see, since he could push them.
func (d *definitions) runnable(p *access.Principal, name string) []string {
	if p.Check(access.Deploy, access.Function, name) == nil {
		return d.versions(p)
	}
	own := []string{}
	if f, err := d.eng.Function(name); err == nil && p.Sees(access.Function, name) {
		for _, v := range f.Versions {
			own = append(own, v.Digest)
		}
		if !slices.Contains(own, f.Digest) {
			own = append(own, f.Digest)
		}
	}
	return own
}

// seenVersion completes name@digest among the versions that p may see: of another's, the beginning would say that it is
// there, and the whole would run it. An error is that of a version which does not exist.
func (d *definitions) seenVersion(p askedBy, ref, at string) (string, error) {
	name, short, versioned := strings.Cut(ref, "@")
	if !versioned || p.Everything() {
		return ref, nil
	}
	digest, err := plugins.ResolveDigest(short, d.runnable(p.Principal, name))
	if errors.Is(err, event.ErrNotFound) {
		p.refused(access.Invoke, access.Function, name, noVersion(ref))
	}
	if err != nil {
		return "", event.At(at, err)
	}
	return name + "@" + digest, nil
}

// seenFunction is seenVersion, and refuses a function that p may not see like one that does not exist: which functions a
// subscription has is not for everybody who may replay it.
func (d *definitions) seenFunction(p askedBy, ref, at string) (string, error) {
	if ref == "" || p.Everything() {
		return ref, nil
	}
	name, _, _ := strings.Cut(ref, "@")
	if !p.Sees(access.Function, name) {
		return "", mayAt(p, access.Invoke, access.Function, name, at)
	}
	if !d.Has(access.Function, name) {
		return "", event.At(at, access.NotFound(access.Function, name))
	}
	return d.seenVersion(p, ref, at)
}

// seenShadows is seenVersion for those of a subscription's definition.
func (d *definitions) seenShadows(p askedBy, doc []byte) ([]byte, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(doc, &m); err != nil {
		return nil, err
	}
	if m["shadow"] == nil || p.Everything() {
		return doc, nil
	}
	s, err := rules.ParseSubscription(doc, d.remote(nil))
	if err != nil {
		return nil, err
	}
	for i, ref := range s.Shadow {
		if s.Shadow[i], err = d.seenVersion(p, ref, fmt.Sprintf("shadow[%d]", i)); err != nil {
			return nil, err
		}
	}
	if m["shadow"], err = json.Marshal(s.Shadow); err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

// discreet replaces an error about a definition among the others that names what p may not see. Names are quoted in errors,
// but for those of circles. What a topic or a function of p's own is found at fault for is about it alone, and quotes what p
// has written: if it were looked for names, p could ask for any.
func (d *definitions) discreet(p *access.Principal, kind, name string, err error) error {
	if err == nil || p.Everything() || kind != kindSubscriptions && faultsOf(kind, name, err) {
		return err
	}
	var round *event.CircleError
	if errors.As(err, &round) {
		for _, s := range round.Subs {
			if !p.Sees(access.Subscription, s.Name) {
				return errOthers
			}
		}
	}
	text := err.Error()
	names := func(k access.Kind, name string) bool {
		return !p.Sees(k, name) && strings.Contains(text, strconv.Quote(name))
	}
	for _, t := range d.eng.Topics() {
		if names(access.Topic, t.Name) {
			return errOthers
		}
	}
	for _, s := range d.eng.Subscriptions() {
		if names(access.Subscription, s.Name) {
			return errOthers
		}
	}
	for _, f := range d.eng.Functions() {
		if names(access.Function, f.Name) {
			return errOthers
		}
	}
	return err
}

// faultsOf reports whether all that an error says is at fault is at one definition.
func faultsOf(kind, name string, err error) bool {
	var f *event.Faults
	return errors.As(err, &f) && !slices.ContainsFunc(f.List, func(x event.Fault) bool {
		return x.At != kind+"."+name && !strings.HasPrefix(x.At, kind+"."+name+".")
	})
}

var errOthers = event.Bad(event.ErrConflict, "", "this would not fit what others have defined, which is not for you to see; ask whoever runs the router")

// visible leaves out of a topic's users those that p may not see.
func visible(p *access.Principal, subscriptions []string) []string {
	return slices.DeleteFunc(append([]string{}, subscriptions...), func(name string) bool { return !p.Sees(access.Subscription, name) })
}
