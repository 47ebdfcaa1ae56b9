package acceptance

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// mqttCases are what each kind of client goes through.
var mqttCases = []struct {
	name string
	only func(k mqttKind) bool // nil: all
	run  func(c *mqttCase)
}{
	{"qos", nil, caseQoS},
	{"wildcards", nil, caseWildcards},
	{"session", nil, caseSession},
	{"ended", isLibrary, caseEnded},
	{"retained", nil, caseRetained},
	{"will", nil, caseWill},
	{"shared", nil, caseShared},
	{"expiry", isV5, caseExpiry},
	{"properties", isV5, caseProperties},
	{"window", func(k mqttKind) bool { return k.able.holds }, caseWindow},
	{"password", nil, casePassword},
	{"takeover", isLibrary, caseTakeover},
	{"bytes", isLibrary, caseBytes},
	{"tls", nil, caseTLS},
	{"certificate", nil, caseCertificate},
	{"websocket", isLibrary, caseWebSocket},
}

func isV5(k mqttKind) bool      { return k.version == 5 }
func isLibrary(k mqttKind) bool { return k.able.stays }

// Clients that others wrote, in both versions, find in the router what they find in any broker.
func TestMQTTClients(t *testing.T) {
	t.Parallel()
	l := newMQTTLab(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	for _, k := range mqttKinds() {
		for _, x := range mqttCases {
			if x.only == nil || x.only(k) {
				t.Run(x.name+"/"+k.name, func(t *testing.T) {
					t.Parallel()
					x.run(&mqttCase{t, l, k, ctx, x.name})
				})
			}
		}
	}
	t.Run("all", func(t *testing.T) {
		t.Parallel()
		eachToEach(t, ctx, l)
	})
}

// Each QoS of a publish comes to each QoS of a subscription with the lower of both.
func caseQoS(c *mqttCase) {
	from := c.open(mqttConnect{id: "from"})
	for sub := byte(0); sub < 3; sub++ {
		to := c.open(mqttConnect{id: fmt.Sprint("to", sub)})
		topic := c.topic(fmt.Sprint(sub))
		c.subscribe(to, topic, sub)
		for pub := byte(0); pub < 3; pub++ {
			c.publish(from, mqttMessage{topic: topic, payload: fmt.Sprint("hello ", pub), qos: pub})
			got := to.inbox().until(c.T, "a message", func(all []mqttMessage) bool { return len(all) > int(pub) })[pub]
			want := mqttMessage{topic: topic, payload: fmt.Sprint("hello ", pub), qos: min(pub, sub)}
			if got.topic != want.topic || got.payload != want.payload || got.qos != want.qos || got.retain || got.dup {
				c.Errorf("QoS %d to QoS %d: got %+v; want %+v", pub, sub, got, want)
			}
		}
	}
}

// Wildcards take what the specification says (4.7), once.
func caseWildcards(c *mqttCase) {
	names := []string{"a", "a/b", "a/b/c", "a//c", "d/b/c", "end"}
	base := c.topic("")
	from := c.open(mqttConnect{id: "from"})
	want := map[string][]string{
		"#": names, "a/#": {"a", "a/b", "a/b/c", "a//c"}, "+": {"a", "end"}, "+/b/+": {"a/b/c", "d/b/c"}, "a/+/c": {"a/b/c", "a//c"}, "a/b": {"a/b"},
	}
	to := map[string]mqttClient{}
	for filter := range want {
		to[filter] = c.open(mqttConnect{id: fmt.Sprint("to", len(to))})
		c.subscribe(to[filter], base+filter, 1)
	}
	for _, name := range names {
		c.publish(from, mqttMessage{topic: base + name, payload: name, qos: 1})
	}
	for filter, names := range want {
		got := payloads(to[filter].inbox().until(c.T, "all that fits "+filter, func(all []mqttMessage) bool { return len(all) >= len(names) }))
		if !slices.Equal(got, names) {
			c.Errorf("%s has %q; want %q", filter, got, names)
		}
	}
}

// A session outlives its connection: what was published meanwhile comes, in order and once, however the connection ended.
func caseSession(c *mqttCase) {
	from, filter := c.open(mqttConnect{id: "from"}), c.topic("+")
	keeps := mqttConnect{id: "to", keep: true}
	to := c.open(keeps)
	if to.present() {
		c.Error("the session is there before it began")
	}
	c.subscribe(to, filter, 2)
	for round, end := range []func(mqttClient) error{mqttClient.close, mqttClient.drop} {
		qos := byte(1 + round) // the order is kept among messages of one QoS
		live := fmt.Sprint("live ", round)
		c.publish(from, mqttMessage{topic: c.topic("live"), payload: live, qos: qos})
		to.inbox().last(c.T, live)
		if err := end(to); err != nil {
			c.Fatal(err)
		}
		var want []string
		for i := range c.many() {
			want = append(want, fmt.Sprintf("%d of round %d", i, round))
			c.publish(from, mqttMessage{topic: c.topic(fmt.Sprint(i)), payload: want[i], qos: qos})
		}
		keeps.has = filter
		to = c.open(keeps)
		if c.k.able.stays && !to.present() {
			c.Error("the session is not there")
		}
		c.publish(from, mqttMessage{topic: c.topic("end"), payload: "end", qos: qos})
		got := payloads(to.inbox().last(c.T, "end"))
		if len(got) > 0 && got[0] == live && round == 1 { // dropped before its acknowledgement went
			got = got[1:]
		}
		if !slices.Equal(got, want) {
			c.Errorf("round %d: got %d messages %q; want %d", round, len(got), got, len(want))
		}
		c.close(to) // all is acknowledged now
		to = c.open(keeps)
	}
}

// A session that is over, or a subscription that is gone, brings nothing back.
func caseEnded(c *mqttCase) {
	from, filter := c.open(mqttConnect{id: "from"}), c.topic("#")
	to := c.open(mqttConnect{id: "to", keep: true})
	c.subscribe(to, filter, 1)
	c.close(to)
	to = c.open(mqttConnect{id: "to"}) // a clean start ends it
	if to.present() {
		c.Error("the session is there after a clean start")
	}
	c.close(to)
	c.publish(from, mqttMessage{topic: c.topic("x"), payload: "of a session that is over", qos: 1})
	to = c.open(mqttConnect{id: "to", keep: true})
	if to.present() {
		c.Error("a session that is over is there")
	}
	c.subscribe(to, filter, 1)
	c.subscribe(to, c.topic("y/+"), 1)
	if err := to.unsubscribe(c.ctx, filter); err != nil {
		c.Fatal(err)
	}
	c.publish(from, mqttMessage{topic: c.topic("x"), payload: "of a subscription that is gone", qos: 1})
	c.publish(from, mqttMessage{topic: c.topic("y/end"), payload: "end", qos: 1})
	if got := to.inbox().last(c.T, "end"); len(got) > 0 {
		c.Errorf("got %q", payloads(got))
	}
}

// The last retained message of a name comes with each subscription, flagged, until an empty one takes it away.
func caseRetained(c *mqttCase) {
	from := c.open(mqttConnect{id: "from"})
	see := func(id string, names ...string) {
		c.Helper()
		to := c.open(mqttConnect{id: id})
		c.subscribe(to, c.topic("#"), 1)
		to.inbox().until(c.T, "the retained messages", func(all []mqttMessage) bool { return len(all) >= len(names) })
		c.publish(from, mqttMessage{topic: c.topic("end"), payload: "end", qos: 1})
		all := to.inbox().last(c.T, "end")
		got := payloads(all)
		slices.Sort(got)
		if !slices.Equal(got, names) {
			c.Errorf("a new subscriber gets %q; want %q", got, names)
		}
		for _, m := range all {
			if !m.retain || m.qos != 1 {
				c.Errorf("%+v is not retained with QoS 1", m)
			}
		}
	}
	live := c.open(mqttConnect{id: "live"})
	c.subscribe(live, c.topic("#"), 1)
	for _, m := range []mqttMessage{{topic: "a", payload: "a 1"}, {topic: "a", payload: "a 2"}, {topic: "b", payload: "b 1"}} {
		m.topic, m.qos, m.retain = c.topic(m.topic), 1, true
		c.publish(from, m)
	}
	see("one", "a 2", "b 1")
	c.publish(from, mqttMessage{topic: c.topic("a"), qos: 1, retain: true})
	see("two", "b 1")
	// Whoever is there gets them as any other message.
	for _, m := range live.inbox().last(c.T, "end") {
		if m.retain {
			c.Errorf("%+v is flagged as retained for who was there", m)
		}
	}
	c.publish(from, mqttMessage{topic: c.topic("b"), qos: 1, retain: true})
}

// A will is published when its client goes without a word, and not when it says goodbye.
func caseWill(c *mqttCase) {
	to := c.open(mqttConnect{id: "to"})
	c.subscribe(to, c.topic("#"), 2)
	for i, end := range []func(mqttClient) error{mqttClient.close, mqttClient.drop} {
		dying := c.open(mqttConnect{id: fmt.Sprint("dying", i), will: &mqttMessage{topic: c.topic("will"), payload: fmt.Sprint("will ", i), qos: 1}})
		c.subscribe(dying, c.topic("nothing"), 0)
		if err := end(dying); err != nil {
			c.Fatal(err)
		}
	}
	to.inbox().until(c.T, "the will", func(all []mqttMessage) bool {
		return slices.ContainsFunc(all, func(m mqttMessage) bool { return m.payload == "will 1" })
	})
	// Under the same name order holds: what was published before this has come.
	c.publish(c.open(mqttConnect{id: "from"}), mqttMessage{topic: c.topic("will"), payload: "end", qos: 1})
	got := to.inbox().last(c.T, "end")
	if len(got) > 1 && c.k.name == "mosquitto-5" && got[0].payload == "will 0" {
		got = got[1:] // it says goodbye with reason 0x04, which asks for the will
	}
	if m := got[0]; len(got) > 1 || m.payload != "will 1" || m.topic != c.topic("will") || m.qos != 1 || m.retain {
		c.Errorf("got %+v; want will 1", got)
	}
}

// Of a shared subscription each message goes to one client, and all go to some.
func caseShared(c *mqttCase) {
	n := c.many()
	filter := "$share/" + c.k.sharedName() + "/jobs/" + c.k.name + "/+"
	var workers []mqttClient
	for i := range 3 {
		w := c.open(mqttConnect{id: fmt.Sprint("worker", i)})
		c.subscribe(w, filter, 1)
		workers = append(workers, w)
	}
	from := c.open(mqttConnect{id: "from"})
	var want []string
	for i := range n {
		want = append(want, fmt.Sprintf("job %02d", i))
		c.publish(from, mqttMessage{topic: fmt.Sprintf("jobs/%s/%d", c.k.name, i), payload: want[i], qos: 1})
	}
	eventually(c.T, mqttWait, func() error {
		var got []string
		for _, w := range workers {
			all, _ := w.inbox().have()
			got = append(got, payloads(all)...)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("the workers have %d of %d jobs: %q", len(got), n, got)
		}
		return nil
	})
}

// A message that expires before its reader comes is not delivered; another tells how long it is still good.
func caseExpiry(c *mqttCase) {
	from, keeps := c.open(mqttConnect{id: "from"}), mqttConnect{id: "to", keep: true}
	to := c.open(keeps)
	c.subscribe(to, c.topic("+"), 1)
	c.close(to)
	c.publish(from, mqttMessage{topic: c.topic("long"), payload: "long", qos: 1, expiry: 100})
	c.publish(from, mqttMessage{topic: c.topic("short"), payload: "short", qos: 1, expiry: 1})
	select {
	case <-time.After(2100 * time.Millisecond): // brokers may count whole seconds
	case <-c.ctx.Done():
	}
	c.publish(from, mqttMessage{topic: c.topic("end"), payload: "end", qos: 1})
	keeps.has = c.topic("+")
	got := c.open(keeps).inbox().last(c.T, "end")
	if len(got) != 1 || got[0].payload != "long" || got[0].expiry < 60 || got[0].expiry > 99 {
		c.Errorf("got %+v; want long alone, for 60 to 99 s", got)
	}
}

// What a publisher of version 5 says of a message reaches subscribers of version 5 as it was said, a topic alias in place of
// its name too.
func caseProperties(c *mqttCase) {
	from, to := c.open(mqttConnect{id: "from"}), c.open(mqttConnect{id: "to"})
	c.subscribe(to, c.topic("+"), 2)
	all := []mqttMessage{
		{contentType: "text/plain", user: map[string]string{"unit": "°C", "room": "2 b"}},
		{responseTopic: c.topic("answers"), correlation: "question-17"},
		{expiry: 1000, text: true, contentType: "text/plain"},
		{contentType: "application/json"},
		{},
		{alias: 3}, {alias: 3}, {alias: 4}, {alias: 3},
	}
	for i := range all {
		m := &all[i]
		m.topic, m.payload, m.qos = c.topic("x"), fmt.Sprintf(`{"n":%d}`, i), byte(i%3)
		if m.alias == 4 {
			m.topic = c.topic("y")
		}
		sent := *m
		if i > 5 && m.alias == 3 && c.k.able.stays { // each message of the others is a connection
			sent.topic = ""
		}
		c.publish(from, sent)
	}
	got := to.inbox().until(c.T, "all messages", func(got []mqttMessage) bool { return len(got) >= len(all) })
	for i, sent := range all {
		n := slices.IndexFunc(got, func(m mqttMessage) bool { return m.payload == sent.payload }) // the order is kept among those of one QoS
		if n < 0 {
			c.Errorf("message %d did not come: %q", i, payloads(got))
		} else if m := got[n]; m.topic != sent.topic || m.qos != sent.qos {
			c.Errorf("message %d is %+v; want %+v", i, m, sent)
		} else if err := m.properties(sent); err != nil {
			c.Errorf("message %d: %v", i, err)
		}
	}
}

// No more messages than the client's receive maximum are under way to it.
func caseWindow(c *mqttCase) {
	const window, n = 3, 20
	from, to := c.open(mqttConnect{id: "from"}), c.open(mqttConnect{id: "to", receiveMaximum: window, hold: true})
	c.subscribe(to, c.topic("+"), 1)
	for i := range n {
		c.publish(from, mqttMessage{topic: c.topic("x"), payload: fmt.Sprint(i), qos: 1})
	}
	to.inbox().until(c.T, "a window of messages", func(all []mqttMessage) bool { return len(all) >= window })
	for i := range 3 { // what the broker would have sent is there once it has answered something else
		c.subscribe(to, c.topic(fmt.Sprint("other/", i)), 0)
	}
	if all, _ := to.inbox().have(); len(all) != window {
		c.Errorf("%d messages are under way; the client takes %d", len(all), window)
	}
	to.release()
	all := to.inbox().until(c.T, "the others", func(all []mqttMessage) bool { return len(all) >= n })
	for i, m := range all {
		if m.payload != fmt.Sprint(i) {
			c.Fatalf("message %d is %q", i, m.payload)
		}
	}
}

// Who does not know the password is told so, with the code of his version.
func casePassword(c *mqttCase) {
	c.unknown(mqttConnect{id: "guess", password: "not-the-token"})
}

// A client that connects with an id that is connected gets the session, and the other one goes.
func caseTakeover(c *mqttCase) {
	from, keeps := c.open(mqttConnect{id: "from"}), mqttConnect{id: "to", keep: true}
	before := c.open(keeps)
	c.subscribe(before, c.topic("#"), 1)
	c.publish(from, mqttMessage{topic: c.topic("x"), payload: "1", qos: 1})
	before.inbox().last(c.T, "1")
	after := c.open(keeps)
	if !after.present() {
		c.Error("the session is not there")
	}
	c.publish(from, mqttMessage{topic: c.topic("x"), payload: "2", qos: 1})
	after.inbox().last(c.T, "2")
	if all, _ := before.inbox().have(); len(all) > 1 {
		c.Errorf("the connection that was taken over has %q", payloads(all))
	}
}

// A payload is any bytes: none, some that are no text, and many.
func caseBytes(c *mqttCase) {
	from, to := c.open(mqttConnect{id: "from"}), c.open(mqttConnect{id: "to"})
	c.subscribe(to, c.topic("+"), 1)
	all := []string{"", "\x00\xff\xfe{", "{}", `{"specversion":"1.0","id":"1","source":"/s","type":"t"}`, "null", strings.Repeat("0123456789abcdef", 12<<10)}
	for _, payload := range all {
		c.publish(from, mqttMessage{topic: c.topic("x"), payload: payload, qos: 1})
	}
	got := payloads(to.inbox().until(c.T, "all messages", func(got []mqttMessage) bool { return len(got) >= len(all) }))
	for i := range all {
		if got[i] != all[i] {
			c.Errorf("payload %d is %.60q; want %.60q", i, got[i], all[i])
		}
	}
}

// Messages of each kind of client come to each other kind.
func eachToEach(t *testing.T, ctx context.Context, l *mqttLab) {
	kinds := mqttKinds()
	to := map[string]mqttClient{}
	var wg sync.WaitGroup
	for _, k := range kinds {
		c := &mqttCase{t, l, k, ctx, "all"}
		to[k.name] = c.open(mqttConnect{id: "to"})
		c.subscribe(to[k.name], "t/each/#", 2)
	}
	for _, k := range kinds {
		wg.Go(func() {
			c := &mqttCase{t, l, k, ctx, "all"}
			from, err := c.try(mqttConnect{id: "from"})
			for i := byte(0); i < 3 && err == nil; i++ {
				err = from.publish(ctx, mqttMessage{topic: "t/each/" + k.name, payload: fmt.Sprintf("%s %d", k.name, i), qos: i, contentType: "text/plain", user: map[string]string{"by": k.name}})
			}
			if err != nil {
				t.Errorf("%s: %v", k.name, err)
			}
		})
	}
	wg.Wait()
	for _, k := range kinds {
		got := to[k.name].inbox().until(t, "all messages for "+k.name, func(all []mqttMessage) bool { return len(all) >= 3*len(kinds) })
		for _, by := range kinds {
			for i := byte(0); i < 3; i++ {
				n := slices.IndexFunc(got, func(m mqttMessage) bool { return m.payload == fmt.Sprintf("%s %d", by.name, i) })
				if n < 0 || got[n].qos != i || got[n].topic != "t/each/"+by.name {
					t.Errorf("%s does not have message %d of %s as it was sent", k.name, i, by.name)
				} else if k.version == 5 && by.version == 5 && (got[n].user["by"] != by.name || got[n].contentType != "text/plain") {
					t.Errorf("%s has message %d of %s with other properties: %+v", k.name, i, by.name, got[n])
				}
			}
		}
	}
}
