package engine

import (
	"context"
	"math"

	"github.com/millrace/millrace/engine/event"
)

// Leaving estimates how many events would leave a topic at once if next were its definition; 0 for a topic that is
// not there. Bytes are taken as evenly spread.
func (e *Engine) Leaving(ctx context.Context, next event.Topic) (uint64, error) {
	t := e.plan.Load().topics[next.Name]
	if t == nil || len(t.parts) != next.Partitions {
		return 0, nil
	}
	o := logOptions(next)
	var sum uint64
	for _, p := range t.parts {
		b := p.log.Bounds()
		n := b.Next - b.Head
		leave := uint64(0)
		if o.Events > 0 && n > uint64(o.Events) {
			leave = n - uint64(o.Events)
		}
		if o.Bytes > 0 && b.Bytes > o.Bytes {
			leave = max(leave, uint64(math.Ceil(float64(n)*float64(b.Bytes-o.Bytes)/float64(b.Bytes))))
		}
		if o.Age > 0 {
			off, err := p.log.Since(ctx, e.now().Add(-o.Age))
			if err != nil {
				return 0, err
			}
			if off > b.Head {
				leave = max(leave, off-b.Head)
			}
		}
		sum += min(leave, n)
	}
	return sum, nil
}
