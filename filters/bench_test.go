package filters

import (
	"fmt"
	"strings"
	"testing"
)

// kibibyte is an order of about 1 KiB of which the filters read kind, total and country.
func kibibyte(kind int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"id":"o-123456","kind":"k%d","total":250.75,"country":"DE","customer":{"id":77,"name":"Ann Example","email":"ann@example.com"},"items":[`, kind)
	for i := range 8 {
		fmt.Fprintf(&b, `{"sku":"sku-%04d","name":"A thing to buy","price":%d.99,"quantity":%d,"tags":["a","b"]},`, i, i*7, i)
	}
	b.WriteString(`{"sku":"last"}],"note":"leave it at the door, please"}`)
	return b.String()
}

func subscriptions(t testing.TB, n int) []*Program {
	programs := make([]*Program, n)
	for i := range programs {
		programs[i] = mustCompile(t, fmt.Sprintf(`type == "order.created" && data.kind == "k%d" && data.total > 100 && data.country in ["DE", "FR"]`, i/5))
	}
	return programs
}

// BenchmarkMatch measures one event of 1 KiB against many subscriptions, of which five match:
//
//	separately  each subscription reads the fields of its filter from the event itself: Program.Match
//	naive       every filter is evaluated, on fields that were read once
//	indexed     Index.Match
func BenchmarkMatch(b *testing.B) {
	rec := record(sample(kibibyte(1)))
	for _, n := range []int{10, 1000} {
		programs := subscriptions(b, n)
		indexed, naive := NewIndex(programs), NewIndex(programs)
		naive.keys, naive.rest = nil, nil
		for i, p := range programs {
			naive.rest = append(naive.rest, int32(i))
			naive.entries[i].root = p.root
		}
		b.Run(fmt.Sprintf("separately-%d", n), func(b *testing.B) {
			s, hits := &Scratch{}, 0
			for b.Loop() {
				hits = 0
				for _, p := range programs {
					if p.Match(rec, s) {
						hits++
					}
				}
			}
			if hits != 5 {
				b.Fatal(hits)
			}
		})
		for name, x := range map[string]*Index{"naive": naive, "indexed": indexed} {
			b.Run(fmt.Sprintf("%s-%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				s := &Scratch{}
				var dst []int
				for b.Loop() {
					dst = x.Match(rec, s, dst[:0])
				}
				if len(dst) != 5 {
					b.Fatal(dst)
				}
			})
		}
	}
}

func BenchmarkOne(b *testing.B) {
	rec := record(sample(kibibyte(1)))
	for name, src := range map[string]string{
		"attribute": `type == "order.created"`,
		"data":      `data.kind == "k1" && data.total > 100`,
		"predicate": `any(data.items, .price > 40)`,
	} {
		p := mustCompile(b, src)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			s := &Scratch{}
			for b.Loop() {
				if !p.Match(rec, s) {
					b.Fatal("no match")
				}
			}
		})
	}
}
