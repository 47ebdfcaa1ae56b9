package rules

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// Schema is the JSON Schema (2020-12) of rules files, for editors: what stands where, with what it means. It refuses
// unknown keys and values that cannot be read; what lies between definitions, in filters and in files that rules name,
// is for Parse alone. Single values may be references.
func Schema(sinks map[string]SinkKind, schemes map[string]SchemeKind, bridges BridgeKinds) ([]byte, error) {
	defs := sharedTypes()
	root := map[string]any{}
	for _, d := range describe(sinks, schemes, bridges) {
		if d.name == "file" {
			root = d.schema()
			continue
		}
		defs[d.name] = d.schema()
	}
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "Millrace rules"
	root["$defs"] = defs
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(root); err != nil {
		return nil, fmt.Errorf("rules' schema: %w", err)
	}
	return b.Bytes(), nil
}

func (d described) schema() map[string]any {
	properties := map[string]any{}
	var required []any
	for _, key := range d.shape.keys {
		k := d.keys[key]
		s := map[string]any{}
		for word, v := range k.is.schema {
			s[word] = v
		}
		s["description"] = strings.ReplaceAll(k.about, "`", "")
		if k.std != nil {
			s["default"] = k.std
		}
		if k.must {
			required = append(required, key)
		}
		properties[key] = s
	}
	s := map[string]any{"type": "object", "description": strings.ReplaceAll(d.about, "`", ""), "properties": properties, "additionalProperties": false}
	if d.null {
		s["type"] = []any{"object", "null"}
	}
	if required != nil {
		s["required"] = required
	}
	if d.one {
		s["minProperties"], s["maxProperties"] = 1, 1
	}
	if d.any != nil {
		var some []any
		for _, key := range d.any {
			some = append(some, map[string]any{"required": []any{key}})
		}
		s["anyOf"] = some
	}
	return s
}

// Reference is docs/rules-reference.md: a table for each mapping of rules files.
func Reference(sinks map[string]SinkKind, schemes map[string]SchemeKind, bridges BridgeKinds) []byte {
	var b bytes.Buffer
	b.WriteString(`# Rules reference

<!-- Made by the tests of cmd/router from the descriptions in engine/rules: UPDATE_GOLDEN=1 go test ./cmd/router -run TestRulesReference -->

Every key of [rules files](rules.md). Editors complete and check them with the JSON Schema that ` + "`router rules schema`" + ` prints.

| Value | Written |
|---|---|
| name | 1 to 249 of ` + "`A-Z a-z 0-9 . _ -`" + `, beginning with a letter or digit |
| duration | with units: ` + "`250ms`, `15s`, `5m`, `1h30m`, `7d`, `2w`" + ` |
| size | bytes: ` + "`1048576`, `64MiB`, `1.5GiB`, `500MB`" + ` |
| rate | a number a second, minute, hour or day: ` + "`500/s`, `10/m`, `100/h`, `5/d`" + `; or ` + "`unlimited`" + ` |
| any of them | or a reference: ` + "`${env:NAME}`, `${file:PATH}`" + ` |
`)
	for _, d := range describe(sinks, schemes, bridges) {
		fmt.Fprintf(&b, "\n<a id=%q></a>\n\n## %s\n\n%s\n\n| Key | Value | Default | Means |\n|---|---|---|---|\n", d.name, d.title(), d.about)
		for _, key := range d.shape.keys {
			k := d.keys[key]
			absent := k.absent
			if k.must {
				absent = "must be given"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", key, k.is.words, absent, k.about)
		}
	}
	return b.Bytes()
}
