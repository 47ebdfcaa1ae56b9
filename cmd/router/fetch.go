package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/plugins"
)

// fetcher sends the requests of functions through the guarded dialer.
func fetcher(dialer *egress.Dialer) func(ctx context.Context, r *plugins.Request) (*plugins.Response, error) {
	client := dialer.Client() // unpacks nothing: a bomb does that in the guest's memory
	return func(ctx context.Context, r *plugins.Request) (*plugins.Response, error) {
		req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, bytes.NewReader(r.Body))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", plugins.ErrBadArgument, err)
		}
		req.Header = r.Header
		if host := r.Header.Get("Host"); host != "" {
			return nil, fmt.Errorf("%w: the host header follows from the URL; leave it out", plugins.ErrBadArgument)
		}
		if req.Header.Get("User-Agent") == "" {
			req.Header.Set("User-Agent", "millrace/"+thisBuild().Version)
		}
		answer, err := client.Do(req)
		if err != nil {
			return nil, denied(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(io.LimitReader(answer.Body, int64(r.MaxBody)+1))
		if err != nil {
			return nil, err
		}
		if len(body) > r.MaxBody {
			return nil, fmt.Errorf("%w: the answer has over %d bytes (limits.output)", plugins.ErrTooBig, r.MaxBody)
		}
		return &plugins.Response{Status: answer.StatusCode, Header: answer.Header, Body: body}, nil
	}
}
