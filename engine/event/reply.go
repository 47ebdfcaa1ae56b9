package event

import "fmt"

// MaxReply is the largest body of a reply in bytes.
const MaxReply = 1 << 20

// A Reply answers the producer of an event that asked for one.
type Reply struct {
	Status      int    // 200 to 599
	ContentType string // "": none
	Data        []byte
	From        string // who gave it: "function", "push" or "pull"; for counting
}

// Check says what keeps r from being an HTTP answer: ErrInvalid or ErrTooLarge, at the member's name.
func (r *Reply) Check() error {
	if r.Status < 200 || r.Status > 599 {
		return Invalid("status", fmt.Sprintf("is %d; want 200 to 599", r.Status))
	}
	if len(r.Data) > MaxReply {
		return Bad(ErrTooLarge, "data", fmt.Sprintf("has %d bytes; a reply has at most %d", len(r.Data), MaxReply))
	}
	const longest = 255
	if len(r.ContentType) > longest {
		return Invalid("contentType", fmt.Sprintf("has %d bytes; want at most %d", len(r.ContentType), longest))
	}
	for i := 0; i < len(r.ContentType); i++ {
		if c := r.ContentType[i]; c < ' ' || c >= 0x7F { // it becomes a header: RFC 9110, 5.5
			return Invalid("contentType", fmt.Sprintf("%.60q has a character that a header cannot carry", r.ContentType))
		}
	}
	return nil
}

// An Invocation is what a function said about an event that was shown to it alone.
type Invocation struct {
	Reply   *Reply // nil: it gave none
	Results []Invoked
	Fuel    int64 // spent
	Took    int64 // ns
}

// Invoked is one result of an invocation.
type Invoked struct {
	Verdict string // pass, emit, drop, retry or reject
	Event   Record // emit
	Topic   string // emit: the topic that it names; "": goes on
	Code    int    // reject
	Reason  string // reject
	Delay   int64  // retry, in ms; 0: by the subscription's policy
}
