package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/mqttname"
	"github.com/millrace/millrace/engine/protocol/mqtt"
	"github.com/millrace/millrace/engine/rules"
)

func mqttCommand(p *program) *cobra.Command {
	var path, data string
	cmd := &cobra.Command{
		Use:   "mqtt NAME|FILTER",
		Short: "Say what a topic name or filter of MQTT stands for",
		Long: `Of a name: which mapping takes what is published under it, and the event that it becomes; nothing is published. Of a filter,
with + or #: which topics and subscriptions an MQTT client reads that subscribes to it. It is asked of a router, or of rules in
files without one.`,
		Example: `  router mqtt plants/north/pump-7/temp
  router mqtt plants/north/pump-7/temp --data '{"celsius": 21.5}' -o json
  router mqtt 'plants/#' --rules millrace.yaml`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	cmd.Flags().StringVar(&path, "rules", "", "the rules file or folder (`path`) to ask instead of a router")
	cmd.Flags().StringVar(&data, "data", "", "what is published under the name, as `text`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		asJSON, err := asJSON(cmd, r.output)
		if err != nil {
			return err
		}
		if err := mqttname.CheckFilter(args[0]); err != nil {
			return usagef(cmd, "%s", clean(err.Error()))
		}
		def, err := p.mqttDefinitions(cmd, r, path)
		if err != nil {
			return err
		}
		names, err := mqtt.NewNames(def.mappings, def.subs)
		if err != nil {
			return err
		}
		told, err := p.tellName(names, args[0], data)
		if err != nil {
			return err
		}
		doc, err := json.Marshal(told)
		if err != nil {
			return err
		}
		return showAs(p, asJSON, doc, writeToldName)
	}
	return cmd
}

// mqttDefinitions are what names are made of.
type mqttDefinitions struct {
	mappings []event.MQTTMapping
	subs     []event.Subscription
}

// mqttDefinitions reads them from files, or asks a router.
func (p *program) mqttDefinitions(cmd *cobra.Command, r *remote, path string) (d mqttDefinitions, err error) {
	if path == "" {
		c, err := p.client(cmd, r)
		if err != nil {
			return d, err
		}
		return c.mqttDefinitions(cmd.Context())
	}
	set, err := p.ruleSet(cmd.Context(), path)
	if err != nil {
		return d, err
	}
	return mqttDefinitionsOf(set), nil
}

func mqttDefinitionsOf(set *rules.Set) (d mqttDefinitions) {
	d.mappings = set.Mappings()
	for _, s := range set.Subscriptions {
		d.subs = append(d.subs, s.Subscription)
	}
	return d
}

func (c *client) mqttDefinitions(ctx context.Context) (d mqttDefinitions, err error) {
	type namesDoc struct {
		Topic       string
		CloudEvents bool
	}
	var doc struct {
		MQTT map[string]struct {
			Topic, Type, Subject, Key, Source string
			CloudEvents                       bool
		}
		Subscriptions []struct {
			Name      string
			Functions []json.RawMessage
			Deliver   struct{ MQTT *namesDoc }
		}
	}
	if err := c.callJSON(ctx, "GET", c.path("rules"), nil, &doc); err != nil {
		return d, err
	}
	for filter, m := range doc.MQTT {
		d.mappings = append(d.mappings, event.MQTTMapping{Filter: filter, Topic: m.Topic, Type: m.Type, Subject: m.Subject, Key: m.Key, Source: m.Source, CloudEvents: m.CloudEvents})
	}
	for _, s := range doc.Subscriptions {
		if n := s.Deliver.MQTT; n != nil {
			d.subs = append(d.subs, event.Subscription{Name: s.Name, Functions: make([]string, len(s.Functions)), Deliver: event.Deliver{Face: event.Stream, Topic: s.Name + ".out", MQTT: event.MQTTNames{Topic: n.Topic, CloudEvents: n.CloudEvents}}})
		}
	}
	return d, nil
}

// A toldName is what is said of a name or filter.
type toldName struct {
	Name   string          `json:"name,omitempty"`
	Filter string          `json:"filter,omitempty"` // that was asked for
	Taken  *takenName      `json:"taken,omitempty"`  // nil: by no mapping
	Read   []toldSource    `json:"read"`
	Event  json.RawMessage `json:"event,omitempty"` // without id and time
}

type takenName struct {
	By    string `json:"by"` // the mapping's filter
	Topic string `json:"topic"`
}

type toldSource struct {
	Kind  string   `json:"kind"` // topic or subscription
	Name  string   `json:"name"`
	Topic string   `json:"topic"`
	Names []string `json:"names"` // filters that its names lie in
}

func (p *program) tellName(names *mqtt.Names, text, data string) (*toldName, error) {
	told := &toldName{Read: []toldSource{}}
	for _, s := range names.Sources() {
		if s.Overlaps(text) {
			told.Read = append(told.Read, toldSource{s.Kind.String(), s.Name, s.Topic, s.Patterns})
		}
	}
	if !mqttname.ValidName(text) {
		told.Filter = text
		return told, nil
	}
	told.Name = text
	ev, m, err := mqtt.Preview(names, text, []byte(data), time.Now())
	if err != nil {
		return nil, err
	}
	told.Taken = &takenName{m.Filter, m.Topic}
	rec, _, err := event.CutRecord(ev.AppendRecord(nil))
	if err != nil {
		return nil, err
	}
	told.Event = rec.AppendStructured(nil)
	return told, nil
}

func writeToldName(w io.Writer, t *toldName) {
	if t.Taken != nil {
		_, _ = fmt.Fprintf(w, "%s goes into %s by %s:\n%s\n", clean(t.Name), t.Taken.Topic, clean(t.Taken.By), clean(string(t.Event)))
	}
	what := clean(t.Name + t.Filter)
	if len(t.Read) == 0 {
		_, _ = fmt.Fprintf(w, "%s is read from nothing: no mapping and no subscription has names like that\n", what)
		return
	}
	_, _ = fmt.Fprintf(w, "%s is read from:\n", what)
	table := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, s := range t.Read {
		_, _ = fmt.Fprintf(table, "  %s\t%s\t%s\n", s.Kind, s.Name, clean(strings.Join(s.Names, ", ")))
	}
	_ = table.Flush()
}

// shownMappings are those whose topic who asks may read or publish to; d.mu is held.
func (d *definitions) shownMappings(p *access.Principal) json.RawMessage {
	return d.file.MQTTJSON(func(topic string) bool {
		return p.Check(access.Read, access.Topic, topic) == nil || p.Check(access.Publish, access.Topic, topic) == nil
	})
}
