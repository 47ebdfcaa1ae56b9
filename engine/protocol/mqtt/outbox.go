package mqtt

import "github.com/mochi-mqtt/server/v2/packets"

// An outbox is one session's way out: its subscriptions and what is under way to the client.
type outbox struct{}

func newOutbox(*Server, *session) *outbox { return &outbox{} }

// attach says that a connection is there: what was under way is sent again, and it goes on from there.
func (o *outbox) attach(packetWriter, connectParams) error { return nil }

// detach says that it is gone; w of attach is not used any more once it returns.
func (o *outbox) detach() {}

// subscribe adds subscriptions and returns a reason code for each; they share the subscription identifier of the packet.
// Retained messages follow once the codes have been written: see subscribed.
func (o *outbox) subscribe(subs []packets.Subscription) (codes []byte, reason string) {
	codes = make([]byte, len(subs))
	for i := range codes {
		codes[i] = packets.ErrImplementationSpecificError.Code
	}
	return codes, ""
}

// subscribed is called once the SUBACK has been written.
func (o *outbox) subscribed([]packets.Subscription) {}

// unsubscribe takes subscriptions away and returns a reason code for each.
func (o *outbox) unsubscribe(filters []string) (codes []byte) {
	codes = make([]byte, len(filters))
	for i := range codes {
		codes[i] = packets.CodeNoSubscriptionExisted.Code
	}
	return codes
}

// acked takes a PUBACK, PUBREC or PUBCOMP of the client; kind is the packet's type. It answers a PUBREC with PUBREL itself.
func (o *outbox) acked(kind byte, id uint16, code byte) {}

// end says that the session is over: its rows go.
func (o *outbox) end() {}
