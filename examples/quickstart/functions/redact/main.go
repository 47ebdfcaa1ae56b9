// Command redact is the quickstart's function: it hides one member of an order's data before the order
// leaves the router, marks the order, and rejects what is no order.
package main

import millrace "github.com/millrace/millrace/sdk/go"

// mask stands where the redacted value stood.
const mask = "***"

// field is the path of what to hide; the rules set it as `config: {field: customer.email}`.
var field = "email"

// hidden serves every event: an instance handles one at a time.
var hidden []byte

func init() {
	if v, ok := millrace.Config("field"); ok {
		field = v
	}
	millrace.Handle(redact)
}

func main() {}

func redact(e *millrace.Event, out *millrace.Results) {
	data := e.Data()
	if !millrace.Has(data, "total") {
		out.Reject(422, "the order has no total")
		return
	}
	if !millrace.Has(data, field) {
		out.Pass()
		return
	}
	var err error
	hidden, err = millrace.Apply(hidden[:0], data, millrace.SetText(field, mask), millrace.SetTo("redacted", "true"))
	if err != nil {
		out.Reject(422, err.Error())
		return
	}
	out.Replace(hidden)
}
