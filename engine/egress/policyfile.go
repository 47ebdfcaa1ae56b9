package egress

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/millrace/millrace/engine/event"
)

// maxPolicy is how many bytes a policy file may have.
const maxPolicy = 1 << 20

// ParsePolicy reads a policy file. read returns the bytes of the files that it names, relative to its own folder;
// getenv knows the variables of ${env:NAME}. What is wrong comes as *event.Faults, each at file:line:column, without
// any secret.
func ParsePolicy(path string, text []byte, read func(string) ([]byte, error), getenv func(string) (string, bool)) (*Policy, error) {
	r := &policyReader{path: path, read: read, getenv: getenv, out: &Policy{Source: path}}
	if len(text) > maxPolicy {
		return nil, event.Invalid(path, fmt.Sprintf("has %d bytes; want at most %d", len(text), maxPolicy))
	}
	var doc, second yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, yamlFault(path, err)
	}
	if len(doc.Content) == 0 {
		return nil, event.Invalid(path+":1:1", "is empty; want version: 1 at least")
	}
	switch err := d.Decode(&second); {
	case err == nil:
		return nil, event.Invalid(fmt.Sprintf("%s:%d:%d", path, second.Line, second.Column), "a second document (---) begins here; one file holds one")
	case !errors.Is(err, io.EOF):
		return nil, yamlFault(path, err)
	}
	if r.plain(&doc) {
		r.file(doc.Content[0])
	}
	if len(r.faults) > 0 {
		return nil, &event.Faults{Is: event.ErrInvalid, List: r.faults}
	}
	return r.out, nil
}

// yamlFault gives an error of the YAML reader the place that it names in words.
func yamlFault(path string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if line, detail, ok := strings.Cut(rest, ": "); ok {
			return event.Invalid(path+":"+line+":1", detail)
		}
	}
	return event.Invalid(path+":1:1", text)
}

type policyReader struct {
	path   string
	read   func(string) ([]byte, error)
	getenv func(string) (string, bool)
	out    *Policy
	faults []event.Fault
}

func (r *policyReader) at(n *yaml.Node) string {
	return fmt.Sprintf("%s:%d:%d", r.path, n.Line, n.Column)
}

func (r *policyReader) bad(n *yaml.Node, format string, args ...any) {
	if len(r.faults) < 50 {
		r.faults = append(r.faults, event.Fault{At: r.at(n), Detail: fmt.Sprintf(format, args...)})
	}
}

// plain refuses what makes a small file large.
func (r *policyReader) plain(n *yaml.Node) bool {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		r.bad(n, "has an anchor or alias (& or *), which this file may not have; a text that begins so is quoted: \"*.example.com\"")
		return false
	}
	return !slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { return !r.plain(c) })
}

// keys calls the reader of each key of a mapping.
func (r *policyReader) keys(n *yaml.Node, what string, readers map[string]func(*yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		r.bad(n, "%s: want a mapping", what)
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		fn := readers[key.Value]
		switch {
		case seen[key.Value]:
			r.bad(key, "%s: %.40q is given twice", what, key.Value)
		case fn == nil:
			known := make([]string, 0, len(readers))
			for k := range readers {
				known = append(known, k)
			}
			slices.Sort(known)
			r.bad(key, "%s: unknown key %.40q; want %s", what, key.Value, strings.Join(known, ", "))
		default:
			fn(value)
		}
		seen[key.Value] = true
	}
}

func (r *policyReader) file(n *yaml.Node) {
	version := false
	r.keys(n, "egress", map[string]func(*yaml.Node){
		"version": func(n *yaml.Node) {
			version = true
			if n.Value != "1" {
				r.bad(n, "version is %.20q; this build reads 1", n.Value)
			}
		},
		"privateTargets": func(n *yaml.Node) { r.out.Private = r.choice(n, "privateTargets", "false", "true") == 1 },
		"default":        func(n *yaml.Node) { r.out.Only = r.choice(n, "default", "allow", "deny") == 1 },
		"allow":          func(n *yaml.Node) { r.out.Allow = r.ruleList(n, "allow") },
		"deny":           func(n *yaml.Node) { r.out.Deny = r.ruleList(n, "deny") },
		"proxy":          r.proxy,
		"tls":            r.tls,
	})
	if !version && len(r.faults) == 0 {
		r.bad(n, "version is missing; want version: 1")
	}
}

func (r *policyReader) choice(n *yaml.Node, key string, of ...string) int {
	i := slices.Index(of, n.Value)
	if n.Kind != yaml.ScalarNode || i < 0 {
		r.bad(n, "%s is %.40q; want %s", key, n.Value, strings.Join(of, " or "))
	}
	return i
}

