package grpcapi

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

// events is the service Events.
type events struct {
	millracev1.UnimplementedEventsServer
	s *Server
}

// Publish stores events and answers once they are durable.
func (x *events) Publish(ctx context.Context, in *millracev1.PublishRequest) (*millracev1.PublishResponse, error) {
	topic := in.GetTopic()
	se, err := may(ctx, access.Publish, access.Topic, topic)
	if err != nil {
		return nil, err
	}
	wait, err := durationOf("wait", in.GetWait(), 0, pullWait)
	if err != nil {
		return nil, err
	}
	evs, err := eventsOf(in.GetEvents(), x.s.o.Limits)
	if err != nil {
		return nil, err
	}
	pos := make([]event.Position, len(evs))
	out := &millracev1.PublishResponse{}
	if wait > 0 {
		if len(evs) != 1 {
			return nil, event.Invalid("wait", fmt.Sprintf("goes with one event and the request has %d; send each alone, or leave wait out", len(evs)))
		}
		end, stop := x.s.waiting(ctx, wait)
		defer stop()
		var reply *event.Reply
		if reply, err = x.s.o.Backend.Ask(se.Context(ctx), topic, evs, pos, end.Done()); err == nil {
			out.Reply = replyOf(reply)
		}
	} else {
		err = x.s.o.Backend.Publish(se.Context(ctx), topic, evs, pos)
	}
	if err != nil {
		return nil, x.s.unseen(se, access.Topic, topic, err)
	}
	out.Events = publishedOf(evs, pos)
	return out, nil
}

// waiting ends when the wait is over, the call ends or the router drains.
func (s *Server) waiting(ctx context.Context, wait time.Duration) (_ context.Context, stop func()) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	undrain := context.AfterFunc(s.draining, cancel)
	return ctx, func() {
		undrain()
		cancel()
	}
}

func publishedOf(evs []event.Event, pos []event.Position) []*millracev1.Published {
	out := make([]*millracev1.Published, len(evs))
	for i := range evs {
		out[i] = &millracev1.Published{Id: evs[i].ID, Position: positionOf(pos[i])}
	}
	return out
}

// DryRun says which subscriptions would take events. Of those that the caller may not read it says nothing: why shows
// their filters.
func (x *events) DryRun(ctx context.Context, in *millracev1.DryRunRequest) (*millracev1.DryRunResponse, error) {
	se, err := may(ctx, access.Publish, access.Topic, in.GetTopic())
	if err != nil {
		return nil, err
	}
	evs, err := eventsOf(in.GetEvents(), x.s.o.Limits)
	if err != nil {
		return nil, err
	}
	matches, err := x.s.o.Backend.DryRun(se.Context(ctx), in.GetTopic(), evs)
	if err != nil {
		return nil, x.s.unseen(se, access.Topic, in.GetTopic(), err)
	}
	p := se.Principal()
	out := &millracev1.DryRunResponse{Events: make([]*millracev1.DryRunEvent, len(matches))}
	for i, list := range matches {
		list = slices.DeleteFunc(list, func(m event.Match) bool { return p.Check(access.Read, access.Subscription, m.Subscription) != nil })
		one := &millracev1.DryRunEvent{Matches: make([]*millracev1.Match, len(list))}
		for j, m := range list {
			one.Matches[j] = &millracev1.Match{Subscription: m.Subscription, Matched: m.Matched, Why: text(m.Why)}
		}
		out.Events[i] = one
	}
	return out, nil
}

// GetReply returns the reply to an event, waiting for it.
func (x *events) GetReply(ctx context.Context, in *millracev1.GetReplyRequest) (*millracev1.GetReplyResponse, error) {
	topic := in.GetTopic()
	mayRead := func() error {
		se, err := sessionOf(ctx)
		if err != nil {
			return err
		}
		if se.Principal().Check(access.Read, access.Topic, topic) == nil { // a producer may as well
			return event.CheckName("topic", topic)
		}
		_, err = may(ctx, access.Publish, access.Topic, topic)
		return err
	}
	if err := mayRead(); err != nil {
		return nil, err
	}
	se, err := sessionOf(ctx)
	if err != nil {
		return nil, err
	}
	pos, err := placeOf(in.GetPosition())
	if err != nil {
		return nil, err
	}
	wait, err := durationOf("wait", in.GetWait(), 0, pullWait)
	if err != nil {
		return nil, err
	}
	end, stop := x.s.waiting(ctx, wait)
	defer stop()
	reply, err := x.s.o.Backend.Reply(se.Context(ctx), topic, pos, end.Done())
	if err != nil {
		return nil, x.s.unseen(se, access.Topic, topic, err)
	}
	if err := mayRead(); err != nil { // what he may do can have changed while he waited
		return nil, err
	}
	return &millracev1.GetReplyResponse{Reply: replyOf(reply)}, nil
}

// GetEvent returns one event of a topic.
func (x *events) GetEvent(ctx context.Context, in *millracev1.GetEventRequest) (*millracev1.GetEventResponse, error) {
	se, err := may(ctx, access.Read, access.Topic, in.GetTopic())
	if err != nil {
		return nil, err
	}
	pos, err := placeOf(in.GetPosition())
	if err != nil {
		return nil, err
	}
	rec, err := x.s.o.Backend.Event(se.Context(ctx), in.GetTopic(), pos)
	if err != nil {
		return nil, x.s.unseen(se, access.Topic, in.GetTopic(), err)
	}
	return &millracev1.GetEventResponse{Event: receivedOf(rec, "")}, nil
}
