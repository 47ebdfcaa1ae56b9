package event

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestPosition(t *testing.T) {
	for _, p := range []Position{{}, {0, 42}, {7, 1<<64 - 1}, {1<<32 - 1, 0}} {
		if got, err := ParsePosition(p.String()); err != nil || got != p {
			t.Errorf("%s: %v, %v", p, got, err)
		}
	}
	for _, s := range []string{"", "-", "0", "0-", "-1", "0--1", "4294967296-0", "0-18446744073709551616", "0-1-2", "a-b", " 0-1", "+0-1"} {
		if p, err := ParsePosition(s); err == nil || !strings.Contains(err.Error(), "such as 0-42") {
			t.Errorf("%q: %v, %v", s, p, err)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, s := range []string{"a", "0", "Orders.eu_1-x", strings.Repeat("x", MaxName)} {
		if err := CheckName("topic", s); err != nil {
			t.Error(err)
		}
	}
	for s, want := range map[string]string{"": "is empty", "../x": "has '.' at 0", "a/b": "has '/' at 1", "a\x00": "at 1",
		"-a": "at 0", "a\u202eb": "at 1", strings.Repeat("x", 10_000): "has 10000 bytes"} {
		err := CheckName("topic", s)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "topic: ") || len(err.Error()) > 300 {
			t.Errorf("%.20q: %v", s, err)
		}
	}
}

func TestFaultsKeepTheirPlaceAndKind(t *testing.T) {
	inner := &Faults{Is: ErrTooLarge, List: []Fault{{At: "id", Detail: "is long"}, {Detail: "is big"}}}
	err := At("events[3]", fmt.Errorf("wrapped: %w", inner))
	if !errors.Is(err, ErrTooLarge) || err.Error() != "events[3].id: is long\nevents[3]: is big" || inner.List[0].At != "id" {
		t.Errorf("%v", err)
	}
	plain := errors.New("plain")
	if err := At("x", plain); !errors.Is(err, plain) || err.Error() != "x: plain" {
		t.Errorf("%v", err)
	}
}

func TestWhatTheTargetSaid(t *testing.T) {
	base := errors.New("no")
	for _, c := range []struct {
		err                error
		permanent, disable bool
		code               int
	}{
		{Permanent(400, base), true, false, 400},
		{Disable(410, base), true, true, 410},
		{&RetryAfter{Err: base, Code: 429, Wait: time.Second}, false, false, 429},
		{base, false, false, 0},
		{nil, false, false, 0},
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("sending: %w", err)
			if !errors.Is(err, base) {
				t.Errorf("%v hides its cause", err)
			}
		}
		if IsPermanent(err) != c.permanent || IsDisable(err) != c.disable || Code(err) != c.code {
			t.Errorf("%v: permanent %t, disable %t, code %d", err, IsPermanent(err), IsDisable(err), Code(err))
		}
	}
}

func TestDefaultsKeepWhatIsSet(t *testing.T) {
	if l := (Limits{}).WithDefaults(); l != (Limits{1 << 20, 16 << 20, 10_000, 64 << 10, 128}) {
		t.Errorf("%+v", l)
	}
	if l := (Limits{1, 2, 3, 4, 5}); l.WithDefaults() != l {
		t.Errorf("%+v", l.WithDefaults())
	}
	d := Topic{Name: "x"}.WithDefaults()
	if d.Partitions != 1 || d.Retain != (Retain{Bytes: 1 << 30, Age: 7 * 24 * time.Hour}) || d.Dedupe != 2*time.Minute || d.WhenFull != DropOldest {
		t.Errorf("%+v", d)
	}
	if f := (FunctionLimits{}).WithDefaults(); f != (FunctionLimits{Memory: 64 << 20, Output: 4 << 20, CPU: 100 * time.Millisecond, Wall: 10 * time.Second}) {
		t.Errorf("%+v", f)
	}
}
