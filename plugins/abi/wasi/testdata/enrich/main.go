// Command enrich is the sample function as a plain program: CloudEvents in, answers out, a line each.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
)

type cloudEvent struct {
	Type string          `json:"type"`
	Data json.RawMessage `json:"data"`
}

func main() {
	field := os.Getenv("MILLRACE_CONFIG_FIELD")
	if field == "" {
		field = "email"
	}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 4<<20)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for in.Scan() {
		var e cloudEvent
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			panic(err)
		}
		b, err := json.Marshal(enrich(&e, field))
		if err != nil {
			panic(err)
		}
		out.Write(append(b, '\n'))
	}
}

type answer map[string]any

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
