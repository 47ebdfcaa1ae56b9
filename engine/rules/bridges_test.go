package rules

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
)

// A far is another side of a bridge as a connector would say it.
type far struct {
	Router  string        `yaml:"router" rules:"required"`
	Topic   string        `yaml:"topic"`
	Token   string        `yaml:"token"`
	Filter  string        `yaml:"filter" rules:"filter"`
	Timeout time.Duration `yaml:"timeout"`
}

func (o far) WithDefaults() far {
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	return o
}

func (o far) Validate() error {
	if o.Topic == "" {
		return event.Invalid("topic", "is missing")
	}
	return nil
}

type listened struct {
	MQTT     string   `yaml:"mqtt" rules:"required"`
	Filters  []string `yaml:"filters" rules:"required"`
	Subject  string   `yaml:"subject"`
	User     string   `yaml:"user"`
	Password string   `yaml:"password"`
}

type broker struct {
	MQTT     string `yaml:"mqtt" rules:"required"`
	Topic    string `yaml:"topic"`
	User     string `yaml:"user"`
	Password string `yaml:"password"`
}

func testBridges() BridgeKinds {
	return BridgeKinds{
		To: map[string]SinkKind{
			"router": SinkOf(func(context.Context, far) (engine.Sink, error) { return nil, errors.New("not here") }),
			"mqtt":   SinkOf(func(context.Context, broker) (engine.Sink, error) { return nil, errors.New("not here") }),
		},
		From: map[string]IntakeKind{
			"router": IntakeOf(func(context.Context, far) (event.Intake, error) { return nil, errors.New("not here") }),
			"mqtt":   IntakeOf(func(context.Context, listened) (event.Intake, error) { return nil, errors.New("not here") }),
		},
	}
}

