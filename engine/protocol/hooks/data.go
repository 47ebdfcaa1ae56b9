package hooks

import (
	"strings"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/event"
)

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
