package rules

import (
	"context"
	"encoding"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine"
)

// SinkKind reads and opens one kind of sink: what may stand under deliver by its name. SinkOf makes it.
type SinkKind struct {
	options  reflect.Type
	defaults reflect.Value // of options
	read     func(p *parser, kind string, n *node) (open func(context.Context) (engine.Sink, error), effective *doc)
}

// SinkOf makes a SinkKind of the options of a connector and the function that opens it. The fields of O
// that have a `yaml:"key"` tag are what rules may set: strings, bools, numbers, time.Duration ("15s"),
// int64, which is a number of bytes ("1MiB"), encoding.TextUnmarshaler, and lists, maps from strings and
// structs of these. Fields without a tag, or with "-", belong to the process: open fills them.
//
// Where O has Validate() error, it is called when rules are checked; each fault of an *event.Faults is
// reported at its own key. Tags say what a field is for to who writes rules: `about` in words, `enum` the texts that
// it may be, `rules:"required"` that it has to be there, `rules:"filter"` that it is a filter. Where O has WithDefaults() O, Show prints what that fills in. Values under keys
// that look like secrets' (secrets, headers, token…) are never shown. open gets its own copy of O, whose
// maps and lists are shared: it must not change them.
func SinkOf[O any, S engine.Sink](open func(ctx context.Context, o O) (S, error)) SinkKind {
	var zero O
	defaults := zero
	if v, ok := any(&zero).(interface{ WithDefaults() O }); ok {
		defaults = v.WithDefaults()
	}
	return SinkKind{options: reflect.TypeFor[O](), defaults: reflect.ValueOf(defaults), read: func(p *parser, kind string, n *node) (func(context.Context) (engine.Sink, error), *doc) {
		o, effective, known := readOptions[O](p, n)
		if !known {
			return nil, effective
		}
		return func(ctx context.Context) (engine.Sink, error) {
			s, err := open(ctx, o)
			if err != nil {
				return nil, err
			}
			return s, nil
		}, effective
	}}
}

// readOptions reads what a struct of options may be set to, and checks it. known is false where a fault was reported or a
// value is known elsewhere only: then the options, with their defaults, can be shown at most.
func readOptions[O any](p *parser, n *node) (o O, effective *doc, known bool) {
	before, unset := len(p.faults), p.unset
	p.decode(n, reflect.ValueOf(&o).Elem())
	if len(p.faults) > before {
		return o, nil, false
	}
	known = p.unset == unset // else it is only shown
	if v, ok := any(&o).(interface{ Validate() error }); ok && known {
		if err := v.Validate(); err != nil {
			p.foreign(n, err)
			return o, nil, false
		}
	}
	full := o
	if v, ok := any(&o).(interface{ WithDefaults() O }); ok {
		full = v.WithDefaults()
	}
	return o, encode(reflect.ValueOf(full), mask(n), false), known
}

