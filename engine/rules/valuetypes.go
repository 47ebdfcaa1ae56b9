package rules

import (
	"fmt"
	"strconv"
	"strings"
)

// valueType is how a value is written: for people and as a JSON Schema.
type valueType struct {
	words  string
	schema map[string]any
}

// Patterns of values in JSON Schema's dialect (ECMA 262).
const (
	namePattern      = `^[A-Za-z0-9][A-Za-z0-9._-]{0,248}$`
	durationPattern  = `^([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h|d|w))+$`
	sizePattern      = `^[0-9]+(\.[0-9]+)? *(B|KiB|MiB|GiB|TiB|kB|KB|MB|GB|TB)?$`
	ratePattern      = `^([0-9]+(\.[0-9]+)? */[smhd]|unlimited)$`
	timePattern      = `^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ].+$`
	referencePattern = `\$\{(env|file):[^}]+\}`
)

func refTo(def string) map[string]any { return map[string]any{"$ref": "#/$defs/" + def} }

// scalarOf is a single value, or a reference to one.
func scalarOf(words string, s map[string]any) valueType {
	return valueType{words, map[string]any{"anyOf": []any{s, refTo("reference")}}}
}

func withRange(words, bounds string) string {
	if bounds == "" {
		return words
	}
	return words + ", " + bounds
}

func duration(bounds string) valueType {
	return valueType{withRange("duration", bounds), refTo("duration")}
}

func sizeType(bounds string) valueType { return valueType{withRange("size", bounds), refTo("size")} }

func rateType() valueType { return valueType{"rate", refTo("rate")} }

func nameType() valueType { return valueType{"name", refTo("name")} }

func plainText(words string) valueType {
	return valueType{words, map[string]any{"type": []any{"string", "number", "boolean"}}}
}

func anyScalar() valueType { return plainText("single value") }

func boolean() valueType { return scalarOf("`true` or `false`", map[string]any{"type": "boolean"}) }

func anyInteger() valueType { return scalarOf("number", map[string]any{"type": "integer"}) }

// integerOf is a whole number; hi 0 is no bound.
func integerOf(lo, hi int64) valueType {
	s := map[string]any{"type": "integer", "minimum": lo}
	words := "number, " + thousands(lo) + " or more"
	switch {
	case lo == hi:
		words = strconv.FormatInt(lo, 10)
	case hi != 0:
		words = fmt.Sprintf("number, %s to %s", thousands(lo), thousands(hi))
	}
	if hi != 0 {
		s["maximum"] = hi
	}
	return scalarOf(words, s)
}

// numberOf is a number with or without a fraction; 0 to 0 is any.
func numberOf(lo, hi int64) valueType {
	if lo == hi {
		return scalarOf("number", map[string]any{"type": "number"})
	}
	return scalarOf(fmt.Sprintf("number, %d to %d", lo, hi), map[string]any{"type": "number", "minimum": lo, "maximum": hi})
}

func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func oneOf(values ...string) valueType {
	var list []any
	for _, v := range values {
		list = append(list, v)
	}
	return scalarOf("`"+strings.Join(values, "`, `")+"`", map[string]any{"enum": list})
}

func startType() valueType {
	return valueType{"`latest`, `earliest`, a time or a duration back", map[string]any{"anyOf": []any{
		map[string]any{"enum": []any{"latest", "earliest"}}, map[string]any{"type": "string", "pattern": timePattern}, refTo("duration"),
	}}}
}

func pathOrSchema() valueType {
	return valueType{"path, or a mapping", map[string]any{"type": []any{"string", "object"}}}
}

func mappingNamed(name string) valueType {
	return valueType{"[mapping](#" + name + ")", refTo(name)}
}

func namedMapping(name string) valueType {
	of := mapOf(mappingNamed(name))
	of.schema["propertyNames"] = map[string]any{"pattern": namePattern}
	return of
}

// mapOf is a mapping whose keys are chosen by who writes it.
func mapOf(of valueType) valueType {
	return valueType{"mapping of keys to " + plural(of.words), map[string]any{"type": []any{"object", "null"}, "additionalProperties": of.schema}}
}

func listOf(of valueType) valueType {
	return valueType{"list of " + plural(of.words), map[string]any{"type": "array", "items": of.schema}}
}

func plural(words string) string {
	for _, one := range []string{"duration", "name", "host", "text", "single value", "number", "path"} {
		if rest, ok := strings.CutPrefix(words, one); ok {
			return one + "s" + rest
		}
	}
	if rest, ok := strings.CutPrefix(words, "[mapping]"); ok {
		return "[mappings]" + rest
	}
	return words
}

func either(types ...valueType) valueType {
	var words []string
	var schemas []any
	for _, t := range types {
		words, schemas = append(words, t.words), append(schemas, t.schema)
	}
	return valueType{strings.Join(words, "; or "), map[string]any{"anyOf": schemas}}
}

// sharedTypes are the values that several keys have.
func sharedTypes() map[string]any {
	reference := refTo("reference")
	return map[string]any{
		"reference": map[string]any{"type": "string", "pattern": referencePattern, "description": "Replaced by the router's environment variable, or by what is in the file, one newline at its end aside."},
		"name": map[string]any{"anyOf": []any{map[string]any{"type": "string", "pattern": namePattern}, map[string]any{"type": "integer"}, reference},
			"description": "1 to 249 of A-Z a-z 0-9 . _ -, beginning with a letter or digit."},
		"duration": map[string]any{"anyOf": []any{map[string]any{"type": "string", "pattern": durationPattern}, reference},
			"description": "With units: 250ms, 15s, 5m, 1h30m, 7d, 2w.", "examples": []any{"15s", "5m", "1h30m", "7d"}},
		"size": map[string]any{"anyOf": []any{map[string]any{"type": "integer", "minimum": 0}, map[string]any{"type": "string", "pattern": sizePattern}, reference},
			"description": "Bytes: 1048576, 64MiB, 1.5GiB, 500MB.", "examples": []any{"64MiB", "1GiB"}},
		"rate": map[string]any{"anyOf": []any{map[string]any{"type": "string", "pattern": ratePattern}, reference},
			"description": "A number a second, minute, hour or day, or unlimited.", "examples": []any{"500/s", "10/m", "unlimited"}},
	}
}
