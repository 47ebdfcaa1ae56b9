// Package grpcapi is the router's gRPC face: the services of millrace.v1, health and reflection, over HTTP/2. Events
// travel in the CloudEvents protobuf format; cursors, leases and what may be done are those of every other face.
package grpcapi
