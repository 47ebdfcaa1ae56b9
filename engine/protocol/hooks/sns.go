package hooks

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/event"
)

// SNS is how Amazon SNS signs: Signature in the body is RSA PKCS #1 v1.5 over lines of names and values of it, with SHA-1
// where SignatureVersion is 1 and SHA-256 where it is 2, by the certificate at SigningCertURL (docs.aws.amazon.com/sns,
// "Verifying the signatures of Amazon SNS messages"). The certificate comes from the topic's region alone. A
// SubscriptionConfirmation of the topic is confirmed.
type SNS struct {
	TopicArn  string        `yaml:"topicArn" rules:"required" about:"The topic, as arn:aws:sns:REGION:ACCOUNT:NAME. What other topics send is refused."`
	Tolerance time.Duration `yaml:"tolerance" about:"How far the signed time may lie from the router's clock."`
}

// SNS repeats to HTTP endpoints for 3,600 s at most (docs.aws.amazon.com/sns, "Amazon SNS message delivery retries"), with
// the time of the first sending.
const snsTolerance = time.Hour

// WithDefaults fills in what was left out.
func (o SNS) WithDefaults() SNS {
	if o.Tolerance == 0 {
		o.Tolerance = snsTolerance
	}
	return o
}

// Validate says what is wrong with the options.
func (o SNS) Validate() error {
	faults := checkTolerance(o.Tolerance)
	if _, _, ok := o.home(); !ok {
		faults = append(faults, event.Fault{At: "topicArn", Detail: fmt.Sprintf("is %.80q; want arn:aws:sns:REGION:ACCOUNT:NAME, or arn:aws-cn or arn:aws-us-gov", o.TopicArn)})
	}
	return invalid(faults)
}

// home is the host of the topic's region, and the names that its signing certificate may have.
func (o SNS) home() (host string, names []string, ok bool) {
	part := strings.Split(o.TopicArn, ":")
	if len(part) != 6 || part[0] != "arn" || part[2] != "sns" || len(o.TopicArn) > 400 {
		return "", nil, false
	}
	region, suffix := part[3], ".amazonaws.com"
	switch part[1] {
	case "aws", "aws-us-gov":
	case "aws-cn":
		suffix += ".cn"
	default:
		return "", nil, false
	}
	const digits, small = "0123456789", "abcdefghijklmnopqrstuvwxyz"
	if region == "" || strings.Trim(region, small+digits+"-") != "" || strings.HasPrefix(region, "-") || strings.HasSuffix(region, "-") ||
		len(part[4]) != 12 || strings.Trim(part[4], digits) != "" ||
		part[5] == "" || strings.Trim(strings.ToLower(part[5]), small+digits+"-_.") != "" {
		return "", nil, false
	}
	host = "sns." + region + suffix
	// Amazon's own SDK for Java knows these names (SnsMessageManager).
	names = []string{host, "sns-signing." + region + suffix, "sns-" + region + suffix}
	switch part[1] {
	case "aws":
		names = append(names, "sns.amazonaws.com")
	case "aws-us-gov":
		names = append(names, "sns-us-gov-west-1.amazonaws.com")
	}
	return host, names, true
}

// Open makes the verifier. certificates is nil where nothing can be fetched: then nothing is verified either.
func (o SNS) Open(certificates *Certificates) (event.Verifier, error) {
	host, names, ok := o.home()
	if !ok {
		return nil, o.Validate()
	}
	return &sns{topic: o.TopicArn, host: host, names: names, tolerance: o.WithDefaults().Tolerance, certificates: certificates}, nil
}

type sns struct {
	topic, host  string
	names        []string
	tolerance    time.Duration
	certificates *Certificates
}

// Provides does not say that the body is signed: MessageAttributes and UnsubscribeURL are not.
func (v *sns) Provides() event.Provided {
	return event.Provided{Type: `"sns.notification"`, ID: `data.MessageId`, Subject: `data.Subject`, Time: `data.Timestamp`, Tolerance: v.tolerance}
}

// Media says that the body is JSON: SNS sends it as text/plain.
func (v *sns) Media() string { return "application/json" }

