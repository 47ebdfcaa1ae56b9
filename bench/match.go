package main

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
)

// sameHits is how many subscriptions of the filter rows match an event, however many there are.
const sameHits = 5

// measureFilters measures one event against many filters: each for itself, and through the index.
func measureFilters() measurement {
	return measurement{name: "filters", gives: []string{"naive-1000", "alone-1000", "indexed-1000", "indexed-10"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			ev := event.Event{ID: "1", Source: "/bench", Type: "order.created", Topic: "bench", DataContentType: "application/json", Data: filterData()}
			rec := event.Record(ev.AppendRecord(nil))
			for _, n := range []int{1000, 10} {
				// Negated twice an equality is not required at the top any more: the same machine evaluates every filter
				// on fields that are read once, which is the naive way at its best.
				plain, err := manyFilters(n, "%s")
				if err != nil {
					return err
				}
				index := filters.NewIndex(plain)
				v, err := matching(ctx, l, func(s *filters.Scratch, dst []int) []int { return index.Match(rec, s, dst) })
				if err != nil {
					return err
				}
				put(fmt.Sprintf("indexed-%d", n), v)
				if n == 10 {
					continue
				}
				hidden, err := manyFilters(n, "!(!(%s))")
				if err != nil {
					return err
				}
				naive := filters.NewIndex(hidden)
				if v, err = matching(ctx, l, func(s *filters.Scratch, dst []int) []int { return naive.Match(rec, s, dst) }); err != nil {
					return err
				}
				put("naive-1000", v)
				v, err = matching(ctx, l, func(s *filters.Scratch, dst []int) []int {
					for i, p := range plain {
						if p.Match(rec, s) {
							dst = append(dst, i)
						}
					}
					return dst
				})
				if err != nil {
					return err
				}
				put("alone-1000", v)
			}
			return nil
		}}
}

func manyFilters(n int, around string) ([]*filters.Program, error) {
	programs := make([]*filters.Program, n)
	for i := range programs {
		source := fmt.Sprintf(`type == "order.created" && data.kind == "k%d" && data.total > 100 && data.country in ["DE", "FR"]`, i/sameHits)
		var err error
		if programs[i], err = filters.Compile(fmt.Sprintf(around, source)); err != nil {
			return nil, err
		}
	}
	return programs, nil
}

// matching returns the microseconds that one event takes.
func matching(ctx context.Context, l *lab, match func(s *filters.Scratch, dst []int) []int) (float64, error) {
	s := &filters.Scratch{}
	dst := match(s, nil)
	if len(dst) != sameHits {
		return 0, fmt.Errorf("%d filters match, want %d", len(dst), sameHits)
	}
	d := l.length() / 6
	n, begin := 0, time.Now()
	for ; time.Since(begin) < d && ctx.Err() == nil; n++ {
		for range 10 {
			dst = match(s, dst[:0])
		}
	}
	return float64(time.Since(begin).Microseconds()) / float64(10*n), ctx.Err()
}

// filterData is an order of 1 KiB with members of which filters read some.
func filterData() []byte {
	b := []byte(`{"id":"o-123456","kind":"k1","total":250.75,"country":"DE","customer":{"id":77,"name":"Ann Example","email":"ann@example.com"},"items":[`)
	for i := range 8 {
		b = fmt.Appendf(b, `{"sku":"sku-%04d","name":"A thing to buy","price":%d.99,"quantity":%d,"tags":["a","b"]},`, i, i*7, i)
	}
	return append(b, `{"sku":"last"}],"note":"leave it at the door, please"}`...)
}
