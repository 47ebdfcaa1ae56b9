package acceptance

import (
	"errors"
	"slices"
	"strings"
)

// Over TLS, to a broker whose authority the client knows, all is as over TCP. One that shows another certificate is not talked to.
func caseTLS(c *mqttCase) {
	c.goes(mqttConnect{url: c.l.tls})
	if err := c.fails(mqttConnect{id: "fooled", url: c.l.tls, ca: c.l.stranger}); errors.As(err, new(mqttRefused)) {
		c.Errorf("the broker answered a client that does not know its authority: %v", err)
	}
}

// A client's certificate says who it is, without a password, and what its role may not do it may not.
func caseCertificate(c *mqttCase) {
	way := mqttConnect{url: c.l.mutual, certificate: c.l.device}
	c.goes(way)
	foreign := way
	foreign.id, foreign.certificate = "foreign", c.l.stranger
	if err := c.fails(foreign); errors.As(err, new(mqttRefused)) {
		c.Errorf("a certificate of an authority that nobody knows came past the handshake: %v", err)
	}
	if c.l.router == nil {
		return // the control knows no roles
	}
	way.id = "narrow"
	if granted, err := c.open(way).subscribe(c.ctx, "jobs/"+c.k.name+"/+", 1); err == nil && granted < 0x80 {
		c.Errorf("what the role may not read was granted with QoS %d", granted)
	}
	c.unknown(mqttConnect{id: "guest", url: c.l.mutual, certificate: c.l.guest})
}

// Over WebSocket, plain and over TLS, all is as over TCP.
func caseWebSocket(c *mqttCase) {
	c.goes(mqttConnect{url: c.l.ws})
	c.unknown(mqttConnect{id: "guess", url: c.l.ws, password: "not-the-token"})
	if c.l.router != nil {
		c.name += "-secure"
		c.goes(mqttConnect{url: c.l.wss})
	}
}

// goes sends messages both ways: of each QoS, one that is larger than a frame or a record, one that a session waits for and
// one that is kept. Whoever is connected over TCP gets the same.
func (c *mqttCase) goes(way mqttConnect) {
	c.Helper()
	named := func(id string) mqttConnect {
		o := way
		o.id = id
		return o
	}
	keeps := named("to")
	keeps.keep = true
	from, to, other := c.open(named("from")), c.open(keeps), c.open(mqttConnect{id: "other"})
	for _, client := range []mqttClient{to, other} {
		c.subscribe(client, c.topic("+"), 2)
	}
	want := []string{"message 0", "message 1", "message 2", strings.Repeat("0123456789abcdef", 8<<10)}
	for i, payload := range want {
		c.publish(from, mqttMessage{topic: c.topic("x"), payload: payload, qos: byte(min(i, 2))})
	}
	for id, client := range map[string]mqttClient{"to": to, "other": other} {
		got := payloads(client.inbox().until(c.T, "all messages", func(all []mqttMessage) bool { return len(all) >= len(want) }))
		slices.Sort(got) // the order is kept among those of one QoS
		if !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			c.Errorf("%s has %.80q", id, got)
		}
	}
	c.close(to)
	c.publish(from, mqttMessage{topic: c.topic("x"), payload: "missed", qos: 1})
	c.publish(from, mqttMessage{topic: c.topic("kept"), payload: "kept", qos: 1, retain: true})
	keeps.has = c.topic("+")
	to = c.open(keeps)
	if c.k.able.stays && !to.present() {
		c.Error("the session is not there")
	}
	missed := slices.DeleteFunc(to.inbox().last(c.T, "kept"), func(m mqttMessage) bool { // the connection ended before its acknowledgement had gone
		return m.dup && slices.Contains(want, m.payload)
	})
	if got := payloads(missed); !slices.Equal(got, []string{"missed"}) {
		c.Errorf("the session has %.80q; want what it missed", got)
	}
	late := c.open(named("late"))
	c.subscribe(late, c.topic("kept"), 1)
	if m := late.inbox().until(c.T, "what is kept", func(all []mqttMessage) bool { return len(all) > 0 })[0]; m.payload != "kept" || !m.retain {
		c.Errorf("a new subscriber has %+v; want what is kept", m)
	}
}

// fails wants a client not to come in, and returns how it did not.
func (c *mqttCase) fails(o mqttConnect) error {
	c.Helper()
	client, err := c.try(o)
	if err == nil { // programs connect with what they do
		_, err = client.subscribe(c.ctx, c.topic("#"), 0)
	}
	if err == nil {
		c.Fatalf("%s came in", o.id)
	}
	return err
}

// unknown wants a client to be told that nobody knows it, with a code of its version.
func (c *mqttCase) unknown(o mqttConnect) {
	c.Helper()
	err := c.fails(o)
	var refused mqttRefused
	if !errors.As(err, &refused) {
		if text := strings.ToLower(err.Error()); c.k.able.stays || !strings.Contains(text, "not auth") && !strings.Contains(text, "bad user name or password") {
			c.Errorf("%s: %v", o.id, err)
		}
	} else if want := map[int][]byte{4: {4, 5}, 5: {0x86, 0x87}}[c.k.version]; !slices.Contains(want, refused.code) {
		c.Errorf("%s: code %#x; want one of %#x", o.id, refused.code, want)
	}
}
