// Command enrich is the sample function as a plug-in, made with Extism's own kit for Go as it is.
package main

import (
	"bytes"
	"encoding/json"

	"github.com/extism/go-pdk"
)

func main() {}

type cloudEvent struct {
	Type string          `json:"type"`
	Data json.RawMessage `json:"data"`
}

type answer map[string]any

//go:wasmexport enrich
func handle() int32 {
	var e cloudEvent
	if err := pdk.InputJSON(&e); err != nil {
		pdk.SetError(err)
		return 1
	}
	field, ok := pdk.GetConfig("field")
	if !ok {
		field = "email"
	}
	if err := pdk.OutputJSON(enrich(&e, field)); err != nil {
		pdk.SetError(err)
		return 1
	}
	return 0
}

func enrich(e *cloudEvent, field string) any {
	if e.Type == "order.ignored" {
		return nil
	}
	var data map[string]any
	d := json.NewDecoder(bytes.NewReader(e.Data))
	d.UseNumber()
	if d.Decode(&data) != nil || data == nil {
		return answer{"verdict": "reject", "code": 422, "reason": "data is not a JSON object"}
	}
	switch e.Type {
	case "order.bad":
		return answer{"verdict": "reject", "code": 400, "reason": "bad order"}
	case "order.split":
		out := []answer{}
		items, _ := data["items"].([]any)
		for _, item := range items {
			out = append(out, answer{"verdict": "emit", "type": "order.item", "data": item})
		}
		return out
	case "order.ask":
		return []answer{
			{"verdict": "reply", "status": 200, "contentType": "application/json", "data": answer{"total": data["total"]}},
			{"verdict": "pass"},
		}
	}
	if _, ok := data[field]; ok {
		data[field] = "***"
	}
	data["enriched"] = true
	return answer{"verdict": "emit", "enrichedby": "enrich", "data": data}
}