const (
	snsNotification = "Notification"
	snsSubscribe    = "SubscriptionConfirmation"
	snsUnsubscribe  = "UnsubscribeConfirmation"

	maxSNS      = 2 << 20 // bytes of a body: 256 KiB of message, escaped, with attributes
	maxSNSKeys  = 64
	maxSNSField = 4 << 10 // bytes of a field other than Message
	rawWords    = "raw message delivery has no signature; switch it off for this subscription (RawMessageDelivery: false)"
)

func (v *sns) Verify(ctx context.Context, h *event.Hook, say func(string)) error {
	if raw, n := h.Header("x-amz-sns-rawdelivery"); n > 0 && !strings.EqualFold(raw, "false") {
		return unverified("x-amz-sns-rawdelivery", rawWords)
	}
	m, err := readSNS(h.Body)
	if err != nil {
		return err
	}
	text, err := v.check(m, h.Received)
	if err != nil {
		return err
	}
	if say != nil {
		told(say, "it is a %s of the topic, signed within %s", m["Type"], v.tolerance)
	}
	signature, err := base64.StdEncoding.DecodeString(m["Signature"])
	if err != nil || len(signature) == 0 {
		return unverified("Signature", "it is no base64")
	}
	if v.certificates == nil {
		return fmt.Errorf("nothing can be fetched here, so no certificate can be looked at: %w", event.ErrUnavailable)
	}
	key, err := v.certificates.key(ctx, m["SigningCertURL"], v.names)
	if err != nil {
		return err
	}
	if say != nil {
		told(say, "the certificate of the topic's region is there, and a root vouches for it")
	}
	sum := sha256.Sum256(text)
	hash, digest := crypto.SHA256, sum[:]
	if m["SignatureVersion"] == "1" {
		old := sha1.Sum(text)
		hash, digest = crypto.SHA1, old[:]
	}
	if rsa.VerifyPKCS1v15(key, hash, digest, signature) != nil {
		return unverified("Signature", "it is not that of the message: did something on the way change it?")
	}
	if say != nil {
		told(say, "it is the signature (version %s) of the message", m["SignatureVersion"])
	}
	h.Proof, h.Proved = sum, true
	return nil
}

// check looks at what needs no key, and returns what is signed.
func (v *sns) check(m map[string]string, now time.Time) ([]byte, error) {
	if version := m["SignatureVersion"]; version != "1" && version != "2" {
		return nil, unverified("SignatureVersion", "it is %.20q; want 1 or 2", version)
	}
	if m["TopicArn"] != v.topic {
		return nil, unverified("TopicArn", "it is %.120q; this source is for %s", m["TopicArn"], v.topic)
	}
	signed, err := event.ParseTime(m["Timestamp"])
	if err != nil {
		return nil, unverified("Timestamp", "it is %.40q; want a time such as 2012-05-02T00:54:06.655Z", m["Timestamp"])
	}
	if err := fresh("Timestamp", signed, now, v.tolerance); err != nil {
		return nil, err
	}
	if err := v.certificateURL(m["SigningCertURL"]); err != nil {
		return nil, err
	}
	return signedSNS(m)
}

// certificateURL judges where a certificate is to come from, by its text: one host, no port, no user, no query, one plain
// name as path.
func (v *sns) certificateURL(raw string) error {
	name, ok := strings.CutPrefix(raw, "https://"+v.host+"/")
	stem, pem := strings.CutSuffix(name, ".pem")
	if !ok || !pem || stem == "" || len(raw) > 200 || strings.Trim(strings.ToLower(stem), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return unverified("SigningCertURL", "it is %.120q; want https://%s/NAME.pem", raw, v.host)
	}
	return nil
}

