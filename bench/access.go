package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// accessSlices is into how many pieces a measurement of access control is cut: with it and without it take turns, so that
// what the machine does besides falls on all alike.
const accessSlices = 5

// measureAccess measures the same durable accepts without access control, with an API key and with a JWT.
func measureAccess(n int) measurement {
	open, key, jwt := fmt.Sprintf("open-%d", n), fmt.Sprintf("keyed-%d", n), fmt.Sprintf("jwt-%d", n)
	return measurement{name: fmt.Sprintf("durable accept without and with access control, %d connections", n), gives: []string{open, key, jwt},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			plain, err := l.mainRouter(ctx)
			if err != nil {
				return err
			}
			g, err := l.guardedRouter(ctx)
			if err != nil {
				return err
			}
			for range accessSlices {
				for _, x := range []struct {
					value  string
					to     *routerProcess
					bearer string
				}{{open, plain, ""}, {key, g.routerProcess, g.key}, {jwt, g.routerProcess, g.jwt}} {
					p, err := closed(ctx, n, window{l.length() / accessSlices, x.to.cpu}, func(i int) (worker, error) {
						p, err := newPoster(ctx, x.to.addr, withBearer(postRequest(x.to.addr, published, "application/json", eventData(i)), x.bearer))
						if err != nil {
							return worker{}, err
						}
						return p.worker(), nil
					})
					if err != nil {
						return errors.Join(err, x.to.gone())
					}
					g.sums[x.value] += p.perSecond / accessSlices
				}
			}
			for _, value := range []string{open, key, jwt} {
				put(value, g.sums[value])
				g.sums[value] = 0
			}
			return nil
		}}
}

// withBearer adds a header to a request; "" adds none.
func withBearer(request []byte, bearer string) []byte {
	if bearer == "" {
		return request
	}
	return bytes.Replace(request, []byte("\r\n\r\n"), []byte("\r\nAuthorization: Bearer "+bearer+"\r\n\r\n"), 1)
}

// A guarded router asks who calls; key and jwt may publish.
type guarded struct {
	*routerProcess
	key, jwt string
	sums     map[string]float64
}

// guardedRouter starts, once, a router with a policy.
func (l *lab) guardedRouter(ctx context.Context) (*guarded, error) {
	if l.guarded != nil {
		return l.guarded, l.guarded.gone()
	}
	var raw [32]byte
	rand.Read(raw[:])
	secret := hex.EncodeToString(raw[:])
	policy, secretFile := filepath.Join(l.dir, "access.yaml"), filepath.Join(l.dir, "jwt.secret")
	text := "version: 1\njwt:\n  bench:\n    issuer: bench\n    audience: millrace\n    secret: \"${file:jwt.secret}\"\n    roles: {claim: roles, map: {boss: [admin], pub: [publisher]}}\n"
	if err := errors.Join(os.WriteFile(policy, []byte(text), 0o600), os.WriteFile(secretFile, []byte(secret), 0o600)); err != nil {
		return nil, err
	}
	r, err := l.router("--access", policy)
	if err != nil {
		return nil, err
	}
	g := &guarded{routerProcess: r, jwt: signJWT(secret, "pub"), sums: map[string]float64{}}
	admin := *r
	admin.http = &http.Client{Timeout: time.Minute, Transport: bearer(signJWT(secret, "boss"))}
	var made struct{ Key string }
	err = errors.Join(admin.call(ctx, "POST", "/v1/topics", "application/json", []byte(`{"name":"accepted"}`), nil),
		admin.call(ctx, "POST", "/v1/keys", "application/json", []byte(`{"name":"bench","roles":["publisher"]}`), &made))
	g.key, l.guarded = made.Key, g
	return g, err
}

// bearer shows a token with every request.
type bearer string

// RoundTrip implements http.RoundTripper.
func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(b))
	return http.DefaultTransport.RoundTrip(r)
}

// signJWT is a token of a role that is good for a day.
func signJWT(secret, role string) string {
	part := func(v any) string {
		doc, _ := json.Marshal(v) // of maps: cannot fail
		return base64.RawURLEncoding.EncodeToString(doc)
	}
	now := time.Now().Unix()
	text := part(map[string]string{"alg": "HS256", "typ": "JWT"}) + "." +
		part(map[string]any{"iss": "bench", "aud": "millrace", "sub": role, "iat": now, "exp": now + 86400, "roles": []string{role}})
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
