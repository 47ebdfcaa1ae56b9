package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/egress"
)

// A policyFile is the file of a process's access policy (--access).
type policyFile struct {
	watchedFile
	getenv func(string) (string, bool)
}

func newPolicyFile(path string, getenv func(string) (string, bool)) *policyFile {
	return &policyFile{watchedFile{path: path}, getenv}
}

// load reads the policy.
func (f *policyFile) load() (*access.Policy, error) {
	text, err := f.readTop()
	if err != nil {
		return nil, fmt.Errorf("--access: %w", err)
	}
	return access.ParsePolicy(f.path, text, f.read, f.getenv)
}

// reload puts what the file says now in force. A bad policy changes nothing.
func (f *policyFile) reload(g *access.Guard, log *slog.Logger) {
	p, err := f.load()
	if err == nil {
		err = g.SetPolicy(p)
	}
	if news := f.news(err); err != nil {
		if news {
			log.Error("the access policy was not reloaded; that before is in force", "path", f.path, "error", err)
		}
		return
	}
	g.Changed(nil, "policy", f.path, "reloaded")
}

// jwksFetcher fetches the keys of issuers through the process's dialer. The operator has named them: an issuer may lie on
// the router's own network.
func jwksFetcher(dialer *egress.Dialer) func(ctx context.Context, url string, max int64) ([]byte, error) {
	return getter(dialer.Operator().Client(), "application/json")
}

// getter fetches short documents, within 10 s each.
func getter(client *http.Client, accept string) func(ctx context.Context, url string, max int64) ([]byte, error) {
	return func(ctx context.Context, url string, max int64) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Accept", accept)
		req.Header.Set("User-Agent", "millrace/"+thisBuild().Version)
		resp, err := client.Do(req)
		if err != nil {
			return nil, denied(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("the answer is %d", resp.StatusCode)
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, max+1))
		if err == nil && int64(len(body)) > max {
			err = errors.New("the answer is too long")
		}
		return body, err
	}
}
