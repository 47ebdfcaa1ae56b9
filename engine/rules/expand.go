package rules

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/event"
)

// The states of a node's text.
const (
	unexpanded uint8 = iota
	expanded
	broken // reported
)

type attached struct {
	data []byte
	err  error
}

// text returns a scalar's text with ${env:NAME} and ${file:PATH} replaced; $${ stands for ${. What was put
// in is not looked at again. ok is false once a fault was reported.
func (p *parser) text(n *node) (s string, ok bool) {
	if n.state == unexpanded {
		n.text, n.state = n.raw, expanded
		if strings.Contains(n.raw, "${") {
			p.expand(n)
		}
	}
	return n.text, n.state == expanded
}

func (p *parser) expand(n *node) {
	var b strings.Builder
	whole := n.raw
	for at := 0; at < len(whole); {
		i := strings.Index(whole[at:], "${")
		if i < 0 {
			b.WriteString(whole[at:])
			break
		}
		i += at
		if i > at && whole[i-1] == '$' {
			b.WriteString(whole[at:i-1] + "${")
			at = i + 2
			continue
		}
		b.WriteString(whole[at:i])
		end := strings.IndexByte(whole[i:], '}')
		if end < 0 {
			p.bad(p.within(n, utf8.RuneCountInString(whole[:i])), "%s has no closing }; want ${env:NAME} or ${file:PATH}, or $${ for a plain ${", quote(whole[i:]))
			n.state = broken
			return
		}
		value, err := p.resolve(n, whole[i+2:i+end])
		if p.expanded += len(value); err == nil && p.expanded > maxExpanded {
			err = fmt.Errorf("what references stand for has over %d bytes in all; more are not allowed", maxExpanded)
		}
		if err == errUnset { // the value is a bundle's router's
			p.unset++
			n.state, n.refs = broken, true
			return
		}
		if err != nil {
			p.bad(p.within(n, utf8.RuneCountInString(whole[:i])), "%v", err)
			n.state = broken
			return
		}
		if len(value) >= 4 { // a shorter one is no secret, and would blot out half of a message
			p.secrets[value] = true
			if p.referred == nil {
				p.referred = map[*node][]string{}
			}
			p.referred[n] = append(p.referred[n], value)
		}
		n.refs = true
		b.WriteString(value)
		at = i + end + 1
	}
	n.text = b.String()
}

// within is the place of a character of a scalar, for a fault; its start once nothing more is reported.
func (p *parser) within(n *node, offset int) *node {
	here := *n
	if !p.full(n) {
		here.line, here.col = n.locate(offset)
	}
	return &here
}

// errUnset is what a reference comes to whose value is not known here, and need not be.
var errUnset = errors.New("not set here")

func (p *parser) resolve(n *node, ref string) (string, error) {
	kind, name, _ := strings.Cut(ref, ":")
	whole := quote("${" + ref + "}")
	switch {
	case kind == "env" && name != "":
		if p.o.Getenv == nil && p.bundled && p.o.Unresolved {
			return "", errUnset
		}
		if p.o.Getenv == nil {
			return "", fmt.Errorf("%s: environment variables are not available here; give the value, or put the definition into the router's rules file", whole)
		}
		v, ok := p.o.Getenv(name)
		switch {
		case ok:
		case p.packing:
			return "", errUnset
		case p.bundled && isToken(name):
			return "", fmt.Errorf("%s is a token of the router's own, which rules that come over the network must not pass on", whole)
		default:
			return "", fmt.Errorf("environment variable %s is not set; set it where the router starts%s", quote(name), p.nearestVariable(name))
		}
		return v, nil
	case kind == "file" && name != "" && p.bundled && p.o.Unresolved:
		return "", errUnset
	case kind == "file" && name != "" && p.bundled:
		return "", errBundledFile
	case kind == "file" && name != "":
		b, err := p.attached(n, name)
		if err != nil {
			return "", err
		}
		s := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
		if !utf8.ValidString(s) {
			return "", fmt.Errorf("%s is not UTF-8 text", whole)
		}
		if len(s) > maxSource {
			return "", fmt.Errorf("%s has %d bytes; at most %d are allowed", whole, len(s), maxSource)
		}
		return s, nil
	}
	return "", fmt.Errorf("%s is no reference; want ${env:NAME} or ${file:PATH}, or $${ for a plain ${", whole)
}

// nearestVariable looks for the name in other case: the names of all variables are nobody's business.
func (p *parser) nearestVariable(name string) string {
	for _, s := range []string{strings.ToUpper(name), strings.ToLower(name), strings.ReplaceAll(strings.ToUpper(name), "-", "_")} {
		if _, ok := p.o.Getenv(s); ok && s != name {
			return fmt.Sprintf("; did you mean %s?", quote(s))
		}
	}
	return ""
}

// path is str for the path of a file that is attached. Pack has to know it.
func (p *parser) path(n *node) (string, bool) {
	s, ok := p.str(n)
	if !ok && n.kind == scalar && p.packing {
		p.bad(n, "is %s, whose variable is not set here; set it: a bundle holds the file that it names", n.shown())
	}
	if !ok && n.kind == scalar && !p.packing && p.o.Unresolved {
		p.bad(n, "is %s, whose value is not known here; write the path itself", n.shown())
	}
	return s, ok
}

// attached reads a file that rules name, once; its path is relative to the rules file's folder.
func (p *parser) attached(n *node, name string) ([]byte, error) {
	if p.o.ReadFile == nil {
		return nil, fmt.Errorf("file %s: files are not available here; give the value itself, or put the definition into the router's rules file", quote(name))
	}
	if strings.ContainsRune(name, 0) {
		return nil, fmt.Errorf("%s is no file name", quote(name))
	}
	path := name
	if !filepath.IsAbs(path) {
		path = filepath.Join(n.src.dir, path)
	}
	a, ok := p.read1[path]
	if !ok {
		if p.o.Reads != nil {
			p.o.Reads(path)
		}
		a.data, a.err = p.o.ReadFile(path)
		p.read1[path] = a
		p.files[path] = true
	}
	if a.err == nil {
		return a.data, nil
	}
	why := a.err
	var pe *fs.PathError
	if errors.As(why, &pe) {
		why = pe.Err
	}
	hint := ""
	if p.siblings != nil {
		if s := event.Nearest(filepath.Base(path), p.siblings(path)); s != "" && errors.Is(a.err, fs.ErrNotExist) {
			hint = fmt.Sprintf("; did you mean %s?", quote(filepath.Join(filepath.Dir(name), s)))
		}
	}
	return nil, fmt.Errorf("file %s: %w (looked at %s)%s", quote(name), why, quote(path), hint)
}

func readFile(path string) ([]byte, error) { return readBounded(path, maxAttached) }

// readBounded reads a file of up to limit bytes; /dev/zero and the like end there too.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has over %d bytes; more are not allowed", path, limit)
	}
	return b, nil
}

func siblings(path string) []string {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
