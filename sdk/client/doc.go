// Package client publishes to a Millrace router, reads from it and works on its deliveries, over gRPC.
//
// A [Client] is one connection, shared by all that a program does; it and everything it hands out are safe for concurrent
// use unless said otherwise. What waits (a [Publisher], a [Reader] that follows, [Client.Receive]) outlives restarts of the
// router: it connects again, with growing and jittered pauses, and goes on where it was. What trying again cannot mend
// ends it with an [Error].
//
// Events are CloudEvents in their protobuf format, which the CloudEvents SDK converts from and to its own
// (github.com/cloudevents/sdk-go/binding/format/protobuf/v2: ToProto, FromProto).
package client
