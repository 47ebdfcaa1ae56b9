package mqtt

import (
	"context"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// How often what is done for sessions now and then is done.
const (
	flushEvery   = time.Second      // rows of what has changed
	recheckEvery = 10 * time.Second // whether callers may still read what they read
	moveEvery    = time.Minute      // positions of sessions that nothing matched for
	flushRows    = 5000             // of one write
)

// attached notes whether a session has a connection.
func (x *fanouts) attached(o *outbox, yes bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if yes {
		x.out[o] = struct{}{}
	} else {
		delete(x.out, o)
	}
}

func (x *fanouts) outboxes() []*outbox {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := make([]*outbox, 0, len(x.out))
	for o := range x.out {
		all = append(all, o)
	}
	return all
}

// run does what is done now and then, until ctx ends.
func (x *fanouts) run(ctx context.Context) {
	defer close(x.ended)
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	names := x.s.o.Backend.MQTT()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-names.Changed():
			names = x.s.o.Backend.MQTT()
			x.replaced(names.Sources())
			for _, o := range x.outboxes() {
				o.refit(ctx, true)
			}
			continue
		case <-tick.C:
		}
		recheck := n%int(recheckEvery/flushEvery) == 0
		for _, o := range x.outboxes() {
			if missed := o.missed.Load(); missed || recheck {
				o.refit(ctx, missed)
			}
		}
		if n%int(moveEvery/flushEvery) == 0 {
			for _, o := range x.outboxes() {
				o.mu.Lock()
				o.dirty = true
				o.mu.Unlock()
			}
		}
		x.flush(ctx)
		x.s.sessions.expire(ctx)
		x.s.retained.expire(ctx)
	}
}

// flush writes the rows of the sessions that changed, many in one write.
func (x *fanouts) flush(ctx context.Context) {
	var rows []event.ShelfRow
	var thens []func()
	var held []*outbox
	write := func() {
		if len(rows) > 0 {
			if err := x.s.o.Backend.Rows().Keep(ctx, rows...); err == nil {
				for _, then := range thens {
					then()
				}
			} else {
				if ctx.Err() == nil {
					x.s.o.Log.Warn("how far MQTT sessions have come cannot be stored and is tried again", "sessions", len(held), "error", err)
				}
				for _, o := range held {
					o.mu.Lock()
					o.dirty = true
					o.mu.Unlock()
				}
			}
		}
		for _, o := range held {
			o.rows.Unlock()
		}
		rows, thens, held = nil, nil, nil
	}
	for _, o := range x.outboxes() {
		o.mu.Lock()
		dirty := o.dirty
		o.mu.Unlock()
		if !dirty || !o.rows.TryLock() { // who holds them writes the same
			continue
		}
		more, then := o.changes()
		held = append(held, o)
		if len(rows)+len(more) > event.MaxShelfRows { // of one session with very much
			o.rows.Unlock()
			held = held[:len(held)-1]
			write()
			if err := o.save(ctx); err != nil && ctx.Err() == nil {
				x.s.o.Log.Warn("how far an MQTT session has come cannot be stored and is tried again", "client", o.sess.clientID, "error", err)
			}
			continue
		}
		rows, thens = append(rows, more...), append(thens, then)
		if len(rows) >= flushRows {
			write()
		}
	}
	write()
}

// refit takes the rules in force, or with force false what the caller may read now, where that has changed.
func (o *outbox) refit(ctx context.Context, force bool) {
	if !o.admin.TryLock() { // it may wait for a client that does not read, for whom nobody else is to wait
		if force {
			o.missed.Store(true)
		}
		return
	}
	defer o.admin.Unlock()
	o.missed.Store(false)
	if o.cancel == nil {
		return
	}
	if force || o.unfit || o.readable() != o.allowed {
		o.fit(ctx, false)
		if err := o.settled(ctx); err != nil && ctx.Err() == nil {
			o.s.o.Log.Warn("where an MQTT session begins to read cannot be stored: after a crash it begins later", "client", o.sess.clientID, "error", err)
		}
	}
	o.fitShares(ctx)
}