// list calls fn with each item; a single one may stand without brackets. An empty one is refused: a list that came out
// empty would say "all" where it was to name a few.
func (r *policyReader) list(n *yaml.Node, key string, fn func(i int, n *yaml.Node)) {
	switch n.Kind {
	case yaml.SequenceNode:
		if len(n.Content) == 0 {
			r.bad(n, "%s is an empty list; name something, or leave the key out, which means all", key)
		}
		for i, item := range n.Content {
			fn(i, item)
		}
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			r.bad(n, "%s is empty; name something, or leave the key out, which means all", key)
			return
		}
		fn(0, n)
	default:
		r.bad(n, "%s: want a list", key)
	}
}

func (r *policyReader) scalar(n *yaml.Node, key string) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		r.bad(n, "%s: want a text", key)
		return "", false
	}
	return n.Value, true
}

func (r *policyReader) ruleList(n *yaml.Node, key string) (rules []Rule) {
	if n.Kind != yaml.SequenceNode {
		r.bad(n, "%s: want a list of rules, such as - hosts: [hooks.example.com]", key)
		return nil
	}
	for i, item := range n.Content {
		name := fmt.Sprintf("%s[%d]", key, i)
		rule := Rule{At: name + " at " + r.at(item)}
		before := len(r.faults)
		r.keys(item, name, map[string]func(*yaml.Node){
			"hosts": func(n *yaml.Node) { rule.Hosts = r.hosts(n, name) },
			"cidrs": func(n *yaml.Node) {
				r.list(n, name+".cidrs", func(_ int, n *yaml.Node) {
					if p, ok := r.prefix(n, name+".cidrs"); ok {
						rule.CIDRs = append(rule.CIDRs, p)
					}
				})
			},
			"ports": func(n *yaml.Node) {
				r.list(n, name+".ports", func(_ int, n *yaml.Node) {
					if p, ok := r.ports(n, name+".ports"); ok {
						rule.Ports = append(rule.Ports, p)
					}
				})
			},
		})
		if len(rule.Hosts)+len(rule.CIDRs)+len(rule.Ports) == 0 && len(r.faults) == before {
			r.bad(item, "%s names nothing; want hosts, cidrs or ports", name)
		}
		rules = append(rules, rule)
	}
	return rules
}

func (r *policyReader) hosts(n *yaml.Node, name string) (hosts []string) {
	r.list(n, name+".hosts", func(_ int, n *yaml.Node) {
		s, ok := r.scalar(n, name+".hosts")
		if !ok {
			return
		}
		if err := checkPattern(s); err != nil {
			r.bad(n, "%s: %v", name, err)
		}
		hosts = append(hosts, s)
	})
	return hosts
}

// prefix reads 10.1.0.0/16 or one address.
func (r *policyReader) prefix(n *yaml.Node, key string) (p netip.Prefix, ok bool) {
	s, ok := r.scalar(n, key)
	if !ok {
		return p, false
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case strings.Contains(s, "%"):
		r.bad(n, "%s: %.60q has a zone (%%…), which no target has; write the address without it", key, s)
	case err != nil:
		r.bad(n, "%s: %.60q is not a range of addresses; want such as 10.1.0.0/16 or 2001:db8::/32", key, s)
	case p.Addr().Is4In6():
		r.bad(n, "%s: %s is IPv4 within IPv6; write the IPv4 range, which counts in every notation", key, p)
	case p != p.Masked():
		r.bad(n, "%s: %s has bits beyond its length; did you mean %s or %s/%d?", key, p, p.Masked(), p.Addr(), p.Addr().BitLen())
	default:
		return p, true
	}
	return p, false
}

