package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/mqttname"
	"github.com/millrace/millrace/engine/protocol/mqtt"
	"github.com/millrace/millrace/engine/rules"
)

// An explainedName is what becomes of a message of MQTT that nobody has published, and why.
type explainedName struct {
	Name    string          `json:"name"`
	Taken   *takenName      `json:"taken,omitempty"`   // nil: by no mapping
	Others  []otherMapping  `json:"others"`            // those that match first
	More    int             `json:"more,omitempty"`    // that are not in Others, which is bounded
	Refused string          `json:"refused,omitempty"` // why the payload is not taken
	Event   json.RawMessage `json:"event,omitempty"`
	Read    []readAs        `json:"read"` // by MQTT clients

	Subscriptions []*event.Explained `json:"subscriptions,omitempty"` // of rules in files, or the one that a router was asked for
	Matches       []event.Match      `json:"matches,omitempty"`       // of all of a router's
}

type otherMapping struct {
	Filter  string `json:"filter"`
	Matches bool   `json:"matches"`
	Why     string `json:"why"` // it does not take the name
}

type readAs struct {
	Kind string `json:"kind"` // topic or subscription
	Name string `json:"name"`
	As   string `json:"as"` // the topic name
}

// othersShown bounds what is said of mappings that do not take a name.
const othersShown = 20

// maxAsked bounds a payload that a router is asked about, in bytes as a URL has them (%22 is three): beside the longest
// name and a token it fits into what a request line with its headers may have by default, 16 KiB.
const maxAsked = 8 << 10

// explainName explains what an MQTT client would publish.
func (p *program) explainName(cmd *cobra.Command, r *remote, o explaining, args []string) error {
	if err := mqttname.CheckName(o.name); err != nil {
		return usagef(cmd, "--mqtt-name: %s", clean(err.Error()))
	}
	if len(args) > 1 {
		return usagef(cmd, "%q: with --mqtt-name the event is what is published; want at most SUBSCRIPTION", args[1])
	}
	asJSON, err := asJSON(cmd, r.output)
	if err != nil {
		return err
	}
	payload, err := p.payload(o)
	if err != nil {
		return err
	}
	if n := len(url.QueryEscape(string(payload))); o.rules == "" && len(args) == 1 && n > maxAsked {
		return usagef(cmd, "the payload is %d bytes in a URL, and a router is asked about SUBSCRIPTION with at most %d; a smaller one, or --rules with the router's rules files, which has no bound", n, maxAsked)
	}
	told := func() (*explainedName, error) { return p.explainNameAt(cmd, r, o, args, payload) }
	if o.rules != "" {
		told = func() (*explainedName, error) { return p.explainNameDry(cmd.Context(), o, args, payload) }
	}
	x, err := told()
	if err != nil {
		return err
	}
	if !asJSON {
		writeExplainedName(p.stdout, x)
		return nil
	}
	doc, err := json.Marshal(x)
	if err != nil {
		return err
	}
	return printJSON(p.stdout, doc)
}

// payload is what is published under the name.
func (p *program) payload(o explaining) ([]byte, error) {
	switch o.file {
	case "":
		return []byte(o.data), nil
	case "-":
		return io.ReadAll(io.LimitReader(p.stdin, 64<<20))
	}
	return os.ReadFile(o.file)
}

// explainNameDry holds the message against rules of files.
func (p *program) explainNameDry(ctx context.Context, o explaining, args []string, payload []byte) (*explainedName, error) {
	set, err := p.ruleSet(ctx, o.rules)
	if err != nil {
		return nil, err
	}
	subs := set.Subscriptions
	if len(args) == 1 {
		if subs, err = chosenSubscriptions(set, "", args); err != nil {
			return nil, err
		}
	}
	def := mqttDefinitionsOf(set)
	x, names, rec, err := explainMapping(def, o.name, payload)
	if err != nil || rec == nil {
		return x, err
	}
	for _, t := range set.Topics {
		if t.Name != x.Taken.Topic {
			continue
		}
		if err := engine.CheckData(t.Topic, rec.Data()); err != nil {
			return x.refuse(err), nil
		}
	}
	if len(args) == 0 {
		subs = slices.DeleteFunc(slices.Clone(subs), func(s rules.Subscription) bool { return s.Topic != x.Taken.Topic })
	}
	return x, explainDry(ctx, set, subs, x.Taken.Topic, rec, func(e *event.Explained) error {
		return x.add(names, e)
	})
}