func TestBridges(t *testing.T) {
	const text = `version: 1
topics: {telemetry: {partitions: 4}}
bridges:
  to-hq:
    topic: telemetry
    filter: type != "debug"
    to: {router: "https://hq.example.com", topic: telemetry, token: "${env:API_TOKEN}"}
    bytes: 64MiB
    start: earliest
  to-broker: {topic: telemetry, to: {mqtt: "mqtt://user:secret@broker"}}
  from-hq:
    from: {router: "https://hq.example.com", topic: commands, token: literal-secret}
    topic: commands
`
	s, err := ParseBytes("rules.yaml", []byte(text), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Bridges) != 3 || len(s.Subscriptions) != 0 {
		t.Fatalf("%d bridges, %d subscriptions", len(s.Bridges), len(s.Subscriptions))
	}
	hq := s.Bridges[0]
	p := hq.Push
	if hq.Name != "to-hq" || hq.Kind != "router" || hq.Open != nil || hq.Owner.Line != 4 || p.Name != "bridge.to-hq" || p.Topic != "telemetry" ||
		p.DeadLetter != "bridge.to-hq.dead" || p.Backlog != 64<<20 || p.Concurrency != 1 || p.Retry.Attempts != event.Unlimited ||
		p.Start.At != event.Earliest || p.Program == nil || p.OpenSink == nil || p.Fingerprint == "" {
		t.Errorf("%+v %+v", hq, p)
	}
	if b := s.Bridges[1]; b.Kind != "mqtt" || b.Push.Backlog != 1<<30 {
		t.Errorf("%+v", b)
	}
	if b := s.Bridges[2]; b.Kind != "router" || b.Push != nil || b.Open == nil || b.Topic != "commands" {
		t.Errorf("%+v", b)
	}
	var topics []string
	for _, x := range s.Topics {
		topics = append(topics, x.Name)
		if strings.HasSuffix(x.Name, ".dead") && x.WhenFull != event.Reject {
			t.Errorf("%+v", x)
		}
	}
	if got := strings.Join(topics, " "); got != "telemetry bridge.to-hq.dead bridge.to-broker.dead commands" {
		t.Errorf("topics %s", got)
	}
	shown, err := s.Show(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"token: ${env:API_TOKEN}", "timeout: 30s", "bytes: 1GiB", "start: latest", `token: '***'`, "mqtt: mqtt://***@broker"} {
		if !strings.Contains(string(shown), want) {
			t.Errorf("%s is not in\n%s", want, shown)
		}
	}
	for _, doc := range []string{string(shown), string(hq.Effective), string(p.Source), string(s.Bridges[2].Source)} {
		if strings.Contains(doc, "tok-123456") || strings.Contains(doc, "literal-secret") || strings.Contains(doc, "user:secret") {
			t.Errorf("a secret is shown in %s", doc)
		}
	}
	next, err := ParseBytes("rules.yaml", []byte(strings.NewReplacer("64MiB", "65MiB", "literal-secret", "other-secret").Replace(text)), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	changes := Diff(s, next)
	if len(changes) != 2 || changes[0].Kind != "bridge" || changes[0].Name != "from-hq" || !changes[0].Keys[0].Hidden ||
		changes[1].Keys[0].Key != "bytes" || changes[1].Keys[0].New != "65MiB" {
		t.Errorf("%+v", changes)
	}
	if next.Bridges[0].Push.Fingerprint == p.Fingerprint {
		t.Error("a change keeps the fingerprint")
	}
}

func TestBridgesRefused(t *testing.T) {
	for text, want := range map[string]string{
		"a: 1":                           "rules.yaml:3:6: bridges.a: is a single value",
		"a: {topic: t}":                  "rules.yaml:3:6: bridges.a.to: missing; want to:",
		"a: {to: {router: x, topic: t}}": "bridges.a.topic: missing; want the topic whose events it forwards",
		"a: {topic: t, to: {router: x, topic: t}, from: {router: x, topic: t}}":                                "rules.yaml:3:50: bridges.a.from: is beside to",
		"a: {topic: t, to: {router: x, mqtt: y}}":                                                              "bridges.a.to: has 2 of mqtt, router; want exactly one",
		"a: {topic: t, to: {topic: t}}":                                                                        "bridges.a.to: has 0 of mqtt, router",
		"a: {topic: t, to: {router: x}}":                                                                       "bridges.a.to.topic: is missing",
		"a: {topic: t, to: {router: x, topik: t}}":                                                             `unknown key "topik" in bridges.a.to; did you mean "topic"?`,
		"a: {topic: t, bytes: 1KiB, to: {router: x, topic: t}}":                                                "bridges.a.bytes: ",
		"a: {topic: t, filter: x, from: {router: x, topic: t}}":                                                "bridges.a.filter: is of a bridge that forwards",
		"a: {topic: t, from: {router: x, topic: t, filter: type == \"a\" &&}}":                                 "rules.yaml:3:66: bridges.a.from.filter: unexpected token EOF",
		"a: {topic: t, from: {router: x, topic: t, filter: size(data) > 1}}":                                   "rules.yaml:3:53: bridges.a.from.filter: unknown function \"size\"",
		"a: {topic: t, from: {router: x, topic: t, filter: now() > time}}":                                     "bridges.a.from.filter: ",
		"a: {topic: t, from: {router: x, topic: t, filter: [x]}}":                                              "bridges.a.from.filter: is a list; want a single value",
		"a: {topic: t, filter: type =, to: {router: x, topic: t}}":                                             "rules.yaml:3:",
		"a: {topic: t, to: {router: x, topic: t}}\nsubscriptions: {bridge.a: {topic: t, deliver: {pull: {}}}}": `bridge "a" is the subscription "bridge.a"`,
		"a: {topic: t, to: {router: x, topic: t}}\n  A: {topic: t, to: {router: x, topic: t}}":                 `differs from "a"`,
		strings.Repeat("a", 240) + ": {topic: t, to: {router: x, topic: t}}":                                   "is too long for its subscription",
	} {
		_, err := ParseBytes("rules.yaml", []byte("version: 1\nbridges:\n  "+text+"\n"), testOptions())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", text, err, want)
		}
	}
}
