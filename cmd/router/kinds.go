package main

import (
	"context"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/connector/webhook"
	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/rules"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/extism"
	"github.com/millrace/millrace/plugins/abi/native"
	"github.com/millrace/millrace/plugins/abi/redpanda"
	"github.com/millrace/millrace/plugins/abi/wasi"
	"github.com/millrace/millrace/plugins/js"
)

// sinkKinds is every place this binary can push to: a new one is its folder and a line here.
func sinkKinds(dialer *egress.Dialer) map[string]rules.SinkKind {
	return map[string]rules.SinkKind{
		"webhook": rules.SinkOf(func(ctx context.Context, o webhook.Options) (engine.Sink, error) {
			o.Dialer, o.UserAgent, o.MaxConns = dialer, "millrace/"+thisBuild().Version, maxSinkConns
			return webhook.OpenSink(ctx, o)
		}),
	}
}

// maxSinkConns bounds one sink's connections; a subscription's concurrency stays below it.
const maxSinkConns = 1024

// abis is every calling convention that functions may use, in the order in which they are tried.
func abis() []plugins.ABI {
	return []plugins.ABI{native.ABI{}, extism.ABI{}, redpanda.ABI{}, wasi.ABI{}}
}

// engines is every language that functions may be written in without being compiled.
func engines() []plugins.Engine { return []plugins.Engine{js.Engine()} }
