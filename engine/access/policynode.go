package access

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/millrace/millrace/engine/event"
)

const (
	maxPolicy = 1 << 20 // bytes of a policy file
	maxMarks  = 200_000 // of what separates values in it, counted before a node is made of each
	maxDepth  = 16      // of lists and mappings in one another
	maxFaults = 50      // that are listed
)

// policyReader reads a policy file's YAML and gathers what is wrong in it.
type policyReader struct {
	path   string
	read   func(string) ([]byte, error)
	getenv func(string) (string, bool)
	faults []event.Fault
	more   int // faults that are not listed
}

// fault notes what is wrong at n. Words never hold a value that a reference stands for.
func (r *policyReader) fault(n *yaml.Node, format string, args ...any) {
	if len(r.faults) >= maxFaults {
		r.more++
		return
	}
	r.faults = append(r.faults, event.Fault{At: r.place(n), Detail: fmt.Sprintf(format, args...)})
}

// place is where n lies: file:line:column.
func (r *policyReader) place(n *yaml.Node) string {
	if n == nil || n.Line == 0 {
		return r.path
	}
	return fmt.Sprintf("%s:%d:%d", r.path, n.Line, n.Column)
}

// err is all faults, nil if there is none.
func (r *policyReader) err() error {
	if len(r.faults) == 0 {
		return nil
	}
	if r.more > 0 {
		r.faults = append(r.faults, event.Fault{At: r.path, Detail: fmt.Sprintf("and %d more", r.more)})
	}
	return &event.Faults{Is: event.ErrInvalid, List: r.faults}
}

// document returns the top of the file, nil once a fault was noted.
func (r *policyReader) document(text []byte) *yaml.Node {
	marks := 0
	for _, mark := range []string{"\n", ",", ":", "[", "{", "- "} {
		marks += bytes.Count(text, []byte(mark))
	}
	switch {
	case len(text) > maxPolicy:
		r.fault(nil, "the file has %d bytes; at most %d are allowed", len(text), maxPolicy)
		return nil
	case marks > maxMarks:
		r.fault(nil, "the file has over %d lines, commas, colons and brackets", maxMarks)
		return nil
	case !utf8.Valid(text):
		r.fault(nil, "this is not UTF-8; policies are")
		return nil
	}
	doc, next, err := decodeYAML(text)
	switch {
	case errors.Is(err, io.EOF) || err == nil && (doc.Kind != yaml.DocumentNode || len(doc.Content) == 0):
		r.fault(nil, "there is nothing in it; a policy has at least \"version: 1\"")
		return nil
	case err != nil:
		r.yamlFault(err)
		return nil
	case next != nil:
		r.fault(next, "a second document (---) begins here; one file holds one")
		return nil
	}
	if !r.plain(doc.Content[0], 0) {
		return nil
	}
	return doc.Content[0]
}

