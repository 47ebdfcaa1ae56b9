package event

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// What an operation can come to, besides success. Protocols map each to a status of their own with one
// table; wrap them with %w and words that say what, where and what to do.
var (
	ErrInvalid      = errors.New("malformed")
	ErrNotFound     = errors.New("not found")
	ErrConflict     = errors.New("conflict")
	ErrPrecondition = errors.New("precondition failed") // something else is in force than was named
	ErrGone         = errors.New("gone")                // the ring has overtaken a cursor, or its topic was remade
	ErrTooLarge     = errors.New("too large")           // one of Limits
	ErrSchema       = errors.New("schema mismatch")
	ErrDenied       = errors.New("denied")
	ErrUnverified   = errors.New("not verified") // a webhook that is not from whom it claims to be
	ErrUnavailable  = errors.New("unavailable")  // draining, overloaded, or the store is read-only: try later
	ErrFull         = errors.New("full")         // the topic (whenFull: reject) or the disk
	ErrUnsupported  = errors.New("not acted on by this build")
	ErrFunction     = errors.New("the function failed")
)

// A Fault is one thing wrong in what somebody sent.
type Fault struct {
	At     string `json:"at"` // the field, index, header or file:line:column
	Detail string `json:"detail"`
	// Excerpt is the line of a file with a mark below the place, for people to read; "" where there is none.
	Excerpt string `json:"-"`
}

// Faults is an error that lists everything wrong at once.
type Faults struct {
	Is   error // one of the Err values above
	List []Fault
}

// Error joins the faults, one a line.
func (f *Faults) Error() string { return f.text(false) }

// Long is Error with the excerpt of each fault below it.
func (f *Faults) Long() string { return f.text(true) }

func (f *Faults) text(long bool) string {
	lines := make([]string, len(f.List))
	for i, x := range f.List {
		lines[i] = x.Detail
		if x.At != "" {
			lines[i] = x.At + ": " + x.Detail
		}
		if long && x.Excerpt != "" {
			lines[i] += "\n" + x.Excerpt
		}
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the kind of error.
func (f *Faults) Unwrap() error { return f.Is }

// Add notes a fault.
func (f *Faults) Add(at, format string, args ...any) {
	f.List = append(f.List, Fault{At: at, Detail: fmt.Sprintf(format, args...)})
}

// Err is f where something is wrong, else nil.
func (f *Faults) Err() error {
	if len(f.List) == 0 {
		return nil
	}
	return f
}

// Invalid is an ErrInvalid about one field.
func Invalid(at, detail string) error { return Bad(ErrInvalid, at, detail) }

// Bad is an error of the given kind about one field.
func Bad(is error, at, detail string) error {
	return &Faults{Is: is, List: []Fault{{At: at, Detail: detail}}}
}

// At prefixes where an error happened ("events[3]") to each of its faults.
func At(at string, err error) error {
	var f *Faults
	if !errors.As(err, &f) {
		return fmt.Errorf("%s: %w", at, err)
	}
	g := &Faults{Is: f.Is, List: make([]Fault, len(f.List))}
	for i, x := range f.List {
		g.List[i] = Fault{At: at, Detail: x.Detail}
		if x.At != "" {
			g.List[i].At = at + "." + x.At
		}
	}
	return g
}

// Permanent marks an error of a delivery that no retry will mend. Code is what the target said (an HTTP
// status), 0 if nothing.
func Permanent(code int, err error) error { return &permanent{code, err} }

// Disable marks an error after which the subscription must be disabled (HTTP 410).
func Disable(code int, err error) error { return &disable{permanent{code, err}} }

type permanent struct {
	code int
	err  error
}

func (p *permanent) Error() string { return p.err.Error() }
func (p *permanent) Unwrap() error { return p.err }

type disable struct{ permanent }

// IsPermanent reports whether retrying err is pointless.
func IsPermanent(err error) bool {
	var p *permanent
	return errors.As(err, &p) || IsDisable(err)
}

// IsDisable reports whether err disables its subscription.
func IsDisable(err error) bool {
	var d *disable
	return errors.As(err, &d)
}

// RetryAfter is a failed attempt whose target (or function) named when to come back, or at least a code.
type RetryAfter struct {
	Err  error
	Code int           // what the target answered; 0 if it answered nothing
	Wait time.Duration // 0: by the subscription's schedule
	// Stalled says that nothing is wrong with what was sent, but nobody took it: a bridge keeps it where it was.
	Stalled bool
}

// IsStalled reports whether err says so.
func IsStalled(err error) bool {
	var r *RetryAfter
	return errors.As(err, &r) && r.Stalled
}

func (r *RetryAfter) Error() string { return r.Err.Error() }
func (r *RetryAfter) Unwrap() error { return r.Err }

// Code returns what the target answered (an HTTP status), 0 if it answered nothing.
func Code(err error) int {
	var r *RetryAfter
	if errors.As(err, &r) {
		return r.Code
	}
	var d *disable
	if errors.As(err, &d) {
		return d.code
	}
	var p *permanent
	if errors.As(err, &p) {
		return p.code
	}
	return 0
}

// Partial is the error of a Deliver of several deliveries that was answered for each: Errs has one for every
// delivery, in their order, nil for those that were taken. An event.Disable among them disables the
// subscription.
type Partial struct {
	Errs []error
}

// Error says how many failed, and the first of them.
func (p *Partial) Error() string {
	failed, first := 0, -1
	for i, err := range p.Errs {
		if err != nil {
			if failed++; first < 0 {
				first = i
			}
		}
	}
	if first < 0 {
		return fmt.Sprintf("0 of %d deliveries failed", len(p.Errs))
	}
	return fmt.Sprintf("%d of %d deliveries failed, the first is [%d]: %v", failed, len(p.Errs), first, p.Errs[first])
}
