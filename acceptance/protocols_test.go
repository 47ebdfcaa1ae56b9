package acceptance

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	grpcclient "github.com/millrace/millrace/sdk/client"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

// What is hot goes on, in other units and under another type, the same way to each kind of reader.
const protocolsRules = `version: 1
topics:
  readings: {}
  alarms: {}
mqtt:
  plants/+/temp: {topic: readings, type: temperature, subject: "{1}", key: "{1}"}
functions:
  convert: {js: convert.js}
subscriptions:
  alerts:
    topic: readings
    filter: data.celsius > 80
    functions: [convert]
    deliver: {mqtt: {topic: "alerts/{subject}"}}
  jobs:
    topic: readings
    filter: data.celsius > 80
    functions: [convert]
    deliver: {pull: {}}
  copies:
    topic: readings
    filter: data.celsius > 80
    functions: [convert]
    deliver: {topic: alarms}
`

const protocolsConvert = `export default function (event) {
	return emit({type: "alarm", data: {fahrenheit: event.get("celsius") * 9 / 5 + 32}});
}
`

// hot is what every reader makes of the three events that pass, one of which came by each protocol.
var hot = []string{`pump-mqtt alarm {"fahrenheit":185}`, `pump-http alarm {"fahrenheit":194}`, `pump-grpc alarm {"fahrenheit":203}`}

