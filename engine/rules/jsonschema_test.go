package rules

import (
	"bytes"
	"encoding/json"
	"go/ast"
	goparser "go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

func compiledSchema(t *testing.T, o Options) *jsonschema.Schema {
	t.Helper()
	text, err := Schema(o.Sinks, o.Schemes, o.Bridges)
	if err != nil {
		t.Fatal(err)
	}
	s, err := compileSchema(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// toAny is a YAML document as an editor's schema sees it.
func toAny(n *yaml.Node) any {
	switch n.Kind {
	case yaml.DocumentNode:
		return toAny(n.Content[0])
	case yaml.AliasNode:
		return toAny(n.Alias)
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			m[n.Content[i].Value] = toAny(n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		list := []any{}
		for _, item := range n.Content {
			list = append(list, toAny(item))
		}
		return list
	}
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!bool":
		b, _ := strconv.ParseBool(n.Value)
		return b
	case "!!int", "!!float":
		return json.Number(n.Value)
	}
	return n.Value
}

func validateYAML(t *testing.T, s *jsonschema.Schema, text []byte) error {
	t.Helper()
	var n yaml.Node
	if err := yaml.Unmarshal(text, &n); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return s.Validate(toAny(&n))
}

// Every rules file of the documents, of the tests of the command line and of this package that is good is good by the
// schema as well.
func TestSchemaTakesTheExamples(t *testing.T) {
	o := testOptions()
	schema := compiledSchema(t, o)
	examples := map[string][]byte{}
	fence := regexp.MustCompile("(?s)(<!-- refused -->\n)?```ya?ml\n(.*?)```")
	err := filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			if e != nil && (e.Name() == "node_modules" || e.Name() == ".git" || strings.HasSuffix(filepath.ToSlash(path), "rules/testdata/bad")) {
				return fs.SkipDir
			}
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		switch filepath.Ext(path) {
		case ".md":
			for i, m := range fence.FindAllSubmatch(text, -1) {
				if len(m[1]) == 0 {
					examples[path+"#"+strconv.Itoa(i)] = m[2]
				}
			}
		case ".yaml", ".yml":
			examples[path] = text
		case ".txtar":
			for _, part := range regexp.MustCompile(`(?m)^-- (\S+\.ya?ml) --\n`).Split(string(text), -1)[1:] {
				part, _, _ = strings.Cut(part, "\n-- ")
				examples[path+"#"+strconv.Itoa(len(examples))] = []byte(part)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	anyModule := func(path string) ([]byte, error) {
		if b, err := os.ReadFile(path); err == nil {
			return b, nil
		}
		if strings.HasSuffix(path, ".json") {
			return []byte("{}"), nil
		}
		return []byte("\x00asm\x01\x00\x00\x00"), nil
	}
	for name, text := range examples {
		o := o
		o.ReadFile, o.Getenv = anyModule, func(string) (string, bool) { return "whsec_c2VjcmV0", true }
		if _, err := ParseBytes(strings.Split(name, "#")[0], text, o); err != nil || !bytes.Contains(text, []byte(":")) {
			continue // not of the good ones, or no rules file at all
		}
		checked++
		if err := validateYAML(t, schema, text); err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
	if checked < 20 {
		t.Errorf("only %d of %d examples are rules files", checked, len(examples))
	}
}

// What is unknown, or cannot be read, is refused by the schema, wherever it stands.
func TestSchemaRefuses(t *testing.T) {
	schema := compiledSchema(t, testOptions())
	for _, bad := range []string{"unknown", "values", "hosts", "list"} {
		text, err := os.ReadFile("testdata/bad/" + bad + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		if err := validateYAML(t, schema, text); err == nil {
			t.Errorf("%s.yaml is taken", bad)
		}
	}
	sub := func(s string) string { return "subscriptions: {s: {topic: t, deliver: {pull: {}}, " + s + "}}" }
	for _, text := range []string{
		"version: 2", "nothing: 1", "topics: {'a b': {}}", "topics: {a: {dedupe: 15}}", "topics: {a: {dedupe: 15 s}}", "topics: {a: {retain: {bytes: 1GBB}}}",
		"topics: {a: {partitions: 0}}", "topics: {a: {partitions: many}}", "topics: {a: {whenFull: never}}", "topics: {a: {retain: {byte: 1}}}",
		"functions: {f: {}}", "functions: {f: {wasm: x, limits: {cpu: 1}}}", "functions: {f: {wasm: x, allow: {kv: 1}}}",
		"subscriptions: {s: {deliver: {pull: {}}}}", "subscriptions: {s: {topic: t}}", "subscriptions: {s: {topic: t, deliver: {pull: {}, topic: a}}}",
		"subscriptions: {s: {topic: t, deliver: {webhok: {}}}}", "subscriptions: {s: {topic: t, deliver: {box: {i: x}}}}", "subscriptions: {s: {topic: t, deliver: {box: {in: {y: 1}}}}}",
		sub("order: by"), sub("rate: 5"), sub("concurrency: 0"), sub("retry: {jitter: 2}"), sub("retry: {exponential: {frist: 1s}}"), sub("start: yesterday"),
		"hosts: {a: {rate: 1/y}}",
	} {
		if err := validateYAML(t, schema, []byte(text)); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
	for _, text := range []string{
		"", "version: 1", "topics: {a: , b: {partitions: '${env:N}'}}", sub("start: 2026-01-31T12:00:00Z"), sub("start: 24h"), sub("retry: {schedule: exponential}"),
		sub("shadow: [a@sha256:0123abcd]"), "subscriptions: {s: {topic: t, deliver: {stream: }}}", "subscriptions: {s: {topic: t, deliver: {box: {max: 1.5GiB, d: 1h30m, f: 1.5, l: [1], m: {a: 1}, in: {x: y}}}}}",
	} {
		if text == "" {
			continue
		}
		if err := validateYAML(t, schema, []byte(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Whoever adds a key says what it means: each key of each shape of this package has a description, and none is left of
// a key that has gone.
func TestEveryKeyIsDescribed(t *testing.T) {
	all := describe(nil, nil, BridgeKinds{})
	names := map[string]described{}
	for _, d := range all {
		if _, twice := names[d.name]; twice {
			t.Errorf("%s is described twice", d.name)
		}
		names[d.name] = d
		for _, key := range d.shape.keys {
			if k := d.keys[key]; k.about == "" || k.is.schema == nil || !strings.HasSuffix(k.about, ".") && !strings.HasSuffix(k.about, "…") {
				t.Errorf("%s.%s has no description that ends in a full stop: add it to describe.go", d.name, key)
			}
		}
		for key := range d.keys {
			if !slices.Contains(d.shape.keys, key) {
				t.Errorf("%s.%s is described, but not read", d.name, key)
			}
		}
		if d.about == "" {
			t.Errorf("%s is not described", d.name)
		}
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	shapes := 0
	for _, file := range files {
		f, err := goparser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			for _, id := range v.Names {
				name, ok := strings.CutSuffix(id.Name, "Shape")
				if !ok {
					continue
				}
				shapes++
				if name == "rules" {
					name = "file"
				}
				if _, ok := names[name]; !ok {
					t.Errorf("%s of %s is not described: add it to describe.go", id.Name, file)
				}
			}
			return true
		})
	}
	if shapes < 13 {
		t.Errorf("%d shapes", shapes)
	}
}
