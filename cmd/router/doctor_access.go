package main

import (
	"context"
	"errors"
	"net/http"
)

// access asks the router as a stranger whether it asks who calls.
func (e *examination) access(ctx context.Context, c *client) {
	stranger := *c
	stranger.token = ""
	_, err := stranger.call(ctx, http.MethodGet, c.path("openapi.json"), nil)
	var p *problem
	switch {
	case errors.As(err, &p) && p.Status == http.StatusUnauthorized:
		e.find("access", "good", "", "access control is on")
	case err == nil:
		e.find("access", "note", "MILLRACE_TOKEN, `router keys create` or serve --access turns it on", "access control is off: whoever reaches %s may do everything", c.base.Redacted())
	}
}
