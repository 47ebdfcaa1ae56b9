package main

import (
	"context"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/connector/webhook"
	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/hooks"
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

// schemeNeeds is what verifying webhooks asks besides them.
type schemeNeeds struct {
	invoke       hooks.Invoke
	certificates *hooks.Certificates
}

// sourceSchemes is every way in which this binary can verify webhooks: a new one is its file in hooks and a line here.
// at is what they ask; nil where webhooks are not verified, only their rules read.
func sourceSchemes(at *schemeNeeds) map[string]rules.SchemeKind {
	if at == nil {
		at = &schemeNeeds{}
	}
	return map[string]rules.SchemeKind{
		"github":   rules.SchemeOf("GitHub's signature of the body.", hooks.GitHub.Open),
		"stripe":   rules.SchemeOf("Stripe's signature of time and body.", hooks.Stripe.Open),
		"slack":    rules.SchemeOf("Slack's signature of time and body. `url_verification` is answered.", hooks.Slack.Open),
		"shopify":  rules.SchemeOf("Shopify's signature of the body.", hooks.Shopify.Open),
		"standard": rules.SchemeOf("[Standard Webhooks](https://www.standardwebhooks.com): id, time and body, v1 and v1a.", hooks.Standard.Open),
		"twilio":   rules.SchemeOf("Twilio's signature of URL and form.", hooks.Twilio.Open),
		"sns":      rules.SchemeOf("Amazon SNS's signature of a topic's messages, by its certificate. The topic's subscription is confirmed.", func(o hooks.SNS) (event.Verifier, error) { return o.Open(at.certificates) }),
		"meta":     rules.SchemeOf("Meta's signature of the body, for WhatsApp, Instagram, Messenger and Pages. The GET that asks with `hub.challenge` is answered.", hooks.Meta.Open),
		"hmac":     rules.SchemeOf("Any header that has an HMAC of the body, or of a text made of the webhook.", hooks.HMAC.Open),
		"basic":    rules.SchemeOf("A user and a password. Nothing is signed.", hooks.Basic.Open),
		"bearer":   rules.SchemeOf("A token. Nothing is signed.", hooks.Bearer.Open),
		"none":     rules.SchemeOf("Nothing is verified: whoever knows the address may send.", hooks.None.Open),
		"function": rules.SchemeOf("A function's verdict.", func(o hooks.Function) (event.Verifier, error) { return o.Open(at.invoke) }),
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