// decodeYAML returns the first document, and the second if there is one.
func decodeYAML(text []byte) (doc, next *yaml.Node, err error) {
	defer func() {
		// The package panics where it trusts its own scanner; what it was given is not to be trusted.
		if p := recover(); p != nil {
			err = fmt.Errorf("yaml: this cannot be read: %.100v", p)
		}
	}()
	d := yaml.NewDecoder(bytes.NewReader(text))
	doc, next = new(yaml.Node), new(yaml.Node)
	if err := d.Decode(doc); err != nil {
		return nil, nil, err
	}
	if err := d.Decode(next); err == nil {
		return doc, next, nil
	} else if !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	return doc, nil, nil
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(?s:(.*))$`)

func (r *policyReader) yamlFault(err error) {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		r.fault(nil, "not YAML: %.200v", err)
		return
	}
	at := &yaml.Node{Column: 1}
	at.Line, _ = strconv.Atoi(m[1])
	r.fault(at, "not YAML: %.200s; look at the indentation, indent with spaces, and quote values with * : { [ or # in them", m[2])
}

// plain holds a value to what a policy needs: no aliases, which make bombs, no tags, and no great depth.
func (r *policyReader) plain(n *yaml.Node, depth int) bool {
	switch {
	case depth > maxDepth:
		r.fault(n, "lists and mappings lie over %d deep in one another", maxDepth)
		return false
	case n.Kind == yaml.AliasNode:
		r.fault(n, "aliases (*name) are not read in a policy; quote a pattern that begins with *, such as \"*.eu\", or write the value out")
		return false
	}
	for _, c := range n.Content {
		if !r.plain(c, depth+1) {
			return false
		}
	}
	return true
}

// shape is what n is, for messages.
func shape(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.ShortTag() == "!!null":
		return "empty"
	}
	return fmt.Sprintf("%.60q", n.Value)
}

// A field is a key of a mapping and its value.
type field struct {
	name     string
	key, val *yaml.Node
}

// fields returns a mapping's, each key once.
func (r *policyReader) fields(n *yaml.Node, what string) []field {
	if n.Kind != yaml.MappingNode {
		r.fault(n, "is %s; %s is a mapping", shape(n), what)
		return nil
	}
	var out []field
	seen := make(map[string]*yaml.Node, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		switch {
		case k.Kind != yaml.ScalarNode || k.ShortTag() == "!!merge":
			r.fault(k, "a key is a single word")
		case seen[k.Value] != nil:
			r.fault(k, "key %.60q is there twice: here and at %s", k.Value, r.place(seen[k.Value]))
		default:
			seen[k.Value] = k
			out = append(out, field{k.Value, k, n.Content[i+1]})
		}
	}
	return out
}

// record returns the values of a mapping whose keys are known; others are faults.
func (r *policyReader) record(n *yaml.Node, what string, known ...string) map[string]*yaml.Node {
	out := map[string]*yaml.Node{}
	for _, f := range r.fields(n, what) {
		if !slices.Contains(known, f.name) {
			r.fault(f.key, "%.60q is no key of %s%s; the keys are %s", f.name, what, suggest(f.name, known), strings.Join(known, ", "))
			continue
		}
		out[f.name] = f.val
	}
	return out
}

// items returns what a list holds; a single value is a list of one.
func (r *policyReader) items(n *yaml.Node) []*yaml.Node {
	switch {
	case n.Kind == yaml.SequenceNode:
		return n.Content
	case n.Kind == yaml.ScalarNode && n.ShortTag() != "!!null":
		return []*yaml.Node{n}
	}
	r.fault(n, "is %s; want a list", shape(n))
	return nil
}

// text returns a value with its references replaced.
func (r *policyReader) text(n *yaml.Node) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		r.fault(n, "is %s; want a text", shape(n))
		return "", false
	}
	if !strings.Contains(n.Value, "${") {
		return n.Value, true
	}
	s, err := r.expand(n.Value)
	if err != nil {
		r.fault(n, "%v", err)
		return "", false
	}
	return s, true
}

// texts returns the values of a list.
func (r *policyReader) texts(n *yaml.Node) []string {
	var out []string
	for _, item := range r.items(n) {
		if s, ok := r.text(item); ok {
			out = append(out, s)
		}
	}
	return out
}

// expand replaces ${env:NAME} and ${file:PATH}; $${ stands for ${. What was put in is not looked at again.
func (r *policyReader) expand(s string) (string, error) {
	var b strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			return b.String() + s, nil
		}
		if i > 0 && s[i-1] == '$' {
			b.WriteString(s[:i-1] + "${")
			s = s[i+2:]
			continue
		}
		b.WriteString(s[:i])
		ref, rest, ok := strings.Cut(s[i+2:], "}")
		if !ok {
			return "", fmt.Errorf("%.60q has no closing }; want ${env:NAME} or ${file:PATH}, or $${ for a plain ${", s[i:])
		}
		value, err := r.resolve(ref)
		if err != nil {
			return "", err
		}
		if b.WriteString(value); b.Len() > maxPolicy {
			return "", fmt.Errorf("what references stand for has over %d bytes", maxPolicy)
		}
		s = rest
	}
}

func (r *policyReader) resolve(ref string) (string, error) {
	kind, name, _ := strings.Cut(ref, ":")
	switch {
	case kind == "env" && name != "" && r.getenv != nil:
		if v, ok := r.getenv(name); ok {
			return v, nil
		}
		return "", fmt.Errorf("environment variable %.60q is not set; set it where the router starts", name)
	case kind == "file" && name != "":
		b, err := r.attached(name)
		return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r"), err
	}
	return "", fmt.Errorf("${%.60s} is no reference; want ${env:NAME} or ${file:PATH}, or $${ for a plain ${", ref)
}

// attached reads a file that the policy names; its path is relative to the policy's folder.
func (r *policyReader) attached(name string) ([]byte, error) {
	if r.read == nil {
		return nil, fmt.Errorf("file %.120q: files are not available here", name)
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(r.path), name)
	}
	b, err := r.read(name)
	if err != nil {
		return nil, fmt.Errorf("file %.120q cannot be read: %w", name, err)
	}
	if len(b) > maxPolicy {
		return nil, fmt.Errorf("file %.120q has %d bytes; at most %d are allowed", name, len(b), maxPolicy)
	}
	return b, nil
}

// length reads a duration between two bounds.
func (r *policyReader) length(n *yaml.Node, low, high time.Duration) time.Duration {
	s, ok := r.text(n)
	if !ok {
		return low
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < low || d > high {
		r.fault(n, "is %.60q; want a duration from %s to %s, such as 30s", n.Value, low, high)
		return low
	}
	return d
}

// whole reads a whole number between two bounds.
func (r *policyReader) whole(n *yaml.Node, low, high int) int {
	s, ok := r.text(n)
	if !ok {
		return low
	}
	v, err := strconv.Atoi(s)
	if err != nil || v < low || v > high {
		r.fault(n, "is %.60q; want a whole number from %d to %d", n.Value, low, high)
		return low
	}
	return v
}
