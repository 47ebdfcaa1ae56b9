package event

import (
	"context"
	"strings"
	"time"
)

// Source is the definition of a source: a sender whose webhooks become events of a topic once they are verified.
type Source struct {
	Name    string
	Topic   string
	Scheme  string   // by which they are verified, as rules name it
	URL     string   // at which the sender calls it, where that is signed; "": as the request has it
	Headers []string // kept as extensions; in lower case
	RawForm bool     // a form stays text; else it becomes a JSON object
	Origins []string // of CloudEvents senders that may deliver here; "*": all
	// ByID tells repeats by the id alone, not by what was signed as well: whoever saw a webhook can send it again under
	// another id, where that is not signed.
	ByID  bool
	Owner Owner
}

// EventSource is the attribute source of its events.
func (s Source) EventSource() string { return "/sources/" + s.Name }

// Hook is a webhook as it came in. Everything in it borrows the request.
type Hook struct {
	Source   string // its name
	Method   string
	URL      string // as the sender wrote it: scheme, host, path and query
	Query    string // what follows ? in it
	Headers  []HookHeader
	Body     []byte // as it came
	Data     []byte // what becomes the event's data
	JSON     bool   // Data is JSON, by its media type
	Received time.Time

	// Proof is set where the verifier of a scheme that signs has returned nil: what is the same for the same signed request, and for no other.
	// A scheme whose senders say different things with the same signature has what tells them apart in it, too.
	Proof  [32]byte
	Proved bool
}

// HookHeader is a header of a Hook.
type HookHeader struct{ Name, Value string }

// Header returns the value of a header, whatever the case of its name, and how many there are of it.
func (h *Hook) Header(name string) (value string, n int) {
	for i := range h.Headers {
		if len(h.Headers[i].Name) == len(name) && strings.EqualFold(h.Headers[i].Name, name) {
			if n++; n == 1 {
				value = h.Headers[i].Value
			}
		}
	}
	return value, n
}

// QueryValue returns the value of a query parameter, percent-encoding decoded, and how many there are of it.
func (h *Hook) QueryValue(name string) (value string, n int) {
	for pair := range strings.SplitSeq(h.Query, "&") {
		k, v, _ := strings.Cut(pair, "=")
		if k, ok := FormText(k); !ok || k != name {
			continue
		}
		if n++; n == 1 {
			value, _ = FormText(v)
		}
	}
	return value, n
}

// FormText decodes a name or value of application/x-www-form-urlencoded; ok is false where a % has no two hex digits.
func FormText(s string) (text string, ok bool) {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s, true
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '+':
			out = append(out, ' ')
		case '%':
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return "", false
			}
			out = append(out, hexDigit(s[i+1])<<4|hexDigit(s[i+2]))
			i += 2
		default:
			out = append(out, s[i])
		}
	}
	return string(out), true
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f'
}

func hexDigit(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

// A Verifier decides whether a webhook is from whom it claims to be. It is safe for concurrent use.
type Verifier interface {
	// Verify returns nil where it is. Errors wrap ErrUnverified where it is not, and say what to look at, never a secret
	// nor the right signature; or ErrUnavailable where it cannot be told now. say is called with what was looked at and
	// found good, in order; it may be nil. h.Data may be absent yet.
	Verify(ctx context.Context, h *Hook, say func(step string)) error
	// Provides says what holds for a source of this scheme unless rules say otherwise.
	Provides() Provided
}

// Provided is what a scheme knows of its sender: expressions for the event's attributes, "" for none.
type Provided struct {
	Type, Subject, Key, ID, Time string

	JSON      bool          // a body that is JSON is that, whatever Content-Type says, which is not signed
	Form      bool          // and one that is not is a form
	Tolerance time.Duration // of the signed timestamp; 0: none is signed
	Function  string        // that decides; "": none
}

// Expressions are those of Type, Subject, Key, ID and Time by the keys of rules, in their order.
func (p Provided) Expressions() [5]struct{ Key, Text string } {
	return [5]struct{ Key, Text string }{{"type", p.Type}, {"subject", p.Subject}, {"key", p.Key}, {"id", p.ID}, {"time", p.Time}}
}

// ExtensionName is the extension that keeps a header: its letters and digits, in lower case.
func ExtensionName(header string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, strings.ToLower(header))
}
