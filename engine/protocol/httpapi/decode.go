package httpapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// decode turns a body into c.events by its Content-Type. Events borrow the body.
func (c *call) decode(topic string, body []byte) error {
	typ := c.h.contentType
	kind := media(typ)
	ce, declared, err := c.binaryHeaders()
	if err != nil {
		return err
	}
	structured := strings.HasPrefix(kind, "application/cloudevents")
	if several := structured || isNDJSON(kind) || kind == "text/csv" && !declared; several && ce {
		return invalidf(strings.ToLower(c.h.ce[0].name), "stands beside Content-Type %s: a CloudEvent comes in binary mode (ce-* headers) or in structured mode, not both", kind)
	}
	if cs := charset(typ); cs != "" && !strings.EqualFold(cs, "utf-8") && (structured || event.IsJSON(kind) || kind == "text/csv") {
		return refuse(fasthttp.StatusUnsupportedMediaType, "the charset %.40q is not taken for %s; send UTF-8", cs, kind)
	}
	l := c.s.o.Limits
	switch {
	case kind == "application/cloudevents+json":
		c.events = c.events[:0]
		return event.ParseStructured(body, l, c.next())
	case kind == "application/cloudevents-batch+json":
		if c.events, err = event.ParseBatch(body, l, c.events[:0]); err != nil {
			return err
		}
		return c.some("the batch is empty; send at least one event")
	case structured:
		return refuse(fasthttp.StatusUnsupportedMediaType, "%.80q is not taken; of CloudEvents formats there are application/cloudevents+json and application/cloudevents-batch+json", kind)
	case isNDJSON(kind):
		return c.decodeLines(body)
	case kind == "text/csv" && !declared:
		return c.decodeCSV(topic, body)
	}
	return c.decodeSingle(kind, body, declared)
}

// binaryHeaders reads the ce-* headers into the first event: whether there were any, and whether
// ce-specversion declares a CloudEvent.
func (c *call) binaryHeaders() (ce, declared bool, err error) {
	c.events = c.events[:0]
	e := c.next()
	for _, h := range c.h.ce {
		is, err := event.FromHeader(e, h.name, h.value)
		if err != nil {
			return true, true, err
		}
		ce = ce || is
		declared = declared || strings.EqualFold(h.name, "ce-specversion")
	}
	return ce, declared, nil
}

// decodeSingle takes the body as the data of the one event whose attributes binaryHeaders has read.
func (c *call) decodeSingle(kind string, body []byte, declared bool) error {
	e := &c.events[0]
	typ := c.h.contentType
	switch {
	case isForm(typ):
		// What curl -d says unless told otherwise.
		if event.CheckJSON(body) != nil {
			return refuse(fasthttp.StatusUnsupportedMediaType, "the Content-Type is %s and the body is not JSON; say what it is: "+
				"curl -H 'Content-Type: text/plain' --data-binary @- (or application/json, text/csv, …)", kind)
		}
		e.DataContentType, e.Data = "application/json", body
	case event.IsJSON(typ):
		if len(body) == 0 {
			if typ != "" && !declared {
				return event.Invalid("body", "is empty, which is not JSON; send null, or no Content-Type, for an event without data")
			}
			break
		}
		err := event.CheckJSON(body)
		switch {
		case err == nil:
			if e.Data = body; typ != "" || !declared {
				e.DataContentType = "application/json"
			}
			if typ != "" {
				e.DataContentType = typ
			}
		case typ != "":
			return event.At("body", err)
		default: // nothing was said of it
			e.DataContentType, e.Data, e.Binary = "application/octet-stream", body, true
			if utf8.Valid(body) {
				e.DataContentType, e.Binary = "text/plain", false
			}
		}
	default:
		e.DataContentType, e.Data = typ, body
		if body == nil {
			e.Data = []byte{}
		}
		e.Binary = !isText(kind) || !utf8.Valid(body)
	}
	if !declared {
		return nil // the router fills in what is missing, and validates
	}
	return e.Validate(c.s.o.Limits)
}

