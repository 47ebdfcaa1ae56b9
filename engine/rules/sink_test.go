package rules

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
)

// hook is a sink like those that this build has.
type hook struct {
	URL     string            `yaml:"url"`
	Format  string            `yaml:"format"`
	Secrets []string          `yaml:"secrets"`
	Headers map[string]string `yaml:"headers"`
	Timeout time.Duration     `yaml:"timeout"`
	Reply   bool              `yaml:"reply"`
	Batch   struct {
		Events int           `yaml:"events"`
		Bytes  int64         `yaml:"bytes"`
		Wait   time.Duration `yaml:"wait"`
	} `yaml:"batch"`
	Dialer any `yaml:"-"`
	Conns  int
}

func (o hook) WithDefaults() hook {
	if o.Format == "" {
		o.Format = "structured"
	}
	if o.Timeout == 0 {
		o.Timeout = 15 * time.Second
	}
	o.Conns = 64
	return o
}

func (o hook) Validate() error {
	var list []event.Fault
	if o.URL == "" {
		list = append(list, event.Fault{At: "url", Detail: "missing; want such as https://example.com/hook"})
	}
	if o.Format != "" && o.Format != "structured" && o.Format != "data" {
		list = append(list, event.Fault{At: "format", Detail: fmt.Sprintf("is %q; want structured or data", o.Format)})
	}
	for i, s := range o.Secrets {
		if !strings.HasPrefix(s, "whsec_") {
			list = append(list, event.Fault{At: fmt.Sprintf("secrets[%d]", i), Detail: fmt.Sprintf("is %q; want whsec_…", s)})
		}
	}
	if len(list) == 0 {
		return nil
	}
	return &event.Faults{Is: event.ErrInvalid, List: list}
}

type hookSink struct{ o hook }

func (*hookSink) Deliver(context.Context, []event.Delivery) error { return nil }
func (*hookSink) Close() error                                    { return nil }

func testOptions() Options {
	return Options{
		Sinks: map[string]SinkKind{
			"webhook": SinkOf(func(_ context.Context, o hook) (*hookSink, error) {
				o.Dialer = "the process's"
				return &hookSink{o}, nil
			}),
			"box": SinkOf(func(_ context.Context, o every) (engine.Sink, error) { return nil, errors.New("box: not here") }),
		},
		Schemes: testSchemes(),
		Bridges: testBridges(),
		Getenv: func(name string) (string, bool) {
			v, ok := map[string]string{
				"HOOK_SECRET": "whsec_c2VjcmV0", "API_TOKEN": "tok-123456", "BAD_SECRET": "hunter2hunter2",
				"TOPIC": "orders", "N": "7", "EMPTY": "", "LONG": strings.Repeat("x", 1<<10), "NESTED": "${env:API_TOKEN}",
			}[name]
			return v, ok
		},
		Now: func() time.Time { return time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC) },
	}
}

// every has an option of each type.
type every struct {
	S   string         `yaml:"s"`
	B   bool           `yaml:"b"`
	I   int            `yaml:"i"`
	U   uint16         `yaml:"u"`
	F   float64        `yaml:"f"`
	Max int64          `yaml:"max"`
	D   time.Duration  `yaml:"d"`
	L   []int          `yaml:"l"`
	M   map[string]int `yaml:"m"`
	In  struct {
		X string `yaml:"x"`
	} `yaml:"in"`
	P    *int      `yaml:"p"`
	Time time.Time `yaml:"time"`
	None string
}

func deliverBox(t *testing.T, options string) (every, error) {
	t.Helper()
	var got every
	o := testOptions()
	o.Sinks["box"] = SinkOf(func(_ context.Context, o every) (engine.Sink, error) {
		got = o
		return &hookSink{}, nil
	})
	s, err := ParseBytes("r.yaml", []byte("subscriptions: {s: {topic: t, deliver: {box: "+options+"}}}"), o)
	if err != nil {
		return got, err
	}
	sink, err := s.Subscriptions[0].OpenSink(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return got, sink.Close()
}

func TestSinkOptions(t *testing.T) {
	got, err := deliverBox(t, `{s: "x ${env:N}", b: true, i: -3, u: 65535, f: 0.5, max: 1MiB, d: 1m30s, l: [1, 2], m: {a.b: 1}, in: {x: y}, p: 4, time: 2026-01-02T03:04:05Z}`)
	if err != nil {
		t.Fatal(err)
	}
	four := 4
	want := every{S: "x 7", B: true, I: -3, U: 65535, F: 0.5, Max: 1 << 20, D: 90 * time.Second, L: []int{1, 2},
		M: map[string]int{"a.b": 1}, P: &four, Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	want.In.X = "y"
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for options, want := range map[string]string{
		"{u: 65536}":    `r.yaml:1:50: subscriptions.s.deliver.box.u: is "65536"; want a whole number, not negative`,
		"{i: 1.5}":      `is "1.5"; want a whole number`,
		"{b: yes}":      `is "yes"; want true or false`,
		"{d: 15}":       `is "15"; want a duration with its unit`,
		"{max: 1Gb}":    `did you mean "1GB"?`,
		"{f: .nan}":     `is ".nan"; want a number`,
		"{l: 1}":        `is a single value; want a list`,
		"{l: [1, x]}":   `subscriptions.s.deliver.box.l[1]: is "x"; want a whole number`,
		"{m: [1]}":      `is a list; want a mapping`,
		"{in: {xx: 1}}": `unknown key "xx" in subscriptions.s.deliver.box.in; did you mean "x"? allowed: x`,
		"{None: 1}":     `unknown key "None"`,
		"{s: a***b}":    `which is how the router shows what is secret`,
		"{time: noon}":  `is "noon"`,
		"{s: [a]}":      `is a list; want a single value`,
	} {
		if _, err := deliverBox(t, options); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v\nwant %s", options, err, want)
		}
	}
}

// What the process adds reaches the connector; what the rules say too.
func TestSinkOpens(t *testing.T) {
	s, err := ParseBytes("r.yaml", []byte(`subscriptions: {s: {topic: t, deliver: {webhook: {url: "https://x.y/", secrets: ["${env:HOOK_SECRET}"]}}}}`), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	sink, err := s.Subscriptions[0].OpenSink(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o := sink.(*hookSink).o
	if o.Dialer != "the process's" || o.URL != "https://x.y/" || len(o.Secrets) != 1 || o.Secrets[0] != "whsec_c2VjcmV0" {
		t.Errorf("opened with %+v", o)
	}
	s, err = ParseBytes("r.yaml", []byte(`subscriptions: {s: {topic: t, deliver: {box: {}}}}`), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if sink, err := s.Subscriptions[0].OpenSink(t.Context()); sink != nil || err == nil {
		t.Errorf("a sink that fails to open: %v, %v", sink, err)
	}
}
