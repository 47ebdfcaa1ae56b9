package main

import (
	"context"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/protocol/hooks"
	"github.com/millrace/millrace/engine/protocol/httpapi"
	"github.com/millrace/millrace/engine/protocol/ws"
)

// openFaces makes the faces by which clients reach a router, behind one door, and listens; nothing is served until run.
func (r *router) openFaces(ctx context.Context, b backend, dialer *egress.Dialer, m *metrics) (err error) {
	o := r.o
	if r.edge, err = openEdge(o, dialer); err != nil {
		return err
	}
	if err := r.listen(ctx); err != nil {
		return err
	}
	if r.ws, err = ws.New(socketOptions(b, o)); err != nil {
		return err
	}
	options := r.edgeServer(httpapi.Options{
		Backend: b, Guard: r.guard.Guard, Recheck: o.look, Insecure: o.insecure, CORSOrigins: o.corsOrigins, Hosts: o.hosts,
		Metrics: m.write, Version: thisBuild().Version, Log: o.log,
		Mounts: mounts(r.ws, r.hooks, &r.mqtt),
	})
	if r.door, err = options.NewDoor(); err != nil {
		return err
	}
	options.Door = r.door
	if r.http, err = httpapi.New(options); err != nil {
		return err
	}
	m.edge = r.edgeStats
	if err := r.openMQTT(ctx, b, m); err != nil {
		return err
	}
	return r.openGRPC(ctx, b, m)
}

// mounts are the protocols beside HTTP's own on the one listener.
func mounts(sockets *ws.Server, inbound *hooks.Server, devices *mqttFace) []httpapi.Mount {
	return append([]httpapi.Mount{
		{Method: "GET", Path: "/v1/ws", Stream: true, In: httpapi.Known, Serve: sockets.Serve},
		{Method: "GET", Path: "/mqtt", Stream: true, In: httpapi.Anyone, Serve: devices.serveWebSocket}, // CONNECT says who it is
	}, sourceMounts(inbound)...)
}