// decodeLines reads JSON texts, one after another; each is a CloudEvent if it has specversion, else the
// data of an event.
func (c *call) decodeLines(body []byte) error {
	l := c.s.o.Limits
	c.events = c.events[:0]
	err := event.SplitJSON(body, func(i int, doc []byte) error {
		if i == l.Events {
			return event.Bad(event.ErrTooLarge, "", fmt.Sprintf("the limit is %d events a request; send the rest in another", l.Events))
		}
		e := c.next()
		if event.HasSpecVersion(doc) {
			return event.ParseStructured(doc, l, e)
		}
		e.DataContentType, e.Data = "application/json", doc
		return nil
	})
	if err != nil {
		return err
	}
	return c.some("the body has no JSON text; send at least one")
}

func (c *call) some(otherwise string) error {
	if len(c.events) == 0 {
		return event.Invalid("body", otherwise)
	}
	return nil
}

// indexed is <key>~<index> in memory of the call.
func (c *call) indexed(key string, i int) string {
	from := len(c.made)
	c.made = append(c.made, key...)
	c.made = append(c.made, '~')
	c.made = strconv.AppendInt(c.made, int64(i), 10)
	return borrow(c.made[from:])
}

// media is a content type without parameters, in lower case.
func media(contentType string) string {
	m, _, _ := strings.Cut(contentType, ";")
	return strings.ToLower(strings.TrimSpace(m))
}

func charset(contentType string) string {
	_, params, _ := strings.Cut(contentType, ";")
	for p := range strings.SplitSeq(params, ";") {
		if k, v, _ := strings.Cut(p, "="); strings.EqualFold(strings.TrimSpace(k), "charset") {
			return strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return ""
}

func isNDJSON(kind string) bool {
	switch kind {
	case "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines":
		return true
	}
	return false
}

func isForm(contentType string) bool {
	kind := media(contentType)
	return kind == "application/x-www-form-urlencoded" || kind == "multipart/form-data"
}

// isText reports whether a media type is text: its data is shown as a string where it is UTF-8.
func isText(kind string) bool {
	if strings.HasPrefix(kind, "text/") || strings.HasSuffix(kind, "+xml") || strings.HasSuffix(kind, "/xml") {
		return true
	}
	switch kind {
	case "application/javascript", "application/yaml", "application/x-yaml", "application/toml", "application/sql", "application/graphql":
		return true
	}
	return false
}

// decompressed is the body without its Content-Encoding, in no more memory than the limit.
func (c *call) decompressed() ([]byte, error) { return c.decompressedTo(c.s.o.Limits.Body) }

func (c *call) decompressedTo(limit int) ([]byte, error) {
	body := c.ctx.Request.Body()
	switch enc := strings.ToLower(c.h.contentEncoding); enc {
	case "", "identity":
		return body, nil
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			return nil, invalidf("body", "is not gzip, as Content-Encoding says: %v", err)
		}
		defer z.Close()
		return c.inflate(z, enc, limit)
	case "zstd":
		// RFC 8878, 3.1.1.1.2: a decoder should take windows up to 8 MiB and may refuse larger ones.
		z, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderMaxMemory(uint64(limit)+8<<20))
		if err != nil {
			return nil, invalidf("body", "is not zstd, as Content-Encoding says: %v", err)
		}
		defer z.Close()
		return c.inflate(z, enc, limit)
	default:
		return nil, refuse(fasthttp.StatusUnsupportedMediaType, "the Content-Encoding %.60q is not taken; send gzip, zstd or none", enc).
			with("Accept-Encoding", "gzip, zstd")
	}
}

func (c *call) inflate(z io.Reader, enc string, limit int) ([]byte, error) {
	b := c.body[:0]
	for {
		if len(b) == cap(b) {
			b = append(b, make([]byte, min(max(4096, len(b)), limit+1))...)[:len(b)]
		}
		n, err := z.Read(b[len(b):min(cap(b), limit+1)])
		b = b[:len(b)+n]
		c.body = b
		switch {
		case len(b) > limit:
			return nil, bodyTooLarge(limit)
		case err == io.EOF:
			return b, nil
		case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
			return nil, bodyTooLarge(limit)
		case err != nil:
			return nil, invalidf("body", "is not %s, as Content-Encoding says: %v", enc, err)
		}
	}
}
