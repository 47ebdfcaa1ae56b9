package event

import (
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"
)

// AppendStructured appends r as one JSON object in structured mode, with the attributes that its
// producer sent and no others. JSON data stands verbatim, white space around it aside, under data; text
// is a JSON string; bytes, and what is declared JSON or text but is not, stand under data_base64. The
// document is one line if the data is.
func (r Record) AppendStructured(dst []byte) []byte {
	dst = append(dst, `{"specversion":"1.0"`...)
	b := r[le.Uint32(r[40:]):]
	for range le.Uint16(r[4:]) {
		klen, vlen := int(le.Uint16(b[2:])), int(le.Uint32(b[4:]))
		tag, kind := Tag(b[0]), Kind(b[1])
		name, v := borrow(b[8:8+klen]), borrow(b[8+klen:8+klen+vlen])
		b = b[pad(8+klen+vlen, 4):]
		if tag != TagExtension {
			name = tag.Name()
			if v == "" || tag == TagTopic {
				continue
			}
		}
		dst = append(dst, ',')
		dst = appendQuoted(dst, name)
		dst = append(dst, ':')
		if kind == Boolean && (v == "true" || v == "false") || kind == Integer && isInt32(v) {
			dst = append(dst, v...)
		} else {
			dst = appendQuoted(dst, v)
		}
	}
	if data := r.Data(); data != nil {
		dst = appendData(dst, data, r.Attr(TagDataContentType), r.Flags()&FlagBinary != 0)
	}
	return append(dst, '}')
}

func appendData(dst, data []byte, contentType string, binary bool) []byte {
	if !binary && IsJSON(contentType) {
		start := space(data, 0)
		if end, _, why := scanValue(data, start); why == "" && space(data, end) == len(data) {
			dst = append(dst, `,"data":`...)
			return append(dst, data[start:end]...)
		}
	} else if !binary && utf8.Valid(data) {
		dst = append(dst, `,"data":`...)
		return appendQuoted(dst, borrow(data))
	}
	dst = append(dst, `,"data_base64":"`...)
	dst = base64.StdEncoding.AppendEncode(dst, data)
	return append(dst, '"')
}

// AppendBatch appends rs as one JSON array in batch mode.
func AppendBatch(dst []byte, rs []Record) []byte {
	dst = append(dst, '[')
	for i, r := range rs {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = r.AppendStructured(dst)
	}
	return append(dst, ']')
}

// Headers yields the headers of binary mode: ce-specversion first, then an attribute each,
// percent-encoded. DataContentType is not among them: it is the Content-Type. An extension whose name
// Validate would refuse is left out, for it could forge a header. Strings may borrow r's memory.
func (r Record) Headers(yield func(name, value string) bool) {
	if !yield("ce-specversion", "1.0") {
		return
	}
	for a := range r.Attrs {
		name := a.Tag.header()
		switch {
		case a.Tag == TagExtension:
			if checkAttributeName(a.Name) != "" {
				continue
			}
			name = "ce-" + a.Name
		case a.Value == "", a.Tag == TagTopic, a.Tag == TagDataContentType:
			continue
		}
		if !yield(name, percentEncode(a.Value)) {
			return
		}
	}
}

// FromHeader takes the header of an HTTP request into e, if it is one of CloudEvents' binary mode
// (isCE). Names are compared without case, values percent-decoded; both are borrowed where that changes
// nothing. E.Extensions must be empty before the first header. Content-Type and body are the caller's
// DataContentType and Data; so is Validate once all headers are in, if there was a ce-specversion.
func FromHeader(e *Event, name, value string) (isCE bool, err error) {
	if len(name) < 3 || !strings.EqualFold(name[:3], "ce-") {
		return false, nil
	}
	var buf [16]byte // longer than every name with a meaning
	lower := buf[:0]
	for i := 3; i < len(name) && len(lower) < len(buf); i++ {
		lower = append(lower, lowerOf(name[i]))
	}
	value = percentDecode(unquote(value))
	if !utf8.ValidString(value) {
		return true, Invalid("ce-"+clip(strings.ToLower(name[3:])), "is not UTF-8; percent-encode what is not printable ASCII")
	}
	tag := TagExtension
	if len(lower) < len(buf) {
		switch string(lower) {
		case "specversion":
			if value != "1.0" {
				return true, Invalid("ce-specversion", fmt.Sprintf("is %.60q; this router takes 1.0", value))
			}
			return true, nil
		case "datacontenttype":
			return true, Invalid("ce-datacontenttype", "is not a header of binary mode; send it as Content-Type")
		}
		tag = TagOf(borrow(lower))
	}
	if tag != TagExtension {
		switch f := e.field(tag); {
		case *f != "":
			return true, Invalid(tag.header(), "is given twice")
		case value == "":
			return true, Invalid(tag.header(), "is empty; give it a value or leave it out")
		default:
			*f = value
		}
		return true, nil
	}
	ext := strings.ToLower(name[3:]) // itself if it has no upper case
	if why := checkAttributeName(ext); why != "" {
		return true, Invalid("ce-"+clip(ext), why)
	}
	for i := range e.Extensions {
		if e.Extensions[i].Name == ext {
			return true, Invalid("ce-"+ext, "is given twice")
		}
	}
	e.Extensions = append(e.Extensions, Attribute{Name: ext, Value: value})
	return true, nil
}

func lowerOf(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		c |= 0x20
	}
	return c
}

// percentEncode encodes as HTTP binding 3.1.3.2 says: space, double quote, percent, and whatever is not
// printable ASCII.
func percentEncode(s string) string {
	const hex = "0123456789ABCDEF"
	plain := func(c byte) bool { return c > ' ' && c < 0x7F && c != '"' && c != '%' }
	i := 0
	for i < len(s) && plain(s[i]) {
		i++
	}
	if i == len(s) {
		return s
	}
	out := append(make([]byte, 0, 3*len(s)), s[:i]...)
	for ; i < len(s); i++ {
		if c := s[i]; plain(c) {
			out = append(out, c)
		} else {
			out = append(out, '%', hex[c>>4], hex[c&15])
		}
	}
	return borrow(out)
}

// percentDecode undoes one round of percent-encoding. A % without two hex digits stays one: senders
// (the Go SDK among them) do not encode at all.
func percentDecode(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			a, ok1 := unhex(s[i+1])
			b, ok2 := unhex(s[i+2])
			if ok1 && ok2 {
				out = append(out, a<<4|b)
				i += 2
				continue
			}
		}
		out = append(out, s[i])
	}
	return borrow(out)
}

// unquote takes the double quotes and backslashes off a value in quotes, which senders of before
// CloudEvents 1.0.2 wrote (HTTP binding 3.1.3.2).
func unquote(s string) string {
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return s
	}
	s = s[1 : len(s)-1]
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		out = append(out, s[i])
	}
	return borrow(out)
}
