package grpcapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

// register puts the services on the server.
func (s *Server) register() {
	s.grpc.RegisterService(s.single(&millracev1.Events_ServiceDesc), &events{s: s})
	s.grpc.RegisterService(s.single(&millracev1.Functions_ServiceDesc), &functions{s: s})
	if !s.o.Public {
		s.grpc.RegisterService(s.single(&millracev1.Admin_ServiceDesc), &admin{s: s})
	}
	s.grpc.RegisterService(s.single(&healthv1.Health_ServiceDesc), s.health)
}

// functions is the service Functions.
type functions struct {
	millracev1.UnimplementedFunctionsServer
	s *Server
}

// Invoke shows one event to a function.
func (x *functions) Invoke(ctx context.Context, in *millracev1.InvokeRequest) (*millracev1.InvokeResponse, error) {
	se, err := may(ctx, access.Invoke, access.Function, in.GetFunction())
	if err != nil {
		return nil, err
	}
	var ev event.Event
	if err := setEvent(&ev, in.GetEvent(), x.s.o.Limits); err != nil {
		return nil, event.At("event", err)
	}
	got, err := x.s.o.Backend.Invoke(se.Context(ctx), in.GetFunction(), in.GetVersion(), &ev)
	if err != nil {
		return nil, x.s.unseen(se, access.Function, in.GetFunction(), err)
	}
	out := &millracev1.InvokeResponse{Reply: replyOf(got.Reply), Fuel: got.Fuel, Time: durationpb.New(time.Duration(got.Took)), Results: make([]*millracev1.Invoked, len(got.Results))}
	for i := range got.Results {
		out.Results[i] = invokedOf(&got.Results[i])
	}
	return out, nil
}

func invokedOf(r *event.Invoked) *millracev1.Invoked {
	switch r.Verdict {
	case "pass":
		return &millracev1.Invoked{Verdict: millracev1.Verdict_VERDICT_PASS}
	case "emit":
		return &millracev1.Invoked{Verdict: millracev1.Verdict_VERDICT_EMIT, Topic: text(r.Topic), Event: protoOf(r.Event)}
	case "drop":
		return &millracev1.Invoked{Verdict: millracev1.Verdict_VERDICT_DROP}
	case "retry":
		out := &millracev1.Invoked{Verdict: millracev1.Verdict_VERDICT_RETRY}
		if r.Delay > 0 {
			out.Delay = durationpb.New(time.Duration(r.Delay) * time.Millisecond)
		}
		return out
	case "reject":
		return &millracev1.Invoked{Verdict: millracev1.Verdict_VERDICT_REJECT, Code: int32(r.Code), Reason: text(r.Reason)}
	}
	return &millracev1.Invoked{}
}

// admin is the service Admin.
type admin struct {
	millracev1.UnimplementedAdminServer
	s *Server
}

// kindOf is what a request calls a kind.
func kindOf(kind string) (access.Kind, error) {
	switch kind {
	case "topics":
		return access.Topic, nil
	case "subscriptions":
		return access.Subscription, nil
	case "functions":
		return access.Function, nil
	}
	return 0, event.Invalid("kind", fmt.Sprintf(`is %.60q; want "topics", "subscriptions" or "functions"`, kind))
}

// changeable is a kind that is made and changed here.
func changeable(kind string) (access.Kind, error) {
	k, err := kindOf(kind)
	if err == nil && k == access.Function {
		err = event.Bad(event.ErrUnsupported, "kind", "functions are not made or changed over gRPC: a module is pushed over HTTP (PUT /v1/functions/{name})")
	}
	return k, err
}

// changed tells the audit log what a call has done.
func (s *Server) changed(se *admission.Session, k access.Kind, name, method string) {
	s.o.Door.Guard().Changed(se.Principal(), k.String(), name, method[1:])
}

// shown is a document of the backend as a definition.
func shown(kind string, doc []byte) (*millracev1.Definition, error) {
	var head struct{ Name string }
	if err := json.Unmarshal(doc, &head); err != nil {
		return nil, fmt.Errorf("a definition of %s is no JSON object: %w", kind, err)
	}
	return &millracev1.Definition{Kind: kind, Name: head.Name, Json: text(string(doc))}, nil
}

