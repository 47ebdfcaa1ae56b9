package httpapi

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/event"
	"github.com/tidwall/gjson"
)

// cell types: a set, because a schema may allow several.
const (
	cellString = 1 << iota
	cellNumber
	cellInteger
	cellBool
	cellNull
	cellJSON // object or array
	cellGuess
)

// decodeCSV makes an event of each row below the header row: an object of its cells.
func (c *call) decodeCSV(topic string, body []byte) error {
	if !utf8.Valid(body) {
		return event.Invalid("body", "is not UTF-8")
	}
	types := c.query("types")
	if types != "" && types != "string" {
		return invalidf("?types", "is %.20q; want string, or leave it out", types)
	}
	r := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(body, []byte("\ufeff"))))
	r.ReuseRecord = true
	row, err := r.Read()
	if err == io.EOF {
		return event.Invalid("body", "has no header row; the first line names the columns")
	}
	if err != nil {
		return csvError(err)
	}
	names := make([]string, len(row))
	seen := make(map[string]bool, len(row))
	for i, name := range row {
		if name == "" || seen[name] {
			return invalidf(fmt.Sprintf("line 1, column %d", i+1), "the column's name %.60q is empty or given twice", name)
		}
		seen[name] = true
		names[i] = string(appendQuoted(nil, name))
	}
	want := make([]int, len(names))
	if err := c.columnTypes(topic, types, row, want); err != nil {
		return err
	}
	c.events = c.events[:0]
	for {
		row, err := r.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			return csvError(err)
		}
		if l := c.s.o.Limits; len(c.events) == l.Events {
			return event.Bad(event.ErrTooLarge, fmt.Sprintf("events[%d]", l.Events), fmt.Sprintf("the limit is %d events a request; send the rest in another", l.Events))
		}
		from := len(c.made)
		c.made = append(c.made, '{')
		for i, cell := range row {
			mark := len(c.made)
			if len(c.made) > from+1 {
				c.made = append(c.made, ',')
			}
			c.made = append(append(c.made, names[i]...), ':')
			var bad string
			if c.made, bad = appendCell(c.made, cell, want[i]); bad == "omit" {
				c.made = c.made[:mark]
			} else if bad != "" {
				line, col := r.FieldPos(i)
				return invalidf(fmt.Sprintf("line %d, column %d", line, col), "%s is %.60q; the topic's schema wants %s", names[i], cell, bad)
			}
		}
		c.made = append(c.made, '}')
		e := c.next()
		e.DataContentType, e.Data = "application/json", c.made[from:len(c.made):len(c.made)]
	}
	return c.some("has a header row and no other; send at least one row")
}

func csvError(err error) error {
	var p *csv.ParseError
	if errors.As(err, &p) {
		return invalidf(fmt.Sprintf("line %d, column %d", p.Line, p.Column), "broken CSV (RFC 4180): %v", p.Err)
	}
	return invalidf("body", "broken CSV: %v", err)
}

// columnTypes fills in what each column's cells are to be.
func (c *call) columnTypes(topic, types string, columns []string, want []int) error {
	def := cellGuess
	if types == "string" {
		def = cellString
	}
	for i := range want {
		want[i] = def
	}
	if def == cellString {
		return nil
	}
	schema, err := c.s.o.Backend.Schema(c.s.work, topic)
	if err != nil || len(schema) == 0 {
		return err
	}
	// Not by path: a column's name may have dots.
	gjson.GetBytes(schema, "properties").ForEach(func(k, v gjson.Result) bool {
		for i, name := range columns {
			if name == k.String() {
				want[i] = schemaTypes(v)
			}
		}
		return true
	})
	return nil
}

// schemaTypes is the set of types that a property's schema allows.
func schemaTypes(property gjson.Result) int {
	t := property.Get("type")
	set := 0
	add := func(name string) {
		set |= map[string]int{"string": cellString, "number": cellNumber, "integer": cellInteger, "boolean": cellBool,
			"null": cellNull, "object": cellJSON, "array": cellJSON}[name]
	}
	if t.IsArray() {
		t.ForEach(func(_, v gjson.Result) bool { add(v.String()); return true })
	} else {
		add(t.String())
	}
	if set == 0 {
		return cellGuess
	}
	return set
}

// appendCell appends a cell as JSON. Bad is what was wanted if the cell is not that, "omit" if an empty
// cell says that the member is absent.
func appendCell(dst []byte, cell string, want int) (_ []byte, bad string) {
	raw := func() ([]byte, string) { return append(dst, cell...), "" }
	if want == cellGuess {
		switch {
		case cell == "":
			return append(dst, "null"...), ""
		case cell == "true", cell == "false", canonicalNumber(cell):
			return raw()
		}
		return appendQuoted(dst, cell), ""
	}
	switch {
	case cell == "" && want&cellString != 0 && want&cellNull == 0:
		return append(dst, `""`...), ""
	case cell == "" && want&cellNull != 0:
		return append(dst, "null"...), ""
	case cell == "":
		return dst, "omit"
	case want&cellBool != 0 && (cell == "true" || cell == "false"):
		return raw()
	case want&(cellNumber|cellInteger) != 0 && isNumber(cell):
		return raw() // the schema's check tells whether it is an integer
	case want&cellJSON != 0 && (cell[0] == '{' || cell[0] == '[') && event.CheckJSON([]byte(cell)) == nil:
		return raw()
	case want&cellNull != 0 && cell == "null" && want&cellString == 0:
		return raw()
	case want&cellString != 0:
		return appendQuoted(dst, cell), ""
	}
	var names []string
	for _, x := range []struct {
		bit  int
		name string
	}{{cellNumber, "a number"}, {cellInteger, "an integer"}, {cellBool, "true or false"}, {cellNull, "nothing"}, {cellJSON, "a JSON object or array"}} {
		if want&x.bit != 0 {
			names = append(names, x.name)
		}
	}
	return dst, strings.Join(names, " or ")
}

// isNumber reports whether s is a JSON number.
func isNumber(s string) bool {
	c := s[len(s)-1]
	return (s[0] == '-' || s[0] >= '0' && s[0] <= '9') && c >= '0' && c <= '9' && event.CheckJSON(bytesOf(s)) == nil
}

// canonicalNumber reports whether s is a JSON number in its one plain form. Codes that only look like
// numbers (007, 1.50, 1e5, -0) stay strings: nothing of them may be lost.
func canonicalNumber(s string) bool {
	if strings.ContainsAny(s, "eE") || !isNumber(s) {
		return false
	}
	if _, fraction, ok := strings.Cut(s, "."); ok {
		return fraction[len(fraction)-1] != '0'
	}
	return s != "-0"
}
