package grpcapi

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

func TestEveryErrorHasItsCode(t *testing.T) {
	for _, x := range []struct {
		err    error
		code   codes.Code
		reason string
	}{
		{access.ErrUnauthenticated, codes.Unauthenticated, "UNAUTHENTICATED"}, {admission.ErrRevoked, codes.PermissionDenied, "REVOKED"},
		{event.ErrInvalid, codes.InvalidArgument, "INVALID"}, {event.ErrUnverified, codes.Unauthenticated, "UNVERIFIED"},
		{event.ErrDenied, codes.PermissionDenied, "DENIED"}, {event.ErrNotFound, codes.NotFound, "NOT_FOUND"},
		{event.ErrConflict, codes.FailedPrecondition, "CONFLICT"}, {event.ErrGone, codes.OutOfRange, "GONE"},
		{event.ErrPrecondition, codes.Aborted, "PRECONDITION"}, {event.ErrTooLarge, codes.InvalidArgument, "TOO_LARGE"},
		{event.ErrSchema, codes.InvalidArgument, "SCHEMA"}, {event.ErrUnsupported, codes.Unimplemented, "UNSUPPORTED"},
		{event.ErrFunction, codes.FailedPrecondition, "FUNCTION"}, {event.ErrUnavailable, codes.Unavailable, "UNAVAILABLE"},
		{event.ErrFull, codes.ResourceExhausted, "FULL"}, {context.Canceled, codes.Canceled, "CANCELED"}, {context.DeadlineExceeded, codes.DeadlineExceeded, "DEADLINE"},
		{&admission.TooMany{Limit: admission.PrincipalRate, Wait: time.Second}, codes.ResourceExhausted, "TOO_MANY"},
	} {
		st, internal := statusOf(fmt.Errorf("of something: %w", x.err))
		told(t, st.Err(), x.code, x.reason)
		retry := detail[*errdetails.RetryInfo](st)
		if wants := x.code == codes.Unavailable || x.code == codes.ResourceExhausted; internal || (retry != nil) != wants || wants && retry.RetryDelay.AsDuration() != time.Second {
			t.Errorf("%v: internal %v, %v", x.err, internal, st.Details())
		}
	}
	st, internal := statusOf(fmt.Errorf("open /secret/path: broken"))
	told(t, st.Err(), codes.Internal, "INTERNAL")
	if !internal || st.Message() != "the router failed; its log says why" {
		t.Error(internal, st.Message())
	}
}

func TestFieldsThatAreWrong(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	c := h.events()
	bad := func(r *millracev1.PublishRequest, field string) {
		t.Helper()
		_, err := c.Publish(t.Context(), r)
		st := told(t, err, codes.InvalidArgument, "")
		if v := detail[*errdetails.BadRequest](st).GetFieldViolations(); len(v) == 0 || v[0].Field != field {
			t.Errorf("%v, want %s", st.Details(), field)
		}
	}
	bad(&millracev1.PublishRequest{Topic: "orders"}, "events")
	bad(&millracev1.PublishRequest{Topic: "orders", Events: some(10_001)}, "events")
	bad(&millracev1.PublishRequest{Topic: "a/b", Events: some(1)}, "topic")
	bad(&millracev1.PublishRequest{Events: some(1)}, "topic")
	bad(&millracev1.PublishRequest{Topic: "orders", Events: append(some(2), &pb.CloudEvent{SpecVersion: "2"})}, "events[2].spec_version")
	bad(&millracev1.PublishRequest{Topic: "orders", Events: []*pb.CloudEvent{{SpecVersion: "1.0", Id: "1", Source: "s"}}}, "events[0].type")
	bad(&millracev1.PublishRequest{Topic: "orders", Events: some(2), Wait: durationpb.New(time.Second)}, "wait")
	bad(&millracev1.PublishRequest{Topic: "orders", Events: some(1), Wait: durationpb.New(-1)}, "wait")
	bad(&millracev1.PublishRequest{Topic: "orders", Events: some(1), Wait: &durationpb.Duration{Nanos: -5, Seconds: 1}}, "wait")
	_, err := c.Pull(t.Context(), &millracev1.PullRequest{Subscription: "workers", Max: 1001})
	told(t, err, codes.InvalidArgument, "INVALID")
	for _, s := range []*millracev1.Start{
		{Start: &millracev1.Start_Point{}}, {Start: &millracev1.Start_After{}}, {Start: &millracev1.Start_Since{Since: &timestamppb.Timestamp{Nanos: -1}}}, {Start: &millracev1.Start_Ago{Ago: durationpb.New(-1)}},
	} {
		in, err := c.Read(t.Context(), &millracev1.ReadRequest{From: &millracev1.ReadRequest_Topic{Topic: "orders"}, Start: s})
		if err == nil {
			_, err = in.Recv()
		}
		told(t, err, codes.InvalidArgument, "INVALID")
	}
	if n := h.f.get(func() int { return len(h.f.topics["orders"]) }); n != 0 {
		t.Errorf("%d events were stored", n)
	}
}

