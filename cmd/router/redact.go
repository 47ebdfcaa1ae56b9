package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// What --redact asks for, besides paths.
const (
	redactStrings = "strings"
	redactAll     = "all"
)

// A redactor replaces values by pseudonyms of the same form: keyed, so that who has the file cannot try values out
// without the key, and the same for the same value, so that what belonged together still does.
type redactor struct {
	key   []byte
	all   bool
	paths []string // nil: wherever strings are
	met   []uint64 // by path: how many values lay there
	keep  []string
}

// newRedactor makes one with a key of its own, or the one that is given.
func newRedactor(what string, keep []string, key []byte) (*redactor, error) {
	r := &redactor{key: key}
	var err error
	switch what {
	case redactStrings:
	case redactAll:
		r.all = true
	default:
		if r.paths, err = eventPaths("--redact", strings.Split(what, ",")); err != nil {
			return nil, err
		}
		r.met = make([]uint64, len(r.paths))
	}
	if r.keep, err = eventPaths("--keep", keep); err != nil {
		return nil, err
	}
	if len(r.key) == 0 {
		r.key = make([]byte, 32)
		if _, err := rand.Read(r.key); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// eventPaths are paths as redactor.path names them. One that no value of any event can lie at is refused: whoever
// misspelt a path would take the file for redacted.
func eventPaths(flag string, given []string) ([]string, error) {
	var paths []string
	for _, text := range given {
		path := strings.TrimSpace(text)
		if path == "partitionkey" || path == "ext.partitionkey" {
			path = "key"
		}
		root, rest, parts := strings.Cut(path, ".")
		switch {
		case strings.ContainsAny(path, "[]"):
			return nil, fmt.Errorf("%s: %q: the items of a list have no numbers, but the list's own path: data.items.email is the email of every item", flag, text)
		case parts && slices.Contains(strings.Split(rest, "."), ""):
			return nil, fmt.Errorf("%s: %q has a name without letters; want names with dots between, such as data.email", flag, text)
		case root == "data", root == "ext" && !strings.Contains(rest, "."):
		case !parts && slices.Contains([]string{"subject", "key", "id", "source", "type", "time"}, root):
		case !parts && root != "" && !slices.Contains(plainAttributes, root) && root != "data_base64":
			return nil, fmt.Errorf("%s: %q is no path of an event; want data.%s or, for an extension, ext.%s", flag, text, root, root)
		default:
			return nil, fmt.Errorf("%s: %q is no path of an event; want paths with commas between that begin with data, subject, key, id, source, type, time or ext., such as data.email,ext.tenant", flag, text)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// missed are the paths at which nothing lay.
func (r *redactor) missed() []string {
	var paths []string
	for i, path := range r.paths {
		if r.met[i] == 0 {
			paths = append(paths, path)
		}
	}
	return paths
}

// plainAttributes stay: they say what kind of event it is and when it came, and hold no one's name by their purpose.
var plainAttributes = []string{"specversion", "source", "type", "time", "datacontenttype", "dataschema", "millraceposition", "recordedtime", "ext.traceparent"}

// event rewrites a structured CloudEvent.
func (r *redactor) event(doc []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("redact: an event that is no JSON object: %.60q", doc)
	}
	out := append(make([]byte, 0, len(doc)), '{')
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("redact: %w", err)
		}
		name, _ := t.(string)
		if len(out) > 1 {
			out = append(out, ',')
		}
		if out, err = appendJSON(out, name); err != nil {
			return nil, err
		}
		out = append(out, ':')
		if out, err = r.value(out, d, r.path(name)); err != nil {
			return nil, err
		}
	}
	return append(out, '}'), nil
}

// path is what filters call a member of the event.
func (r *redactor) path(name string) string {
	switch name {
	case "data", "id", "subject", "data_base64":
		return name
	case "partitionkey":
		return "key"
	}
	if slices.Contains(plainAttributes, name) {
		return name
	}
	return "ext." + name
}

// below reports whether what lies at a path is part of what another names.
func below(path, of string) bool {
	return path == of || strings.HasPrefix(path, of+".") || of == "data" && path == "data_base64"
}

// above reports whether a path goes on behind another. Where that one holds a text, bytes or a number, such as data that is
// XML, what is named may be anywhere in it.
func above(path, of string) bool {
	return strings.HasPrefix(of, path+".") || path == "data_base64" && strings.HasPrefix(of, "data.")
}

// hides reports whether the value at a path, no object and no list, is replaced.
func (r *redactor) hides(path string) bool {
	if slices.ContainsFunc(r.keep, func(of string) bool { return below(path, of) }) {
		return false
	}
	if r.paths != nil {
		return slices.ContainsFunc(r.paths, func(of string) bool { return below(path, of) || above(path, of) })
	}
	return !slices.Contains(plainAttributes, path) && (path != "id" || r.all)
}

// value rewrites what the decoder reads next. Items of a list have the list's path.
func (r *redactor) value(out []byte, d *json.Decoder, path string) ([]byte, error) {
	t, err := d.Token()
	if err != nil {
		return nil, fmt.Errorf("redact: %w", err)
	}
	for i, of := range r.paths {
		if below(path, of) {
			r.met[i]++
		}
	}
	switch v := t.(type) {
	case json.Delim:
		out = append(out, byte(v))
		closing := byte('}')
		if v == '[' {
			closing = ']'
		}
		for first := true; d.More(); first = false {
			if !first {
				out = append(out, ',')
			}
			at := path
			if v == '{' {
				name, err := d.Token()
				if err != nil {
					return nil, fmt.Errorf("redact: %w", err)
				}
				at = fmt.Sprintf("%s.%s", path, name)
				if out, err = appendJSON(out, name); err != nil {
					return nil, err
				}
				out = append(out, ':')
			}
			if out, err = r.value(out, d, at); err != nil {
				return nil, err
			}
		}
		if _, err := d.Token(); err != nil {
			return nil, fmt.Errorf("redact: %w", err)
		}
		return append(out, closing), nil
	case string:
		switch {
		case !r.hides(path):
		case path == "data_base64":
			return appendJSON(out, r.bytes(v))
		case path == "time":
			return appendJSON(out, r.time(v))
		default:
			v = r.text(v)
		}
		return appendJSON(out, v)
	case json.Number:
		text := v.String()
		if (r.all || r.paths != nil) && r.hides(path) {
			text = r.number(text)
			if digits := strings.TrimPrefix(text, "-"); strings.HasPrefix(path, "ext.") && len(digits) == 10 {
				text = text[:len(text)-10] + "1" + digits[1:] // an extension's integer has 32 bits
			}
		}
		return append(out, text...), nil
	case bool:
		// Of two values any pseudonym would be found out; a path that is named holds for them too.
		return appendJSON(out, v && !(r.paths != nil && r.hides(path)))
	default:
		return appendJSON(out, v)
	}
}

func appendJSON(out []byte, v any) ([]byte, error) {
	b, err := marshalPlain(v)
	return append(out, b...), err
}

// stream yields bytes that depend on the key and the value alone.
func (r *redactor) stream(kind, value string) func() byte {
	var block []byte
	n := 0
	return func() byte {
		if len(block) == 0 {
			h := hmac.New(sha256.New, r.key)
			_, _ = h.Write([]byte(kind + strconv.Itoa(n) + "\x00" + value)) // a hash takes all
			block = h.Sum(nil)
			n++
		}
		b := block[0]
		block = block[1:]
		return b
	}
}

// text replaces letters by letters and digits by digits; what stands between them stays, so that an address still looks
// like one.
func (r *redactor) text(s string) string {
	next := r.stream("s", s)
	return strings.Map(func(c rune) rune {
		switch {
		case c >= '0' && c <= '9':
			return '0' + rune(next()%10)
		case unicode.IsUpper(c):
			return 'A' + rune(next()%26)
		case c < 0x80 && !unicode.IsLetter(c):
			return c
		default: // letters, and whatever else people write names with
			return 'a' + rune(next()%26)
		}
	}, s)
}

// number replaces the digits of a number by others: its sign, its length and where its point and exponent are stay.
func (r *redactor) number(s string) string {
	next := r.stream("n", s)
	b := []byte(s)
	mantissa := strings.IndexAny(s, "eE")
	if mantissa < 0 {
		mantissa = len(s)
	}
	for string(b) == s { // a digit may be drawn as its own pseudonym
		for i, c := range b[:mantissa] {
			first := i == 0 || b[i-1] == '-'
			switch {
			case c < '0' || c > '9':
			case first && i+1 < mantissa && s[i] == '0': // below 1 stays below 1
			case first && i+1 < mantissa: // no number of several digits begins with 0
				b[i] = '1' + next()%9
			default:
				b[i] = '0' + next()%10
			}
		}
	}
	return string(b)
}

// time replaces an instant by another, so that it is one still.
func (r *redactor) time(s string) string {
	next := r.stream("t", s)
	seconds := int64(0)
	for range 4 {
		seconds = seconds<<8 | int64(next())
	}
	return time.Unix(seconds, 0).UTC().Format(time.RFC3339)
}

// bytes replaces bytes by as many others.
func (r *redactor) bytes(text string) string {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return r.text(text)
	}
	next := r.stream("b", text)
	for i := range raw {
		raw[i] = next()
	}
	return base64.StdEncoding.EncodeToString(raw)
}