// add takes what a subscription makes of the event, and the names under which that is read: functions may have made others of it.
func (x *explainedName) add(names *mqtt.Names, e *event.Explained) error {
	x.Subscriptions = append(x.Subscriptions, e)
	for _, out := range e.Outputs {
		var ev event.Event
		if err := event.ParseStructured(out.Event, event.Limits{}, &ev); err != nil {
			return fmt.Errorf("what %s puts into %s: %w", e.Subscription, out.Topic, err)
		}
		x.readFrom(names, out.Topic, sampleRecord(&ev, 0))
	}
	return nil
}

// explainNameAt asks a router which of its subscriptions take the event. Names under which they are read are told of
// those without functions.
func (p *program) explainNameAt(cmd *cobra.Command, r *remote, o explaining, args []string, payload []byte) (*explainedName, error) {
	c, err := p.client(cmd, r)
	if err != nil {
		return nil, err
	}
	ask := func() (e event.Explained, err error) {
		u := c.path("subscriptions", args[0], "explain")
		u.RawQuery = url.Values{"mqttName": {o.name}, "data": {string(payload)}}.Encode()
		err = c.callJSON(cmd.Context(), "GET", u, nil, &e)
		return e, err
	}
	def, err := c.mqttDefinitions(cmd.Context())
	if hasStatus(err, http.StatusForbidden) && len(args) == 1 { // who may not see all the rules may see what takes the name
		e, err := ask()
		if err != nil {
			return nil, err
		}
		x := &explainedName{Name: o.name, Others: []otherMapping{}, Read: []readAs{}, Event: e.Event, Subscriptions: []*event.Explained{&e}}
		if e.MQTT != nil {
			x.Taken = &takenName{e.MQTT.By, e.Topic}
		}
		return x, nil
	}
	if err != nil {
		return nil, err
	}
	x, names, rec, err := explainMapping(def, o.name, payload)
	if err != nil || rec == nil {
		return x, err
	}
	if len(args) == 1 {
		e, err := ask()
		if hasStatus(err, http.StatusUnprocessableEntity) {
			return x.refuse(err), nil
		}
		if err != nil {
			return nil, err
		}
		x.Event = e.Event
		return x, x.add(names, &e)
	}
	u := c.path("topics", x.Taken.Topic, "events")
	u.RawQuery = "dryRun=true"
	answer, err := c.call(cmd.Context(), "POST", u, x.Event, "Content-Type", "application/cloudevents+json")
	if hasStatus(err, http.StatusUnprocessableEntity) {
		return x.refuse(err), nil
	}
	if err != nil {
		return nil, err
	}
	var dry struct {
		Events []struct{ Matches []event.Match }
	}
	if err := json.Unmarshal(answer, &dry); err != nil || len(dry.Events) != 1 {
		return nil, fmt.Errorf("%s answered something other than the expected JSON; is it a router?", c.base.Host)
	}
	x.Matches = dry.Events[0].Matches
	for _, s := range def.subs {
		if len(s.Functions) == 0 && slices.ContainsFunc(x.Matches, func(m event.Match) bool { return m.Matched && m.Subscription == s.Name }) {
			x.readFrom(names, s.Deliver.Topic, rec)
		}
	}
	return x, nil
}

