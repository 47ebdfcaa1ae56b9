// Package event holds the nouns of the router: events and where they lie, topics, subscriptions,
// deliveries, and errors that say what to do next. It imports the standard library only; every other
// package may import it.
package event

import (
	"fmt"
	"strconv"
	"strings"
)

// Event is a CloudEvent 1.0 as a producer sent it or a function made it, before it has an offset.
// Strings and Data may be borrowed (a request's buffer, a record): whoever keeps an Event beyond the
// call that handed it over must Clone it.
type Event struct {
	ID              string
	Source          string
	Type            string
	Subject         string
	DataContentType string
	DataSchema      string
	Time            string // RFC 3339 exactly as the producer wrote it; "" when absent
	PartitionKey    string // the extension partitionkey: the ordering key
	TraceParent     string // the extension traceparent
	Topic           string // where it lies or shall go
	Extensions      []Attribute

	Data   []byte // nil: no data, which differs from empty data
	Binary bool   // Data is bytes rather than JSON or text: structured mode writes data_base64

	Hops     uint32 // how many topics its ancestors passed; 0 from clients
	ClientID bool   // the client gave ID: it takes part in the dedupe window

	WantsReply bool // in: its record says that somebody waits for a reply
}

// An Attribute is an extension attribute. Names are lower-case letters and digits (CloudEvents 1.0,
// "Attribute Naming Convention").
type Attribute struct {
	Name  string
	Kind  Kind
	Value string // the canonical string form of the value, whatever its kind
}

// Kind is the CloudEvents type of an attribute's value.
type Kind uint8

// The kinds, numbered as records carry them.
const (
	String Kind = iota
	Boolean
	Integer
	Bytes
	URI
	URIReference
	Timestamp
)

// Clone returns a copy of e that borrows nothing.
func (e *Event) Clone() Event {
	c := *e
	for _, s := range []*string{&c.ID, &c.Source, &c.Type, &c.Subject, &c.DataContentType, &c.DataSchema,
		&c.Time, &c.PartitionKey, &c.TraceParent, &c.Topic} {
		*s = strings.Clone(*s)
	}
	c.Extensions = make([]Attribute, len(e.Extensions))
	for i, a := range e.Extensions {
		c.Extensions[i] = Attribute{strings.Clone(a.Name), a.Kind, strings.Clone(a.Value)}
	}
	if e.Data != nil {
		c.Data = append([]byte{}, e.Data...)
	}
	return c
}

// Partition numbers a topic's partitions from 0.
type Partition = uint32

// Offset numbers a partition's events from 0 without gaps.
type Offset = uint64

// Position is where an event lies within its topic, written "<partition>-<offset>".
type Position struct {
	Partition Partition
	Offset    Offset
}

// String returns the form that clients see, such as "0-42".
func (p Position) String() string { return string(p.Append(nil)) }

// Append appends the form that clients see to dst.
func (p Position) Append(dst []byte) []byte {
	dst = strconv.AppendUint(dst, uint64(p.Partition), 10)
	dst = append(dst, '-')
	return strconv.AppendUint(dst, p.Offset, 10)
}

// ParsePosition reads the form that String writes.
func ParsePosition(s string) (Position, error) {
	a, b, ok := strings.Cut(s, "-")
	p, err1 := strconv.ParseUint(a, 10, 32)
	o, err2 := strconv.ParseUint(b, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return Position{}, fmt.Errorf("position %.40q: want <partition>-<offset>, such as 0-42", s)
	}
	return Position{Partition(p), o}, nil
}

// MaxName is the longest name of a topic, subscription or function in bytes.
const MaxName = 249

// CheckName says what is wrong with a topic's, subscription's or function's name: it must match
// [A-Za-z0-9][A-Za-z0-9._-]{0,248}.
func CheckName(kind, name string) error {
	bad := func(why string) error {
		return Invalid(kind, fmt.Sprintf("name %.60q %s; a name is 1 to %d of A-Z a-z 0-9 . _ - and begins with a letter or digit", name, why, MaxName))
	}
	if name == "" {
		return bad("is empty")
	}
	if len(name) > MaxName {
		return bad(fmt.Sprintf("has %d bytes", len(name)))
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return bad(fmt.Sprintf("has %q at %d", c, i))
		}
	}
	return nil
}

// Limits bound what clients may send. The zero value of a field means its default.
type Limits struct {
	Event     int // bytes of one event's data and attributes; 1 MiB
	Body      int // bytes of one request after decompression; 16 MiB
	Events    int // events of one request; 10,000
	Attribute int // bytes of one attribute's value; 64 KiB
	Attrs     int // attributes of one event; 128
}

// WithDefaults returns l with its zero fields filled.
func (l Limits) WithDefaults() Limits {
	fill := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	fill(&l.Event, 1<<20)
	fill(&l.Body, 16<<20)
	fill(&l.Events, 10_000)
	fill(&l.Attribute, 64<<10)
	fill(&l.Attrs, 128)
	return l
}
