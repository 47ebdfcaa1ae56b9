package main

import (
	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/mqtt"
	"github.com/millrace/millrace/engine/rules"
)

// applyNames puts in force what the rules and the API say of MQTT's topic names.
func (d *definitions) applyNames(set *rules.Set, specs []engine.SubscriptionSpec) {
	var mappings []event.MQTTMapping
	if set != nil {
		mappings = set.Mappings()
	}
	subs := make([]event.Subscription, len(specs))
	for i := range specs {
		subs[i] = specs[i].Subscription
	}
	names, err := mqtt.NewNames(mappings, subs)
	if err != nil { // what rules checks, it compiles
		d.log.Error("the names of MQTT stay as they were", "error", err)
		return
	}
	d.names.Replace(names)
}

// MQTT returns what MQTT's topic names stand for.
func (d *definitions) MQTT() *mqtt.Names { return d.names.Names() }