// An event is the same whichever protocol it came by, and what a filter and a function make of it is the same for readers of each: MQTT,
// server-sent events, HTTP, gRPC's streams and leases. A cursor of one goes on in another.
func TestProtocols(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rules, socket := filepath.Join(dir, "rules.yaml"), filepath.Join(dir, "grpc")
	write(t, rules, protocolsRules)
	write(t, filepath.Join(dir, "convert.js"), protocolsConvert)
	r := serve(t, filepath.Join(dir, "data"), nil, "--rules", rules, "--mqtt-listen", "127.0.0.1:0", "--grpc-listen", "unix:"+socket)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	g, err := grpcclient.Dial(ctx, "unix:"+socket, grpcclient.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}()

	devices := map[string]mqttClient{}
	for name, c := range map[string]struct {
		open   func(context.Context, *mqttLab, mqttConnect) (mqttClient, error)
		filter string
	}{
		"all": {openPaho5, "plants/+/temp"}, "alerts-5": {openPaho5, "alerts/#"}, "alerts-3": {openPaho3, "alerts/+"},
	} {
		if devices[name], err = c.open(ctx, &mqttLab{}, mqttConnect{url: "mqtt://" + r.mqtt(), id: name}); err != nil {
			t.Fatal(err)
		}
		if granted, err := devices[name].subscribe(ctx, c.filter, 2); err != nil || granted != 2 {
			t.Fatalf("subscribing to %s: granted %#x, %v", c.filter, granted, err)
		}
	}
	streams := []*events{r.sse(ctx, t, "/v1/topics/alarms/stream", ""), r.sse(ctx, t, "/v1/subscriptions/alerts/stream", "")}
	subscribed := grpcSubscribe(ctx, t, g, "alerts")

	var sent []string
	for _, celsius := range []int{20, 85} {
		sent = append(sent, fmt.Sprintf(`{"celsius": %d}`, celsius))
		if err := devices["all"].publish(ctx, mqttMessage{topic: "plants/pump-mqtt/temp", payload: sent[len(sent)-1], qos: 2}); err != nil {
			t.Fatal(err)
		}
	}
	for _, celsius := range []int{21, 90} {
		sent = append(sent, fmt.Sprintf(`{"celsius": %d}`, celsius))
		r.publish("readings", "application/cloudevents+json", fmt.Appendf(nil, `{"specversion": "1.0", "id": "http-%d", "source": "/plants", "type": "temperature", "subject": "pump-http", "data": %s}`,
			celsius, sent[len(sent)-1]))
	}
	for _, celsius := range []int{22, 95} {
		sent = append(sent, fmt.Sprintf(`{"celsius":%d}`, celsius))
		e, err := grpcclient.JSON("temperature", map[string]int{"celsius": celsius})
		if err != nil {
			t.Fatal(err)
		}
		grpcclient.Set(e, "subject", "pump-grpc")
		if _, err := g.Publish(ctx, "readings", e); err != nil {
			t.Fatal(err)
		}
	}

	// Devices have them all under names, and what became of the hot ones under others.
	if got := payloads(devices["all"].inbox().until(t, "every reading", func(all []mqttMessage) bool { return len(all) >= 6 })); !sameOnes(got, sent) {
		t.Errorf("over MQTT came %q; want %q", got, sent)
	}
	for _, name := range []string{"alerts-5", "alerts-3"} {
		var got []string
		for _, m := range devices[name].inbox().until(t, "every alert", func(all []mqttMessage) bool { return len(all) >= 3 }) {
			got = append(got, strings.TrimPrefix(m.topic, "alerts/")+" alarm "+m.payload)
		}
		wantHot(t, name, got)
	}

	// Streams have them; the two of one subscription with the same ids.
	var ids [2][]string
	for i, s := range streams {
		got, seen := s.next(t, 3)
		wantHot(t, fmt.Sprint("stream ", i), got)
		ids[i] = seen
	}
	got, seen := subscribed(3)
	wantHot(t, "Subscribe", got)
	if !slices.Equal(seen, ids[1]) {
		t.Errorf("Subscribe has the ids %q, the stream of server-sent events %q", seen, ids[1])
	}

	// One walk goes on from gRPC over HTTP to server-sent events.
	reader := g.Read(grpcclient.Topic("alarms"), grpcclient.ReadOptions{Limit: 1})
	var walked []string
	for e, err := range reader.All(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		walked = append(walked, grpcText(e.Event))
	}
	var page struct {
		Events []json.RawMessage
		Next   string
	}
	r.call("GET", "/v1/topics/alarms/events?limit=1&after="+reader.Cursor(), "", nil, &page)
	for _, e := range page.Events {
		text, _ := eventText(t, e)
		walked = append(walked, text)
	}
	rest, _ := r.sse(ctx, t, "/v1/topics/alarms/stream", page.Next).next(t, 1)
	wantHot(t, "a cursor that went on from gRPC over HTTP to a stream", append(walked, rest...))
	reader = g.Read(grpcclient.Subscription("alerts"), grpcclient.ReadOptions{Limit: 2})
	walked = nil
	for e, err := range reader.All(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		walked = append(walked, grpcText(e.Event))
	}
	rest, _ = r.sse(ctx, t, "/v1/subscriptions/alerts/stream", reader.Cursor()).next(t, 1)
	wantHot(t, "a subscription's cursor that went on from gRPC to a stream", append(walked, rest...))

	// A queue hands them out over gRPC and over HTTP, each once, and takes what is acknowledged over the other.
	leased, err := g.Pull(ctx, "jobs", 1, 30*time.Second)
	if err != nil || len(leased) != 1 {
		t.Fatalf("pulling over gRPC: %d deliveries, %v", len(leased), err)
	}
	pulled, leases := []string{grpcText(leased[0].Event)}, []string{leased[0].Lease}
	for len(pulled) < 3 {
		var answer struct {
			Deliveries []struct {
				Lease string
				Event json.RawMessage
			}
		}
		r.call("POST", "/v1/subscriptions/jobs/pull", "application/json", []byte(`{"max": 10, "wait": "30s"}`), &answer)
		if len(answer.Deliveries) == 0 {
			t.Fatalf("after 30 s there is nothing to pull behind %q", pulled)
		}
		for _, d := range answer.Deliveries {
			text, _ := eventText(t, d.Event)
			pulled, leases = append(pulled, text), append(leases, d.Lease)
		}
	}
	wantHot(t, "pull", pulled)
	var lost struct{ Lost []string }
	r.call("POST", "/v1/subscriptions/jobs/ack", "application/json", encode(t, map[string]any{"leases": leases[:2]}), &lost)
	over, err := g.Settle(ctx, "jobs", grpcclient.Ack(leases[2:]...))
	if len(lost.Lost) > 0 || len(over) > 0 || err != nil {
		t.Errorf("acknowledged over the other protocol: lost %q and %v, %v", lost.Lost, over, err)
	}
	r.settled(time.Minute, "jobs")
	for _, d := range devices {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}
	cancel() // ends the streams
	r.stop(30 * time.Second)
}

