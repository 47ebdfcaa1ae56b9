package grpcapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

const policy = `version: 1
roles:
  browsing:
    - {allow: [read], topics: ["orders"]}
  working:
    - {allow: [consume], subscriptions: ["workers", "out"]}
limits:
  working: {rate: 20/s, burst: 5}
certificates:
  - {subject: "device-*", roles: [browsing]}
`

// keyring keeps API keys in memory.
type keyring struct {
	mu   sync.Mutex
	keys map[string]access.Key
}

func (k *keyring) Keys(context.Context) ([]access.Key, error) { return nil, nil }

func (k *keyring) PutKey(_ context.Context, key access.Key) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[key.ID] = key
	return nil
}

func (k *keyring) DeleteKey(_ context.Context, id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.keys, id)
	return nil
}

// noted are the entries of an audit log.
type noted struct {
	mu  sync.Mutex
	all []access.AuditEntry
}

func (n *noted) note(e access.AuditEntry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, e)
}

func (n *noted) has(is func(access.AuditEntry) bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.all, is)
}

// locked is a guard with the policy above; key makes an API key of roles.
func locked(t *testing.T) (g *access.Guard, log *noted, key func(tenant string, roles ...string) (access.Key, string)) {
	t.Helper()
	p, err := access.ParsePolicy("policy.yaml", []byte(policy), nil, func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	log = &noted{}
	if g, err = access.New(access.Options{Token: "the-token", Policy: p, Keys: &keyring{keys: map[string]access.Key{}}, Audit: log.note}); err != nil {
		t.Fatal(err)
	}
	return g, log, func(tenant string, roles ...string) (access.Key, string) {
		t.Helper()
		k, text, err := g.CreateKey(t.Context(), nil, access.Key{Name: strings.Join(roles, "-"), Roles: roles, Tenant: tenant})
		if err != nil {
			t.Fatal(err)
		}
		return k, text
	}
}

// TestStrangers may ask how the router is, and nothing else: they are not told what there is to ask.
func TestStrangers(t *testing.T) {
	g, _, _ := locked(t)
	h := serve(t, Options{LookEvery: time.Millisecond}, admission.Options{Guard: g})
	conn := h.dial()
	health := healthv1.NewHealthClient(conn)
	for _, service := range []string{"", "millrace.v1.Events", "millrace.v1.Admin", "grpc.health.v1.Health"} {
		eventually(t, service+" serves", func() bool {
			got, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
			return err == nil && got.Status == healthv1.HealthCheckResponse_SERVING
		})
	}
	h.f.change(func() { h.f.notWell = event.ErrUnavailable })
	eventually(t, "a router that is not ready does not serve", func() bool {
		got, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "millrace.v1.Events"})
		return err == nil && got.Status == healthv1.HealthCheckResponse_NOT_SERVING
	})
	for _, method := range []string{"/millrace.v1.Events/Publish", "/millrace.v1.Admin/ListDefinitions", "/none.Such/Thing", "/"} {
		for name, md := range map[string]metadata.MD{"none": nil, "wrong": {"authorization": {"Bearer wrong"}}, "basic": {"authorization": {"Basic dGhlLXRva2Vu"}}, "empty": {"authorization": {"Bearer "}},
			"two": {"authorization": {"Bearer the-token", "Bearer the-token"}}, "bare": {"authorization": {"the-token"}}, "binary": {"authorization-bin": {"Bearer the-token"}}} {
			err := conn.Invoke(metadata.NewOutgoingContext(t.Context(), md), method, &millracev1.PublishRequest{Topic: "orders", Events: some(1)}, &millracev1.PublishResponse{})
			told(t, err, codes.Unauthenticated, "UNAUTHENTICATED")
			if strings.Contains(err.Error(), "the-token") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	reflect := func(ctx context.Context) error {
		s, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
		if err == nil {
			_ = s.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}) // it may have ended already
			_, err = s.Recv()
		}
		return err
	}
	told(t, reflect(t.Context()), codes.Unauthenticated, "UNAUTHENTICATED")
	ctx, cancel := context.WithCancel(withToken(t.Context(), "the-token"))
	defer cancel()
	if err := reflect(ctx); err != nil {
		t.Error(err)
	}
	if n := h.f.get(func() int { return h.f.commits }); n > 0 {
		t.Errorf("strangers have published %d times", n)
	}
}

