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
	keep  []string
}

// newRedactor makes one with a key of its own, or the one that is given.
func newRedactor(what string, keep []string, key []byte) (*redactor, error) {
	r := &redactor{key: key, keep: keep}
	switch what {
	case redactStrings:
	case redactAll:
		r.all = true
	default:
		r.paths = strings.Split(what, ",")
		if slices.Contains(r.paths, "") {
			return nil, fmt.Errorf("--redact=%q: want paths with commas between, such as data.email,data.address, or all", what)
		}
	}
	if len(r.key) == 0 {
		r.key = make([]byte, 32)
		if _, err := rand.Read(r.key); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// plainAttributes stay: they say what kind of event it is and when it came, and hold no one's name by their purpose.
var plainAttributes = []string{"specversion", "source", "type", "time", "datacontenttype", "dataschema", "millraceposition", "recordedtime", "traceparent"}

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

// hides reports whether strings at a path are replaced.
func (r *redactor) hides(path string) bool {
	below := func(of string) bool {
		return path == of || strings.HasPrefix(path, of+".") || of == "data" && path == "data_base64"
	}
	if slices.ContainsFunc(r.keep, below) {
		return false
	}
	if r.paths != nil {
		return slices.ContainsFunc(r.paths, below)
	}
	return !slices.Contains(plainAttributes, path) && (path != "id" || r.all)
}

// value rewrites what the decoder reads next. Items of a list have the list's path.
func (r *redactor) value(out []byte, d *json.Decoder, path string) ([]byte, error) {
	t, err := d.Token()
	if err != nil {
		return nil, fmt.Errorf("redact: %w", err)
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
		default:
			v = r.text(v)
		}
		return appendJSON(out, v)
	case json.Number:
		if r.all && r.hides(path) && strings.HasPrefix(path, "data") {
			return append(out, r.number(v.String())...), nil
		}
		return append(out, v.String()...), nil
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

// number replaces the digits of a number: its sign, its length and where its point and exponent are stay.
func (r *redactor) number(s string) string {
	next := r.stream("n", s)
	b := []byte(s)
	for i, c := range b {
		switch {
		case c == 'e' || c == 'E':
			return string(b)
		case c < '0' || c > '9':
		case i == 0 || b[i-1] == '-': // no number of several digits begins with 0
			if c != '0' {
				b[i] = '1' + next()%9
			}
		default:
			b[i] = '0' + next()%10
		}
	}
	return string(b)
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
