package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/millrace/millrace/sdk/client"
	"google.golang.org/grpc/codes"
)

// A router that was started with --grpc-listen 127.0.0.1:8085.
func ExampleDial() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, "127.0.0.1:8085", client.Options{Token: "…"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	e, err := client.JSON("order.created", map[string]any{"total": 250})
	if err != nil {
		log.Fatal(err)
	}
	client.Set(e, "partitionkey", "customer-7")
	stored, err := c.Publish(ctx, "orders", e)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(stored[0].Id, stored[0].Position)
}

// Many events, each answered once it is durable.
func ExampleClient_Publisher() {
	ctx := context.Background()
	c, err := client.New("127.0.0.1:8085", client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	p := c.Publisher(ctx, "orders", client.PublisherOptions{})
	var sent []*client.Sending
	for i := range 10_000 {
		e, err := client.JSON("order.created", map[string]int{"total": i})
		if err != nil {
			log.Fatal(err)
		}
		s, err := p.Publish(ctx, e)
		if err != nil { // the publisher has ended
			log.Fatal(err)
		}
		sent = append(sent, s)
	}
	if err := p.Close(ctx); err != nil {
		log.Fatal(err)
	}
	for _, s := range sent {
		if _, err := s.Wait(ctx); err != nil { // this one was refused
			log.Print(err)
		}
	}
}

// Follow goes on where it was, also in the next run of the program: it keeps the cursor.
func ExampleClient_Follow() {
	ctx := context.Background()
	c, err := client.New("127.0.0.1:8085", client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	start := client.Earliest() // or client.After(the cursor that was kept)
	r := c.Follow(client.Topic("orders"), client.ReadOptions{Start: start, Filter: "data.total > 100"})
	for e, err := range r.All(ctx) {
		var failed *client.Error
		if errors.As(err, &failed) && failed.Code == codes.OutOfRange {
			log.Fatal("the topic's ring has overtaken the cursor: ", err)
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(client.Data(e.Event)), e.Cursor)
	}
}

// Receive works on a pull subscription until the context ends.
func ExampleClient_Receive() {
	ctx, stop := context.WithTimeout(context.Background(), time.Hour)
	defer stop()
	c, err := client.New("127.0.0.1:8085", client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	err = c.Receive(ctx, "jobs", func(ctx context.Context, d *client.Delivery) error {
		fmt.Println(d.Attempt, string(client.Data(d.Event)))
		return nil // done; an error gives it back
	}, client.ReceiveOptions{Concurrency: 8})
	if err != nil {
		log.Fatal(err)
	}
}

func ExampleJSON() {
	e, err := client.JSON("order.created", map[string]any{"total": 250})
	if err != nil {
		log.Fatal(err)
	}
	client.Set(e, "subject", "order-1")
	fmt.Println(e.Type, client.Get(e, "subject"), client.Get(e, "datacontenttype"), string(client.Data(e)))
	// Output: order.created order-1 application/json {"total":250}
}
