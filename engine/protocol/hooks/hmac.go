package hooks

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// HMAC is any scheme in which a header has the HMAC of a text that is made of the webhook.
type HMAC struct {
	Secret    string        `yaml:"secret" about:"That the sender signs with."`
	Secrets   []string      `yaml:"secrets" about:"Several of them, while one replaces another."`
	Header    string        `yaml:"header" rules:"required" about:"That has the signature; several may stand in it, split by commas or spaces."`
	Algorithm string        `yaml:"algorithm" enum:"sha1,sha256,sha384,sha512" about:"The hash."`
	Encoding  string        `yaml:"encoding" enum:"hex,base64" about:"Of the signature."`
	Prefix    string        `yaml:"prefix" about:"Before each signature, such as sha256=."`
	Timestamp string        `yaml:"timestamp" about:"The header that has the time: seconds or milliseconds since 1970, or RFC 3339."`
	Template  string        `yaml:"template" about:"What is signed: text with {body}, {timestamp}, {method}, {url} and {header.NAME}."`
	Tolerance time.Duration `yaml:"tolerance" about:"How far the signed time may lie from the router's clock."`
}

// WithDefaults fills in what was left out.
func (o HMAC) WithDefaults() HMAC {
	if o.Algorithm == "" {
		o.Algorithm = "sha256"
	}
	if o.Encoding == "" {
		o.Encoding = inHex
	}
	if o.Template == "" {
		o.Template = "{body}"
		if o.Timestamp != "" {
			o.Template = "{timestamp}.{body}"
		}
	}
	if o.Timestamp != "" {
		o.Tolerance = orDefault(o.Tolerance)
	}
	return o
}

var algorithms = map[string]func() hash.Hash{"sha1": sha1.New, "sha256": sha256.New, "sha384": sha512.New384, "sha512": sha512.New}

// Validate says what is wrong with the options.
func (o HMAC) Validate() error {
	faults := append(checkSecrets("secret", o.Secret, o.Secrets), checkTolerance(o.Tolerance)...)
	bad := func(at, format string, args ...any) {
		faults = append(faults, event.Fault{At: at, Detail: fmt.Sprintf(format, args...)})
	}
	full := o.WithDefaults()
	if !isHeader(o.Header) {
		bad("header", "is %.60q; want the name of the header that has the signature, such as x-signature", o.Header)
	}
	if o.Timestamp != "" && !isHeader(o.Timestamp) {
		bad("timestamp", "is %.60q; want the name of a header, such as x-timestamp", o.Timestamp)
	}
	if algorithms[full.Algorithm] == nil {
		bad("algorithm", "is %.40q; want sha1, sha256, sha384 or sha512", o.Algorithm)
	}
	if full.Encoding != inHex && full.Encoding != inBase64 {
		bad("encoding", "is %.40q; want hex or base64", o.Encoding)
	}
	if strings.ContainsAny(o.Prefix, ", ") {
		bad("prefix", "is %.40q; it cannot have a comma or a space, which split signatures", o.Prefix)
	}
	parts, err := parseTemplate(full.Template)
	switch {
	case err != nil:
		bad("template", "%v", err)
	case !slices.ContainsFunc(parts, func(p part) bool { return p.kind == partBody }):
		bad("template", "is %.80q; without {body} in it anybody could change the body of what was signed", full.Template)
	case o.Timestamp != "" && !slices.ContainsFunc(parts, func(p part) bool { return p.kind == partTime }):
		bad("template", "is %.80q, which has no {timestamp} in it: a time that is not signed says nothing", full.Template)
	case o.Timestamp == "" && slices.ContainsFunc(parts, func(p part) bool { return p.kind == partTime }):
		bad("timestamp", "missing; the template has {timestamp}: name the header that has it")
	}
	if a, b, found := runTogether(parts); found {
		bad("template", "has %s and %s side by side: what moves from the end of one to the beginning of the other is signed alike; put a text between them, such as a dot, or what has an end of its own: {timestamp}, {method} or {url}", a, b)
	}
	if o.Timestamp == "" && o.Tolerance != 0 {
		bad("tolerance", "is of no use without timestamp, the header that has the time")
	}
	return invalid(faults)
}

// Open makes the verifier.
func (o HMAC) Open() (event.Verifier, error) {
	o = o.WithDefaults()
	parts, err := parseTemplate(o.Template)
	if err != nil {
		return nil, event.Invalid("template", err.Error())
	}
	return &generic{o: o, parts: parts, header: strings.ToLower(o.Header), stamp: strings.ToLower(o.Timestamp),
		keys: newKeys(algorithms[o.Algorithm], asBytes(secretsOf(o.Secret, o.Secrets)))}, nil
}