// signedSNS is the text that is signed, of a type's fields in their order.
func signedSNS(m map[string]string) ([]byte, error) {
	var names []string
	switch kind := m["Type"]; kind {
	case snsNotification:
		names = []string{"Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"}
	case snsSubscribe, snsUnsubscribe:
		names = []string{"Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"}
	default:
		return nil, unverified("Type", "it is %.40q; want %s, %s or %s", kind, snsNotification, snsSubscribe, snsUnsubscribe)
	}
	var text []byte
	for _, name := range names {
		value, there := m[name]
		switch {
		case !there && name == "Subject":
			continue
		case !there:
			return nil, unverified(name, "it is missing")
		case name == "Message": // which may have anything in it
		case len(value) > maxSNSField:
			return nil, unverified(name, "it has %d bytes; want at most %d", len(value), maxSNSField)
		case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' }):
			// Lines tell names from values: one within a value would let the same text be read as other fields.
			return nil, unverified(name, "there is a line break or another control character in it")
		}
		text = append(append(append(append(text, name...), '\n'), value...), '\n')
	}
	return text, nil
}

var snsFields = map[string]bool{"Type": true, "Message": true, "MessageId": true, "Subject": true, "SubscribeURL": true, "Timestamp": true,
	"Token": true, "TopicArn": true, "SignatureVersion": true, "Signature": true, "SigningCertURL": true}

// readSNS reads what of a body is signed or signs. Names are taken as they are written and once, unlike encoding/json's
// structs: nobody after this reads another value than was verified.
func readSNS(body []byte) (map[string]string, error) {
	if len(body) > maxSNS {
		return nil, unverified("body", "it has %d bytes; SNS sends at most %d", len(body), maxSNS)
	}
	if !utf8.Valid(body) {
		return nil, unverified("body", "it is no UTF-8")
	}
	bad := unverified("body", "it is no JSON object such as SNS sends; "+rawWords)
	d := json.NewDecoder(bytes.NewReader(body))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, bad
	}
	m, seen := map[string]string{}, map[string]bool{}
	for d.More() {
		token, err := d.Token()
		name, ok := token.(string)
		var value json.RawMessage
		if err != nil || !ok || d.Decode(&value) != nil {
			return nil, bad
		}
		if seen[name] || len(seen) == maxSNSKeys {
			return nil, unverified("body", "%.40q is there twice in it, or more than %d names", name, maxSNSKeys)
		}
		seen[name] = true
		if !snsFields[name] || name == "Subject" && string(value) == "null" {
			continue
		}
		var text string
		if value[0] != '"' || json.Unmarshal(value, &text) != nil {
			return nil, unverified(name, "it is no text")
		}
		m[name] = text
	}
	if _, err := d.Token(); err != nil {
		return nil, bad
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, bad
	}
	for _, name := range []string{"Type", "SignatureVersion", "Signature", "SigningCertURL"} {
		if m[name] == "" {
			return nil, unverified(name, "it is missing in the body; "+rawWords)
		}
	}
	return m, nil
}

// Shake confirms a subscription that SNS asks about, before it answers: SNS asks again where that fails, since the answer is
// 503 then. That a subscription has ended is acknowledged; it is not made again.
func (v *sns) Shake(ctx context.Context, h *event.Hook, trial bool) (*answer, error) {
	m, err := readSNS(h.Body)
	if err != nil || m["Type"] == snsNotification {
		return nil, err
	}
	said := func(text string) *answer {
		return &answer{ContentType: "text/plain; charset=utf-8", Body: []byte(text)}
	}
	if m["Type"] == snsUnsubscribe {
		return said("the subscription has ended"), nil
	}
	raw := m["SubscribeURL"]
	u, err := url.Parse(raw)
	if err != nil || !strings.HasPrefix(raw, "https://"+v.host+"/?") || u.Fragment != "" ||
		u.Query().Get("Action") != "ConfirmSubscription" || u.Query().Get("TopicArn") != v.topic {
		return nil, unverified("SubscribeURL", "want https://%s/?Action=ConfirmSubscription for this topic", v.host) // it has a token in it
	}
	if trial {
		return said("the subscription would be confirmed"), nil
	}
	if _, err := v.certificates.o.Fetch(ctx, raw, maxCertificate); err != nil {
		return nil, fmt.Errorf("the subscription cannot be confirmed (%v): %w", bare(err), event.ErrUnavailable)
	}
	return said("the subscription is confirmed"), nil
}
