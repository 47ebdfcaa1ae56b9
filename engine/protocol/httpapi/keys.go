package httpapi

import (
	"fmt"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// keyDoc is how an API key is shown. The key itself is in the answers to making and rotating it, and nowhere else.
type keyDoc struct {
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	Prefix  string     `json:"prefix"` // what the key begins with
	Roles   []string   `json:"roles"`
	Tenant  string     `json:"tenant,omitempty"`
	Created time.Time  `json:"created"`
	Expires *time.Time `json:"expires,omitempty"`
	Rotated *time.Time `json:"rotated,omitempty"`
	Grace   *time.Time `json:"grace,omitempty"` // until when the one before the last rotation is taken
	Used    *time.Time `json:"used,omitempty"`  // about when last
	Key     string     `json:"key,omitempty"`
}

func showKey(k access.Key, text string) keyDoc {
	at := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.UTC()
		return &t
	}
	return keyDoc{ID: k.ID, Name: k.Name, Prefix: k.Prefix, Roles: append([]string{}, k.Roles...), Tenant: k.Tenant, Created: k.Created.UTC(),
		Expires: at(k.Expires), Rotated: at(k.Rotated), Grace: at(k.Grace), Used: at(k.Used), Key: text}
}

// keys is GET /v1/keys.
func (c *call) keys() error {
	out := struct {
		Keys []keyDoc `json:"keys"`
	}{[]keyDoc{}}
	for _, k := range c.s.o.Guard.ListKeys() {
		out.Keys = append(out.Keys, showKey(k, ""))
	}
	return c.answerJSON(fasthttp.StatusOK, out)
}

// createKey is POST /v1/keys.
func (c *call) createKey() error {
	var in struct {
		Name    string   `json:"name"`
		Roles   []string `json:"roles"`
		Tenant  string   `json:"tenant"`
		Expires string   `json:"expires"`
	}
	if err := c.members(&in); err != nil {
		return err
	}
	want := access.Key{Name: in.Name, Roles: in.Roles, Tenant: in.Tenant}
	if in.Expires != "" {
		at, err := expiry(in.Expires, c.s.o.Now())
		if err != nil {
			return event.Invalid("expires", err.Error())
		}
		want.Expires = at
	}
	g := c.s.o.Guard
	k, text, err := g.CreateKey(c.s.work, c.principal, want)
	if err != nil {
		return err
	}
	c.ctx.Response.Header.Set("Location", "/v1/keys/"+k.ID)
	return c.secret(fasthttp.StatusCreated, k, text)
}

// secret answers with a whole key.
func (c *call) secret(status int, k access.Key, text string) error {
	c.ctx.Response.Header.Set("Cache-Control", "no-store")
	return c.answerJSON(status, showKey(k, text))
}

// expiry is a time, or a duration from now.
func expiry(text string, now time.Time) (time.Time, error) {
	if d, err := event.ParseDuration(text); err == nil && d > 0 {
		return now.Add(d), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, fmt.Errorf("is %.60q; want a time (RFC 3339) or a duration from now, such as 90d", text)
	}
	return at, nil
}

// findKey is the key that the path names.
func (c *call) findKey() (access.Key, error) {
	for _, k := range c.s.o.Guard.ListKeys() {
		if k.ID == c.params[0] {
			return k, nil
		}
	}
	return access.Key{}, event.Bad(event.ErrNotFound, "key", fmt.Sprintf("%.60q is the id of no key; `router keys list` lists them", c.params[0]))
}

// showKey is GET /v1/keys/{id}.
func (c *call) showKey() error {
	k, err := c.findKey()
	if err != nil {
		return err
	}
	return c.answerJSON(fasthttp.StatusOK, showKey(k, ""))
}

// rotateKey is POST /v1/keys/{id}/rotate.
func (c *call) rotateKey() error {
	var in struct {
		Grace string `json:"grace"`
	}
	if err := c.members(&in); err != nil {
		return err
	}
	grace := time.Duration(0)
	if in.Grace != "" {
		var err error
		if grace, err = event.ParseDuration(in.Grace); err != nil {
			return event.Invalid("grace", err.Error())
		}
	}
	if _, err := c.findKey(); err != nil {
		return err
	}
	k, text, err := c.s.o.Guard.RotateKey(c.s.work, c.principal, strings.Clone(c.params[0]), grace)
	if err != nil {
		return err
	}
	return c.secret(fasthttp.StatusOK, k, text)
}

// revokeKey is DELETE /v1/keys/{id}.
func (c *call) revokeKey() error {
	k, err := c.findKey()
	if err != nil {
		return err
	}
	if err := c.s.o.Guard.RevokeKey(c.s.work, c.principal, k.ID); err != nil {
		return err
	}
	return c.empty()
}
