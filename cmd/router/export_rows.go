package main

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// exportColumns are those of a CSV for which none were named. A CSV with this header can be imported as what it was.
var exportColumns = []string{"millraceposition", "recordedtime", "id", "source", "type", "subject", "time", "partitionkey", "datacontenttype", "data", "data_base64"}

// rowWriter writes events as lines or rows.
type rowWriter struct {
	format  string
	columns []string
	w       *bufio.Writer
	csv     *csv.Writer
}

// begin writes a header row, unless the file has one.
func (r *rowWriter) begin(has bool) error {
	if r.format != "csv" {
		return nil
	}
	if len(r.columns) == 0 {
		r.columns = exportColumns
	}
	r.csv = csv.NewWriter(r.w)
	if has {
		return nil
	}
	return r.csv.Write(r.columns)
}

func (r *rowWriter) write(doc json.RawMessage) error {
	if r.format != "csv" {
		// JSON has line breaks between its tokens alone, where a blank is as good.
		for i, b := range doc {
			if b == '\n' || b == '\r' {
				doc[i] = ' '
			}
		}
		_, err := r.w.Write(append(doc, '\n'))
		return err
	}
	var whole struct{ Data json.RawMessage }
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	var ev map[string]any
	if err := errors.Join(d.Decode(&ev), json.Unmarshal(doc, &whole)); err != nil {
		return err
	}
	media, _ := ev["datacontenttype"].(string)
	row := make([]string, len(r.columns))
	for i, path := range r.columns {
		if path == "data" && (media == "" || event.IsJSON(media)) { // as it was written
			row[i] = string(whole.Data)
			continue
		}
		row[i] = cellOf(ev, path)
	}
	return r.csv.Write(row)
}

func (r *rowWriter) flush() error {
	if r.csv != nil {
		r.csv.Flush()
		if err := r.csv.Error(); err != nil {
			return err
		}
	}
	return r.w.Flush()
}

// cellOf is the value at a path as a cell: a string as it is, anything else as JSON, "" where there is none. key and
// ext.<name> are what filters call them.
func cellOf(ev map[string]any, path string) string {
	switch {
	case path == "key":
		path = "partitionkey"
	case strings.HasPrefix(path, "ext."):
		path = strings.TrimPrefix(path, "ext.")
	}
	var v any = ev
	for name := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return ""
		}
		if v, ok = m[name]; !ok {
			return ""
		}
	}
	switch text, ok := v.(string); {
	case ok:
		return text
	case v == nil:
		return ""
	default:
		b, err := marshalPlain(v)
		if err != nil {
			return ""
		}
		return string(b)
	}
}

// marshalPlain is JSON without escapes for HTML.
func marshalPlain(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}