// ListDefinitions lists those that the caller may see.
func (x *admin) ListDefinitions(ctx context.Context, in *millracev1.ListDefinitionsRequest) (*millracev1.ListDefinitionsResponse, error) {
	if _, err := kindOf(in.GetKind()); err != nil {
		return nil, err
	}
	se, err := may(ctx, access.Read, access.Router, "")
	if err != nil {
		return nil, err
	}
	list, err := x.s.o.Backend.List(se.Context(ctx), in.GetKind())
	if err != nil {
		return nil, err
	}
	var docs []json.RawMessage
	if err := json.Unmarshal(list, &docs); err != nil {
		return nil, fmt.Errorf("the list of %s is no JSON array: %w", in.GetKind(), err)
	}
	out := &millracev1.ListDefinitionsResponse{Definitions: make([]*millracev1.Definition, len(docs))}
	for i, doc := range docs {
		if out.Definitions[i], err = shown(in.GetKind(), doc); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(out.Definitions, func(a, b *millracev1.Definition) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// GetDefinition shows one.
func (x *admin) GetDefinition(ctx context.Context, in *millracev1.GetDefinitionRequest) (*millracev1.GetDefinitionResponse, error) {
	k, err := kindOf(in.GetKind())
	if err != nil {
		return nil, err
	}
	se, err := may(ctx, access.Read, k, in.GetName())
	if err != nil {
		return nil, err
	}
	doc, err := x.s.o.Backend.Show(se.Context(ctx), in.GetKind(), in.GetName())
	if err != nil {
		return nil, x.s.unseen(se, k, in.GetName(), err)
	}
	d, err := shown(in.GetKind(), doc)
	return &millracev1.GetDefinitionResponse{Definition: d}, err
}

// CreateDefinition makes one.
func (x *admin) CreateDefinition(ctx context.Context, in *millracev1.CreateDefinitionRequest) (*millracev1.CreateDefinitionResponse, error) {
	k, err := changeable(in.GetKind())
	if err != nil {
		return nil, err
	}
	se, err := sessionOf(ctx)
	if err != nil {
		return nil, err
	}
	doc := []byte(in.GetJson())
	if err := event.CheckJSON(doc); err != nil {
		return nil, event.At("json", err)
	}
	var head struct{ Name string }
	if err := json.Unmarshal(doc, &head); err == nil && event.CheckName(k.String(), head.Name) == nil { // else the backend says what is wrong
		if err := mayMake(se, k, head.Name); err != nil {
			return nil, err
		}
	} else if _, err := may(ctx, access.Manage, access.Router, ""); err != nil {
		return nil, err
	}
	made, err := x.s.o.Backend.Create(se.Context(ctx), in.GetKind(), doc)
	if errors.Is(err, event.ErrConflict) && x.s.o.Backend.Has(k, head.Name) {
		err = &exists{err}
	}
	if err != nil {
		return nil, about(k, head.Name, err)
	}
	d, err := shown(in.GetKind(), made)
	if err != nil {
		return nil, err
	}
	x.s.changed(se, k, d.Name, millracev1.Admin_CreateDefinition_FullMethodName)
	return &millracev1.CreateDefinitionResponse{Definition: d}, nil
}

// mayMake asks whether the caller may make something of a name. That says nothing of what there is: it is the same for
// every name that is not his.
func mayMake(se *admission.Session, k access.Kind, name string) error {
	err := se.May(access.Manage, k, name)
	if errors.Is(err, event.ErrNotFound) {
		return event.Bad(event.ErrDenied, "name", fmt.Sprintf("%.80q is no name of yours: you may not make a %s of it", name, k))
	}
	return about(k, name, err)
}

// UpdateDefinition changes one.
func (x *admin) UpdateDefinition(ctx context.Context, in *millracev1.UpdateDefinitionRequest) (*millracev1.UpdateDefinitionResponse, error) {
	k, err := changeable(in.GetKind())
	if err != nil {
		return nil, err
	}
	se, err := may(ctx, access.Manage, k, in.GetName())
	if err != nil {
		return nil, err
	}
	patch := []byte(in.GetPatch())
	if err := event.CheckJSON(patch); err != nil {
		return nil, event.At("patch", err)
	}
	doc, err := x.s.o.Backend.Change(se.Context(ctx), in.GetKind(), in.GetName(), patch)
	if err != nil {
		return nil, x.s.unseen(se, k, in.GetName(), err)
	}
	x.s.changed(se, k, in.GetName(), millracev1.Admin_UpdateDefinition_FullMethodName)
	d, err := shown(in.GetKind(), doc)
	return &millracev1.UpdateDefinitionResponse{Definition: d}, err
}

// DeleteDefinition removes one.
func (x *admin) DeleteDefinition(ctx context.Context, in *millracev1.DeleteDefinitionRequest) (*millracev1.DeleteDefinitionResponse, error) {
	k, err := kindOf(in.GetKind())
	if err != nil {
		return nil, err
	}
	action := access.Manage
	if k == access.Function {
		action = access.Deploy
	}
	se, err := may(ctx, action, k, in.GetName())
	if err != nil {
		return nil, err
	}
	if err := x.s.o.Backend.Delete(se.Context(ctx), in.GetKind(), in.GetName()); err != nil {
		return nil, x.s.unseen(se, k, in.GetName(), err)
	}
	x.s.changed(se, k, in.GetName(), millracev1.Admin_DeleteDefinition_FullMethodName)
	return &millracev1.DeleteDefinitionResponse{}, nil
}

// operate does something with a subscription.
func (x *admin) operate(ctx context.Context, name, method string, do func(context.Context) error) error {
	se, err := may(ctx, access.Operate, access.Subscription, name)
	if err != nil {
		return err
	}
	if err := do(se.Context(ctx)); err != nil {
		return x.s.unseen(se, access.Subscription, name, err)
	}
	x.s.changed(se, access.Subscription, name, method)
	return nil
}

// Pause stops a subscription.
func (x *admin) Pause(ctx context.Context, in *millracev1.PauseRequest) (*millracev1.PauseResponse, error) {
	return &millracev1.PauseResponse{}, x.operate(ctx, in.GetSubscription(), millracev1.Admin_Pause_FullMethodName, func(ctx context.Context) error {
		return x.s.o.Backend.PauseFor(ctx, in.GetSubscription(), in.GetReason())
	})
}

// Resume lets it go on.
func (x *admin) Resume(ctx context.Context, in *millracev1.ResumeRequest) (*millracev1.ResumeResponse, error) {
	return &millracev1.ResumeResponse{}, x.operate(ctx, in.GetSubscription(), millracev1.Admin_Resume_FullMethodName, func(ctx context.Context) error {
		return x.s.o.Backend.Resume(ctx, in.GetSubscription())
	})
}

// Seek moves it.
func (x *admin) Seek(ctx context.Context, in *millracev1.SeekRequest) (*millracev1.SeekResponse, error) {
	return &millracev1.SeekResponse{}, x.operate(ctx, in.GetSubscription(), millracev1.Admin_Seek_FullMethodName, func(ctx context.Context) error {
		if in.GetTo().GetStart() == nil {
			return event.Invalid("to", "is missing; say where the subscription goes on")
		}
		to, err := startOf(in.GetTo(), event.Start{}, x.s.o.Now())
		if err != nil {
			return err
		}
		return x.s.o.Backend.Seek(ctx, in.GetSubscription(), to)
	})
}

// Ready says whether traffic should come here. Details, which have names, are for those who may see everything.
func (x *admin) Ready(ctx context.Context, _ *millracev1.ReadyRequest) (*millracev1.ReadyResponse, error) {
	se, err := sessionOf(ctx)
	if err != nil {
		return nil, err
	}
	doc, err := x.s.o.Backend.Ready(se.Context(ctx), se.Principal().Check(access.Admin, access.Router, "") == nil)
	if err == nil && x.s.draining.Err() != nil {
		err = errDraining
	}
	if err != nil {
		return nil, err
	}
	if len(doc) == 0 {
		doc = []byte(`{"status":"ready"}`)
	}
	return &millracev1.ReadyResponse{Json: text(string(doc))}, nil
}

// GetRules returns the rules in force.
func (x *admin) GetRules(ctx context.Context, _ *millracev1.GetRulesRequest) (*millracev1.GetRulesResponse, error) {
	se, err := may(ctx, access.Admin, access.Router, "")
	if err != nil {
		return nil, err
	}
	is := x.s.o.Backend.RulesRevision() // before: of a revision that is older than the document nothing can be applied to
	doc, err := x.s.o.Backend.Rules(se.Context(ctx))
	if err != nil {
		return nil, err
	}
	return &millracev1.GetRulesResponse{Revision: is, Json: text(string(doc))}, nil
}

// CheckRules says what is wrong with a rules file.
func (x *admin) CheckRules(ctx context.Context, in *millracev1.CheckRulesRequest) (*millracev1.CheckRulesResponse, error) {
	se, err := may(ctx, access.Admin, access.Router, "")
	if err != nil {
		return nil, err
	}
	if err := x.s.o.Backend.CheckRules(se.Context(ctx), []byte(in.GetYaml())); err != nil {
		return nil, err
	}
	return &millracev1.CheckRulesResponse{Valid: true}, nil
}
