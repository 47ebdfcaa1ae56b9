package event

import (
	"fmt"
	"slices"
	"strings"
)

// DeadLetterCircle returns subscriptions whose dead letters go round: each reads the topic that the one before
// puts its dead letters into, the first that of the last. It returns indexes into subs, nil if there is no such
// way. What functions put out is bounded by hops; dead letters are not held back by them, so a way round of
// dead letters alone must not be in force.
func DeadLetterCircle(subs []Subscription) []int {
	return circle(subs, func(s *Subscription) string { return s.DeadLetter })
}

// DeliveryCircle is the same for what subscriptions deliver into topics, streams included: each event would go round
// until its hops run out. Outputs that functions direct elsewhere are not in it, nor are dead letters.
func DeliveryCircle(subs []Subscription) []int {
	return circle(subs, target)
}

func target(s *Subscription) string {
	if s.Deliver.Face == ToTopic || s.Deliver.Face == Stream {
		return s.Deliver.Topic
	}
	return ""
}

func circle(subs []Subscription, to func(*Subscription) string) []int {
	from := map[string][]int{} // by the topic that they read
	for i := range subs {
		if to(&subs[i]) != "" {
			from[subs[i].Topic] = append(from[subs[i].Topic], i)
		}
	}
	const (
		fresh = iota
		under
		free
	)
	state := map[string]int{}
	// Of each topic on the way, how many of its subscriptions were followed. No recursion: a chain may be long.
	type step struct {
		topic string
		next  int
	}
	for i := range subs { // in order, so that the same definitions give the same way
		if state[subs[i].Topic] != fresh {
			continue
		}
		state[subs[i].Topic] = under
		steps, way := []step{{topic: subs[i].Topic}}, []int{}
		for len(steps) > 0 {
			top := &steps[len(steps)-1]
			if top.next == len(from[top.topic]) {
				state[top.topic] = free
				steps = steps[:len(steps)-1]
				way = way[:max(len(way)-1, 0)]
				continue
			}
			at := from[top.topic][top.next]
			top.next++
			switch next := to(&subs[at]); state[next] {
			case under:
				way = append(way, at)
				first := slices.IndexFunc(way, func(x int) bool { return subs[x].Topic == next })
				return way[first:]
			case fresh:
				state[next] = under
				way = append(way, at)
				steps = append(steps, step{topic: next})
			}
		}
	}
	return nil
}

// A CircleError is about subscriptions that form a circle, all of which Err names.
type CircleError struct {
	Err  error
	Subs []Subscription
}

func (e *CircleError) Error() string { return e.Err.Error() }
func (e *CircleError) Unwrap() error { return e.Err }

// InCircle is the error for a way that DeadLetterCircle or DeliveryCircle found, told at a place.
func InCircle(at, told string, subs []Subscription, way []int) error {
	e := &CircleError{Err: Invalid(at, told)}
	for _, i := range way {
		e.Subs = append(e.Subs, subs[i])
	}
	return e
}

// TellCircle says in words what DeadLetterCircle found, and what to do.
func TellCircle(subs []Subscription, way []int) string {
	if len(way) == 1 {
		return fmt.Sprintf("%q is the topic that the subscription reads: its dead letters would come back to it for ever; name another", subs[way[0]].Topic)
	}
	var b strings.Builder
	b.WriteString("dead letters would go round for ever: ")
	for _, i := range way {
		fmt.Fprintf(&b, "%s reads %s and puts its dead letters into %s; ", subs[i].Name, subs[i].Topic, subs[i].DeadLetter)
	}
	b.WriteString("give one of them another deadLetter")
	return b.String()
}

// TellDeliveryCircle says in words what DeliveryCircle found, and what to do.
func TellDeliveryCircle(subs []Subscription, way []int) string {
	const shown = 10
	var b strings.Builder
	b.WriteString("subscriptions ")
	if len(way) == 1 {
		b.Reset()
		b.WriteString("subscription ")
	}
	for i, at := range way {
		if i > 0 {
			b.WriteString(" → ")
		}
		if i == shown && len(way) > shown+1 {
			fmt.Fprintf(&b, "%d more", len(way)-shown)
			break
		}
		fmt.Fprintf(&b, "%s (%s → %s)", subs[at].Name, subs[at].Topic, target(&subs[at]))
	}
	if len(way) == 1 {
		b.WriteString(" delivers into the topic that it reads: every event would come back to it; deliver elsewhere")
	} else {
		b.WriteString(" form a circle: every event would go round in it; deliver one of them elsewhere")
	}
	return b.String()
}