func isHeader(name string) bool {
	for i := range len(name) {
		c := name[i]
		if c <= ' ' || c >= 0x7F || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return name != "" && len(name) <= 128
}

// A part of what is signed.
type part struct {
	kind partKind
	text string // of a text; the name of a header
}

type partKind uint8

const (
	partText partKind = iota
	partBody
	partTime
	partMethod
	partURL
	partHeader
)

// maxParts bounds a template.
const maxParts = 16

func parseTemplate(s string) (parts []part, err error) {
	for s != "" {
		if len(parts) == maxParts {
			return nil, fmt.Errorf("has over %d parts", maxParts)
		}
		i := strings.IndexByte(s, '{')
		if i != 0 {
			if i < 0 {
				i = len(s)
			}
			parts, s = append(parts, part{partText, s[:i]}), s[i:]
			continue
		}
		end := strings.IndexByte(s, '}')
		if end < 0 {
			return nil, fmt.Errorf("%.40q has no closing }", s)
		}
		name := s[1:end]
		s = s[end+1:]
		switch head, isHead := strings.CutPrefix(name, "header."); {
		case name == "body":
			parts = append(parts, part{kind: partBody})
		case name == "timestamp":
			parts = append(parts, part{kind: partTime})
		case name == "method":
			parts = append(parts, part{kind: partMethod})
		case name == "url":
			parts = append(parts, part{kind: partURL})
		case isHead && isHeader(head):
			parts = append(parts, part{partHeader, strings.ToLower(head)})
		default:
			return nil, fmt.Errorf("has {%.40s}; there are {body}, {timestamp}, {method}, {url} and {header.NAME}", name)
		}
	}
	return parts, nil
}

type generic struct {
	o             HMAC
	parts         []part
	header, stamp string
	keys          keys
}

func (v *generic) Provides() event.Provided {
	return event.Provided{Tolerance: v.o.Tolerance}
}

func (v *generic) Verify(_ context.Context, h *event.Hook, say func(string)) error {
	text, err := header(h, v.header)
	if err != nil {
		return err
	}
	var sigs signatures
	if err := v.signatures(&sigs, text); err != nil {
		return err
	}
	if say != nil {
		told(say, "%s is there, with %d signatures", v.header, sigs.n)
	}
	var stamp string
	var signed time.Time
	if v.stamp != "" {
		if stamp, err = header(h, v.stamp); err != nil {
			return err
		}
		if signed, err = anyTime(v.stamp, stamp); err != nil {
			return err
		}
		if say != nil {
			told(say, "%s is there (%s)", v.stamp, ago(h.Received, signed))
		}
	}
	var room [maxParts][]byte
	list := room[:0]
	for _, p := range v.parts {
		switch p.kind {
		case partText:
			list = append(list, bytesOf(p.text))
		case partBody:
			list = append(list, h.Body)
		case partTime:
			list = append(list, bytesOf(stamp))
		case partMethod:
			list = append(list, bytesOf(h.Method))
		case partURL:
			list = append(list, bytesOf(h.URL))
		case partHeader:
			value, err := header(h, p.text)
			if err != nil {
				return err
			}
			list = append(list, bytesOf(value))
		}
	}
	if err := v.apart(list); err != nil {
		return err
	}
	if !v.keys.match(h, &sigs, list...) {
		return mismatch(v.header, &sigs, len(v.keys.list))
	}
	if say != nil {
		told(say, "a signature is that of %s by %s (body of %d bytes)", v.o.Template, v.o.Algorithm, len(h.Body))
	}
	if v.stamp != "" {
		if err := fresh(v.stamp, signed, h.Received, v.o.Tolerance); err != nil {
			return err
		}
		if say != nil {
			told(say, "the time is within %s", v.o.Tolerance)
		}
	}
	return nil
}

// signatures reads those of a header: each must have the prefix, others do not count.
func (v *generic) signatures(sigs *signatures, text string) error {
	found := false
	for rest := text; rest != ""; {
		item := rest
		if i := strings.IndexAny(rest, ", "); i >= 0 {
			item, rest = rest[:i], rest[i+1:]
		} else {
			rest = ""
		}
		sig, ok := strings.CutPrefix(item, v.o.Prefix)
		if item == "" || !ok {
			continue
		}
		if found = true; !sigs.add(sig, v.o.Encoding) {
			return tooMany(v.header)
		}
	}
	if !found {
		return unverified(v.header, "it has no signature that begins with %q", v.o.Prefix)
	}
	return nil
}

// anyTime reads the notations of times that senders use.
func anyTime(at, text string) (time.Time, error) {
	if len(text) == len("1700000000000") && strings.Trim(text, "0123456789") == "" {
		seconds, err := unixTime(at, text[:10])
		return seconds, err
	}
	if len(text) >= len("2006-01-02T15:04:05Z") {
		t, err := event.ParseTime(text)
		if err != nil {
			return t, unverified(at, "the timestamp %v", err)
		}
		return t, nil
	}
	return unixTime(at, text)
}
