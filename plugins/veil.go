package plugins

import (
	"errors"
	"strings"
)

// A veil hides a function's secrets in what it says: in its log, its errors and its reasons to reject, which all end
// where operators read. What it puts into events is its own affair.
type veil struct{ hides *strings.Replacer } // nil: there is nothing to hide

// shortSecret is a length in bytes below which a value is no secret, and would blot out half of a message.
const shortSecret = 4

func veilOf(secrets map[string]string) veil {
	var pairs []string
	for _, s := range secrets {
		if len(s) >= shortSecret {
			pairs = append(pairs, s, "***")
		}
	}
	if pairs == nil {
		return veil{}
	}
	return veil{strings.NewReplacer(pairs...)}
}

func (v veil) text(s string) string {
	if v.hides == nil {
		return s
	}
	return v.hides.Replace(s)
}

func (v veil) bytes(b []byte) []byte {
	if v.hides == nil {
		return b
	}
	return []byte(v.hides.Replace(string(b)))
}

// outcome hides in what becomes of events that fail or are rejected.
func (v veil) outcome(out *Outcome) {
	if v.hides == nil {
		return
	}
	for i := range out.Results {
		if r := &out.Results[i]; r.Verdict == Reject {
			r.Data = v.bytes(r.Data)
		}
	}
	for i := range out.Failures {
		f := &out.Failures[i]
		if said := f.Err.Error(); v.text(said) != said {
			f.Err = errors.New(v.text(said)) // what it wraps would say it again
		}
	}
}