// TestGuessingByCalls: an address that shows wrong credentials too often is not heard any more, right ones or wrong.
func TestGuessingByCalls(t *testing.T) {
	g, _, _ := locked(t)
	h := serve(t, Options{}, admission.Options{Guard: g, Limits: admission.Limits{StrangerRate: 0.01, StrangerBurst: 3}})
	c := h.events()
	for range 3 {
		_, err := c.Publish(withToken(t.Context(), "guess"), &millracev1.PublishRequest{})
		told(t, err, codes.Unauthenticated, "")
	}
	_, err := c.Publish(withToken(t.Context(), "guess"), &millracev1.PublishRequest{})
	if st := told(t, err, codes.ResourceExhausted, "TOO_MANY"); detail[*errdetails.RetryInfo](st).RetryDelay.AsDuration() <= 0 {
		t.Error(st.Details())
	}
}

// TestWhatIsNotHis: everything that has a name is asked for by it, and what he may not see does not exist, whatever there is.
func TestWhatIsNotHis(t *testing.T) {
	g, log, key := locked(t)
	h := serve(t, Options{}, admission.Options{Guard: g})
	_, browsing := key("", "browsing")
	_, working := key("", "working")
	_, tenant := key("acme.", "admin")
	conn := h.dial()
	c, a, f := millracev1.NewEventsClient(conn), millracev1.NewAdminClient(conn), millracev1.NewFunctionsClient(conn)
	first := func(s grpc.ClientStream, err error) error {
		if err == nil {
			err = s.RecvMsg(new(millracev1.SubscribeResponse))
		}
		return err
	}
	begun := func(ctx context.Context, from *millracev1.SubscribeBegin) error {
		s, err := c.Subscribe(ctx)
		if err == nil {
			_ = s.Send(&millracev1.SubscribeRequest{Request: &millracev1.SubscribeRequest_Begin{Begin: from}})
			_, err = s.Recv()
		}
		return err
	}
	position := &millracev1.Position{}
	type call func(ctx context.Context, name string) error
	calls := map[string]call{
		"publish": func(ctx context.Context, name string) error {
			_, err := c.Publish(ctx, &millracev1.PublishRequest{Topic: name, Events: some(1)})
			return err
		},
		"dry run": func(ctx context.Context, name string) error {
			_, err := c.DryRun(ctx, &millracev1.DryRunRequest{Topic: name, Events: some(1)})
			return err
		},
		"read": func(ctx context.Context, name string) error {
			return first(c.Read(ctx, &millracev1.ReadRequest{From: &millracev1.ReadRequest_Topic{Topic: name}}))
		},
		"read subscription": func(ctx context.Context, name string) error {
			return first(c.Read(ctx, &millracev1.ReadRequest{From: &millracev1.ReadRequest_Subscription{Subscription: name}}))
		},
		"subscribe topic": func(ctx context.Context, name string) error {
			return begun(ctx, &millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Topic{Topic: name}})
		},
		"subscribe": func(ctx context.Context, name string) error {
			return begun(ctx, &millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Subscription{Subscription: name}})
		},
		"event": func(ctx context.Context, name string) error {
			_, err := c.GetEvent(ctx, &millracev1.GetEventRequest{Topic: name, Position: position})
			return err
		},
		"reply": func(ctx context.Context, name string) error {
			_, err := c.GetReply(ctx, &millracev1.GetReplyRequest{Topic: name, Position: position})
			return err
		},
		"pull": func(ctx context.Context, name string) error {
			_, err := c.Pull(ctx, &millracev1.PullRequest{Subscription: name})
			return err
		},
		"settle": func(ctx context.Context, name string) error {
			_, err := c.Settle(ctx, &millracev1.SettleRequest{Subscription: name, Settle: ack("x")})
			return err
		},
		"invoke": func(ctx context.Context, name string) error {
			_, err := f.Invoke(ctx, &millracev1.InvokeRequest{Function: name, Event: some(1)[0]})
			return err
		},
		"get": func(ctx context.Context, name string) error {
			_, err := a.GetDefinition(ctx, &millracev1.GetDefinitionRequest{Kind: "topics", Name: name})
			return err
		},
		"update": func(ctx context.Context, name string) error {
			_, err := a.UpdateDefinition(ctx, &millracev1.UpdateDefinitionRequest{Kind: "topics", Name: name, Patch: "{}"})
			return err
		},
		"delete": func(ctx context.Context, name string) error {
			_, err := a.DeleteDefinition(ctx, &millracev1.DeleteDefinitionRequest{Kind: "topics", Name: name})
			return err
		},
		"delete function": func(ctx context.Context, name string) error {
			_, err := a.DeleteDefinition(ctx, &millracev1.DeleteDefinitionRequest{Kind: "functions", Name: name})
			return err
		},
		"pause": func(ctx context.Context, name string) error {
			_, err := a.Pause(ctx, &millracev1.PauseRequest{Subscription: name})
			return err
		},
		"resume": func(ctx context.Context, name string) error {
			_, err := a.Resume(ctx, &millracev1.ResumeRequest{Subscription: name})
			return err
		},
		"seek": func(ctx context.Context, name string) error {
			_, err := a.Seek(ctx, &millracev1.SeekRequest{Subscription: name, To: &millracev1.Start{Start: &millracev1.Start_Point{Point: millracev1.StartPoint_START_POINT_EARLIEST}}})
			return err
		},
	}
	for name, do := range calls {
		// One that exists and one that does not are told alike, and nothing else is named.
		var words []string
		for _, topic := range []string{"other", "nowhere"} {
			st := told(t, do(withToken(t.Context(), browsing), topic), codes.NotFound, "NOT_FOUND")
			words = append(words, strings.ReplaceAll(st.Message(), topic, "X"))
			if info := detail[*errdetails.ResourceInfo](st); info == nil || info.ResourceName != topic {
				t.Errorf("%s: %v", name, st.Details())
			}
		}
		if words[0] != words[1] || strings.Contains(words[0], "orders") || strings.Contains(words[0], "did you mean") {
			t.Errorf("%s: %q", name, words)
		}
	}
	for _, name := range []string{"publish", "dry run", "update", "delete"} {
		told(t, calls[name](withToken(t.Context(), browsing), "orders"), codes.PermissionDenied, "DENIED")
	}
	for _, name := range []string{"pause", "seek"} {
		told(t, calls[name](withToken(t.Context(), working), "workers"), codes.PermissionDenied, "DENIED")
	}
	for _, x := range []struct{ call, token, name string }{{"event", browsing, "orders"}, {"get", browsing, "orders"}, {"pull", working, "workers"}, {"subscribe", working, "workers"}} {
		if x.call == "event" {
			h.publish(millracev1.NewEventsClient(h.dial(grpc.WithPerRPCCredentials(bearer("the-token")))), 1)
		}
		if err := calls[x.call](withToken(t.Context(), x.token), x.name); err != nil {
			t.Errorf("%s of %s: %v", x.call, x.name, err)
		}
	}
	// Nor does the router suggest other names where he may see the one that he asks for, and there is none.
	for _, name := range []string{"publish", "read", "pull", "subscribe", "get", "delete", "pause"} {
		if st := told(t, calls[name](withToken(t.Context(), tenant), "acme.none"), codes.NotFound, "NOT_FOUND"); strings.Contains(st.Message(), "did you mean") {
			t.Errorf("%s: %s", name, st.Message())
		}
	}
	// The router as a whole is for those of no tenant.
	for _, token := range []string{browsing, tenant} {
		_, err := a.GetRules(withToken(t.Context(), token), &millracev1.GetRulesRequest{})
		told(t, err, codes.PermissionDenied, "DENIED")
		_, err = a.CheckRules(withToken(t.Context(), token), &millracev1.CheckRulesRequest{})
		told(t, err, codes.PermissionDenied, "DENIED")
		_, err = a.CreateDefinition(withToken(t.Context(), token), &millracev1.CreateDefinitionRequest{Kind: "topics", Json: `{"name":"other"}`})
		told(t, err, codes.PermissionDenied, "DENIED")
		ready, err := a.Ready(withToken(t.Context(), token), &millracev1.ReadyRequest{})
		if err != nil || strings.Contains(ready.Json, "fake") {
			t.Errorf("%v, %v: details are for those who may see everything", ready, err)
		}
	}
	list, err := a.ListDefinitions(withToken(t.Context(), browsing), &millracev1.ListDefinitionsRequest{Kind: "topics"})
	if err != nil || len(list.Definitions) != 1 || list.Definitions[0].Name != "orders" {
		t.Errorf("%v, %v: a list shows what he may see", list, err)
	}
	_, err = a.ListDefinitions(withToken(t.Context(), working), &millracev1.ListDefinitionsRequest{Kind: "topics"})
	told(t, err, codes.PermissionDenied, "DENIED")
	if !log.has(func(e access.AuditEntry) bool {
		return e.Principal == "key:browsing" && e.Name == "other" && e.Outcome == "denied" && e.Addr == "127.0.0.1"
	}) {
		t.Errorf("a refusal is not in the audit log: %+v", log.all)
	}
}

