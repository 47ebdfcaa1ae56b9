package rules

import (
	"slices"
	"strings"
	"testing"
)

func TestShadow(t *testing.T) {
	whole := "sha256:" + strings.Repeat("ab", 32)
	for doc, want := range map[string][]string{
		`"f@sha256:0123abcd"`:                      {"f@sha256:0123abcd"},
		`["f@` + whole + `", "g@sha256:01234567"]`: {"f@" + whole, "g@sha256:01234567"},
		`[]`: nil,
	} {
		s, err := ParseSubscription([]byte(`{"name":"s","topic":"t","functions":["f","g"],"deliver":{"pull":{}},"shadow":`+doc+`}`), Options{})
		if err != nil || !slices.Equal(s.Shadow, want) {
			t.Errorf("%s: %v, %v", doc, s.Shadow, err)
		}
		if got := string(s.Effective); strings.Contains(got, "shadow") != (doc != "[]") && len(want) > 0 {
			t.Errorf("%s is shown as %s", doc, got)
		}
	}
	for doc, want := range map[string]string{
		`"f"`:                 "want a function of this subscription and a version of it",
		`"f@sha256:0123"`:     "8 digits or more",
		`"f@sha256:0123ABCD"`: "8 digits or more",
		`["f@0123abcd"]`:      "want a function",
		`"h@sha256:0123abcd"`: `is of function "h", which is none of this subscription's functions`,
		`["f@sha256:01234567","f@sha256:01234568","f@sha256:01234569","f@sha256:0123456a","f@sha256:0123456b"]`: "at most 4",
		`{"f":"sha256:0123abcd"}`: "is a mapping",
	} {
		_, err := ParseSubscription([]byte(`{"name":"s","topic":"t","functions":["f","g"],"deliver":{"pull":{}},"shadow":`+doc+`}`), Options{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "shadow") {
			t.Errorf("%s: %v; want %q", doc, err, want)
		}
	}
}
