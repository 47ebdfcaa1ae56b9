package access

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxJSONDepth  = 8
	maxJSONValues = 1024
)

// parseObject reads one JSON object and nothing else. Names that are there twice, which parsers read differently, are
// refused (RFC 7515, 4 and RFC 7519, 4 allow that), as is what is not UTF-8, and what is deep or long.
func parseObject(text []byte) (map[string]any, error) {
	if !utf8.Valid(text) || !json.Valid(text) {
		return nil, errors.New("is not JSON in UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	r := objectReader{d: d}
	v, err := r.value(0)
	if err != nil {
		return nil, err
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("is no JSON object")
	}
	return m, nil
}

type objectReader struct {
	d *json.Decoder
	n int
}

func (r *objectReader) value(depth int) (any, error) {
	if r.n++; r.n > maxJSONValues {
		return nil, fmt.Errorf("has over %d values", maxJSONValues)
	}
	if depth > maxJSONDepth {
		return nil, fmt.Errorf("has values over %d deep in one another", maxJSONDepth)
	}
	t, err := r.d.Token()
	if err != nil {
		return nil, errors.New("is not JSON")
	}
	switch t {
	case json.Delim('{'):
		m := map[string]any{}
		for r.d.More() {
			t, err := r.d.Token()
			name, ok := t.(string)
			if err != nil || !ok {
				return nil, errors.New("is not JSON")
			}
			if _, twice := m[name]; twice {
				return nil, fmt.Errorf("has %.40q twice", name)
			}
			if m[name], err = r.value(depth + 1); err != nil {
				return nil, err
			}
		}
		_, err = r.d.Token()
		return m, err
	case json.Delim('['):
		list := []any{}
		for r.d.More() {
			v, err := r.value(depth + 1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = r.d.Token()
		return list, err
	}
	return t, nil
}

// claims are what a token says.
type claims map[string]any

// at returns the claim of a name, or of a path of names with dots between them, such as realm_access.roles; a name with
// dots in it, such as https://example.com/roles, is looked for first.
func (c claims) at(path string) any {
	if v, ok := c[path]; ok {
		return v
	}
	m := map[string]any(c)
	for {
		name, rest, more := strings.Cut(path, ".")
		if !more {
			return m[path]
		}
		next, ok := m[name].(map[string]any)
		if !ok {
			return nil
		}
		m, path = next, rest
	}
}

// date returns a NumericDate (RFC 7519, 2). ok is false where it is there and is none.
func (c claims) date(name string) (t time.Time, there, ok bool) {
	v, there := c[name]
	if !there {
		return t, false, true
	}
	num, isNumber := v.(json.Number)
	if !isNumber {
		return t, true, false
	}
	f, err := num.Float64()
	if err != nil || math.IsNaN(f) || f < 0 || f > 253402300799 { // the year 9999
		return t, true, false
	}
	whole, part := math.Modf(f)
	return time.Unix(int64(whole), int64(part*1e9)), true, true
}

// words returns a claim that is a list of texts, or one text of words with spaces between them, as scope is.
func words(v any) ([]string, bool) {
	switch v := v.(type) {
	case nil:
		return nil, true
	case string:
		list := strings.Fields(v)
		return list, len(list) <= maxRoles
	case []any:
		if len(v) > maxRoles {
			return nil, false
		}
		list := make([]string, 0, len(v))
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return nil, false
			}
			list = append(list, s)
		}
		return list, true
	}
	return nil, false
}

// audiences returns the claim aud: one text or a list (RFC 7519, 4.1.3).
func (c claims) audiences() ([]string, bool) {
	if s, ok := c["aud"].(string); ok {
		return []string{s}, true
	}
	if _, ok := c["aud"].([]any); !ok {
		return nil, false
	}
	return words(c["aud"])
}
