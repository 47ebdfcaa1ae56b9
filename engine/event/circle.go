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
	from := map[string][]int{} // by the topic that they read
	for i := range subs {
		if subs[i].DeadLetter != "" {
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
			switch dead := subs[at].DeadLetter; state[dead] {
			case under:
				way = append(way, at)
				first := slices.IndexFunc(way, func(x int) bool { return subs[x].Topic == dead })
				return way[first:]
			case fresh:
				state[dead] = under
				way = append(way, at)
				steps = append(steps, step{topic: dead})
			}
		}
	}
	return nil
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