func (r *policyReader) ports(n *yaml.Node, key string) (p PortRange, ok bool) {
	s, ok := r.scalar(n, key)
	if !ok {
		return p, false
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || a == 0 || b < a {
		r.bad(n, "%s: %.40q; want a port from 1 to 65535 or a range such as 8000-8099", key, s)
		return p, false
	}
	return PortRange{uint16(a), uint16(b)}, true
}

func (r *policyReader) proxy(n *yaml.Node) {
	p := &Proxy{}
	var user, password string
	before, has := len(r.faults), false
	r.keys(n, "proxy", map[string]func(*yaml.Node){
		"url": func(n *yaml.Node) {
			has = true
			s, ok := r.expand(n, "proxy.url")
			if !ok {
				return
			}
			q, err := parseProxyURL(s)
			if err != nil {
				r.bad(n, "proxy.url: %s", strings.TrimPrefix(err.Error(), "proxy: "))
				return
			}
			p.Scheme, p.Addr, p.User, p.Password = q.Scheme, q.Addr, q.User, q.Password
		},
		"user":     func(n *yaml.Node) { user, _ = r.expand(n, "proxy.user") },
		"password": func(n *yaml.Node) { password, _ = r.expand(n, "proxy.password") },
		"resolve":  func(n *yaml.Node) { p.Names = r.choice(n, "proxy.resolve", "here", "proxy") == 1 },
		"except":   func(n *yaml.Node) { p.Except = r.ruleList(n, "proxy.except") },
	})
	if len(r.faults) > before {
		return
	}
	if !has {
		r.bad(n, "proxy.url is missing; want such as http://proxy.example.com:3128")
		return
	}
	if user != "" || password != "" {
		p.User, p.Password = user, password
	}
	if err := p.validate(); err != nil {
		r.bad(n, "%v", err)
	}
	r.out.Proxy = p
}

func (r *policyReader) tls(n *yaml.Node) {
	o := &r.out.TLS
	places := map[string]*yaml.Node{}
	before := len(r.faults)
	r.keys(n, "tls", map[string]func(*yaml.Node){
		"minVersion": func(n *yaml.Node) { o.MinVersion, _ = r.scalar(n, "tls.minVersion"); places["minVersion"] = n },
		"ca": func(n *yaml.Node) {
			r.list(n, "tls.ca", func(i int, n *yaml.Node) {
				text, _ := r.named(n, "tls.ca")
				o.CA = append(o.CA, text)
				places[fmt.Sprintf("ca[%d]", i)] = n
			})
		},
		"certificate": func(n *yaml.Node) { o.Certificate, _ = r.named(n, "tls.certificate"); places["certificate"] = n },
		"privateKey":  func(n *yaml.Node) { o.PrivateKey, _ = r.named(n, "tls.privateKey"); places["privateKey"] = n },
		"pins":        r.pins,
	})
	if len(r.faults) > before {
		return
	}
	_, err := NewTLS(*o)
	var faults *event.Faults
	if errors.As(err, &faults) {
		for _, f := range faults.List {
			place := places[f.At]
			if place == nil {
				place = n
			}
			r.bad(place, "tls.%s: %s", f.At, f.Detail)
		}
	}
}

func (r *policyReader) pins(n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		r.bad(n, "tls.pins: want hosts with their pins, such as hooks.example.com: [sha256/…]")
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		h := HostPins{Host: n.Content[i].Value}
		if slices.ContainsFunc(r.out.Pins, func(p HostPins) bool { return p.Host == h.Host }) {
			r.bad(n.Content[i], "tls.pins: %.80s is given twice; list all its pins in one place", h.Host)
		}
		if err := checkPattern(h.Host); err != nil {
			r.bad(n.Content[i], "tls.pins: %v", err)
		}
		r.list(n.Content[i+1], "tls.pins", func(_ int, n *yaml.Node) {
			p, err := parsePin(n.Value)
			if err != nil {
				r.bad(n, "tls.pins: %v", err)
			}
			h.Pins = append(h.Pins, p)
		})
		if len(h.Pins) == 0 || len(h.Pins) > maxPins {
			r.bad(n.Content[i], "tls.pins: %s has %d; want 1 to %d", h.Host, len(h.Pins), maxPins)
		}
		r.out.Pins = append(r.out.Pins, h)
	}
}

// named returns the text of a file that a scalar names.
func (r *policyReader) named(n *yaml.Node, key string) (string, bool) {
	path, ok := r.scalar(n, key)
	if !ok {
		return "", false
	}
	return r.open(n, key, path)
}

func (r *policyReader) open(n *yaml.Node, key, path string) (string, bool) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(r.path), path)
	}
	b, err := r.read(path)
	if err != nil {
		r.bad(n, "%s: %v", key, err)
		return "", false
	}
	return string(b), true
}

// expand returns a scalar, which may be one reference as a whole: ${env:NAME} or ${file:PATH}.
func (r *policyReader) expand(n *yaml.Node, key string) (string, bool) {
	s, ok := r.scalar(n, key)
	if !ok {
		return "", false
	}
	ref, isRef := strings.CutPrefix(s, "${")
	if !isRef {
		return s, true
	}
	ref, closed := strings.CutSuffix(ref, "}")
	if name, ok := strings.CutPrefix(ref, "env:"); ok && closed {
		v, ok := r.getenv(name)
		if !ok {
			r.bad(n, "%s: the environment has no variable %.80q", key, name)
		}
		return v, ok
	}
	if path, ok := strings.CutPrefix(ref, "file:"); ok && closed {
		text, ok := r.open(n, key, path)
		return strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r"), ok
	}
	r.bad(n, "%s: want one reference as the whole text, ${env:NAME} or ${file:PATH}, or none", key)
	return "", false
}
