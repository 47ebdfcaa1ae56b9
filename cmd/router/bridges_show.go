package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
)

const kindBridges = "bridges"

// bridgeDoc is what the API shows of a bridge. Nothing in it is secret.
type bridgeDoc struct {
	Name      string      `json:"name"`
	Topic     string      `json:"topic"`
	Direction string      `json:"direction"` // to or from
	Kind      string      `json:"kind"`
	Side      string      `json:"side"` // the other one: its URL, and what of it
	Owner     string      `json:"owner"`
	State     bridgeState `json:"state"`
}

// bridgeState is how a bridge is. Counters are of this run of the router, but for what one that forwards has lost.
type bridgeState struct {
	Name string `json:"-"`

	State     string     `json:"state"` // running, starting (no answer has come yet), waiting (for the other side), paused or disabled
	Reason    string     `json:"reason,omitempty"`
	Since     *time.Time `json:"since,omitempty"`     // it is so
	Last      *time.Time `json:"last,omitempty"`      // the other side has answered one that brings in
	LastError *failure   `json:"lastError,omitempty"` // also when all is well again
	Behind    *behind    `json:"behind,omitempty"`    // of one that forwards
	Events    uint64     `json:"events"`              // that the other side has taken, or were stored here
	Refused   uint64     `json:"refused"`             // that the topic does not take: dead letters of one that forwards
	Lost      uint64     `json:"lost"`                // that were dropped before they could go or be read
	Repeats   uint64     `json:"repeats,omitempty"`   // of one that brings in, as loops
	Loops     uint64     `json:"loops,omitempty"`
}

type failure struct {
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// behind is what has not gone yet.
type behind struct {
	Events uint64     `json:"events"`
	Bytes  int64      `json:"bytes"`
	Oldest *time.Time `json:"oldest,omitempty"`
}

// bridges returns the bridges that who asks may see as JSON, by name: who may read the subscription that one is, or would be.
func (d *definitions) bridges(ctx context.Context) ([]byte, error) {
	d.mu.Lock()
	file := d.file // a set does not change
	d.mu.Unlock()
	all, p := []bridgeDoc{}, access.From(ctx)
	if file == nil {
		return json.Marshal(all)
	}
	in := map[string]bridgeState{}
	for _, s := range d.inlets.states() {
		in[s.Name] = s
	}
	for i := range file.Bridges {
		b := &file.Bridges[i]
		if p.Check(access.Read, access.Subscription, event.BridgePrefix+b.Name) != nil {
			continue
		}
		side, err := sideOf(b)
		if err != nil {
			return nil, err
		}
		doc := bridgeDoc{Name: b.Name, Topic: b.Topic, Direction: "from", Kind: b.Kind, Side: side, Owner: fmt.Sprintf("%s:%d", b.Owner.File, b.Owner.Line), State: bridgeState{State: "starting"}}
		if state, ok := in[b.Name]; ok {
			doc.State = state
		}
		if b.Push != nil {
			doc.Direction = "to"
			if state, err := d.forwarding(ctx, b.Push.Name); err == nil {
				doc.State = state
			} else if !errors.Is(err, event.ErrNotFound) { // else it is just being made
				return nil, err
			}
		}
		all = append(all, doc)
	}
	slices.SortFunc(all, func(a, b bridgeDoc) int { return strings.Compare(a.Name, b.Name) })
	return json.Marshal(all)
}

// forwarding is how a bridge that forwards is.
func (d *definitions) forwarding(ctx context.Context, name string) (bridgeState, error) {
	s, err := d.eng.Subscription(name)
	if err != nil {
		return bridgeState{}, err
	}
	far, err := d.eng.Behind(ctx, name)
	if err != nil {
		return bridgeState{}, err
	}
	state := bridgeState{State: s.State, Reason: s.Reason, Since: s.Since, Behind: &behind{Events: far.Events, Bytes: far.Bytes},
		Events: s.Delivered, Refused: s.DeadLettered, Lost: s.Lost}
	if !far.Oldest.IsZero() {
		state.Behind.Oldest = &far.Oldest
	}
	if state.State == "open" { // its circuit is how a bridge waits
		state.State, state.Reason = "waiting", s.Circuit.Reason
	}
	if state.Since == nil && state.State == "running" {
		state.Since = s.Circuit.Since
	}
	if at := s.Circuit.LastAt; at != nil {
		state.LastError = &failure{s.Circuit.Last, *at}
	}
	return state, nil
}

// sideOf says where a bridge goes to or comes from, as the rules show it: references as such, literal secrets hidden.
func sideOf(b *rules.Bridge) (string, error) {
	var doc struct {
		To, From struct {
			Router, MQTT, Topic, Subscription string
			Filters                           []string
		}
	}
	if err := json.Unmarshal(b.Effective, &doc); err != nil {
		return "", fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	side := doc.From
	if b.Push != nil {
		side = doc.To
	}
	of := append([]string{side.Router + side.MQTT, side.Topic + side.Subscription}, side.Filters...)
	return strings.Join(strings.Fields(strings.Join(of, " ")), " "), nil
}

func bridgesCommand(p *program) *cobra.Command {
	columns := []column{{"NAME", "name"}, {"TOPIC", "topic"}, {"WAY", "direction"}, {"OTHER SIDE", "side"}, {"STATE", "state.state"}, {"SINCE", "state.since"},
		{"EVENTS", "state.events"}, {"BEHIND", "state.behind.events"}, {"BYTES", "state.behind.bytes"}, {"OLDEST", "state.behind.oldest"},
		{"REFUSED", "state.refused"}, {"LOST", "state.lost"}, {"REASON", "state.reason"}}
	cmd := p.listCommand(kindBridges, columns)
	cmd.Use, cmd.Aliases = "bridges", []string{"bridge"}
	cmd.Short = "List bridges to and from other routers and MQTT brokers"
	cmd.Long = `Bridges lists what forwards topics to other routers and MQTT brokers, and what brings events in: where to or from,
whether the other side answers, since when and why not, and how far one that forwards is behind: events, about how many
bytes, and when the oldest of them came. Bridges are defined in rules alone. One that forwards is the subscription
bridge.NAME as well, which can be paused, resumed and looked into as such.`
	cmd.Example = `  router bridges
  router bridges -o json`
	return cmd
}