// wantHot wants what is hot, in any order: there is none among events of different keys.
func wantHot(t *testing.T, where string, got []string) {
	t.Helper()
	if !sameOnes(got, hot) {
		t.Errorf("%s: got %q; want %q", where, got, hot)
	}
}

// sameOnes compares in any order, and without spaces.
func sameOnes(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	for _, all := range [][]string{a, b} {
		for i := range all {
			all[i] = strings.ReplaceAll(all[i], " ", "")
		}
		slices.Sort(all)
	}
	return slices.Equal(a, b)
}

// eventText is what the test compares of an event, and its id.
func eventText(t *testing.T, doc []byte) (text, id string) {
	t.Helper()
	var e struct {
		ID, Subject, Type string
		Data              json.RawMessage
	}
	if err := json.Unmarshal(doc, &e); err != nil {
		t.Fatalf("%v in %s", err, doc)
	}
	return e.Subject + " " + e.Type + " " + string(e.Data), e.ID
}

func grpcText(e *grpcclient.Event) string {
	return grpcclient.Get(e, "subject") + " " + e.Type + " " + string(grpcclient.Data(e))
}

// events are what a stream of server-sent events brings.
type events struct{ lines *bufio.Scanner }

// sse opens a stream: from now on, or behind a cursor.
func (r *router) sse(ctx context.Context, t *testing.T, path, cursor string) *events {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, "GET", r.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if cursor != "" {
		req.Header.Set("Last-Event-ID", cursor)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s", path, resp.Status)
	}
	return &events{bufio.NewScanner(resp.Body)}
}

// next reads n events.
func (s *events) next(t *testing.T, n int) (texts, ids []string) {
	t.Helper()
	for len(texts) < n && s.lines.Scan() {
		if doc, ok := strings.CutPrefix(s.lines.Text(), "data: "); ok {
			text, id := eventText(t, []byte(doc))
			texts, ids = append(texts, text), append(ids, id)
		}
	}
	if len(texts) < n {
		t.Errorf("the stream ended with %d events of %d: %v", len(texts), n, s.lines.Err())
	}
	return texts, ids
}

// grpcSubscribe begins to stream under credit what a subscription puts out; what it returns waits for n events.
func grpcSubscribe(ctx context.Context, t *testing.T, g *grpcclient.Client, name string) func(n int) (texts, ids []string) {
	t.Helper()
	stream, err := g.Events().Subscribe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	say := func(r *millracev1.SubscribeRequest) {
		t.Helper()
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	none := uint32(0)
	say(&millracev1.SubscribeRequest{Request: &millracev1.SubscribeRequest_Begin{
		Begin: &millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Subscription{Subscription: name}, Credit: &none}}})
	if begun, err := stream.Recv(); err != nil || begun.GetBegun() == nil {
		t.Fatalf("Subscribe answers %v, %v", begun, err)
	}
	return func(n int) (texts, ids []string) {
		t.Helper()
		for len(texts) < n {
			say(&millracev1.SubscribeRequest{Request: &millracev1.SubscribeRequest_Credit{Credit: &millracev1.SubscribeCredit{Add: 1}}})
			for more := true; more; {
				answer, err := stream.Recv()
				if err != nil {
					t.Fatalf("after %d events: %v", len(texts), err)
				}
				for _, e := range answer.GetEvents().GetEvents() {
					texts, ids = append(texts, grpcText(e.Event)), append(ids, e.Event.Id)
					more = false
				}
			}
		}
		return texts, ids
	}
}
