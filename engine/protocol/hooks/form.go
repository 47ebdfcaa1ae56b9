package hooks

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// maxFields bounds the names and values of a form.
const maxFields = 1000

// formField is a name of a form and its values, in the order in which they came.
type formField struct {
	name   string
	values []string
}

const formType = "application/x-www-form-urlencoded"

func isForm(contentType string) bool {
	base, _, _ := strings.Cut(contentType, ";")
	return strings.EqualFold(strings.TrimSpace(base), formType)
}

// parseForm reads application/x-www-form-urlencoded: names in the order of their first values.
func parseForm(body string) ([]formField, error) {
	var fields []formField
	at := map[string]int{}
	n := 0
	for pair := range strings.SplitSeq(body, "&") {
		if pair == "" {
			continue
		}
		if n++; n > maxFields {
			return nil, fmt.Errorf("the form has over %d values", maxFields)
		}
		k, v, _ := strings.Cut(pair, "=")
		name, ok := event.FormText(k)
		value, fine := event.FormText(v)
		if !ok || !fine {
			return nil, fmt.Errorf("the form's value %d has a %% without two hex digits", n)
		}
		i, seen := at[name]
		if !seen {
			i = len(fields)
			at[name] = i
			fields = append(fields, formField{name: name})
		}
		fields[i].values = append(fields[i].values, value)
	}
	return fields, nil
}

// formJSON is a form as a JSON object: a name that has several values has a list. A form that is one `payload` of JSON, as
// GitHub and Slack send, is that JSON.
func formJSON(body []byte) ([]byte, error) {
	fields, err := parseForm(string(body))
	if err != nil {
		return nil, event.Invalid("body", err.Error())
	}
	if len(fields) == 1 && fields[0].name == "payload" && len(fields[0].values) == 1 {
		if text := []byte(fields[0].values[0]); event.CheckJSON(text) == nil {
			return text, nil
		}
	}
	doc := make(map[string]any, len(fields))
	for _, f := range fields {
		if len(f.values) == 1 {
			doc[f.name] = f.values[0]
		} else {
			doc[f.name] = slices.Clone(f.values)
		}
	}
	return json.Marshal(doc)
}
