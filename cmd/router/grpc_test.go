package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// A caller calls a router as grpcurl does: by what reflection says, without generated code.
type caller struct {
	t     *testing.T
	conn  *grpc.ClientConn
	files *protoregistry.Files
}

func newCaller(t *testing.T, addr string, creds credentials.TransportCredentials) *caller {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &caller{t: t, conn: conn, files: &protoregistry.Files{}}
}

// method finds a method, asking for the files that have it.
func (c *caller) method(ctx context.Context, name string) protoreflect.MethodDescriptor {
	c.t.Helper()
	service, method, _ := strings.Cut(name, "/")
	d, err := c.files.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		stream, err := reflectionv1.NewServerReflectionClient(c.conn).ServerReflectionInfo(ctx)
		if err != nil {
			c.t.Fatal(err)
		}
		defer stream.CloseSend()
		set, known := &descriptorpb.FileDescriptorSet{}, map[string]bool{}
		for ask := []*reflectionv1.ServerReflectionRequest{{MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service}}}; len(ask) > 0; ask = ask[1:] {
			if err := stream.Send(ask[0]); err != nil {
				c.t.Fatal(err)
			}
			answer, err := stream.Recv()
			if err != nil || answer.GetFileDescriptorResponse() == nil {
				c.t.Fatal(answer, err)
			}
			for _, b := range answer.GetFileDescriptorResponse().FileDescriptorProto {
				f := &descriptorpb.FileDescriptorProto{}
				if err := proto.Unmarshal(b, f); err != nil {
					c.t.Fatal(err)
				}
				if known[f.GetName()] {
					continue
				}
				known[f.GetName()] = true
				set.File = append(set.File, f)
				for _, other := range f.Dependency {
					if !known[other] {
						ask = append(ask, &reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileByFilename{FileByFilename: other}})
					}
				}
			}
		}
		if c.files, err = protodesc.NewFiles(set); err != nil {
			c.t.Fatal(err)
		}
		if d, err = c.files.FindDescriptorByName(protoreflect.FullName(service)); err != nil {
			c.t.Fatal(err)
		}
	}
	m := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
	if m == nil {
		c.t.Fatalf("%s has no method %s", service, method)
	}
	return m
}

// call sends requests, JSON, and returns the answers, as JSON.
func (c *caller) call(ctx context.Context, name string, requests ...string) (answers []string, err error) {
	c.t.Helper()
	m := c.method(ctx, name)
	stream, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/"+name)
	if err != nil {
		return nil, err
	}
	for _, r := range requests {
		in := dynamicpb.NewMessage(m.Input())
		if err := (protojson.UnmarshalOptions{Resolver: dynamicpb.NewTypes(c.files)}).Unmarshal([]byte(r), in); err != nil {
			c.t.Fatalf("%s: %v", r, err)
		}
		if err := stream.SendMsg(in); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	for {
		out := dynamicpb.NewMessage(m.Output())
		if err := stream.RecvMsg(out); errors.Is(err, io.EOF) {
			return answers, nil
		} else if err != nil {
			return answers, err
		}
		b, err := protojson.Marshal(out) // what it has of Any is details of errors, which are known here
		if err != nil {
			c.t.Fatal(err)
		}
		answers = append(answers, string(b))
	}
}

// lacks says what of a document's members another has not; values may differ.
func lacks(at string, want, got any) string {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return at
		}
		for k, v := range w {
			if _, ok := g[k]; !ok {
				return at + "." + k
			}
			if l := lacks(at+"."+k, v, g[k]); l != "" {
				return l
			}
		}
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return at
		}
		for i := range w {
			if l := lacks(fmt.Sprintf("%s[%d]", at, i), w[i], g[i]); l != "" {
				return l
			}
		}
	}
	return ""
}

