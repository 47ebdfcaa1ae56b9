// Package ws serves the router over WebSocket (RFC 6455): topics and subscriptions are read, and events published and
// settled, over one socket, with credit for what the server may send. docs/websocket.md describes the frames.
package ws