// explainMapping says which mapping takes a name, and the event that it becomes; rec is nil where it becomes none.
func explainMapping(def mqttDefinitions, name string, payload []byte) (x *explainedName, names *mqtt.Names, rec event.Record, err error) {
	if names, err = mqtt.NewNames(def.mappings, def.subs); err != nil {
		return nil, nil, nil, err
	}
	x = &explainedName{Name: name, Others: []otherMapping{}, Read: []readAs{}}
	by := ""
	if m, _, ok := names.Route(name, nil); ok {
		by, x.Taken = m.Filter, &takenName{m.Filter, m.Topic}
	}
	for _, m := range def.mappings {
		if m.Filter == by {
			continue
		}
		other := otherMapping{Filter: m.Filter, Why: mqttname.Differs(m.Filter, name)}
		if other.Why == "" {
			other.Matches, other.Why = true, by+" goes before it: "+mqttname.Before(by, m.Filter)
		}
		x.Others = append(x.Others, other)
	}
	slices.SortFunc(x.Others, func(a, b otherMapping) int {
		if a.Matches != b.Matches {
			if a.Matches {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Filter, b.Filter)
	})
	x.More = max(0, len(x.Others)-othersShown)
	x.Others = x.Others[:len(x.Others)-x.More]
	if x.Taken == nil {
		return x, names, nil, nil
	}
	now := time.Now()
	ev, _, err := mqtt.Preview(names, name, payload, now)
	if err != nil {
		return x.refuse(err), names, nil, nil
	}
	if ev.ID == "" {
		ev.ID = "event"
	}
	if ev.Time == "" {
		ev.Time = now.UTC().Format(time.RFC3339Nano)
	}
	ev.Topic = x.Taken.Topic
	rec = sampleRecord(&ev, 0)
	x.Event = rec.AppendStructured(nil)
	x.readFrom(names, x.Taken.Topic, rec)
	return x, names, rec, nil
}

// refuse says why the payload is not taken: there is no event then, and nobody reads it.
func (x *explainedName) refuse(err error) *explainedName {
	x.Refused, x.Event, x.Read = strings.ReplaceAll(err.Error(), "\n", "; "), nil, []readAs{}
	return x
}

// readFrom adds the names under which MQTT clients read an event of a topic.
func (x *explainedName) readFrom(names *mqtt.Names, topic string, rec event.Record) {
	for _, s := range names.Sources() {
		if s.Topic != topic {
			continue
		}
		if as, ok := s.NameOf(nil, rec); ok {
			x.Read = append(x.Read, readAs{s.Kind.String(), s.Name, string(as)})
		}
	}
}

// ExplainMQTT explains what an MQTT client would publish.
func (b backend) ExplainMQTT(ctx context.Context, subscription, name string, data []byte, shown func(topic string) bool, mayPublish func(topic string) error) (*event.Explained, error) {
	if err := mqttname.CheckName(name); err != nil {
		if f := (*event.Faults)(nil); errors.As(err, &f) && len(f.List) > 0 { // that of a topic name: here it is the parameter
			err = event.Invalid("", f.List[0].Detail)
		}
		return nil, event.At("?mqttName", err)
	}
	if len(data) > maxAsked {
		return nil, event.Invalid("?data", fmt.Sprintf("is %d bytes; want at most %d", len(data), maxAsked))
	}
	names := b.MQTT()
	to, _, ok := names.Route(name, nil)
	if !ok || !shown(to.Topic) {
		return nil, event.Bad(event.ErrNotFound, "?mqttName", "no mapping that you may see takes it")
	}
	of, err := b.Engine.Subscription(subscription)
	if err != nil {
		return nil, err
	}
	for _, topic := range [...]string{to.Topic, of.Topic} { // its function runs on the caller's own input
		if err := mayPublish(topic); err != nil {
			return nil, err
		}
	}
	ev, m, err := mqtt.Preview(names, name, data, time.Now())
	if err != nil {
		return nil, event.At("?data", err)
	}
	x, err := b.Engine.ExplainUnstored(ctx, subscription, m.Topic, ev)
	if err != nil {
		return nil, err
	}
	x.MQTT = &event.MQTTTaken{Name: name, By: m.Filter}
	return x, nil
}

// writeExplainedName prints it for people.
func writeExplainedName(w io.Writer, x *explainedName) {
	line := func(format string, args ...any) { fmt.Fprintln(w, clean(fmt.Sprintf(format, args...))) }
	if x.Taken == nil {
		line("%s: no mapping takes it: clients of MQTT 5.0 are answered 0x90, those of 3.1.1 are disconnected", x.Name)
	} else {
		line("%s goes into %s by %s", x.Name, x.Taken.Topic, x.Taken.By)
	}
	for _, m := range x.Others {
		line("  not by %s: %s", m.Filter, m.Why)
	}
	if x.More > 0 {
		line("  nor by %s", plural(x.More, "more mapping"))
	}
	if x.Refused != "" {
		line("  refused: %s", x.Refused)
	}
	if x.Event == nil {
		return
	}
	var e struct{ Type, Subject, PartitionKey, Source string }
	if json.Unmarshal(x.Event, &e) == nil {
		line("  type: %s, subject: %s, key: %s, source: %s", e.Type, cmp.Or(e.Subject, "none"), cmp.Or(e.PartitionKey, "none"), e.Source)
	}
	line("  %s", x.Event)
	for _, r := range x.Read {
		line("MQTT clients read it from %s %s as %s", r.Kind, r.Name, r.As)
	}
	for _, s := range x.Subscriptions {
		fmt.Fprintln(w)
		writeExplained(w, s)
	}
	for _, m := range x.Matches {
		takes := "takes it"
		if !m.Matched {
			takes = "does not take it"
		}
		line("%s %s: %s", m.Subscription, takes, m.Why)
	}
	if len(x.Subscriptions)+len(x.Matches) == 0 {
		line("no subscription reads %s", x.Taken.Topic)
	}
}