// TestPublicHasNoAdministration: where that has an address of its own, it is as if there were none.
func TestPublicHasNoAdministration(t *testing.T) {
	g, _, _ := locked(t)
	h := serve(t, Options{Public: true}, admission.Options{Guard: g})
	_, err := millracev1.NewAdminClient(h.dial()).GetRules(withToken(t.Context(), "the-token"), &millracev1.GetRulesRequest{})
	told(t, err, codes.Unimplemented, "")
}

// TestRevoked: a stream ends when the key that it was opened with is revoked, and whoever has a rate is slowed to it.
func TestRevoked(t *testing.T) {
	g, _, key := locked(t)
	h := serve(t, Options{}, admission.Options{Guard: g, Recheck: 5 * time.Millisecond})
	k, text := key("", "working")
	c := h.events(grpc.WithPerRPCCredentials(bearer(text)))
	stream, _ := begin(t, c, &millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Subscription{Subscription: "workers"}})
	out, err := h.events(grpc.WithPerRPCCredentials(bearer("the-token"))).PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = out.CloseSend()
	if err := g.RevokeKey(t.Context(), nil, k.ID); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := stream.Recv(); err != nil {
			told(t, err, codes.PermissionDenied, "REVOKED")
			break
		}
	}
	_, err = c.Pull(t.Context(), &millracev1.PullRequest{Subscription: "workers"})
	told(t, err, codes.Unauthenticated, "UNAUTHENTICATED")
}

