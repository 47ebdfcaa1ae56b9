package httpapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/millrace/millrace/engine/event"
)

// Revisions changes the rules as a whole and tells how they came about. A bundle is a tar of rules files with what
// they name, or the text of one file. Documents are JSON; a revision is named by its number or its id.
type Revisions interface {
	// RulesRevision is the id of the revision in force, "0" while there are no rules.
	RulesRevision() string
	// DiffRules tells what a bundle would change, and what that does to events that are not delivered yet.
	DiffRules(ctx context.Context, bundle []byte) ([]byte, error)
	// ApplyRules puts a bundle in force as a whole, or changes nothing. event.ErrPrecondition: another revision is
	// in force than how.IfMatch names.
	ApplyRules(ctx context.Context, bundle []byte, how RulesChange) ([]byte, error)
	// RollbackRules puts the rules of an earlier revision in force again, as a new revision.
	RollbackRules(ctx context.Context, to string, how RulesChange) ([]byte, error)
	// RulesRevisions lists what is kept, newest first.
	RulesRevisions(ctx context.Context) ([]byte, error)
}

// RulesChange is how rules are put in force.
type RulesChange struct {
	Author, Message string
	IfMatch         string // the revision that must be in force; "" for any
	// What becomes of events that subscriptions which go have not delivered: with neither, and if there are any,
	// nothing is changed.
	Keep, Drop bool
}

// Bounds of what is said of a change, in bytes.
const (
	maxAuthor  = 200
	maxMessage = 2000
)

// bundle is the body as a bundle of its own memory. Compressed, it may hold more than other bodies.
func (c *call) bundle() ([]byte, error) {
	switch kind := media(c.h.contentType); kind {
	case "", "application/x-tar", "application/yaml", "application/x-yaml", "text/yaml", "application/octet-stream", "text/plain":
	default:
		if !isForm(kind) { // curl --data-binary says form
			return nil, refuse(fasthttp.StatusUnsupportedMediaType, "the Content-Type %.80q is not taken here; send application/yaml, the text of a rules file, or application/x-tar, a bundle", kind)
		}
	}
	body, err := c.decompressedTo(max(maxBundle, c.s.o.Limits.Body))
	if err != nil {
		return nil, err
	}
	if body = bytes.Clone(body); cap(c.body) > c.s.o.Limits.Body {
		c.body = nil // the call goes back into its pool
	}
	return body, nil
}

// maxBundles is how many calls may hold a bundle at once, while it is read and until rules are in force.
const maxBundles = 2

// withBundle calls use with the body as a bundle. Bundles are large: only so many are in memory at once.
func (c *call) withBundle(use func(bundle []byte) error) error {
	defer c.s.bundles.Add(-1)
	if c.s.bundles.Add(1) > maxBundles {
		return fmt.Errorf("%d bundles of rules are being read, and no more are at once; try again later: %w", maxBundles, event.ErrUnavailable)
	}
	b, err := c.bundle()
	if err != nil {
		return err
	}
	return use(b)
}

// maxBundle bounds a bundle after decompression, in bytes.
const maxBundle = 64 << 20

// how reads the parameters of a change.
func (c *call) how() (how RulesChange, err error) {
	how.Author, how.Message = strings.Clone(c.query("author")), strings.Clone(c.query("message"))
	match := strings.Clone(string(c.ctx.Request.Header.Peek("If-Match")))
	how.IfMatch = strings.Trim(strings.TrimSpace(strings.TrimPrefix(match, "W/")), `"`)
	empty := how.IfMatch == "" && len(c.ctx.Request.Header.PeekAll("If-Match")) > 0 // a variable that is not set is no wish for any
	if empty || strings.Contains(how.IfMatch, ",") || how.IfMatch == "*" {
		return how, event.Invalid("If-Match", "want the one revision that GET /v1/rules answers as its ETag")
	}
	switch v := c.query("undelivered"); v {
	case "", "refuse":
	case "keep":
		how.Keep = true
	case "drop":
		how.Drop = true
	default:
		return how, invalidf("?undelivered", "is %.60q; want refuse, keep (in the subscription's dead-letter topic) or drop", v)
	}
	return how, how.check()
}

func (h RulesChange) check() error {
	switch {
	case len(h.Author) > maxAuthor:
		return event.Bad(event.ErrTooLarge, "author", "has over 200 bytes")
	case len(h.Message) > maxMessage:
		return event.Bad(event.ErrTooLarge, "message", "has over 2000 bytes")
	}
	return nil
}

// revised answers what a change came to. Its ETag is the revision that the document is of: another change may have
// been made since.
func (c *call) revised(doc []byte, err error) error {
	var of struct {
		ID       string `json:"id"`       // of a change
		Revision string `json:"revision"` // of a difference
		InForce  string `json:"inForce"`  // of the list
	}
	if err == nil {
		err = json.Unmarshal(doc, &of)
	}
	if err == nil {
		c.tagRevision(cmp.Or(of.ID, of.Revision, of.InForce))
	}
	return c.shown(fasthttp.StatusOK, doc, err)
}

func (c *call) tagRevision(id string) { c.ctx.Response.Header.Set("ETag", `"`+id+`"`) }

// applyRules is PUT /v1/rules.
func (c *call) applyRules() error {
	how, err := c.how()
	if err != nil {
		return err
	}
	return c.withBundle(func(b []byte) error { return c.revised(c.s.o.Backend.ApplyRules(c.context(), b, how)) })
}

// diffRules is POST /v1/rules/diff.
func (c *call) diffRules() error {
	return c.withBundle(func(b []byte) error { return c.revised(c.s.o.Backend.DiffRules(c.s.work, b)) })
}

// rulesRevisions is GET /v1/rules/revisions.
func (c *call) rulesRevisions() error {
	return c.revised(c.s.o.Backend.RulesRevisions(c.s.work))
}

// rollbackRules is POST /v1/rules/rollback.
func (c *call) rollbackRules() error {
	var in struct {
		To json.RawMessage `json:"to"`
	}
	how, err := c.how()
	if err == nil {
		err = c.members(&in)
	}
	if err != nil {
		return err
	}
	to := strings.Trim(string(in.To), `"`)
	if to == "" || to == "null" {
		return event.Invalid("to", "is missing; want the number or the id of a revision that GET /v1/rules/revisions lists")
	}
	return c.revised(c.s.o.Backend.RollbackRules(c.context(), to, how))
}
