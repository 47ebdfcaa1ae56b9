package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/egress"
)

// maxPolicy bounds a policy file and each file that it names, in bytes.
const maxPolicy = 4 << 20

// A policyFile is the file of a process's access policy (--access) and what of it has been read.
type policyFile struct {
	path   string
	getenv func(string) (string, bool)
	files  []string // that it named when it was last read, itself first
	stamp  string   // of those
}

// load reads the policy. Each file is stamped before it is read: what changes meanwhile is seen by the next look. So are
// those of a policy that is not good, one of which may be what it lacks.
func (f *policyFile) load() (*access.Policy, error) {
	f.files, f.stamp = nil, ""
	read := func(name string) ([]byte, error) {
		f.files = append(f.files, name)
		f.stamp += stampOf(name)
		return readSmall(name)
	}
	text, err := read(f.path)
	if err != nil {
		return nil, fmt.Errorf("--access: %w", err)
	}
	return access.ParsePolicy(f.path, text, read, f.getenv)
}

func readSmall(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxPolicy+1))
	if err == nil && len(text) > maxPolicy {
		err = fmt.Errorf("%s: has over %d bytes", path, maxPolicy)
	}
	return text, err
}

// watch reads the policy again when it, or a file that it names, changes or a signal asks for it, until ctx ends. A bad
// one changes nothing.
func (f *policyFile) watch(ctx context.Context, g *access.Guard, hangup <-chan os.Signal, every time.Duration, log *slog.Logger) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	seen := f.stamp
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		case <-ticker.C:
			now := stampsOf(f.files)
			if now == f.stamp {
				continue
			}
			if now != seen { // whoever writes it may not be done; it is read once it stays the same for a tick
				seen = now
				continue
			}
		}
		p, err := f.load()
		if err == nil {
			err = g.SetPolicy(p)
		}
		if err != nil {
			log.Error("the access policy was not reloaded; that before is in force", "path", f.path, "error", err)
			continue
		}
		g.Changed(nil, "policy", f.path, "reloaded")
	}
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
