package engine

import (
	"slices"
	"strings"

	"github.com/millrace/millrace/filters"
)

// feedTouched gives the partitions of the topics that a change touches their new lists of subscriptions. A
// topic that it does not touch keeps its list and its index: its reader notices nothing.
func (e *Engine) feedTouched(c *change) {
	c.touched = map[*topic]bool{}
	fresh := map[*subscription]bool{}
	for _, s := range c.subs {
		c.touched[s.topic], fresh[s] = true, true
	}
	for _, s := range c.gone {
		c.touched[s.topic] = true
	}
	for _, w := range c.swaps {
		c.touched[w.s.topic] = true
	}
	lists := make(map[*topic][]*subscription, len(c.touched))
	for _, s := range c.next.subs {
		if c.touched[s.topic] {
			lists[s.topic] = append(lists[s.topic], s)
		}
	}
	for t := range c.touched {
		subs := lists[t]
		slices.SortFunc(subs, func(a, b *subscription) int { return strings.Compare(a.key, b.key) })
		feedTopic(t, subs, fresh)
	}
}

// feedTopic gives a topic's partitions the list of its subscriptions; fresh are those that are new to this
// run. What is attached stays so: lists change between two blocks. The index is built before a reader is
// held up.
func feedTopic(t *topic, subs []*subscription, fresh map[*subscription]bool) {
	f := &feeds{subs: subs}
	programs := make([]*filters.Program, len(subs))
	var joining []*subscription
	for i, s := range subs {
		programs[i] = s.config.Load().Program
		if fresh[s] {
			joining = append(joining, s)
		}
	}
	f.index = filters.NewIndex(programs)
	for _, p := range t.parts {
		p.mu.Lock()
		p.feeds.Store(f)
		for _, s := range joining {
			s.join(p)
		}
		p.mu.Unlock()
	}
}
