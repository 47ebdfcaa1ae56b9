package main

import (
	"context"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/connector/mqttlink"
	"github.com/millrace/millrace/engine/connector/routerlink"
	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/mqtt"
	"github.com/millrace/millrace/engine/rules"
)

// linkProcess is what bridges need of the router that they are of; zero where rules are only read.
type linkProcess struct {
	dialer *egress.Dialer
	engine *engine.Engine
}

func (p linkProcess) link() routerlink.Process {
	return routerlink.Process{Dialer: p.dialer, UserAgent: "millrace/" + thisBuild().Version, Name: p.engine.Name(), Origin: p.engine.Origin()}
}

// bridgeKinds is every other side that this binary's bridges can have: a new one is its folder and a line here.
func bridgeKinds(p linkProcess) rules.BridgeKinds {
	return rules.BridgeKinds{
		To: map[string]rules.SinkKind{
			"router": rules.SinkOf(func(ctx context.Context, o routerlink.To) (engine.Sink, error) {
				o.Process = p.link()
				return routerlink.OpenSink(ctx, o)
			}),
			"mqtt": rules.SinkOf(func(ctx context.Context, o mqttlink.To) (engine.Sink, error) {
				o.Process = mqttlink.Process{Dialer: p.dialer, Name: p.engine.Name()}
				return mqttlink.OpenSink(ctx, o)
			}),
		},
		From: map[string]rules.IntakeKind{
			"router": rules.IntakeOf(func(ctx context.Context, o routerlink.From) (event.Intake, error) {
				o.Process = p.link()
				return routerlink.OpenSource(ctx, o)
			}),
			"mqtt": rules.IntakeOf(func(ctx context.Context, o mqttlink.From) (event.Intake, error) {
				o.Process = mqttlink.Process{Dialer: p.dialer, Name: p.engine.Name()}
				o.Taker = func(mappings []event.MQTTMapping) (mqttlink.Taker, error) {
					return mqtt.NewTaker(mappings, mqttlink.Limits())
				}
				return mqttlink.OpenSource(ctx, o)
			}),
		},
	}
}
