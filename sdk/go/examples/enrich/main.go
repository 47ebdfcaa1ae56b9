// Command enrich shows every verdict of a function by what it does to orders: it hides one member of their
// data, marks them as enriched, splits, answers, drops and rejects some. The samples of the other SDKs do
// the same to the byte.
package main

import millrace "github.com/millrace/millrace/sdk/go"

// field is the path of what to hide.
var field = "email"

// buf serves every event: an instance handles one at a time.
var buf []byte

func init() {
	if v, ok := millrace.Config("field"); ok {
		field = millrace.Name(v) // a member's name, points and all
	}
	millrace.Require(millrace.FeatureReply)
	millrace.Handle(enrich)
}

func main() {}

func enrich(e *millrace.Event, out *millrace.Results) {
	kind, data := e.Type(), e.Data()
	if kind == "order.ignored" {
		out.Drop()
		return
	}
	switch kind {
	case "order.bad", "order.split", "order.ask":
		if !millrace.IsObject(data) {
			out.Reject(422, "data is not a JSON object")
			return
		}
	}
	switch kind {
	case "order.bad":
		out.Reject(400, "bad order")
	case "order.split":
		split(data, out)
	case "order.ask":
		answer(data, out)
	default:
		hide(data, out)
	}
}

// split delivers an order's items one by one.
func split(data []byte, out *millrace.Results) {
	none := true
	for item := range millrace.Elements(data, "items") {
		out.Replace(item, millrace.Type("order.item"))
		none = false
	}
	if none {
		out.Drop()
	}
}

// answer tells the order's total to whoever asks, and lets the order through.
func answer(data []byte, out *millrace.Results) {
	total, ok := millrace.Get(data, "total")
	if !ok {
		total = []byte("null")
	}
	buf = append(buf[:0], `{"total":`...)
	buf = append(append(buf, total...), '}')
	out.Reply(200, buf, millrace.ContentType("application/json"))
	out.Pass()
}

// hide masks the field where there is one and marks the order, in a single pass over its data.
func hide(data []byte, out *millrace.Results) {
	var err error
	buf, err = millrace.Apply(buf[:0], data, millrace.ReplaceText(field, "***"), millrace.SetTo("enriched", "true"))
	if err != nil { // neither can fail in an object
		out.Reject(422, "data is not a JSON object")
		return
	}
	out.Replace(buf, millrace.Extension("enrichedby", "enrich"))
}
