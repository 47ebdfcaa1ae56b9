package event

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestDeadLetterCircle(t *testing.T) {
	for _, c := range []struct {
		subs string // name:topic>deadLetter
		want string
	}{
		{"", ""},
		{"s:a>s.dead", ""},
		{"s:a>a", "s"},
		{"s:a>b r:b>a", "s r"},
		{"s:a>b r:b>c q:c>d", ""},
		{"s:a>b r:b>c q:c>b", "r q"},
		{"s:a>b r:b>c q:c>a", "s r q"},
		{"s:a>d t:a>d r:d>e q:e>", ""},
		{"one:a>x two:a>b back:b>a", "two back"},
		{"s:a>b t:b>d r:a>c u:c>d v:d>e", ""},
	} {
		var subs []Subscription
		for _, f := range strings.Fields(c.subs) {
			name, rest, _ := strings.Cut(f, ":")
			topic, dead, _ := strings.Cut(rest, ">")
			subs = append(subs, Subscription{Name: name, Topic: topic, DeadLetter: dead})
		}
		var got []string
		way := DeadLetterCircle(subs)
		for _, i := range way {
			got = append(got, subs[i].Name)
		}
		if !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%s: %v, want %s", c.subs, got, c.want)
		}
		if len(way) > 0 {
			if words := TellCircle(subs, way); !strings.Contains(words, "for ever") || len(way) > 1 && !strings.Contains(words, got[0]+" reads ") {
				t.Errorf("%s: %s", c.subs, words)
			}
		}
	}
}

// A long chain is looked through in little time and without deep recursion.
func TestDeadLetterCircleOfManySubscriptions(t *testing.T) {
	subs := make([]Subscription, 100_000)
	for i := range subs {
		subs[i] = Subscription{Name: "s", Topic: fmt.Sprint(i), DeadLetter: fmt.Sprint(i + 1)}
	}
	if way := DeadLetterCircle(subs); way != nil {
		t.Errorf("a way round of %d", len(way))
	}
	subs[len(subs)-1].DeadLetter = "0"
	if way := DeadLetterCircle(subs); len(way) != len(subs) {
		t.Errorf("a way round of %d, want %d", len(way), len(subs))
	}
}
