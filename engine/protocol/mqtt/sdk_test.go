package mqtt

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/mochi-mqtt/server/v2/packets"
)

// A sdkMessage is a message as the CloudEvents SDK's MQTT binding has it.
type sdkMessage struct {
	ContentType string      `json:"contentType"`
	User        [][2]string `json:"user"`
	Payload     string      `json:"payload"`
	Bytes       bool        `json:"bytes,omitempty"` // Payload is in base64
}

// startSDK runs the SDK; ask sends it a line and reads its answer.
func startSDK(t *testing.T) (ask func(question, answer any)) {
	t.Helper()
	dir := t.TempDir()
	modules, err := filepath.Abs("../../../scripts/npm/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(filepath.Join("testdata", "sdk.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sdk.mjs"), program, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", filepath.Join(dir, "sdk.mjs"))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	lines := bufio.NewReader(out)
	return func(question, answer any) {
		t.Helper()
		b, err := json.Marshal(question)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := in.Write(append(b, '\n')); err != nil {
			t.Fatal(err)
		}
		line, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if err := json.Unmarshal(line, answer); err != nil {
			t.Fatal(err)
		}
	}
}

// overWire is a PUBLISH as the other side of a connection reads it.
func overWire(t *testing.T, pk packets.Packet) packets.Packet {
	t.Helper()
	var b bytes.Buffer
	pk.FixedHeader.Type = packets.Publish
	if err := pk.PublishEncode(&b); err != nil {
		t.Fatal(err)
	}
	_, n, err := packets.DecodeLength(bytes.NewReader(b.Bytes()[1:]))
	if err != nil {
		t.Fatal(err)
	}
	got, ok := decodePublish(b.Bytes()[1+n:], pk.ProtocolVersion == 5)
	if !ok {
		t.Fatalf("%+v is not read back", pk)
	}
	return got
}

// What the CloudEvents SDK for JavaScript sends over MQTT is the event that it made, and what is sent to it is the event
// that was taken, with all attributes, in both modes and in MQTT 3.1.1.
func TestCloudEventsSDK(t *testing.T) {
	ask := startSDK(t)
	n := namesOf(t, bindingNames)
	for name, doc := range map[string]string{
		"json":   `{"specversion":"1.0","id":"1","source":"/shop?a=b","type":"order.created","subject":"ü \"quoted\" 100%","time":"2026-01-31T12:00:00.005Z","datacontenttype":"application/json","dataschema":"urn:schema","partitionkey":"k","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","site":"north","data":{"total":250}}`,
		"text":   `{"specversion":"1.0","id":"2","source":"urn:x","type":"t","time":"2026-01-31T12:00:00.000Z","datacontenttype":"text/plain","data":"grüße"}`,
		"absent": `{"specversion":"1.0","id":"3","source":"urn:x","type":"t","time":"2026-01-31T12:00:00.000Z","datacontenttype":"application/json"}`,
	} {
		var want event.Event
		if err := event.ParseStructured([]byte(doc), event.Limits{}, &want); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			mode, topic string
			version     byte
		}{{"binary", "bare/x", 5}, {"structured", "bare/x", 5}, {"structured", "ce/x", 4}} {
			var made sdkMessage
			ask(map[string]any{"make": c.mode, "event": json.RawMessage(doc)}, &made)
			p := properties{ContentType: made.ContentType}
			for _, kv := range made.User {
				p.User = append(p.User, packets.UserProperty{Key: kv[0], Val: kv[1]})
			}
			pk := overWire(t, publish(c.version, c.topic, made.Payload, p))
			var in intake
			var got event.Event
			if _, err := in.take(&got, &pk, n, event.Limits{}, testTime); err != nil {
				t.Errorf("%s %s %d: %v", name, c.mode, c.version, err)
				continue
			}
			same(t, name+" "+c.mode, got, want)

			// And back to the SDK.
			out := packets.Packet{ProtocolVersion: c.version}
			if !give(&out, record(got), c.topic, c.version == 4, testTime) {
				t.Fatal("has ended")
			}
			out = overWire(t, out)
			back := sdkMessage{ContentType: out.Properties.ContentType, User: [][2]string{}, Payload: string(out.Payload)}
			if c.version == 4 { // of which the JSON format is implied
				back.ContentType = "application/cloudevents+json"
			}
			for _, u := range out.Properties.User {
				back.User = append(back.User, [2]string{u.Key, u.Val})
			}
			var read struct {
				Found bool            `json:"found"`
				Event json.RawMessage `json:"event"`
			}
			ask(map[string]any{"read": back}, &read)
			if !read.Found {
				t.Errorf("%s %s %d: the SDK finds no event in %+v", name, c.mode, c.version, back)
				continue
			}
			var again event.Event
			if err := event.ParseStructured(sdkData(t, read.Event), event.Limits{}, &again); err != nil {
				t.Errorf("%s: %v in %s", name, err, read.Event)
				continue
			}
			same(t, name+" "+c.mode+" at the SDK", again, want)
		}
	}
}

// sdkData is an event as the SDK writes it, with data that it kept as the text of JSON, which it does not parse in binary mode, as JSON.
func sdkData(t *testing.T, doc []byte) []byte {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(doc, &m); err != nil {
		t.Fatal(err)
	}
	if text, ok := m["data"].(string); ok && m["datacontenttype"] == "application/json" {
		if delete(m, "data"); text != "" {
			m["data"] = json.RawMessage(text)
		}
	}
	if text, ok := m["data_base64"].(string); ok {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		m["data"] = string(b)
		delete(m, "data_base64")
	}
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// same compares events, JSON data by what it means and what MQTT adds aside.
func same(t *testing.T, what string, got, want event.Event) {
	t.Helper()
	var a, b any
	if json.Unmarshal(got.Data, &a) == nil && json.Unmarshal(want.Data, &b) == nil && reflect.DeepEqual(a, b) {
		got.Data = want.Data
	}
	attributes := func(ev event.Event) map[string]string {
		all := map[string]string{"id": ev.ID, "source": ev.Source, "type": ev.Type, "subject": ev.Subject, "time": ev.Time, "datacontenttype": ev.DataContentType,
			"dataschema": ev.DataSchema, "partitionkey": ev.PartitionKey, "traceparent": ev.TraceParent}
		for _, x := range ev.Extensions {
			if x.Name != TopicExtension {
				all[x.Name] = x.Value
			}
		}
		return all
	}
	if !bytes.Equal(got.Data, want.Data) || !reflect.DeepEqual(attributes(got), attributes(want)) {
		t.Errorf("%s:\ngot  %s %v\nwant %s %v", what, got.Data, attributes(got), want.Data, attributes(want))
	}
}
