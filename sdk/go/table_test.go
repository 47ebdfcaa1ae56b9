package millrace

import (
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
)

// tableCase is a line of the table that the scanners of all SDKs are held to. In doc and want "@<" and "@>" are
// Nest opening and closing brackets.
type tableCase struct {
	Op, Doc, Path string
	Edits         [][3]string
	Nest          int
	Want          *string
}

func TestTable(t *testing.T) {
	b, err := os.ReadFile("../testdata/scan.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []tableCase
	if err := json.Unmarshal(b, &cases); err != nil || len(cases) < 100 {
		t.Fatalf("%d cases: %v", len(cases), err)
	}
	for _, c := range cases {
		nest := strings.NewReplacer("@<", strings.Repeat("[", c.Nest), "@>", strings.Repeat("]", c.Nest))
		got, ok := tableRun(t, &c, []byte(nest.Replace(c.Doc)))
		want := "none"
		if c.Want != nil {
			want = nest.Replace(*c.Want)
		}
		if ok != (c.Want != nil) || ok && got != want {
			t.Errorf("%s %.200q %q %v:\n got %.200q %v\nwant %.200q", c.Op, c.Doc, c.Path, c.Edits, got, ok, want)
		}
	}
}

func tableRun(t *testing.T, c *tableCase, doc []byte) (got string, ok bool) {
	t.Helper()
	switch c.Op {
	case "get":
		v, ok := Get(doc, c.Path)
		if ok && !Has(doc, c.Path) { // which may find more, since it reads no further than it must
			t.Errorf("Has(%.200q, %q) does not see what Get does", c.Doc, c.Path)
		}
		return string(v), ok
	case "string":
		return GetString(doc, c.Path)
	case "int":
		n, ok := GetInt(doc, c.Path)
		return strconv.FormatInt(n, 10), ok
	case "bool":
		b, ok := GetBool(doc, c.Path)
		return strconv.FormatBool(b), ok
	case "object":
		return strconv.FormatBool(IsObject(doc)), true
	case "elements":
		var all []string
		for e := range Elements(doc, c.Path) {
			all = append(all, string(e))
		}
		return strings.Join(all, "|"), true
	case "edit":
		var edits []Edit
		for _, e := range c.Edits {
			do := map[string]uint8{"set": doSet, "settext": doSetText, "replace": doReplace, "replacetext": doReplaceText, "remove": doRemove}
			edits = append(edits, Edit{e[1], e[2], do[e[0]]})
		}
		out, err := Apply([]byte("kept"), doc, edits...)
		s, kept := strings.CutPrefix(string(out), "kept")
		if !kept || err != nil && s != "" {
			t.Errorf("%v: dst is not as it was", c)
		}
		switch {
		case errors.Is(err, ErrJSON):
			return "!json", true
		case errors.Is(err, ErrPath):
			return "!path", true
		case errors.Is(err, ErrEdits):
			return "!edits", true
		}
		return s, true
	}
	t.Fatalf("op %q", c.Op)
	return "", false
}
