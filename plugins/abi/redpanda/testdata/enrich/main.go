// Command enrich is the sample function as a data transform, made with Redpanda's own SDK for Go as it is.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"

	"github.com/redpanda-data/redpanda/src/transform-sdk/go/transform"
)

var field = "email"

func main() {
	if f := os.Getenv("field"); f != "" {
		field = f
	}
	transform.OnRecordWritten(enrich)
}

func enrich(e transform.WriteEvent, w transform.RecordWriter) error {
	r := e.Record()
	kind := -1
	for i, h := range r.Headers {
		if string(h.Key) == "ce_type" {
			kind = i
		}
	}
	if string(r.Headers[kind].Value) == "order.ignored" {
		return nil
	}
	var data map[string]any
	d := json.NewDecoder(bytes.NewReader(r.Value))
	d.UseNumber()
	if d.Decode(&data) != nil || data == nil || d.More() {
		return errors.New("data is not a JSON object")
	}
	switch string(r.Headers[kind].Value) {
	case "order.bad":
		return errors.New("bad order")
	case "order.ask":
		return w.Write(r)
	case "order.split":
		r.Headers[kind].Value = []byte("order.item")
		items, _ := data["items"].([]any)
		for _, item := range items {
			b, err := json.Marshal(item)
			if err != nil {
				return err
			}
			r.Value = b
			if err := w.Write(r); err != nil {
				return err
			}
		}
		return nil
	}
	if _, ok := data[field]; ok {
		data[field] = "***"
	}
	data["enriched"] = true
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	r.Value = b
	r.Headers = append(r.Headers, transform.RecordHeader{Key: []byte("enrichedby"), Value: []byte("enrich")})
	return w.Write(r)
}