// TestRates: calls over a principal's rate are refused with when to come back; messages of a stream wait for their turn.
func TestRates(t *testing.T) {
	g, _, key := locked(t)
	h := serve(t, Options{}, admission.Options{Guard: g})
	_, text := key("", "working")
	c := h.events(grpc.WithPerRPCCredentials(bearer(text)))
	var err error
	for range 200 {
		if _, err = c.Pull(t.Context(), &millracev1.PullRequest{Subscription: "workers"}); err != nil {
			break
		}
	}
	st := told(t, err, codes.ResourceExhausted, "TOO_MANY")
	if d := detail[*errdetails.RetryInfo](st).RetryDelay.AsDuration(); d <= 0 || d > time.Second {
		t.Error(d)
	}
	eventually(t, "its turn comes", func() bool {
		s, err := c.Subscribe(t.Context())
		if err == nil {
			_ = s.Send(&millracev1.SubscribeRequest{Request: &millracev1.SubscribeRequest_Begin{Begin: &millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Subscription{Subscription: "workers"}}}})
			_, err = s.Recv()
		}
		if err != nil {
			return false
		}
		for i := range 2 {
			if err := s.Send(settle(ack("x"))); err != nil {
				t.Fatal(err)
			}
			if m, err := s.Recv(); err != nil || m.GetSettled().GetSequence() != uint64(i+1) {
				t.Fatal(m, err)
			}
		}
		return true
	})
}

// certificate is one of its own authority.
func certificate(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// TestCertificates: a client's certificate is a credential, also where the configuration is chosen by the client's hello;
// a client that does not speak HTTP/2 is not heard.
func TestCertificates(t *testing.T) {
	g, _, _ := locked(t)
	server, client := certificate(t, "localhost"), certificate(t, "device-7")
	roots, clients := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(server.Leaf)
	clients.AddCert(client.Leaf)
	own := &tls.Config{Certificates: []tls.Certificate{server}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12}
	asked := own.Clone()
	asked.ClientAuth, asked.ClientCAs = tls.VerifyClientCertIfGiven, clients
	own.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return asked, nil }
	h := serve(t, Options{TLS: own}, admission.Options{Guard: g})
	read := func(certs ...tls.Certificate) error {
		c := h.events(grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, Certificates: certs})))
		in, err := c.Read(t.Context(), &millracev1.ReadRequest{From: &millracev1.ReadRequest_Topic{Topic: "orders"}})
		if err == nil {
			_, err = in.Recv()
		}
		return err
	}
	if err := read(client); err != nil {
		t.Error(err)
	}
	told(t, read(), codes.Unauthenticated, "UNAUTHENTICATED")
	told(t, read(certificate(t, "device-8")), codes.Unauthenticated, "UNAUTHENTICATED") // of an authority that was not asked for: it is not shown
	nc, err := tls.Dial("tcp", h.addr, &tls.Config{RootCAs: roots, NextProtos: []string{"http/1.1"}})
	if err == nil { // crypto/tls lets it shake hands
		_ = nc.SetReadDeadline(time.Now().Add(time.Minute))
		if n, err := nc.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a client of HTTP/1.1 is spoken to")
		}
		nc.Close()
	}
	own.NextProtos = []string{"http/1.1", "h2"}
	if _, err := New(Options{Backend: h.f, Door: h.door, TLS: own}); err == nil {
		t.Error("HTTP/1.1 would be spoken")
	}
}

// TestAwayFromLoopback nothing is served where nobody is asked who he is, unless that is what is wanted.
func TestAwayFromLoopback(t *testing.T) {
	for _, insecure := range []bool{false, true} {
		door, err := admission.New(admission.Options{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := New(Options{Backend: newFake("orders"), Door: door, Insecure: insecure})
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", "0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		if insecure {
			if err := s.Shutdown(t.Context()); err != nil { // it would serve
				t.Fatal(err)
			}
		}
		if err := s.Serve(ln); (err == nil) != insecure {
			t.Error(insecure, err)
		}
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
