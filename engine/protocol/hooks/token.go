package hooks

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// Basic is a user and a password in Authorization (RFC 7617). Nothing is signed: whoever sees one request can send others.
type Basic struct {
	User      string   `yaml:"user" rules:"required" about:"The name."`
	Password  string   `yaml:"password" about:"The password."`
	Passwords []string `yaml:"passwords" about:"Several of them, while one replaces another."`
}

// Validate says what is wrong with the options.
func (o Basic) Validate() error {
	faults := checkSecrets("password", o.Password, o.Passwords)
	if o.User == "" || strings.ContainsAny(o.User, ":\r\n") {
		faults = append(faults, event.Fault{At: "user", Detail: fmt.Sprintf("is %.60q; want a name without a colon", o.User)})
	}
	return invalid(faults)
}

// Open makes the verifier.
func (o Basic) Open() (event.Verifier, error) {
	v := &presented{header: "authorization", scheme: "Basic", what: "user and password"}
	for _, p := range secretsOf(o.Password, o.Passwords) {
		v.sums = append(v.sums, sha256.Sum256([]byte(base64.StdEncoding.EncodeToString([]byte(o.User+":"+p)))))
	}
	return v, nil
}

// Bearer is a token in Authorization (RFC 6750), or alone in a header of its own. Nothing is signed: whoever sees one
// request can send others.
type Bearer struct {
	Token  string   `yaml:"token" about:"The token."`
	Tokens []string `yaml:"tokens" about:"Several of them, while one replaces another."`
	Header string   `yaml:"header" about:"A header that has the token alone, such as x-gitlab-token, in place of Authorization: Bearer."`
}

// Validate says what is wrong with the options.
func (o Bearer) Validate() error {
	faults := checkSecrets("token", o.Token, o.Tokens)
	if o.Header != "" && !isHeader(o.Header) {
		faults = append(faults, event.Fault{At: "header", Detail: fmt.Sprintf("is %.60q; want the name of a header", o.Header)})
	}
	return invalid(faults)
}

// Open makes the verifier.
func (o Bearer) Open() (event.Verifier, error) {
	v := &presented{header: "authorization", scheme: "Bearer", what: "token"}
	if o.Header != "" {
		v.header, v.scheme = strings.ToLower(o.Header), ""
	}
	for _, t := range secretsOf(o.Token, o.Tokens) {
		v.sums = append(v.sums, sha256.Sum256([]byte(t)))
	}
	return v, nil
}

// presented compares what a header presents, by digests, so that not even its length shows.
type presented struct {
	header, scheme, what string
	sums                 [][sha256.Size]byte
}

func (v *presented) Provides() event.Provided { return event.Provided{} }

func (v *presented) Verify(_ context.Context, h *event.Hook, say func(string)) error {
	text, err := header(h, v.header)
	if err != nil {
		return err
	}
	if v.scheme != "" {
		scheme, rest, _ := strings.Cut(text, " ")
		if !strings.EqualFold(scheme, v.scheme) {
			return unverified(v.header, "it is not of the scheme %s", v.scheme)
		}
		text = strings.TrimLeft(rest, " ")
	}
	if say != nil {
		told(say, "%s is there", v.header)
	}
	sum, good := sha256.Sum256(bytesOf(text)), 0
	for i := range v.sums {
		good |= subtle.ConstantTimeCompare(sum[:], v.sums[i][:])
	}
	if good != 1 {
		return unverified(v.header, "it is not the %s of this source (%d configured)", v.what, len(v.sums))
	}
	if say != nil {
		told(say, "it is the %s of this source", v.what)
	}
	return nil
}

// None verifies nothing: whoever knows the address may send.
type None struct{}

// Open makes the verifier.
func (None) Open() (event.Verifier, error) { return none{}, nil }

type none struct{}

func (none) Provides() event.Provided { return event.Provided{} }

func (none) Verify(_ context.Context, _ *event.Hook, say func(string)) error {
	if say != nil {
		told(say, "nothing is verified: verify is none")
	}
	return nil
}
