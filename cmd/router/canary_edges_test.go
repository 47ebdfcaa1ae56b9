package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCanariesOfBothEdges is TestCanaries for what guards the way in and the way out: JWT secrets, API keys, secrets of
// sources, credentials of proxies and token endpoints, private keys.
func TestCanariesOfBothEdges(t *testing.T) {
	f := &flock{t: t, secrets: map[string]string{}, env: map[string]string{}}
	hook, dir := tattler(t), t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	jwtSecret := f.plant("the secret of a JWT issuer") + "-of-32-bytes-or-more"
	write("jwt.txt", jwtSecret)
	f.env["JWT"] = f.plant("the secret of a JWT issuer in a variable") + "-of-32-bytes-or-more"
	const issuer = "    issuer: https://login.example.com/\n    audience: millrace\n    roles: [reader]\n    secret: "
	policy := "version: 1\njwt:\n  corp:\n" + issuer + "${file:jwt.txt}\n  other:\n" + strings.Replace(issuer, "login", "other", 1) + "${env:JWT}\n"
	proxy := "version: 1\nprivateTargets: true\nproxy: {url: \"" + hook + "\", user: me, password: \"" + f.variable("PROXY_PASSWORD") + "\", except: [{cidrs: [127.0.0.0/8]}]}\n"
	cert, private := selfSigned(t)
	lines := strings.Split(private, "\n")
	_, key := selfSigned(t)
	f.env["OIDC_KEY"] = key
	f.env["WHSK"] = "whsk_" + base64.StdEncoding.EncodeToString([]byte(f.plant("a seed that signs") + "-of-32-bytes---")[:32])
	write("client.pem", cert)
	write("client.key", private)
	rules := "version: 1\ntopics: {orders: {}}\nsources:\n"
	for scheme, options := range map[string]string{"github": "secret", "stripe": "secret", "slack": "secret", "shopify": "secret", "twilio": "authToken", "bearer": "token"} {
		rules += "  " + scheme + ": {topic: orders, verify: {" + scheme + ": {" + options + ": \"" + f.variable("SOURCE_"+strings.ToUpper(scheme)) + "\"}}}\n"
	}
	rules += "  grid: {topic: orders, verify: {basic: {user: grid, password: " + inQuotes(f.plant("a literal password of a source")) + "}}}\nsubscriptions:\n"
	subscriptions := []string{"basic", "token", "oidc", "shown", "far"}
	subscriptions = append(subscriptions, "told")
	granted := f.plant("an access token")[:20]
	for i, with := range []string{
		hook + "/fail\", auth: {basic: {user: me, password: \"" + f.variable("BASIC") + "\"}}, secrets: [\"${env:WHSK}\"]",
		hook + "/fail\", auth: {oauth2: {tokenUrl: \"" + hook + "/fail\", clientId: me, clientSecret: \"" + f.variable("CLIENT_SECRET") + "\"}}",
		hook + "/fail\", auth: {oidc: {issuer: \"https://router.example.com\", privateKey: \"${env:OIDC_KEY}\"}}",
		"https://127.0.0.1:1/\", tls: {certificate: \"${file:client.pem}\", privateKey: \"${file:client.key}\"}",
		"http://far.invalid/\", headers: {X-Key: \"" + f.variable("FAR") + "\"}",
		hook + "/fail\", auth: {oauth2: {tokenUrl: \"" + hook + "/token?give=" + granted + "\", clientId: me, clientSecret: \"" + f.variable("OTHER_CLIENT_SECRET") + "\"}}",
		// What goes well is told in no more words.
		hook + "/fine\", auth: {basic: {user: me, password: \"" + f.variable("BASIC_FINE") + "\"}}",
		hook + "/fine\", auth: {oauth2: {tokenUrl: \"" + hook + "/token?give=" + granted + "\", clientId: me, clientSecret: \"" + f.variable("GOOD_CLIENT_SECRET") + "\"}}",
		hook + "/fine\", auth: {oidc: {issuer: \"https://router.example.com\", privateKey: \"${env:OIDC_KEY}\"}}",
	} {
		name := "fine" + fmt.Sprint(i)
		if i < len(subscriptions) {
			name = subscriptions[i]
		}
		rules += "  " + name + ": {topic: orders, start: earliest, retry: {attempts: 1}, deliver: {webhook: {url: \"" + with + "}}}\n"
	}
	const mqttHost = "mqtt://127.0.0.1:1"
	rules += "bridges:\n" +
		"  to-router: {topic: orders, start: earliest, to: {router: \"" + hook + "/far\", topic: orders, token: " + f.plant("a literal token of a bridge")[:20] + "}}\n" +
		"  from-router: {topic: far, from: {router: \"" + hook + "/far\", topic: orders, token: \"" + f.variable("BRIDGE_TOKEN")[:len("${env:BRIDGE_TOKEN}")] + "\"}}\n" +
		"  to-broker: {topic: orders, start: earliest, to: {mqtt: \"" + mqttHost + "\", topic: x, user: me, password: " + inQuotes(f.plant("a literal password of a bridge")) + "}}\n" +
		"  from-broker: {topic: far, from: {mqtt: \"" + mqttHost + "\", filters: [x], user: me, password: \"" + f.variable("BROKER_PASSWORD") + "\"}}\n"
	f.env["BRIDGE_TOKEN"] = f.env["BRIDGE_TOKEN"][:20] // of what goes into a header
	inURL := strings.ReplaceAll(rules, "//127.0.0.1", "//me:"+f.plant("a password in a URL")[:20]+"@127.0.0.1")
	f.env["MILLRACE_RULES_TOKEN"] = f.plant("the token of rules by URL")[:20]

	p := f.unstarted(write("rules.yaml", rules))
	p.o.accessFile, p.o.egress, p.o.auditTopic = write("access.yaml", policy), write("egress.yaml", proxy), "audit"
	p.start()
	t.Cleanup(func() { p.stop() })
	f.ask(p, "POST", "/v1/publish", "application/json", `{"topic": "orders", "payload": {"a": 1}}`)
	_, made := f.askQuietly(p, "POST", "/v1/keys", `{"name": "ci", "roles": ["reader"]}`)
	var apiKey struct{ ID, Key string }
	if err := json.Unmarshal([]byte(made), &apiKey); err != nil || apiKey.Key == "" {
		t.Fatalf("%s: %v", made, err)
	}
	until(t, "what fails is set aside", func() bool {
		for _, s := range subscriptions {
			if _, text := f.ask(p, "GET", "/v1/subscriptions/"+s+"/deadletters", "", ""); !strings.Contains(text, `"reason"`) {
				return false
			}
		}
		return true
	})
	token := p.o.token
	for who, good := range map[string]bool{apiKey.Key: true, apiKey.Key[:len(apiKey.Key)-1] + "!": false, jwtFor("login", jwtSecret): true, jwtFor("other", jwtSecret): false} {
		p.o.token = who
		if status, text := f.ask(p, "GET", "/v1/topics", "", ""); (status == 200) != good {
			t.Errorf("%d %s", status, text)
		}
		f.ask(p, "GET", "/v1/rules", "", "")
	}
	p.o.token = token
	for _, s := range []string{"github", "stripe", "slack", "shopify", "twilio", "bearer", "grid"} {
		f.ask(p, "POST", "/v1/sources/"+s, "application/json", `{}`, "X-Hub-Signature-256", "sha256=00", "Stripe-Signature", "t=1,v1=00")
	}
	until(t, "what goes well is done", func() bool {
		for i := len(subscriptions); i < len(subscriptions)+3; i++ {
			if _, text := f.ask(p, "GET", fmt.Sprint("/v1/subscriptions/fine", i, "/explain?event=orders/0-0"), "", ""); !strings.Contains(text, `"delivered"`) {
				return false
			}
		}
		return true
	})
	mac := hmac.New(sha256.New, []byte(f.env["SOURCE_GITHUB"]))
	mac.Write([]byte(`{}`))
	for s, h := range map[string][2]string{"github": {"X-Hub-Signature-256", "sha256=" + hex.EncodeToString(mac.Sum(nil))}, "bearer": {"Authorization", "Bearer " + f.env["SOURCE_BEARER"]}} {
		if status, text := f.ask(p, "POST", "/v1/sources/"+s, "application/json", `{}`, h[0], h[1]); status != 200 {
			t.Errorf("%s: %d %s", s, status, text)
		}
	}
	for i := range 3 {
		f.everyGet(p, "orders", fmt.Sprint("fine", len(subscriptions)+i), "none")
	}
	for _, s := range subscriptions {
		f.everyGet(p, "orders", s, "none")
		f.run(p, "", "explain", s, "orders/0-0")
	}
	until(t, "the bridges say why they wait", func() bool {
		_, text := f.ask(p, "GET", "/v1/bridges", "", "")
		return strings.Count(text, `"state":"waiting"`) == 4
	})
	for _, name := range []string{"to-router", "to-broker"} {
		f.everyGet(p, "orders", "bridge."+name, "none")
	}
	bad := write("bad3.yaml", inURL)
	for _, args := range [][]string{{"bridges"}, {"bridges", "-o", "json"}, {"rules", "validate", bad}, {"rules", "diff", bad}, {"rules", "apply", bad, "-y"}, {"rules", "show", bad}, {"rules", "show"}, {"rules", "show", p.o.rules, "--effective"}, {"keys", "list", "-o", "json"}, {"keys", "show", apiKey.ID}, {"sources", "list"}, {"sources", "show", "github"},
		{"access", "check", p.o.accessFile}, {"egress", "check", "--egress", p.o.egress, "http://far.invalid/"}, {"egress", "check", "--egress", p.o.egress, "-o", "json", hook}, {"doctor"},
		{"serve", "--rules", "http://127.0.0.1:1/rules", "--data", filepath.Join(dir, "afar")}, {"serve", "--access", write("bad.yaml", strings.Replace(policy, "roles: [reader]", "rolez: [reader]", 1)), "--data", filepath.Join(dir, "bad")},
		{"rules", "validate", write("bad2.yaml", strings.ReplaceAll(strings.ReplaceAll(rules, "clientId", "client"), "authToken", "token"))},
	} {
		f.run(p, "", args...)
	}
	p.write(inURL)
	if err := p.r.defs.reload(t.Context()); err == nil {
		t.Error("a password in a URL is taken")
	} else {
		f.came("reload", err.Error())
	}
	_, audit := f.ask(p, "GET", "/v1/topics/audit/events?since=1h", "", "")
	f.askQuietly(p, "DELETE", "/v1/keys/"+apiKey.ID, "")
	p.stop()
	f.files(filepath.Dir(p.o.data))
	f.sing()
	for _, text := range f.out {
		for what, secret := range map[string]string{"an API key": apiKey.Key[len(apiKey.Key)-40:], "a client's key": lines[1], "the key of OIDC": strings.Split(key, "\n")[1]} {
			if strings.Contains(text, secret) {
				t.Errorf("%s is in %.300s", what, text)
			}
		}
	}
	if len(f.secrets) < 15 || len(f.out) < 100 || !strings.Contains(audit, "denied") {
		t.Errorf("%d secrets were planted, %d things came out, the audit log has %s", len(f.secrets), len(f.out), audit)
	}
}

// askQuietly is ask where the answer is to have a secret.
func (f *flock) askQuietly(p *process, method, path, body string) (int, string) {
	aside := &flock{t: f.t}
	return aside.ask(p, method, path, "application/json", body)
}

// jwtFor is a token of an issuer that its secret has signed.
func jwtFor(issuer, secret string) string {
	b64 := base64.RawURLEncoding.EncodeToString
	text := b64([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + b64([]byte(`{"iss":"https://`+issuer+`.example.com/","aud":"millrace","sub":"alice","exp":4102444800}`))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(text))
	return text + "." + b64(mac.Sum(nil))
}