func TestCallsOfOneMessage(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	conn := h.dial()
	c := millracev1.NewEventsClient(conn)
	h.f.reply = &event.Reply{Status: 201, ContentType: "text/plain", Data: []byte("made")}
	got, err := c.Publish(t.Context(), &millracev1.PublishRequest{Topic: "orders", Events: some(1), Wait: durationpb.New(time.Second)})
	if err != nil || got.Reply.GetStatus() != 201 || string(got.Reply.Data) != "made" {
		t.Fatal(got, err)
	}
	reply, err := c.GetReply(t.Context(), &millracev1.GetReplyRequest{Topic: "orders", Position: got.Events[0].Position})
	if err != nil || reply.Reply.ContentType != "text/plain" {
		t.Fatal(reply, err)
	}
	_, err = c.GetReply(t.Context(), &millracev1.GetReplyRequest{Topic: "orders"})
	told(t, err, codes.InvalidArgument, "INVALID")
	one, err := c.GetEvent(t.Context(), &millracev1.GetEventRequest{Topic: "orders", Position: got.Events[0].Position})
	if err != nil || one.Event.Event.Id != got.Events[0].Id || one.Event.Cursor != "" {
		t.Fatal(one, err)
	}
	dry, err := c.DryRun(t.Context(), &millracev1.DryRunRequest{Topic: "orders", Events: some(2)})
	if err != nil || len(dry.Events) != 2 || !dry.Events[0].Matches[0].Matched || dry.Events[1].Matches[1].Why != "a filter" {
		t.Fatal(dry, err)
	}
	h.publish(c, 9)
	pulled, err := c.Pull(t.Context(), &millracev1.PullRequest{Subscription: "workers", Max: 4, Wait: durationpb.New(time.Second)})
	if err != nil || len(pulled.Deliveries) != 4 {
		t.Fatal(pulled, err)
	}
	settled, err := c.Settle(t.Context(), &millracev1.SettleRequest{Subscription: "workers", Settle: ack(pulled.Deliveries[0].Lease, "invented", pulled.Deliveries[0].Lease)})
	if err != nil || len(settled.Lost) != 2 || settled.Lost[0].Lease != "invented" || settled.Lost[0].Reason != millracev1.LostReason_LOST_REASON_UNKNOWN {
		t.Fatal(settled, err)
	}
	invoked, err := millracev1.NewFunctionsClient(conn).Invoke(t.Context(), &millracev1.InvokeRequest{Function: "f", Event: whole()})
	if err != nil || len(invoked.Results) != 5 || invoked.Results[0].Event.Id != "1" || invoked.Results[1].Reason != "no" || invoked.Results[2].Delay.AsDuration() != 5*time.Millisecond ||
		invoked.Results[4].Verdict != millracev1.Verdict_VERDICT_DROP || invoked.Reply.Status != 201 || invoked.Fuel != 7 {
		t.Fatal(invoked, err)
	}
	_, err = millracev1.NewFunctionsClient(conn).Invoke(t.Context(), &millracev1.InvokeRequest{Function: "f", Version: "x", Event: whole()})
	told(t, err, codes.FailedPrecondition, "FUNCTION")
}

// TestPullFits: an answer to Pull is no larger than clients take; what it leaves out was not delivered.
func TestPullFits(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	c := h.events()
	large := &pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: make([]byte, 900<<10)}}
	for range 2 {
		if _, err := c.Publish(t.Context(), &millracev1.PublishRequest{Topic: "orders", Events: []*pb.CloudEvent{large, large}}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := c.Pull(t.Context(), &millracev1.PullRequest{Subscription: "workers"})
	if err != nil || len(got.Deliveries) != 2 {
		t.Fatal(len(got.GetDeliveries()), err)
	}
	if n := h.f.get(func() int { return len(h.f.due) }); n != 2 {
		t.Errorf("%d were given back", n)
	}
}

// TestPullThatNobodyWaitsFor: a client that goes while it waits is lent nothing.
func TestPullThatNobodyWaitsFor(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	c := h.events()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := c.Pull(ctx, &millracev1.PullRequest{Subscription: "workers", Wait: durationpb.New(20 * time.Second)})
		done <- err
	}()
	eventually(t, "it waits", func() bool { return h.s.Stats().In == 1 })
	cancel()
	<-done
	eventually(t, "the call has ended", func() bool {
		ended := false
		h.s.Calls(func(method, code string, n uint64) {
			ended = ended || method == "millrace.v1.Events/Pull" && code == "Canceled"
		})
		return ended
	})
	h.publish(c, 1)
	if got, err := c.Pull(t.Context(), &millracev1.PullRequest{Subscription: "workers"}); err != nil || len(got.Deliveries) != 1 {
		t.Fatal(got, err)
	}
}

