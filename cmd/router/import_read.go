package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/event"
)

// lineLumper cuts NDJSON.
type lineLumper struct {
	in   *bufio.Reader
	file string
	from int64 // lines that end at or before it are imported already
	at   int64
	id   string // of the import
	line int
	held []byte // a line that did not fit
}

func newLineLumper(in io.Reader, file string, s *importState) *lineLumper {
	l := &lineLumper{in: bufio.NewReaderSize(in, 256<<10), file: file, from: s.Bytes, id: s.ID}
	if bom, _ := l.in.Peek(3); string(bom) == "\xef\xbb\xbf" {
		n, _ := l.in.Discard(3) // what was peeked is there
		l.at = int64(n)
	}
	return l
}

func (l *lineLumper) next(events, size int) (*lump, error) {
	out := &lump{media: ndjsonType}
	for len(out.lines) < events {
		text, err := l.read(size)
		if err != nil {
			if errors.Is(err, io.EOF) && len(out.lines) > 0 {
				return out, nil
			}
			return nil, err
		}
		if len(text) == 0 {
			continue
		}
		doc, err := l.event(text)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", l.file, l.line, err)
		}
		if len(out.lines) > 0 && len(out.body)+len(doc)+1 > size {
			l.held = text
			return out, nil
		}
		out.body = append(append(out.body, doc...), '\n')
		out.lines = append(out.lines, l.line)
		out.end, out.next = l.at, l.line+1
	}
	return out, nil
}

// read returns the next line that was not imported yet, without its end.
func (l *lineLumper) read(size int) ([]byte, error) {
	if l.held != nil {
		text := l.held
		l.held = nil
		return text, nil
	}
	for {
		var text []byte
		for {
			part, err := l.in.ReadSlice('\n')
			l.at += int64(len(part))
			text = append(text, part...)
			if len(text) > size {
				return nil, fmt.Errorf("%s:%d: the line is longer than a request may be, %d bytes", l.file, l.line+1, size)
			}
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if err != nil && (!errors.Is(err, io.EOF) || len(text) == 0) {
				return nil, err
			}
			break
		}
		l.line++
		if l.at > l.from {
			return bytes.TrimSpace(text), nil
		}
	}
}

// event checks a line and makes it what is sent.
func (l *lineLumper) event(text []byte) ([]byte, error) {
	if err := event.CheckJSON(text); err != nil {
		return nil, err
	}
	if !event.HasSpecVersion(text) {
		return dataEvent(text, l.id, l.line), nil
	}
	if !bytes.Contains(text, []byte(`"millraceposition"`)) && !bytes.Contains(text, []byte(`"recordedtime"`)) {
		var e event.Event
		return text, event.ParseStructured(text, event.Limits{}, &e)
	}
	return asSent(text)
}

// dataEvent is an event whose data is a line, with an id that the same import gives it again, and no other one does.
func dataEvent(text []byte, of string, line int) []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %s", of, line, text))
	return fmt.Appendf(nil, `{"specversion":"1.0","id":"%s","source":"/import","type":"event","data":%s}`, hex.EncodeToString(sum[:12]), text)
}

// asSent takes off what the router has added when it showed an event.
func asSent(text []byte) ([]byte, error) {
	var e event.Event
	if err := event.ParseStructured(text, event.Limits{}, &e); err != nil {
		return nil, err
	}
	e.Set(event.Attr{Name: "millraceposition", Unset: true})
	e.Set(event.Attr{Name: "recordedtime", Unset: true})
	return event.Record(e.AppendRecord(nil)).AppendStructured(nil), nil
}

// csvLumper cuts CSV. Rows become CloudEvents where the header is that of an export, else the router reads them.
type csvLumper struct {
	in     *csv.Reader
	file   string
	from   int64
	header []string
	export bool
	held   []string
	line   int
	shift  int64 // of offsets: the byte order mark
}

func newCSVLumper(in io.Reader, file string, s *importState) *csvLumper {
	b := bufio.NewReaderSize(in, 256<<10)
	c := &csvLumper{file: file, from: s.Bytes}
	if bom, _ := b.Peek(3); string(bom) == "\xef\xbb\xbf" {
		n, _ := b.Discard(3)
		c.shift = int64(n)
	}
	c.in = csv.NewReader(b)
	return c
}

