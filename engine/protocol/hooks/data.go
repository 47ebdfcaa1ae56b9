package hooks

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/event"
)

// mediaType is what a body is. No scheme signs Content-Type: where it is known what the sender sends, the body, which is signed,
// tells it by itself, so that whoever repeats a webhook under another type makes no other event of it.
func mediaType(h *event.Hook, by event.Provided) string {
	contentType, _ := h.Header("content-type")
	if !by.JSON {
		return contentType
	}
	base, _, _ := strings.Cut(contentType, ";")
	isJSON := strings.EqualFold(strings.TrimSpace(base), "application/json")
	switch body := bytes.TrimLeft(h.Body, " \t\r\n"); {
	case len(body) == 0, isForm(contentType) && by.Form && body[0] != '{' && body[0] != '[':
		return contentType
	case body[0] == '{' || body[0] == '[':
		if isJSON || event.CheckJSON(h.Body) != nil {
			return contentType
		}
		return "application/json"
	case by.Form:
		return formType
	}
	return contentType
}

// readData takes the body as the event's data, byte for byte, but for a form.
func readData(h *event.Hook, contentType string, rawForm bool, ev *event.Event) error {
	switch {
	case isForm(contentType) && !rawForm:
		data, err := formJSON(h.Body)
		if err != nil {
			return err
		}
		h.Data, h.JSON = data, true
		ev.DataContentType = "application/json"
	case len(h.Body) == 0:
		return nil
	case event.IsJSON(contentType):
		err := event.CheckJSON(h.Body)
		switch {
		case err == nil:
			h.Data, h.JSON = h.Body, true
			if ev.DataContentType = contentType; contentType == "" {
				ev.DataContentType = "application/json"
			}
		case contentType != "":
			return event.At("body", err)
		default: // nothing was said of it
			h.Data = h.Body
			ev.DataContentType, ev.Binary = "text/plain", !utf8.Valid(h.Body)
			if ev.Binary {
				ev.DataContentType = "application/octet-stream"
			}
		}
	default:
		h.Data = h.Body
		ev.DataContentType, ev.Binary = contentType, !isText(contentType) || !utf8.Valid(h.Body)
	}
	ev.Data = h.Data
	return nil
}

func isText(contentType string) bool {
	base, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	base = strings.TrimSpace(base)
	return strings.HasPrefix(base, "text/") || strings.HasSuffix(base, "+xml") || strings.HasSuffix(base, "/xml") || isForm(base)
}
