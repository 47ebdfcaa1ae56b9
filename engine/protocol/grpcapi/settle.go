package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

// pullBytes bounds an answer to Pull: many clients take no more than 4 MiB at once.
const pullBytes = 2 << 20

// Pull leases deliveries. A client that goes away while it waits is lent nothing.
func (x *events) Pull(ctx context.Context, in *millracev1.PullRequest) (*millracev1.PullResponse, error) {
	name, b := in.GetSubscription(), x.s.o.Backend
	se, err := may(ctx, access.Consume, access.Subscription, name)
	if err != nil {
		return nil, err
	}
	most := int(in.GetMax())
	if most == 0 {
		most = pullBatch
	}
	if most > maxPull {
		return nil, event.Invalid("max", fmt.Sprintf("is %d; want 1 to %d", in.GetMax(), maxPull))
	}
	wait, err := durationOf("wait", in.GetWait(), 0, pullWait)
	if err != nil {
		return nil, err
	}
	end, stop := x.s.waiting(ctx, max(wait, time.Second))
	leases, err := b.Pull(end, name, most, wait)
	over := end.Err() != nil
	stop()
	if err != nil && over && errors.Is(err, end.Err()) { // nothing came, or the router drains
		err = ctx.Err()
		if err == nil && x.s.draining.Err() != nil {
			err = errDraining
		}
	}
	if err != nil {
		return nil, x.s.unseen(se, access.Subscription, name, err)
	}
	keep, size := 0, 0
	for keep < len(leases) && (keep == 0 || size+leases[keep].Event.Len() <= pullBytes) {
		size += leases[keep].Event.Len()
		keep++
	}
	err = ctx.Err()
	if wait > 0 && err == nil {
		_, err = may(ctx, access.Consume, access.Subscription, name) // what he may do can have changed while he waited
	}
	if err != nil {
		keep = 0
	}
	if keep < len(leases) {
		if back := b.Unpull(name, idsOf(leases[keep:])); back != nil {
			x.s.o.Log.Warn("deliveries that nobody was told of come again when their leases expire", "subscription", name, "error", back)
		}
	}
	if err != nil {
		return nil, err
	}
	return &millracev1.PullResponse{Deliveries: deliveriesOf(leases[:keep])}, nil
}

func idsOf(leases []event.Lease) []string {
	ids := make([]string, len(leases))
	for i := range leases {
		ids[i] = leases[i].ID
	}
	return ids
}

func deliveriesOf(leases []event.Lease) []*millracev1.Delivery {
	out := make([]*millracev1.Delivery, len(leases))
	for i := range leases {
		l := &leases[i]
		out[i] = &millracev1.Delivery{Lease: l.ID, Id: l.Delivery, Attempt: uint32(l.Attempt), Deadline: timestamppb.New(l.Deadline),
			Event: protoOf(l.Event), Position: positionOf(l.Event.Position()), RecordedTime: timestamppb.New(l.Event.ReceivedAt())}
	}
	return out
}

// Settle settles leases, or prolongs them.
func (x *events) Settle(ctx context.Context, in *millracev1.SettleRequest) (*millracev1.SettleResponse, error) {
	se, err := may(ctx, access.Consume, access.Subscription, in.GetSubscription())
	if err != nil {
		return nil, err
	}
	how, err := x.s.settlingOf(in.GetSettle())
	if err != nil {
		return nil, err
	}
	lost, err := x.s.settle(ctx, se, in.GetSubscription(), in.GetSettle().GetLeases(), how)
	if err != nil {
		return nil, err
	}
	return &millracev1.SettleResponse{Lost: lost}, nil
}

func (s *Server) settle(ctx context.Context, se *admission.Session, name string, leases []string, how event.Settling) ([]*millracev1.Lost, error) {
	lost, err := s.o.Backend.Settle(se.Context(ctx), name, leases, how)
	if err != nil {
		return nil, s.unseen(se, access.Subscription, name, err)
	}
	return lostOf(access.UnseenLeases(se.Principal(), lost)), nil
}

func lostOf(lost []event.Lost) []*millracev1.Lost {
	out := make([]*millracev1.Lost, len(lost))
	for i, l := range lost {
		out[i] = &millracev1.Lost{Lease: text(l.Lease), Reason: reasonOf(l.Why)}
	}
	return out
}

func reasonOf(why event.LostWhy) millracev1.LostReason {
	switch why {
	case event.LostExpired:
		return millracev1.LostReason_LOST_REASON_EXPIRED
	case event.LostReturned:
		return millracev1.LostReason_LOST_REASON_RETURNED
	case event.LostSettled:
		return millracev1.LostReason_LOST_REASON_SETTLED
	case event.LostSeek:
		return millracev1.LostReason_LOST_REASON_SEEK
	case event.LostRestart:
		return millracev1.LostReason_LOST_REASON_RESTART
	case event.LostForeign:
		return millracev1.LostReason_LOST_REASON_FOREIGN
	case event.LostUnknown:
		return millracev1.LostReason_LOST_REASON_UNKNOWN
	}
	return millracev1.LostReason_LOST_REASON_UNSPECIFIED
}

// settlingOf is what a request asks to become of its leases.
func (s *Server) settlingOf(in *millracev1.Settling) (how event.Settling, err error) {
	switch n := len(in.GetLeases()); {
	case n == 0:
		return how, event.Invalid("leases", "is empty; give the leases of the deliveries")
	case n > s.o.Limits.Events:
		return how, event.Bad(event.ErrTooLarge, "leases", fmt.Sprintf("has %d entries; one request may have %d: send the rest in another", n, s.o.Limits.Events))
	}
	switch v := in.GetVerb().(type) {
	case *millracev1.Settling_Ack:
		how.Verb = event.Ack
		if r := v.Ack.GetReply(); r != nil {
			how.Reply = &event.Reply{Status: int(r.GetStatus()), ContentType: r.GetContentType(), Data: r.GetData()}
			if how.Reply.Status == 0 {
				how.Reply.Status = 200
			}
			if err := how.Reply.Check(); err != nil {
				return how, event.At("ack.reply", err)
			}
		}
	case *millracev1.Settling_Nack:
		how.Verb = event.Nack
		how.Delay, err = durationOf("nack.delay", v.Nack.GetDelay(), 0, maxDelay)
	case *millracev1.Settling_Extend:
		how.Verb = event.Extend
		how.Deadline, err = durationOf("extend.deadline", v.Extend.GetDeadline(), 0, maxDeadline)
		if err == nil && how.Deadline != 0 && how.Deadline < minDeadline {
			err = event.Invalid("extend.deadline", fmt.Sprintf("is %s; want %s to %s, or 0 to give the deliveries back", how.Deadline, minDeadline, maxDeadline))
		}
	default:
		err = event.Invalid("verb", "is missing; give one of ack, nack and extend")
	}
	return how, err
}