func TestAdministration(t *testing.T) {
	g, log, _ := locked(t)
	h := serve(t, Options{}, admission.Options{Guard: g})
	a := millracev1.NewAdminClient(h.dial())
	ctx := withToken(t.Context(), "the-token")
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	made, err := a.CreateDefinition(ctx, &millracev1.CreateDefinitionRequest{Kind: "topics", Json: `{"name":"new"}`})
	if err != nil || made.Definition.Name != "new" || made.Definition.Kind != "topics" {
		t.Fatal(made, err)
	}
	_, err = a.CreateDefinition(ctx, &millracev1.CreateDefinitionRequest{Kind: "topics", Json: `{"name":"new"}`})
	told(t, err, codes.AlreadyExists, "CONFLICT")
	_, err = a.CreateDefinition(ctx, &millracev1.CreateDefinitionRequest{Kind: "topics", Json: `{"name":`})
	told(t, err, codes.InvalidArgument, "INVALID")
	_, err = a.CreateDefinition(ctx, &millracev1.CreateDefinitionRequest{Kind: "functions", Json: `{"name":"f"}`})
	told(t, err, codes.Unimplemented, "UNSUPPORTED")
	_, err = a.ListDefinitions(ctx, &millracev1.ListDefinitionsRequest{Kind: "keys"})
	told(t, err, codes.InvalidArgument, "INVALID")
	list, err := a.ListDefinitions(ctx, &millracev1.ListDefinitionsRequest{Kind: "topics"})
	if err != nil || len(list.Definitions) != 3 || list.Definitions[0].Name != "new" {
		t.Fatal(list, err)
	}
	changed, err := a.UpdateDefinition(ctx, &millracev1.UpdateDefinitionRequest{Kind: "topics", Name: "new", Patch: `{"x":9007199254740993}`})
	if err != nil || changed.Definition.Json != `{"name":"new","patch":{"x":9007199254740993}}` {
		t.Fatal(changed, err)
	}
	must(a.DeleteDefinition(ctx, &millracev1.DeleteDefinitionRequest{Kind: "topics", Name: "new"}))
	_, err = a.GetDefinition(ctx, &millracev1.GetDefinitionRequest{Kind: "topics", Name: "new"})
	told(t, err, codes.NotFound, "NOT_FOUND")
	must(a.Pause(ctx, &millracev1.PauseRequest{Subscription: "workers", Reason: "why"}))
	must(a.Resume(ctx, &millracev1.ResumeRequest{Subscription: "workers"}))
	must(a.Seek(ctx, &millracev1.SeekRequest{Subscription: "workers", To: &millracev1.Start{Start: &millracev1.Start_Ago{Ago: durationpb.New(time.Hour)}}}))
	if at := h.f.seeks[0]; at.At != event.AtTime || time.Since(at.Time) < 59*time.Minute {
		t.Error(at)
	}
	_, err = a.Seek(ctx, &millracev1.SeekRequest{Subscription: "workers"})
	told(t, err, codes.InvalidArgument, "INVALID")
	for _, call := range []string{"CreateDefinition", "UpdateDefinition", "DeleteDefinition", "Pause", "Resume", "Seek"} {
		if !log.has(func(e access.AuditEntry) bool {
			return e.Outcome == "changed" && e.Detail == "millrace.v1.Admin/"+call && e.Principal == "token"
		}) {
			t.Errorf("%s is not in the audit log", call)
		}
	}
	ready, err := a.Ready(ctx, &millracev1.ReadyRequest{})
	if err != nil || ready.Json != `{"status":"a fake"}` {
		t.Error(ready, err)
	}
	h.f.change(func() { h.f.notWell = event.ErrUnavailable })
	_, err = a.Ready(ctx, &millracev1.ReadyRequest{})
	told(t, err, codes.Unavailable, "UNAVAILABLE")
	rules, err := a.GetRules(ctx, &millracev1.GetRulesRequest{})
	if err != nil || rules.Revision != "7" || rules.Json != `{"topics":{}}` {
		t.Error(rules, err)
	}
	if ok, err := a.CheckRules(ctx, &millracev1.CheckRulesRequest{Yaml: "version: 1"}); err != nil || !ok.Valid {
		t.Error(ok, err)
	}
	_, err = a.CheckRules(ctx, &millracev1.CheckRulesRequest{Yaml: "webhok"})
	var at []string
	for _, v := range detail[*errdetails.BadRequest](told(t, err, codes.InvalidArgument, "INVALID")).GetFieldViolations() {
		at = append(at, v.Field)
	}
	if !slices.Equal(at, []string{"rules.yaml:7:5", "rules.yaml:9:1"}) {
		t.Error(at)
	}
}
