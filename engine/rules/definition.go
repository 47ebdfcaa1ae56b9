package rules

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

const (
	maxPartitions = 1024
	maxAge        = 100 * 365 * 24 * time.Hour
	maxDedupe     = 24 * time.Hour
	maxMemory     = 4 << 30 // what 32-bit WASM can address
	maxOutput     = 1 << 30
)

type topicDef struct {
	Topic
	whenFullSet bool
	retain      *node
	typed       *jsonschema.Schema // Schema, compiled
}

type functionDef struct{ Function }

// file reads one rules file and adds what it defines.
func (p *parser) file(src *source) {
	p.attach(src.name, src.text)
	from, faults := len(p.subscriptions), p.count
	root := p.read(src)
	if root == nil {
		p.partial = true
		return
	}
	f, ok := p.fields(root, rulesShape)
	if !ok {
		return
	}
	if v := f["version"]; v != nil && (v.kind != scalar || v.raw != "1") {
		p.bad(v, "is %s; this build reads version 1", v.shown())
	}
	each := func(section, what string, known map[string]*node, define func(name string, key, n *node)) {
		n := f[section]
		if n == nil || n.kind == null {
			return
		}
		if n.kind != mapping {
			p.bad(n, "is %s; want a mapping from names to definitions", n.kind)
			return
		}
		for i, key := range n.keys {
			if err := event.CheckName(what, key.raw); err != nil {
				p.fault(key, "%s %s", what, nameFault(err))
				continue
			}
			if first := known[key.raw]; first != nil {
				p.fault(key, "%s %q is defined twice: here and at %s; keep one", what, key.raw, first.place())
				continue
			}
			known[key.raw] = key
			define(key.raw, key, n.items[i])
		}
	}
	each("topics", "topic", p.topicKeys, func(name string, key, n *node) { p.topics = append(p.topics, p.topic(name, key, n)) })
	each("functions", "function", p.functionKeys, func(name string, key, n *node) { p.functions = append(p.functions, p.function(name, key, n)) })
	each("subscriptions", "subscription", p.subKeys, func(name string, key, n *node) {
		p.subscriptions = append(p.subscriptions, p.subscription(name, key, n))
	})
	each("schedules", "schedule", p.scheduleKeys, func(name string, key, n *node) { p.schedules = append(p.schedules, p.schedule(name, key, n)) })
	each("sources", "source", p.hookKeys, func(name string, key, n *node) { p.hooks = append(p.hooks, p.source(name, key, n)) })
	each("bridges", "bridge", p.bridgeKeys, func(name string, key, n *node) { p.bridges = append(p.bridges, p.bridge(name, key, n)) })
	p.mqtt(f["mqtt"])
	p.tests(f["tests"])
	switch n := f["hosts"]; {
	case n == nil || n.kind == null:
	case n.kind != mapping:
		p.bad(n, "is %s; want a mapping from hosts to their limits, such as {api.example.com: {concurrency: 8, rate: 50/s}}", n.kind)
	default:
		for i, key := range n.keys {
			p.host(key, n.items[i])
		}
	}
	p.stretched(src, f, from, faults)
}

// definition reads a document of the API; nil after a fault.
func (p *parser) definition(text []byte) (n *node, name string) {
	n = p.read(&source{text: text})
	if n == nil {
		return nil, ""
	}
	if n.kind != mapping {
		p.bad(n, "is %s; want a mapping with \"name\" and the keys of rules files", n.kind)
		return nil, ""
	}
	at := n.get("name")
	if at == nil {
		p.badAt(n, "name", "missing; want such as {\"name\": \"orders\"}")
		return nil, ""
	}
	if at.kind != scalar {
		p.bad(at, "is %s; want a name", at.kind)
		return nil, ""
	}
	if err := event.CheckName("name", at.raw); err != nil {
		p.bad(at, "%s", nameFault(err))
		return nil, ""
	}
	rest := *n
	rest.keys, rest.items = nil, nil
	for i, key := range n.keys {
		if key.raw != "name" {
			rest.keys, rest.items = append(rest.keys, key), append(rest.items, n.items[i])
		}
	}
	return &rest, at.raw
}

func (p *parser) owner(key *node) event.Owner {
	if p.api {
		return event.Owner{}
	}
	return event.Owner{File: key.src.name, Line: key.line}
}

func (p *parser) topic(name string, key, n *node) *topicDef {
	d := &topicDef{Topic: Topic{Topic: event.Topic{Name: name, Owner: p.owner(key)}}}
	d.source = plain(n)
	if n.kind == null { // all defaults
		d.source = &doc{kind: mapping}
		return d
	}
	f, ok := p.fields(n, topicShape)
	if !ok {
		return d
	}
	if v := f["partitions"]; v != nil {
		i, _ := p.integer(v, 1, maxPartitions, "a number")
		d.Partitions = int(i)
	}
	if v := f["retain"]; v != nil {
		d.retain = v
		d.Retain = p.retain(v)
	}
	if v := f["whenFull"]; v != nil {
		d.whenFullSet = true
		switch s, ok := p.str(v); {
		case s == "reject":
			d.WhenFull = event.Reject
		case ok && s != "drop-oldest":
			p.bad(v, "is %s%s", v.shown(), suggest(s, []string{"drop-oldest", "reject"}))
		}
	}
	if v := f["dedupe"]; v != nil {
		d.Dedupe, _ = p.duration(v, time.Second, maxDedupe)
	}
	if v := f["schema"]; v != nil {
		d.Schema, d.typed = p.schema(v)
	}
	if v := f["trace"]; v != nil {
		d.Trace = p.trace(v)
	}
	return d
}

