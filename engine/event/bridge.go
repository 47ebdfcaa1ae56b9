package event

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Forwarded says where a batch of events comes from that another router forwards.
type Forwarded struct {
	By   string     // who forwards: a router and its bridge, and whom it is known as here
	Line string     // what the positions count in; within a line they only grow
	At   []Position // of each event, on the other side
}

// Taken is what became of events that were forwarded: each was stored, or is one of these.
type Taken struct {
	Repeats int // was stored before
	Loops   int // has been here, or passed too many routers: see ViaAttribute
}

// BridgePrefix begins the name of the subscription that a bridge is.
const BridgePrefix = "bridge."

// ViaAttribute is the extension that lists, by comma, the routers that have forwarded an event, so that it does not come
// back to one of them.
const ViaAttribute = "bridgevia"

// IsWay reports whether an extension says which way an event came, and when, rather than what it is: a router wrote it, and
// the same event has another where it comes again.
func IsWay(extension string) bool {
	switch extension {
	case ViaAttribute, "mqtttopic", "mqttqos", "mqttretain", "mqttfrom", "mqttexpiry":
		return true
	}
	return false
}

// MaxVia bounds how many routers an event passes.
const MaxVia = 8

// BridgeHeader carries Forwarded of the events of an HTTP request; RouterHeader tells, with what is read, from which router.
const (
	BridgeHeader = "Millrace-Bridge"
	RouterHeader = "Millrace-Router"
)

// maxBy bounds the parts of a BridgeHeader.
const maxBy = 300

// Append writes f as the value of a BridgeHeader: by;line;places.
func (f *Forwarded) Append(dst []byte) []byte {
	dst = append(append(append(append(dst, f.By...), ';'), f.Line...), ';')
	return base64.RawURLEncoding.AppendEncode(dst, appendPlaces(nil, f.At))
}

// appendPlaces writes runs of one partition each: partition, how many, the first offset, then the distance of each from the
// one before; uvarints.
func appendPlaces(b []byte, at []Position) []byte {
	for i := 0; i < len(at); {
		n := 1
		for i+n < len(at) && at[i+n].Partition == at[i].Partition && at[i+n].Offset > at[i+n-1].Offset {
			n++
		}
		b = binary.AppendUvarint(b, uint64(at[i].Partition))
		b = binary.AppendUvarint(b, uint64(n))
		b = binary.AppendUvarint(b, at[i].Offset)
		for j := i + 1; j < i+n; j++ {
			b = binary.AppendUvarint(b, at[j].Offset-at[j-1].Offset)
		}
		i += n
	}
	return b
}

// ParseForwarded reads the value of a BridgeHeader of a request with n events. It borrows v.
func ParseForwarded(v string, n int) (Forwarded, error) {
	bad := func(format string, args ...any) (Forwarded, error) {
		return Forwarded{}, Invalid(BridgeHeader, fmt.Sprintf(format, args...))
	}
	by, rest, ok := strings.Cut(v, ";")
	line, places, ok2 := strings.Cut(rest, ";")
	if !ok || !ok2 || by == "" || len(by) > maxBy || line == "" || len(line) > maxBy {
		return bad("%.60q is not WHO;LINE;PLACES, as routers write it; it is not for other clients", v)
	}
	b, err := base64.RawURLEncoding.DecodeString(places)
	if err != nil {
		return bad("the places are not base64url")
	}
	broken := false
	next := func() uint64 {
		v, size := binary.Uvarint(b)
		if size <= 0 {
			broken, b = true, nil
			return 0
		}
		b = b[size:]
		return v
	}
	f := Forwarded{By: by, Line: line, At: make([]Position, 0, min(n, len(b)))}
	for len(b) > 0 && !broken {
		partition, count := next(), next()
		offset := next()
		if partition > 1<<32-1 || count == 0 || count > uint64(n-len(f.At)) {
			broken = true
			break
		}
		for i := range count {
			if i > 0 {
				step := next()
				broken = broken || step == 0 || offset+step < offset
				offset += step
			}
			f.At = append(f.At, Position{Partition(partition), offset})
		}
	}
	if broken || len(f.At) != n {
		return bad("the places are not those of %d events", n)
	}
	return f, nil
}

// Loops reports whether an event that was forwarded by the routers of via must not be taken by a router: it has been there, or
// has passed too many.
func Loops(via, router string) bool {
	n := 0
	for id := range strings.SplitSeq(via, ",") {
		if n++; id == router || n > MaxVia {
			return true
		}
	}
	return false
}

// An Intake brings events of another side into a topic.
type Intake interface {
	// Run works until ctx ends, whatever happens on the other side.
	Run(ctx context.Context, into Inlet)
}

// Backoff waits before an Intake tries again: half a second that doubles with each failure, 30 s at most, give or take a fifth, and
// least at the least. It ends with ctx.
func Backoff(ctx context.Context, fails int, least time.Duration) {
	d := min(500*time.Millisecond<<min(fails, 10), 30*time.Second)
	t := time.NewTimer(max(least, time.Duration(float64(d)*(0.8+0.4*rand.Float64()))))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// An Inlet is where an Intake puts events. It belongs to one goroutine.
type Inlet interface {
	// Place returns what Take was given last, nil at first.
	Place(ctx context.Context) ([]byte, error)
	// Take stores events, and in the same commit the place from which to go on. Events that cannot be stored are counted and
	// logged, and do not hold up the others, so that an error is about the router: try again. Events may be borrowed.
	Take(ctx context.Context, evs []Event, place []byte) error
	// Bridge is the name of the bridge.
	Bridge() string
	// Refused counts and logs what came and cannot be an event.
	Refused(what string, err error)
	// Repeated counts events that are stored and were sent again.
	Repeated(n uint64)
	// Tell says how the other side is: nil while all is well.
	Tell(err error)
	// Lost counts what the other side does not have any more: events where it is known how many, 0 where not.
	Lost(events uint64, what string)
}
