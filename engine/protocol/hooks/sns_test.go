package hooks

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

const (
	snsTopic = "arn:aws:sns:us-west-2:123456789012:MyTopic"
	snsHost  = "https://sns.us-west-2.amazonaws.com"
	snsCert  = snsHost + "/SimpleNotificationService-1.pem"
)

// web is what a test's certificates are fetched from.
type web struct {
	mu    sync.Mutex
	pages map[string][]byte
	asked []string
	now   time.Time
	block chan struct{} // fetching waits for it
}

func (w *web) fetch(ctx context.Context, url string, _ int64) ([]byte, error) {
	w.mu.Lock()
	w.asked = append(w.asked, url)
	doc, block := w.pages[url], w.block
	w.mu.Unlock()
	if block != nil {
		<-block
	}
	if doc == nil {
		return nil, errors.New("the answer is 404")
	}
	return doc, nil
}

func (w *web) certificates(t testing.TB, root *x509.Certificate) *Certificates {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(root)
	w.now = now
	c, err := NewCertificates(CertificateOptions{Fetch: w.fetch, Roots: roots, Now: func() time.Time { return w.now }})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func openSNS(t testing.TB, c *Certificates) event.Verifier {
	t.Helper()
	o := SNS{TopicArn: snsTopic}
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	v, err := o.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// authority is a certificate and its key, which issue others.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// issue makes a certificate; by is nil for a root.
func issue(t testing.TB, by *authority, key crypto.Signer, change func(*x509.Certificate)) *authority {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "Test Root"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	if change != nil {
		change(c)
	}
	parent, signer := c, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func ecKey(t testing.TB) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func leafOf(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.Subject.CommonName, c.DNSNames, c.IsCA, c.KeyUsage = names[0], names, false, x509.KeyUsageDigitalSignature
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
}

// What node's crypto has signed as Amazon documents it, and sns-validator takes, is taken: every type, both versions; the
// confirmation of a subscription is confirmed, once it is asked for in earnest.
func TestSNSVectors(t *testing.T) {
	doc, w, v := snsVector(t)
	box := &inbox{}
	s := newServer(t, box, Source{Source: event.Source{Name: "aws"}, Verifier: v})
	at := ""
	for i, body := range doc.Messages {
		var m map[string]any
		if err := json.Unmarshal([]byte(body), &m); err != nil {
			t.Fatal(err)
		}
		at = m["SigningCertURL"].(string)
		taken(t, fmt.Sprint(m["Type"], i), v, webhook(body))
		refused(t, "one letter more", v, webhook(strings.Replace(body, "\"Message\": \"", "\"Message\": \"x", 1)), "not that of the message")
		before := len(w.asked)
		_, err := ask(s, "POST", "/v1/sources/aws", body, "Content-Type: text/plain; charset=UTF-8")
		confirm, _ := m["SubscribeURL"].(string)
		asked := w.asked[len(w.asked)-1]
		switch m["Type"] {
		case "SubscriptionConfirmation":
			if !errors.Is(err, event.ErrUnavailable) || asked != confirm || strings.Contains(err.Error(), "Token") {
				t.Errorf("where SNS cannot be reached: %v, asked %s; want to be asked again, and no token told", err, asked)
			}
			if trial, err := s.try(t.Context(), "aws", webhook(body)); err != nil || trial.Err != nil || !strings.Contains(string(trial.Answer.Body), "would be") {
				t.Errorf("%+v %v", trial, err)
			}
			n := len(w.asked)
			w.pages[confirm] = []byte("<ConfirmSubscriptionResponse/>")
			if resp, err := ask(s, "POST", "/v1/sources/aws", body); err != nil || string(resp.Body()) != "the subscription is confirmed" || len(w.asked) != n+1 {
				t.Errorf("%v; asked %q", err, w.asked[n:])
			}
			delete(w.pages, confirm)
		case "UnsubscribeConfirmation":
			if err != nil || len(w.asked) != before {
				t.Errorf("%v; asked %s: want nothing subscribed again", err, asked)
			}
		default:
			if err != nil {
				t.Error(err)
			}
		}
	}
	if len(box.events) != 4 || box.events[0].DataContentType != "application/json" || box.events[0].ID == "" {
		t.Errorf("%d events are stored; want 4 notifications, as JSON: %+v", len(box.events), box.events)
	}
	n := 0
	for _, url := range w.asked {
		if url == at {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the certificate was fetched %d times; want it kept", n)
	}
}

// A snsSender signs as SNS does.
type snsSender struct{ key *rsa.PrivateKey }

func (s *snsSender) body(t testing.TB, change func(m map[string]any)) string {
	t.Helper()
	m := map[string]any{"Type": "Notification", "MessageId": "id-1", "TopicArn": snsTopic, "Message": "Hello", "Timestamp": now.UTC().Format(time.RFC3339Nano),
		"SignatureVersion": "2", "SigningCertURL": snsCert}
	if change != nil {
		change(m)
	}
	if m["Signature"] == nil {
		text := ""
		for _, name := range []string{"Message", "MessageId", "Subject", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"} {
			if value, ok := m[name].(string); ok {
				text += name + "\n" + value + "\n"
			}
		}
		sum := sha256.Sum256([]byte(text))
		hash, digest := crypto.SHA256, sum[:]
		if m["SignatureVersion"] == "1" {
			old := sha1.Sum([]byte(text))
			hash, digest = crypto.SHA1, old[:]
		}
		sig, err := rsa.SignPKCS1v15(rand.Reader, s.key, hash, digest)
		if err != nil {
			t.Fatal(err)
		}
		m["Signature"] = base64.StdEncoding.EncodeToString(sig)
	}
	doc, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

// Whatever is signed well but comes from elsewhere, is old, is of another topic or can be read in two ways is refused, and
// nothing is fetched from a place that is not the region's.
func TestSNSAttacks(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	root := issue(t, nil, ecKey(t), nil)
	stranger := issue(t, nil, ecKey(t), func(c *x509.Certificate) { c.Subject.CommonName = "Stranger" })
	const aia = "http://crt.r2m01.amazontrust.com/r2m01.cer"
	between := issue(t, root, ecKey(t), func(c *x509.Certificate) { c.Subject.CommonName = "Test Between" })
	name := "sns.amazonaws.com"
	alone := func(at string) *authority {
		return issue(t, between, key, func(c *x509.Certificate) {
			leafOf("sns-signing.us-west-2.amazonaws.com")(c)
			c.IssuingCertificateURL = []string{at}
		})
	}
	good := issue(t, root, key, leafOf(name))
	w := &web{pages: map[string][]byte{
		snsCert:                   good.pem(),
		snsHost + "/alone.pem":    alone(aia).pem(),
		snsHost + "/nowhere.pem":  alone("http://127.0.0.1/r.cer").pem(),
		snsHost + "/gone.pem":     alone("http://crt.amazontrust.com/gone.cer").pem(),
		aia:                       between.cert.Raw,
		snsHost + "/with.pem":     append(alone("").pem(), between.pem()...),
		snsHost + "/self.pem":     issue(t, stranger, key, leafOf(name)).pem(),
		snsHost + "/other.pem":    issue(t, root, key, leafOf("sns.us-east-1.amazonaws.com", "sns.amazonaws.com.example")).pem(),
		snsHost + "/weak.pem":     issue(t, root, weak, leafOf(name)).pem(),
		snsHost + "/ended.pem":    issue(t, root, key, func(c *x509.Certificate) { leafOf(name)(c); c.NotAfter = now.Add(-time.Minute) }).pem(),
		snsHost + "/junk.pem":     []byte("<Error/>"),
		snsHost + "/notacert.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}),
	}}
	v := openSNS(t, w.certificates(t, root.cert))
	sender := &snsSender{key}
	set := func(pairs ...string) func(map[string]any) {
		return func(m map[string]any) {
			for i := 0; i < len(pairs); i += 2 {
				m[pairs[i]] = pairs[i+1]
			}
		}
	}
	for _, at := range []string{snsCert, snsHost + "/alone.pem", snsHost + "/with.pem"} {
		taken(t, at, v, webhook(sender.body(t, set("SigningCertURL", at))))
	}
	taken(t, "version 1", v, webhook(sender.body(t, set("SignatureVersion", "1"))))
	taken(t, "no subject", v, webhook(sender.body(t, func(m map[string]any) { m["Subject"] = nil })))
	n := len(w.asked)
	fetched := map[string]string{"alone": "", "nowhere": "no root", "self": "no root", "other": "want one of", "weak": "2048", "ended": "expired", "junk": "no certificate in PEM", "notacert": "no certificate in PEM"}
	for page, want := range fetched {
		if want != "" {
			refused(t, page, v, webhook(sender.body(t, set("SigningCertURL", snsHost+"/"+page+".pem"))), want)
		}
	}
	for _, url := range w.asked[n:] {
		if !strings.HasPrefix(url, snsHost+"/") {
			t.Errorf("%s was called", url)
		}
	}
	for _, page := range []string{"missing", "gone"} {
		if err := v.Verify(t.Context(), webhook(sender.body(t, set("SigningCertURL", snsHost+"/"+page+".pem"))), nil); !errors.Is(err, event.ErrUnavailable) || errors.Is(err, event.ErrUnverified) {
			t.Errorf("%s: %v; want to be sent again", page, err)
		}
	}

	n = len(w.asked)
	for _, at := range []string{
		"http://sns.us-west-2.amazonaws.com/a.pem", "https://sns.us-west-2.amazonaws.com.example/a.pem", "https://sns.example.com/a.pem", "https://sns.us-east-1.amazonaws.com/a.pem",
		"https://sns.us-west-2.amazonaws.com.cn/a.pem", "https://sns.us-west-2.amazonaws.com:443/a.pem", "https://sns.us-west-2.amazonaws.com:8443/a.pem",
		"https://u@sns.us-west-2.amazonaws.com/a.pem", "https://sns.us-west-2.amazonaws.com@example.com/a.pem", "https://sns.us-west-2.amazonaws.com\\@example.com/a.pem",
		snsHost + "/a.txt", snsHost + "/.pem", snsHost + "/a/b.pem", snsHost + "/../a.pem", snsHost + "/%2e%2e/a.pem", snsHost + "/a%00.pem", snsHost + "/?x=.pem", snsHost + "/a?.pem",
		snsHost + "/a#.pem", snsHost + "/a;b.pem", snsHost + "/a.pem\n", snsHost + "/a.pem?x", "https://SNS.us-west-2.amazonaws.com/a.pem", snsHost + "/" + strings.Repeat("a", 200) + ".pem", "//sns.us-west-2.amazonaws.com/a.pem", "file:///etc/a.pem",
	} {
		refused(t, at, v, webhook(sender.body(t, set("SigningCertURL", at))), "SigningCertURL")
	}
	confirm := snsHost + "/?Action=ConfirmSubscription&TopicArn=" + snsTopic + "&Token=t"
	twice := strings.Replace(sender.body(t, nil), `{`, `{"Message":"first",`, 1)
	for _, x := range []struct {
		what string
		hook *event.Hook
		want string
	}{
		{"raw", webhook("Hello", "x-amz-sns-rawdelivery: true"), "raw message delivery has no signature"},
		{"raw without its header", webhook(`{"order":7}`), "raw message delivery has no signature"},
		{"no JSON", webhook("Hello"), "no JSON object"},
		{"an array", webhook("[]"), "no JSON object"},
		{"more after it", webhook(sender.body(t, nil) + "{}"), "no JSON object"},
		{"a name twice", webhook(twice), "twice"},
		{"bytes that are no text", webhook(strings.Replace(sender.body(t, nil), "Hello", "Hello\xff", 1)), "UTF-8"},
		{"too long", webhook(strings.Repeat(" ", maxSNS) + "{}"), "at most"},
		{"other letters", webhook(strings.Replace(sender.body(t, nil), `"Message":`, `"message":`, 1)), "it is missing"},
		{"a number", webhook(sender.body(t, func(m map[string]any) { m["MessageId"] = 7; m["Signature"] = "AAAA" })), "no text"},
		{"version 3", webhook(sender.body(t, set("SignatureVersion", "3"))), "want 1 or 2"},
		{"said to be version 1", webhook(strings.Replace(sender.body(t, nil), `"SignatureVersion":"2"`, `"SignatureVersion":"1"`, 1)), "not that of the message"},
		{"another topic", webhook(sender.body(t, set("TopicArn", snsTopic+"2"))), "this source is for"},
		{"old", webhook(sender.body(t, set("Timestamp", now.Add(-61*time.Minute).UTC().Format(time.RFC3339)))), "signed 1h1m0s ago"},
		{"of tomorrow", webhook(sender.body(t, set("Timestamp", now.Add(61*time.Minute).UTC().Format(time.RFC3339)))), "from now"},
		{"no time", webhook(sender.body(t, set("Timestamp", "now"))), "want a time"},
		{"another time", webhook(strings.Replace(sender.body(t, set("Timestamp", "2023-11-14T22:13:00Z")), "22:13:00Z", "22:13:01Z", 1)), "not that of the message"},
		{"another id", webhook(strings.Replace(sender.body(t, nil), "id-1", "id-2", 1)), "not that of the message"},
		{"a subject added", webhook(strings.Replace(sender.body(t, nil), "{", `{"Subject":"x",`, 1)), "not that of the message"},
		{"lines moved from the message to a subject", webhook(sender.body(t, set("Message", "a", "Subject", "b\nTimestamp\nc"))), "line break"},
		{"another type", webhook(sender.body(t, set("Type", "Hello"))), "want Notification"},
		{"a notification as a confirmation", webhook(strings.Replace(sender.body(t, nil), `"Type":"Notification"`, `"Type":"SubscriptionConfirmation","Token":"t","SubscribeURL":"`+confirm+`"`, 1)), "not that of the message"},
		{"without its URL", webhook(sender.body(t, set("Type", "SubscriptionConfirmation", "Token", "t"))), "it is missing"},
		{"no signature", webhook(sender.body(t, set("Signature", "?"))), "no base64"},
		{"a made-up one", webhook(sender.body(t, set("Signature", base64.StdEncoding.EncodeToString(make([]byte, 256))))), "not that of the message"},
	} {
		refused(t, x.what, v, x.hook, x.want)
	}
	// Of confirmations that are signed well, only that of the topic, at its own region, is called.
	s := newServer(t, &inbox{}, Source{Source: event.Source{Name: "aws"}, Verifier: v})
	for _, at := range []string{"http://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription&TopicArn=" + snsTopic, "https://example.com/?Action=ConfirmSubscription&TopicArn=" + snsTopic,
		snsHost + "/?Action=Unsubscribe&TopicArn=" + snsTopic, snsHost + "/?Action=ConfirmSubscription&TopicArn=" + snsTopic + "2", strings.Replace(confirm, "//", "//u@", 1), confirm + "#x", snsHost + ":8443" + strings.TrimPrefix(confirm, snsHost)} {
		body := sender.body(t, set("Type", "SubscriptionConfirmation", "Token", "t", "SubscribeURL", at))
		if _, err := ask(s, "POST", "/v1/sources/aws", body); !errors.Is(err, event.ErrUnverified) || !strings.Contains(err.Error(), "SubscribeURL") {
			t.Errorf("%s: %v", at, err)
		}
	}
	if len(w.asked) != n {
		t.Errorf("%q were called", w.asked[n:])
	}
	for want, o := range map[string]SNS{"topicArn: is \"\"": {}, "arn:aws:sqs": {TopicArn: "arn:aws:sqs:us-west-2:123456789012:q"}, "evil": {TopicArn: "arn:aws:sns:evil.example/:123456789012:q"}, "7h0m0s": {TopicArn: snsTopic, Tolerance: 7 * time.Hour}} {
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
}

// What is fetched is bounded: one fetch for many at once, few at a time, few kept, each for a day at most; and a flood of
// made-up names does not push out the certificate in use.
func TestCertificatesAreBounded(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	root := issue(t, nil, ecKey(t), nil)
	w := &web{pages: map[string][]byte{snsCert: issue(t, root, key, leafOf("sns.amazonaws.com")).pem()}, block: make(chan struct{})}
	c := w.certificates(t, root.cert)
	names := []string{"sns.amazonaws.com"}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if _, err := c.key(context.Background(), snsCert, names); err != nil {
				t.Error(err)
			}
		})
		if i < maxFetches-1 {
			all.Go(func() { c.key(context.Background(), fmt.Sprint(snsHost, "/slow", i, ".pem"), names) })
		}
	}
	for busy := 0; busy < maxFetches; {
		c.mu.Lock()
		busy = c.busy
		c.mu.Unlock()
	}
	if _, err := c.key(t.Context(), snsHost+"/more.pem", names); !errors.Is(err, event.ErrUnavailable) {
		t.Errorf("beyond what is fetched at a time: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.key(ended, snsCert, names); !errors.Is(err, event.ErrUnavailable) {
		t.Errorf("waiting without time: %v", err)
	}
	w.mu.Lock()
	close(w.block)
	w.block = nil
	w.mu.Unlock()
	all.Wait()
	for i := range 3 * maxKept {
		c.key(t.Context(), fmt.Sprint(snsHost, "/x", i, ".pem"), names)
	}
	n := len(w.asked)
	if _, err := c.key(t.Context(), snsCert, names); err != nil || len(w.asked) != n || len(c.kept) > maxKept {
		t.Errorf("%v; %d more were fetched, %d are kept", err, len(w.asked)-n, len(c.kept))
	}
	w.now = now.Add(keepKey)
	if _, err := c.key(t.Context(), snsCert, names); err != nil || len(w.asked) != n+1 {
		t.Errorf("a day later: %v; %d were fetched", err, len(w.asked)-n)
	}
}
