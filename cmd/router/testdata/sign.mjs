// Signs webhooks with the senders' own libraries where they sign, else by what their documents say; prints one a line.
import { createHmac, createSign } from "node:crypto";
import { sign } from "@octokit/webhooks-methods";
import { Webhook } from "standardwebhooks";
import Stripe from "stripe";
import twilio from "twilio";

const env = process.env;
const now = Math.floor(Date.now() / 1000);
const hmac = (secret, text, encoding) => createHmac("sha256", secret).update(text).digest(encoding);
const json = { "Content-Type": "application/json" };
const out = (source, headers, body, want, query = "") => console.log(JSON.stringify({ source, headers: { ...json, ...headers }, body, want, query }));

let body = '{"ref":"refs/heads/main", "repository":{"full_name":"acme/site"}}';
out("github", { "X-Hub-Signature-256": await sign(env.GITHUB_SECRET, body), "X-GitHub-Event": "push", "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958" }, body,
	{ type: "github.push", id: "72d3162e-cc78-11e3-81ab-4c9367dc0958", subject: "acme/site" });

body = '{"id":"evt_1","type":"invoice.paid","created":1700000000,"data":{"object":{"id":"in_1"}}}';
const stripe = new Stripe("sk_test_x").webhooks;
out("stripe", { "Stripe-Signature": stripe.generateTestHeaderString({ payload: body, secret: env.STRIPE_SECRET }) }, body,
	{ type: "invoice.paid", id: "evt_1", subject: "in_1", time: "2023-11-14T22:13:20Z" });

// api.slack.com, "Verifying requests from Slack".
body = '{"type":"event_callback","team_id":"T1","event_id":"Ev1","event_time":1700000000,"event":{"type":"message"}}';
out("slack", { "X-Slack-Request-Timestamp": `${now}`, "X-Slack-Signature": "v0=" + hmac(env.SLACK_SECRET, `v0:${now}:${body}`, "hex") }, body,
	{ type: "slack.message", id: "Ev1", subject: "T1" });

// shopify.dev, "Deliver webhooks through HTTPS".
body = '{"id":820982911946154508,"total_price":"250.00"}';
out("shopify", { "X-Shopify-Hmac-Sha256": hmac(env.SHOPIFY_SECRET, body, "base64"), "X-Shopify-Topic": "orders/create", "X-Shopify-Webhook-Id": "wh-1", "X-Shopify-Shop-Domain": "acme.myshopify.com" }, body,
	{ type: "shopify.orders/create", id: "wh-1", subject: "acme.myshopify.com" });

body = '{"type":"user.created","timestamp":"2026-01-31T12:00:00Z","data":{"id":7}}';
for (const [source, prefix, secret] of [["svix", "svix", env.SVIX_SECRET], ["standard", "webhook", env.OLD_SECRET]]) {
	const signature = new Webhook(secret).sign("msg_" + source, new Date(now * 1000), body);
	out(source, { [prefix + "-id"]: "msg_" + source, [prefix + "-timestamp"]: `${now}`, [prefix + "-signature"]: "v1,AAAA " + signature }, body,
		{ type: "user.created", id: "msg_" + source, time: "2026-01-31T12:00:00Z" });
}

const params = { MessageSid: "SM1", From: "+14158675309", Body: "hi & bye" };
out("sms", { "Content-Type": "application/x-www-form-urlencoded", "X-Twilio-Signature": twilio.getExpectedTwilioSignature(env.TWILIO_TOKEN, "https://hooks.example.com/v1/sources/sms?a=b", params) },
	new URLSearchParams(params).toString(), { type: "twilio.message", subject: "SM1" }, "?a=b");

body = '{"object":"whatsapp_business_account","entry":[{"id":"102290129340398"}]}';
out("whatsapp", { "X-Hub-Signature-256": await sign(env.META_SECRET, body) }, body, { type: "meta.whatsapp_business_account", subject: "102290129340398" });

// docs.aws.amazon.com/sns, "Verifying the signatures of Amazon SNS messages"; SNS sends its JSON as text/plain.
const sns = { Message: "Hello", MessageId: "sns-1", Subject: "Alarm", Timestamp: new Date().toISOString(), TopicArn: "arn:aws:sns:eu-west-1:123456789012:alarms", Type: "Notification" };
const lines = Object.entries(sns).map(([name, value]) => `${name}\n${value}\n`).join("");
body = JSON.stringify({ ...sns, SignatureVersion: "2", Signature: createSign("RSA-SHA256").update(lines).sign(env.SNS_KEY, "base64"), SigningCertURL: "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem" });
out("alarms", { "Content-Type": "text/plain; charset=UTF-8" }, body, { type: "sns.notification", id: "sns-1", subject: "Alarm", time: sns.Timestamp });

body = '{"object_kind":"push"}';
out("gitlab", { "X-Gitlab-Token": env.GITLAB_TOKEN, "X-Gitlab-Event": "Push Hook", "X-Gitlab-Event-UUID": "13792a34" }, body, { type: "gitlab.Push Hook", id: "13792a34" });

// dev.twitch.tv, "Handling Webhook Events", "Verifying the event message".
body = '{"subscription":{"type":"stream.online"}}';
const at = new Date().toISOString();
out("twitch", { "Twitch-Eventsub-Message-Id": "e76c", "Twitch-Eventsub-Message-Timestamp": at, "Twitch-Eventsub-Message-Signature": "sha256=" + hmac(env.TWITCH_SECRET, "e76c" + at + body, "hex") }, body,
	{ type: "stream.online", id: "e76c" });

body = '{"specversion":"1.0","type":"Microsoft.Storage.BlobCreated","source":"/s","id":"az-1","time":"2026-01-31T12:00:00Z","data":{}}';
out("azure", { Authorization: "Basic " + Buffer.from("grid:" + env.GRID_PASSWORD).toString("base64") }, body, { type: "Microsoft.Storage.BlobCreated", id: "az-1", time: "2026-01-31T12:00:00Z" });

out("own", { "X-Key": env.JUDGE_KEY }, '{"a":1}', { type: "webhook" });
out("lab", {}, '{"a":1}', { type: "webhook" });