// secretKey reports whether what stands under a key is not to be shown; of a line, whether it may have such a key. A URL is
// shown, without its query: who sees that there is a secret has to see where it goes.
func secretKey(key string) bool {
	key = strings.ToLower(key)
	if isURLKey(key) && !strings.ContainsAny(key, " :#\t") {
		return false
	}
	for _, s := range []string{"secret", "token", "passw", "credential", "headers", "authorization", "apikey", "api_key", "private"} {
		if strings.Contains(key, s) {
			return true
		}
	}
	return false
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// yamlFields calls fn with the fields of a struct that rules may set.
func yamlFields(t reflect.Type, fn func(i int, key string)) {
	for i := range t.NumField() {
		key, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if key != "" && key != "-" && t.Field(i).IsExported() {
			fn(i, key)
		}
	}
}

// decode reads a node into an option. The types were chosen by the compiler, the values by somebody else.
func (p *parser) decode(n *node, v reflect.Value) {
	if n.kind == scalar && strings.Contains(n.raw, "***") {
		p.bad(n, "has \"***\" in it, which is how the router shows what is secret; give the secret, or a reference such as ${env:NAME}")
		return
	}
	switch {
	case v.Type() == durationType:
		d, _ := p.duration(n, 0, math.MaxInt64)
		v.SetInt(int64(d))
		return
	case v.CanAddr() && v.Addr().Type().Implements(textType):
		if s, ok := p.str(n); ok {
			if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
				p.bad(n, "is %s: %v", n.shown(), err)
			}
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		p.decodeStruct(n, v)
	case reflect.Map:
		p.decodeMap(n, v)
	case reflect.Slice:
		if n.kind != list {
			p.bad(n, "is %s; want a list", n.kind)
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(n.items), len(n.items)))
		for i, item := range n.items {
			p.decode(item, v.Index(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		p.decode(n, v.Elem())
	case reflect.String:
		s, _ := p.str(n)
		v.SetString(s)
	case reflect.Int64:
		size, _ := p.size(n, 0, math.MaxInt64)
		v.SetInt(size)
	default:
		p.decodeScalar(n, v)
	}
}

func (p *parser) decodeStruct(n *node, v reflect.Value) {
	s := shape{}
	at := map[string]int{}
	yamlFields(v.Type(), func(i int, key string) {
		s.keys, at[key] = append(s.keys, key), i
	})
	f, _ := p.fields(n, s)
	for _, key := range s.keys {
		child := f[key]
		if child == nil {
			continue
		}
		if secretKey(key) {
			p.keepSecret(child)
		}
		field, before, unset := v.Field(at[key]), len(p.faults), p.unset
		p.decode(child, field)
		if v.Type().Field(at[key]).Tag.Get("rules") == "filter" && len(p.faults) == before && p.unset == unset && field.String() != "" {
			p.compile(child, field.String()) // what a schema says of the other side's events is not known here
		}
	}
}

// keepSecret sees to it that no message of a connector's Validate carries a literal secret.
func (p *parser) keepSecret(n *node) {
	if n.kind == scalar && len(n.raw) >= 4 {
		p.secrets[n.raw] = true
	}
	for _, item := range n.items {
		p.keepSecret(item)
	}
}

func (p *parser) decodeMap(n *node, v reflect.Value) {
	if n.kind != mapping {
		p.bad(n, "is %s; want a mapping", n.kind)
		return
	}
	if v.Type().Key().Kind() != reflect.String {
		p.bad(n, "is a mapping that this build cannot read into %s", v.Type())
		return
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), len(n.keys)))
	for i, key := range n.keys {
		item := reflect.New(v.Type().Elem()).Elem()
		p.decode(n.items[i], item)
		v.SetMapIndex(reflect.ValueOf(key.raw).Convert(v.Type().Key()), item)
	}
}

func (p *parser) decodeScalar(n *node, v reflect.Value) {
	s, ok := p.str(n)
	if !ok {
		return
	}
	switch {
	case v.Kind() == reflect.Bool:
		if s != "true" && s != "false" {
			p.bad(n, "is %s; want true or false", n.shown())
			return
		}
		v.SetBool(s == "true")
	case v.CanInt():
		i, err := strconv.ParseInt(s, 10, v.Type().Bits())
		if err != nil {
			p.bad(n, "is %s; want a whole number", n.shown())
		}
		v.SetInt(i)
	case v.CanUint():
		i, err := strconv.ParseUint(s, 10, v.Type().Bits())
		if err != nil {
			p.bad(n, "is %s; want a whole number, not negative", n.shown())
		}
		v.SetUint(i)
	case v.CanFloat():
		f, err := strconv.ParseFloat(s, v.Type().Bits())
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			p.bad(n, "is %s; want a number", n.shown())
		}
		v.SetFloat(f)
	default:
		p.bad(n, "is an option that this build cannot read into %s", v.Type())
	}
}

// encode shows an option. What was written with references or is secret is shown as src has it.
func encode(v reflect.Value, src *doc, secret bool) *doc {
	if src != nil && src.keep && src.kind == scalar {
		return src
	}
	switch {
	case v.Type() == durationType:
		return text(formatDuration(time.Duration(v.Int())))
	case v.Type().Implements(reflect.TypeFor[encoding.TextMarshaler]()):
		b, err := v.Interface().(encoding.TextMarshaler).MarshalText()
		if err != nil {
			return text("")
		}
		return shownText(string(b), secret)
	}
	switch v.Kind() {
	case reflect.Struct:
		d := &doc{kind: mapping}
		yamlFields(v.Type(), func(i int, key string) {
			f := v.Field(i)
			if f.IsZero() && src.get(key) == nil && f.Kind() != reflect.Bool {
				return
			}
			d.set(key, encode(f, src.get(key), secret || secretKey(key)))
		})
		return d
	case reflect.Map, reflect.Slice:
		if src != nil { // as it was written: defaults are not merged into lists and maps
			return src
		}
		return encodeMany(v, secret)
	case reflect.Pointer:
		if v.IsNil() {
			return &doc{}
		}
		return encode(v.Elem(), src, secret)
	case reflect.Bool:
		return &doc{kind: scalar, tag: "!!bool", text: strconv.FormatBool(v.Bool())}
	case reflect.Int64:
		return size(v.Int())
	case reflect.String:
		return shownText(v.String(), secret)
	}
	switch {
	case v.CanInt():
		return number(v.Int())
	case v.CanUint():
		return &doc{kind: scalar, tag: "!!int", text: strconv.FormatUint(v.Uint(), 10)}
	case v.CanFloat():
		return float(v.Float())
	}
	return &doc{}
}

func encodeMany(v reflect.Value, secret bool) *doc {
	if v.Kind() == reflect.Slice {
		d := &doc{kind: list}
		for i := range v.Len() {
			d.items = append(d.items, encode(v.Index(i), nil, secret))
		}
		return d
	}
	d := &doc{kind: mapping}
	for it := v.MapRange(); it.Next(); {
		d.set(it.Key().String(), encode(it.Value(), nil, secret || secretKey(it.Key().String())))
	}
	d.sort()
	return d
}
