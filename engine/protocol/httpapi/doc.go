// Package httpapi is the router's HTTP face: publishing, polling, server-sent events, pull queues and
// the administration of topics, subscriptions and functions, on fasthttp. openapi.json is the source of
// what it promises; the route table is held equal to it by a test.
package httpapi
