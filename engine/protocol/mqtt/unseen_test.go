package mqtt

import (
	"slices"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

const rootToken = "the token of this router"

// tenants is a guard with two tenants' keys.
func tenants(t *testing.T, store access.KeyStore) (g *access.Guard, keys map[string]string, ids map[string]string) {
	t.Helper()
	g, err := access.New(access.Options{Token: rootToken, Keys: store})
	if err != nil {
		t.Fatal(err)
	}
	root, err := g.Authenticate(t.Context(), access.Credentials{Bearer: rootToken})
	if err != nil {
		t.Fatal(err)
	}
	keys, ids = map[string]string{}, map[string]string{}
	for _, name := range []string{"acme", "beta"} {
		k, secret, err := g.CreateKey(t.Context(), root, access.Key{Name: name, Tenant: name + ".", Roles: []string{"admin"}})
		if err != nil {
			t.Fatal(err)
		}
		keys[name], ids[name] = secret, k.ID
	}
	return g, keys, ids
}

func shows(secret string, with func(pk *packets.Packet)) func(pk *packets.Packet) {
	return func(pk *packets.Packet) {
		if with != nil {
			with(pk)
		}
		pk.Connect.PasswordFlag, pk.Connect.Password = true, []byte(secret)
	}
}

// A name that leads to another tenant's topic is answered as one that leads nowhere, whatever is sent under it: neither the
// topic nor that there is a mapping is told.
func TestOthersMappingsAreSecret(t *testing.T) {
	guard, keys, _ := tenants(t, &keyStore{})
	f := newFakeRouter(t, event.MQTTMapping{Filter: "acme/#", Topic: "acme.in"}, event.MQTTMapping{Filter: "beta/#", Topic: "beta.secret"},
		event.MQTTMapping{Filter: "docs/#", Topic: "beta.secret", CloudEvents: true})
	r := newRig(t, f, guard, Options{})
	told := func(name string) string {
		t.Helper()
		c, ok := r.connect(5, "dev", shows(keys["acme"], nil))
		if ok.ReasonCode != 0 {
			t.Fatalf("CONNACK %+v", ok)
		}
		c.send(message(1, 1, name, "no CloudEvent"))
		pk := c.want(packets.Puback)
		_, ok = r.connect(5, "will", shows(keys["acme"], func(pk *packets.Packet) {
			pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, name, []byte("x")
		}))
		if pk.ReasonCode != packets.ErrTopicNameInvalid.Code || ok.ReasonCode != pk.ReasonCode {
			t.Fatalf("%s: PUBACK 0x%02X, CONNACK 0x%02X", name, pk.ReasonCode, ok.ReasonCode)
		}
		return strings.ReplaceAll(pk.Properties.ReasonString+"; "+ok.Properties.ReasonString, name, "NAME")
	}
	want := told("nowhere/1")
	for _, name := range []string{"beta/1", "docs/1"} {
		if got := told(name); got != want {
			t.Errorf("%s: told %q; of a name that leads nowhere %q", name, got, want)
		}
	}
	if got := told("$foo/x"); strings.Contains(got, "takes every name") || !strings.Contains(got, "no wildcard") {
		t.Errorf("of a name with $: %q", got)
	}
}

// A will that is due after a restart is its owner's still: one whose key was revoked meanwhile has none, nor has a client that
// is not to be known without what it showed.
func TestWillOfARevokedKey(t *testing.T) {
	guard, keys, ids := tenants(t, &keyStore{})
	f := newFakeRouter(t, event.MQTTMapping{Filter: "acme/#", Topic: "acme.in"}, event.MQTTMapping{Filter: "beta/#", Topic: "beta.in"})
	r := newRig(t, f, guard, Options{})
	for _, name := range []string{"acme", "beta"} {
		r.connect(5, "dev", shows(keys[name], func(pk *packets.Packet) {
			persistent(pk)
			pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, name+"/will", []byte(name)
		}))
	}
	r.stop()
	root := guard.Known("token\x00")
	if err := guard.RevokeKey(t.Context(), root, ids["acme"]); err != nil {
		t.Fatal(err)
	}
	r = newRig(t, f, guard, Options{WillGrace: 1})
	eventually(t, "the refusal", func() bool { return r.s.Stats().Refused[packets.ErrNotAuthorized.Code] == 1 })
	eventually(t, "the will", func() bool { return slices.Equal(f.stored("beta.in"), []string{"beta"}) })
	if got := f.stored("acme.in"); got != nil {
		t.Errorf("a revoked key published %q", got)
	}
	if p := guard.Known("jwt:corp/alice\x00"); p != nil {
		t.Errorf("without its token a client is %v", p)
	}
}