func (c *csvLumper) read() ([]string, error) {
	row, err := c.in.Read()
	var bad *csv.ParseError
	switch {
	case errors.As(err, &bad):
		return nil, fmt.Errorf("%s:%d:%d: broken CSV: %w", c.file, bad.Line, bad.Column, bad.Err)
	case err != nil:
		return nil, err
	}
	c.line, _ = c.in.FieldPos(0)
	for i, cell := range row {
		if !utf8.ValidString(cell) {
			return nil, fmt.Errorf("%s:%d: column %d is not UTF-8", c.file, c.line, i+1)
		}
	}
	return row, nil
}

func (c *csvLumper) next(events, size int) (*lump, error) {
	if c.header == nil {
		row, err := c.read()
		if err != nil {
			return nil, err
		}
		c.header = row
		c.export = slices.Contains(row, "id") && slices.Contains(row, "source") && slices.Contains(row, "type") && slices.Contains(row, "data")
	}
	out := &lump{media: csvType}
	if c.export {
		out.media = ndjsonType
	} else {
		out.body = csvLine(out.body, c.header)
	}
	for len(out.lines) < events {
		row, err := c.held, error(nil)
		if c.held = nil; row == nil {
			row, err = c.read()
		}
		if err != nil {
			if errors.Is(err, io.EOF) && len(out.lines) > 0 {
				return out, nil
			}
			return nil, err
		}
		end := c.in.InputOffset() + c.shift
		if end <= c.from {
			continue
		}
		var text []byte
		if c.export {
			if text, err = c.event(row); err != nil {
				return nil, fmt.Errorf("%s:%d: %w", c.file, c.line, err)
			}
		} else {
			text = csvLine(nil, row)
		}
		if len(out.lines) > 0 && len(out.body)+len(text) > size {
			c.held = row
			return out, nil
		}
		out.body = append(out.body, text...)
		out.lines = append(out.lines, c.line)
		out.end, out.next = end, c.line+1
	}
	return out, nil
}

// csvLine writes a row. One empty cell must not become an empty line, which reads as no row.
func csvLine(dst []byte, row []string) []byte {
	if len(row) == 1 && row[0] == "" {
		return append(dst, "\"\"\n"...)
	}
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	_ = w.Write(row) // to memory
	w.Flush()
	return append(dst, b.Bytes()...)
}

// event is the CloudEvent that a row of an export was made of.
func (c *csvLumper) event(row []string) ([]byte, error) {
	e := event.Event{}
	var data string
	for i, name := range c.header {
		v := row[i]
		switch name {
		case "id":
			e.ID = v
		case "source":
			e.Source = v
		case "type":
			e.Type = v
		case "subject":
			e.Subject = v
		case "time":
			e.Time = v
		case "partitionkey", "key":
			e.PartitionKey = v
		case "datacontenttype":
			e.DataContentType = v
		case "data":
			data = v
		case "data_base64":
			raw, err := base64.StdEncoding.DecodeString(v)
			if err != nil {
				return nil, fmt.Errorf("data_base64: %w", err)
			}
			if v != "" {
				e.Data, e.Binary = raw, true
			}
		case "millraceposition", "recordedtime":
		default:
			if v != "" {
				return nil, fmt.Errorf("column %q is not one of an export, which has %s", name, strings.Join(exportColumns, ", "))
			}
		}
	}
	switch {
	case data == "":
	case e.DataContentType != "" && !event.IsJSON(e.DataContentType):
		e.Data = []byte(data)
	default:
		if err := event.CheckJSON([]byte(data)); err != nil {
			return nil, fmt.Errorf("data: %w", err)
		}
		e.Data = []byte(data)
	}
	if err := e.Validate(event.Limits{}.WithDefaults()); err != nil {
		return nil, err
	}
	return append(event.Record(e.AppendRecord(nil)).AppendStructured(nil), '\n'), nil
}