func (p *parser) retain(n *node) event.Retain {
	var r event.Retain
	f, _ := p.fields(n, retainShape)
	if v := f["bytes"]; v != nil {
		r.Bytes, _ = p.size(v, 1, 1<<60)
	}
	if v := f["age"]; v != nil {
		r.Age, _ = p.duration(v, time.Second, maxAge)
	}
	if v := f["events"]; v != nil {
		r.Events, _ = p.integer(v, 1, math.MaxInt64, "a number of events")
	}
	return r
}

// schema is the path of a JSON Schema, or the schema itself.
func (p *parser) schema(n *node) (text []byte, typed *jsonschema.Schema) {
	switch n.kind {
	case scalar:
		path, ok := p.path(n)
		if !ok {
			return nil, nil
		}
		b, err := p.include(n, path)
		if err != nil {
			p.bad(n, "%v", err)
			return nil, nil
		}
		if len(b) > maxSource {
			p.bad(n, "file %s has %d bytes; at most %d are allowed", n.shown(), len(b), maxSource)
			return nil, nil
		}
		p.attach(path, b)
		text = b
	case mapping:
		text = plain(n).appendJSON(nil)
	default:
		p.bad(n, "is %s; want the path of a JSON Schema, or the schema itself", n.kind)
		return nil, nil
	}
	typed, err := compileSchema(text)
	if err != nil {
		p.bad(n, "not a JSON Schema: %v", err)
		return nil, nil
	}
	return text, typed
}

func compileSchema(text []byte) (*jsonschema.Schema, error) {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(noLoader{})
	const at = "rules:///schema" // an absolute one: else it is below the working directory
	if err := c.AddResource(at, v); err != nil {
		return nil, err
	}
	typed, err := c.Compile(at)
	var invalid *jsonschema.SchemaValidationError
	if errors.As(err, &invalid) {
		return nil, schemaFaults(invalid.Err)
	}
	return typed, err
}

// schemaFaults is the leaves of a tree of faults in one line: those above only say that those below failed.
func schemaFaults(err error) error {
	var faults []string
	for _, line := range strings.Split(err.Error(), "\n") {
		at := strings.TrimLeft(line, " ")
		if strings.HasPrefix(at, "- ") && !strings.HasSuffix(at, "Of' failed") && len(faults) < 5 {
			faults = append(faults, at[2:])
		}
	}
	if len(faults) == 0 {
		return err
	}
	return errors.New(strings.Join(faults, "; "))
}

// noLoader refuses to fetch: a schema stands alone.
type noLoader struct{}

func (noLoader) Load(url string) (any, error) {
	return nil, fmt.Errorf("it refers to %s, which is not fetched; put the definition under $defs", quote(url))
}

func (d *topicDef) finished() Topic {
	t := d.Topic
	t.Topic = t.Topic.WithDefaults()
	t.effective = effectiveTopic(t.Topic, t.source)
	t.Source, t.Effective = t.source.named(t.Name), t.effective.named(t.Name)
	return t
}

var digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func (p *parser) function(name string, key, n *node) *functionDef {
	d := &functionDef{Function{Function: event.Function{Name: name, Owner: p.owner(key)}}}
	defer func() { d.source, d.hidden = mask(n), p.hiddenOf(n) }() // by then it is known which values are references
	s := functionShape
	if p.api {
		s.keys = append([]string{"module"}, s.keys...)
	}
	f, ok := p.fields(n, s)
	if !ok {
		return d
	}
	wasm := f["wasm"]
	if v := f["module"]; v != nil {
		if wasm != nil {
			p.bad(v, "says what \"wasm\" says too; keep one")
		}
		wasm = v
	}
	switch {
	case wasm != nil:
		p.module(d, wasm)
	case f["js"] != nil:
	case !p.api:
		p.badAt(n, "wasm", "missing; want the path of a module, sha256:… of one that was pushed, or pushed; or js: with the path of a script")
	}
	if v := f["js"]; v != nil {
		p.script(d, v, wasm)
	}
	if v := f["limits"]; v != nil {
		l, _ := p.fields(v, limitsShape)
		if v := l["memory"]; v != nil {
			d.Limits.Memory, _ = p.size(v, 64<<10, maxMemory)
		}
		if v := l["output"]; v != nil {
			i, _ := p.size(v, 1<<10, maxOutput)
			d.Limits.Output = int(i)
		}
		if v := l["cpu"]; v != nil {
			d.Limits.CPU, _ = p.duration(v, time.Millisecond, time.Minute)
		}
		if v := l["wall"]; v != nil {
			d.Limits.Wall, _ = p.duration(v, time.Millisecond, time.Hour)
		}
		if v := l["fuel"]; v != nil && !(v.kind == scalar && v.raw == "unlimited") {
			d.Limits.Fuel, _ = p.integer(v, 1, math.MaxInt64, "a whole number, or unlimited")
		}
	}
	d.Config = p.values(f["config"], false)
	d.Secrets = p.values(f["secrets"], true)
	if v := f["allow"]; v != nil {
		d.Allow = p.allow(v)
	}
	return d
}