// What docs/grpc.md shows works as it stands there, by reflection; the cursor that gRPC read goes on over HTTP.
func TestGRPCPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "grpc.md"))
	if err != nil {
		t.Fatal(err)
	}
	p := newProcess(t)
	p.o.grpcListen = "127.0.0.1:0"
	p.o.rules = filepath.Join(filepath.Dir(p.o.data), "rules.yaml")
	p.write("version: 1\ntopics: {orders: {}}\nsubscriptions: {workers: {topic: orders, deliver: {pull: {}}}}\n")
	p.start()
	defer func() { p.stop() }()
	c := newCaller(t, p.r.grpc.listen, insecure.NewCredentials())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cursor := ""
	calls := regexp.MustCompile(`(?m)^\$ grpcurl -plaintext (?:-d '(.*)' )?127\.0\.0\.1:8085 (\S+)\n(.*)$`).FindAllStringSubmatch(string(page), -1)
	if len(calls) < 5 || len(calls) != strings.Count(string(page), "$ grpcurl") {
		t.Fatalf("%d calls are read", len(calls))
	}
	for _, x := range calls {
		request := x[1]
		if request == "" {
			request = "{}"
		}
		answers, err := c.call(ctx, x[2], request)
		if err != nil || len(answers) == 0 {
			t.Fatalf("%s: %v, %v", x[2], answers, err)
		}
		var want, got any
		if err := errors.Join(json.Unmarshal([]byte(x[3]), &want), json.Unmarshal([]byte(answers[0]), &got)); err != nil {
			t.Fatalf("%s: %v", x[2], err)
		}
		if l := lacks("", want, got); l != "" {
			t.Errorf("%s answers %s, without the %s that is shown", x[2], answers[0], l)
		}
		if x[2] == "millrace.v1.Events/Read" {
			cursor = got.(map[string]any)["events"].([]any)[0].(map[string]any)["cursor"].(string)
		}
	}
	// A line of requests on one stream, of which one is at fault.
	answers, err := c.call(ctx, "millrace.v1.Events/PublishStream", `{"topic": "orders", "events": [{"type": "third"}]}`, `{"events": [{"specVersion": "1.0"}]}`, `{"events": [{"type": "fourth"}]}`)
	if err != nil || len(answers) != 3 || !strings.Contains(strings.ReplaceAll(answers[1], " ", ""), `"code":3`) {
		t.Fatal(answers, err)
	}
	body := p.must(200, "GET", "/v1/topics/orders/events?after="+cursor, "", "")
	var got struct {
		Events []struct {
			Type     string
			Position string `json:"millraceposition"`
		}
		Next string
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || len(got.Events) != 3 || got.Events[0].Position != "0-1" || got.Events[2].Type != "fourth" {
		t.Fatalf("%v: HTTP goes on with %s", err, body)
	}
	p.must(202, "POST", "/v1/topics/orders/events", "application/json", `{"total":1}`)
	if answers, err = c.call(ctx, "millrace.v1.Events/Read", fmt.Sprintf(`{"topic": "orders", "start": {"after": %q}}`, got.Next)); err != nil || !strings.Contains(strings.Join(answers, ""), "binaryData") || strings.Contains(strings.Join(answers, ""), "fourth") {
		t.Fatal(answers, err)
	}
	metrics := p.must(200, "GET", "/metrics", "", "")
	for _, line := range []string{`millrace_grpc_calls_total{code="OK",method="millrace.v1.Events/Publish"} 1`, `millrace_grpc_streams 0`, `millrace_grpc_dropped_total 0`, `millrace_grpc_messages_total{direction="in"}`} {
		if !strings.Contains(metrics, "\n"+line) {
			t.Errorf("the metrics have no %s", line)
		}
	}
	// A reader that follows is told when the router stops.
	ended := make(chan error, 1)
	go func() {
		_, err := c.call(ctx, "millrace.v1.Events/Read", `{"topic": "orders", "follow": true}`)
		ended <- err
	}()
	for !strings.Contains(p.must(200, "GET", "/metrics", "", ""), "\nmillrace_grpc_streams 1") {
		if ctx.Err() != nil {
			t.Fatal("no stream is open")
		}
	}
	p.stop()
	if err := <-ended; status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
}

// gRPC has the router's certificates and its clients'; strangers get health and nothing else; there is no administration
// where that has an address of its own.
func TestGRPCOverTLS(t *testing.T) {
	cert, key, pair := certified(t, "device-1")
	p := newProcess(t)
	p.o.grpcListen, p.o.autoCreate = "127.0.0.1:0", true
	p.o.accessFile = filepath.Join(t.TempDir(), "access.yaml")
	if err := os.WriteFile(p.o.accessFile, []byte("version: 1\ncertificates:\n  - {subject: \"device-*\", roles: [admin]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.o.edge = edgeOptions{certs: []string{cert}, keys: []string{key}, clientCA: cert, clientCerts: "request", admin: "127.0.0.1:0"}
	p.start()
	defer func() { p.stop() }()
	roots := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(leaf)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	device := newCaller(t, p.r.grpc.listen, credentials.NewTLS(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}))
	if answers, err := device.call(ctx, "millrace.v1.Events/Publish", `{"topic": "orders", "events": [{}]}`); err != nil {
		t.Error(answers, err)
	}
	stranger := newCaller(t, p.r.grpc.listen, credentials.NewTLS(&tls.Config{RootCAs: roots}))
	if err := stranger.conn.Invoke(ctx, "/millrace.v1.Events/Publish", &healthv1.HealthCheckRequest{}, &healthv1.HealthCheckResponse{}); status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
	if _, err := healthv1.NewHealthClient(stranger.conn).Check(ctx, &healthv1.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
	if err := device.conn.Invoke(ctx, "/millrace.v1.Admin/GetRules", &healthv1.HealthCheckRequest{}, &healthv1.HealthCheckResponse{}); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
	var out bytes.Buffer
	out.WriteString(p.r.shown())
	if !strings.Contains(out.String(), "grpc    "+p.r.grpc.listen+", TLS\n") {
		t.Errorf("serve says\n%s", &out)
	}
}
