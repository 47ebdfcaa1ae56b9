package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// What the commands topics, subscriptions and functions share: each kind is listed, shown, created and
// deleted in the same way.

// A column of a list: its heading, and the path of keys to its value in a definition.
type column struct{ head, path string }

func (p *program) listCommand(kind string, columns []column) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List " + kind,
		Example: fmt.Sprintf("  router %s list\n  router %s list -o json", kind, kind),
		Args:    cobra.NoArgs,
	}
	r := p.remoteFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		doc, err := c.call(cmd.Context(), "GET", c.path(kind), nil)
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(p.stdout, doc)
		}
		list, err := listOf(kind, doc)
		if err != nil {
			return fmt.Errorf("%s answered something other than a list of %s (%w); is it a router?", c.base.Host, kind, err)
		}
		if len(list) == 0 {
			say(p.stderr, "no %s", kind)
			return nil
		}
		return printTable(p.stdout, columns, list)
	}
	return cmd
}

// listOf reads an array of definitions, alone or under the name of its kind. Numbers stay as written.
func listOf(kind string, doc []byte) ([]map[string]any, error) {
	var list []map[string]any
	if trimmed := bytes.TrimSpace(doc); len(trimmed) > 0 && trimmed[0] == '{' {
		var named map[string]json.RawMessage
		if err := json.Unmarshal(doc, &named); err != nil {
			return nil, err
		}
		doc = named[kind]
	}
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	err := d.Decode(&list)
	return list, err
}

func printTable(w io.Writer, columns []column, list []map[string]any) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	heads := make([]string, len(columns))
	for i, c := range columns {
		heads[i] = c.head
	}
	fmt.Fprintln(t, strings.Join(heads, "\t"))
	for _, def := range list {
		cells := make([]string, len(columns))
		for i, c := range columns {
			cells[i] = cell(def, c.path)
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	return t.Flush()
}

// cell is the value at a path as one short text; "-" where there is none.
func cell(def map[string]any, path string) string {
	var v any = def
	for key := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	text := ""
	switch v := v.(type) {
	case nil:
		return "-"
	case string:
		text = v
	case map[string]any: // deliver: the face and where to
		for face, at := range v {
			text = face
			switch at := at.(type) {
			case string:
				text += " " + at
			case map[string]any:
				if url, ok := at["url"].(string); ok {
					text += " " + url
				}
			}
		}
	default:
		text = fmt.Sprint(v)
	}
	const widest = 60
	if r := []rune(text); len(r) > widest {
		text = string(r[:widest-1]) + "…"
	}
	if text == "" {
		return "-"
	}
	return clean(text)
}

func (p *program) showCommand(kind, sample string) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show NAME",
		Short:   "Show one of the " + kind + ", key for key as in a rules file",
		Example: fmt.Sprintf("  router %s show %s\n  router %s show %s -o json", kind, sample, kind, sample),
		Args:    cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		doc, err := c.call(cmd.Context(), "GET", c.path(kind, args[0]), nil)
		if err != nil {
			return err
		}
		return p.printDocument(c.json, doc)
	}
	return cmd
}

// printDocument prints a JSON document: as it is, or as YAML for people, who can paste it into a rules file.
func (p *program) printDocument(asJSON bool, doc []byte) error {
	if !json.Valid(doc) {
		return errors.New("the answer is not JSON; is it a router that answers there?")
	}
	if asJSON {
		return printJSON(p.stdout, doc)
	}
	var n yaml.Node
	if err := yaml.Unmarshal(cleanJSON(doc), &n); err != nil { // JSON is YAML
		return fmt.Errorf("the answer cannot be shown as YAML: %w; -o json shows it as it is", err)
	}
	unfold(&n)
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(&n), enc.Close()); err != nil {
		return err
	}
	_, err := fmt.Fprint(p.stdout, lines(b.String()))
	return err
}

// unfold turns JSON's braces and quotes into YAML's blocks and plain words.
func unfold(n *yaml.Node) {
	if n.Kind != yaml.ScalarNode {
		n.Style &^= yaml.FlowStyle
	} else if n.Tag == "!!str" {
		n.Style = 0 // the encoder quotes what needs it
	}
	for _, c := range n.Content {
		unfold(c)
	}
}

func (p *program) deleteCommand(kind, sample string) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete NAME",
		Aliases: []string{"rm"},
		Short:   "Delete one of the " + kind + " with all it holds",
		Example: fmt.Sprintf("  router %s delete %s", kind, sample),
		Args:    cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		if _, err := c.call(cmd.Context(), "DELETE", c.path(kind, args[0]), nil); err != nil {
			return err
		}
		say(p.stderr, "deleted %s", clean(args[0]))
		return nil
	}
	return cmd
}

// create posts a definition and prints what became of it.
func (p *program) create(cmd *cobra.Command, r *remote, kind string, doc map[string]any) error {
	c, err := p.client(cmd, r)
	if err != nil {
		return err
	}
	body, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	shown, err := c.call(cmd.Context(), "POST", c.path(kind), body, "Content-Type", "application/json")
	if err != nil {
		return err
	}
	if c.json {
		return printJSON(p.stdout, shown)
	}
	say(p.stderr, "created %s", clean(fmt.Sprint(doc["name"])))
	return nil
}

// definition begins a definition: from a YAML or JSON file where one is named.
func (p *program) definition(cmd *cobra.Command, file, name string) (map[string]any, error) {
	doc := map[string]any{}
	if file != "" {
		var b []byte
		var err error
		if file == "-" {
			b, err = io.ReadAll(io.LimitReader(p.stdin, maxAnswer))
		} else {
			b, err = os.ReadFile(file)
		}
		if err != nil {
			return nil, err
		}
		if err := yaml.Unmarshal(b, &doc); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if len(doc) == 0 {
			return nil, fmt.Errorf("%s: is empty; want the keys of one definition, as below its name in a rules file", file)
		}
		if in, ok := doc["name"]; ok && in != name {
			return nil, usagef(cmd, "%s names %q and the command line %q", file, in, name)
		}
	}
	doc["name"] = name
	return doc, nil
}

// setIf sets a key unless v is the zero value: a flag that was not given.
func setIf[T comparable](doc map[string]any, key string, v T) {
	var zero T
	if v != zero {
		doc[key] = v
	}
}

// child is the mapping under a key, empty if there is none.
func child(doc map[string]any, key string) map[string]any {
	if m, ok := doc[key].(map[string]any); ok {
		return m
	}
	return map[string]any{}
}

// putChild puts a child back where it has something in it.
func putChild(doc map[string]any, key string, m map[string]any) {
	if len(m) > 0 {
		doc[key] = m
	}
}
