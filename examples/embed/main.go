// Command embed runs the router's engine inside another Go program: a store, a topic, a subscription with
// a filter, and a sink of the program's own.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/storage/pebblestore"
)

// printer is a sink: whatever has Deliver and Close.
type printer struct {
	out  io.Writer
	done chan struct{}
}

func (p printer) Deliver(_ context.Context, ds []event.Delivery) error {
	defer close(p.done)
	_, err := fmt.Fprintf(p.out, "%s: %s\n", ds[0].Event.Attr(event.TagID), ds[0].Event.Data())
	return err
}

func (printer) Close() error { return nil }

func main() {
	dir, err := os.MkdirTemp("", "embed-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = run(context.Background(), dir, os.Stdout)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, dir string, out io.Writer) error {
	store, err := pebblestore.Open(ctx, pebblestore.Options{Dir: dir})
	if err != nil {
		return err
	}
	defer store.Close()
	e, err := engine.Open(ctx, engine.Options{Store: store})
	if err != nil {
		return err
	}
	defer e.Close(ctx)
	filter, err := filters.Compile(`data.total > 100`)
	if err != nil {
		return err
	}
	sink := printer{out, make(chan struct{})}
	if err := e.Apply(ctx, engine.Spec{
		Topics: []event.Topic{{Name: "orders"}, {Name: "big.dead", WhenFull: event.Reject}},
		Subscriptions: []engine.SubscriptionSpec{{
			Subscription: event.Subscription{Name: "big", Topic: "orders", DeadLetter: "big.dead"},
			Program:      filter,
			OpenSink:     func(context.Context) (engine.Sink, error) { return sink, nil },
		}},
	}); err != nil {
		return err
	}
	orders := []event.Event{{ID: "a", Data: []byte(`{"total":40}`)}, {ID: "b", Data: []byte(`{"total":250}`)}}
	if err := e.Publish(ctx, "orders", orders, make([]event.Position, len(orders))); err != nil {
		return err
	}
	<-sink.done
	return nil
}