// values are the single values of a mapping; nil of none.
func (p *parser) values(n *node, secret bool) map[string]string {
	if n == nil {
		return nil
	}
	if n.kind != mapping {
		p.bad(n, "is %s; want a mapping from keys to single values", n.kind)
		return nil
	}
	values := make(map[string]string, len(n.keys))
	for i, key := range n.keys {
		v := n.items[i]
		if secret && v.kind == scalar {
			p.secrets[v.raw] = true
			if v.raw == "***" {
				p.bad(v, "is \"***\", which is how the router shows what is secret; give the secret, or a reference such as ${env:NAME}")
				continue
			}
		}
		values[key.raw], _ = p.str(v)
	}
	return values
}

// host is a host that a function may call: a name or a pattern for all below one, with a port if it is not
// that of the scheme.
var host = regexp.MustCompile(`^(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?$|^\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?$`)

func (p *parser) allow(n *node) (a event.Allow) {
	f, ok := p.fields(n, allowShape)
	if !ok {
		return a
	}
	if v := f["kv"]; v != nil {
		a.KV, _ = p.boolean(v)
	}
	v := f["http"]
	switch {
	case v == nil:
		return a
	case v.kind != list:
		p.bad(v, "is %s; want a list of hosts, such as [api.example.com, \"*.example.org\", \"localhost:8080\"]", v.kind)
		return a
	}
	for _, item := range v.items {
		s, ok := p.str(item)
		if ok && !host.MatchString(s) {
			p.bad(item, "is %s; want a host without scheme or path, such as api.example.com, \"*.example.org\" or \"localhost:8080\"", item.shown())
			continue
		}
		a.HTTP = append(a.HTTP, strings.ToLower(s))
	}
	return a
}

func (p *parser) module(d *functionDef, n *node) {
	s, ok := p.path(n)
	switch {
	case !ok:
	case s == "pushed":
		d.Pushed = true
	case digest.MatchString(s):
		d.Digest = s
	case strings.HasPrefix(s, "sha256:"):
		p.bad(n, "is %s; want sha256: and 64 of 0-9 a-f", n.shown())
	case p.api:
		p.bad(n, "is %s; want sha256:… of a module that was uploaded, or pushed", n.shown())
	default:
		b, err := p.include(n, s)
		if err == nil {
			err = checkModule(b)
			if err == nil && p.o.CheckModule != nil {
				err = p.o.CheckModule(b)
			}
			if err != nil {
				err = fmt.Errorf("file %s: %w", n.shown(), err)
			}
		}
		if err != nil {
			p.bad(n, "%v", err)
			return
		}
		p.attach(s, b)
		sum := sha256.Sum256(b)
		d.Path, d.Module, d.Digest = s, b, "sha256:"+hex.EncodeToString(sum[:])
	}
}

// script takes a file of JavaScript as a module that holds it.
func (p *parser) script(d *functionDef, n, wasm *node) {
	s, ok := p.path(n)
	switch {
	case !ok:
		return
	case wasm != nil:
		p.bad(n, "stands beside \"wasm\"; a function is one or the other")
		return
	case p.api:
		p.bad(n, "is a path, which is of no use here; push the script itself as text/javascript")
		return
	}
	b, err := p.include(n, s)
	if err == nil {
		b, err = plugins.Script("js", b)
		if err == nil && p.o.CheckModule != nil {
			err = p.o.CheckModule(b)
		}
		if err != nil {
			err = fmt.Errorf("file %s: %s", n.shown(), strings.ReplaceAll(err.Error(), plugins.ScriptName+":", s+":"))
		}
	}
	if err != nil {
		p.bad(n, "%v", err)
		return
	}
	p.attach(s, b)
	sum := sha256.Sum256(b)
	d.Path, d.Module, d.Digest = s, b, "sha256:"+hex.EncodeToString(sum[:])
}

func checkModule(b []byte) error {
	if !bytes.HasPrefix(b, []byte("\x00asm")) {
		return errors.New("is not a WASM module: it does not begin with \\0asm")
	}
	return nil
}

func (d *functionDef) finished() Function {
	f := d.Function
	f.Limits = f.Limits.WithDefaults()
	f.effective = effectiveFunction(f)
	f.Source, f.Effective = f.source.named(f.Name), f.effective.named(f.Name)
	return f
}
