package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/egress"
)

// A guard is who decides what callers may do, with the file that its policy comes from.
type guard struct {
	*access.Guard
	log    *slog.Logger
	token  bool        // MILLRACE_TOKEN is set
	policy *policyFile // nil: none
	audit  *auditTopic // nil: none
}

// minToken is the characters that a token must have: 64 bits in hex, which nobody guesses over a network.
const minToken = 16

// openGuard loads the keys and the policy. Without a token, a policy and keys nothing is guarded, until there is a key.
func openGuard(o routerOptions, e *engine.Engine, dialer *egress.Dialer, getenv func(string) (string, bool)) (*guard, error) {
	if strings.ContainsFunc(o.token, func(r rune) bool { return r <= ' ' || r >= 0x7F }) {
		return nil, errors.New("MILLRACE_TOKEN has a character that a header cannot carry; use printable ASCII without spaces")
	}
	if strings.HasPrefix(o.token, "mrk_") {
		return nil, errors.New("MILLRACE_TOKEN is an API key, which clients show; unset it where the router starts, or choose a token of its own")
	}
	if o.token != "" && len(o.token) < minToken {
		return nil, fmt.Errorf("MILLRACE_TOKEN has %s, and who guesses it may do everything; want %d or more, at random: openssl rand -hex 32", plural(len(o.token), "character"), minToken)
	}
	g := &guard{log: o.log, token: o.token != ""}
	if o.auditTopic != "" {
		var err error
		if g.audit, err = openAuditTopic(e, o.auditTopic, o.log); err != nil {
			return nil, err
		}
	}
	var policy *access.Policy
	var err error
	if o.accessFile != "" {
		g.policy = newPolicyFile(o.accessFile, getenv)
		if policy, err = g.policy.load(); err != nil {
			return nil, err
		}
	}
	g.Guard, err = access.New(access.Options{
		Token: o.token, Policy: policy, HTTP: jwksFetcher(dialer), Fetched: g.fetched, Keys: keyStore{e}, Audit: g.tell, Off: o.token == "" && o.accessFile == "",
	})
	return g, err
}

// state is the guard in one line.
func (g *guard) state() string {
	if g.Off() {
		return "off: whoever reaches this address may do everything; a token, a key or --access turns it on"
	}
	var by []string
	if g.token {
		by = append(by, "MILLRACE_TOKEN")
	}
	if g.policy != nil {
		by = append(by, g.policy.path)
	}
	if n := len(g.ListKeys()); n > 0 {
		by = append(by, fmt.Sprintf("%d keys", n))
	}
	return "on: " + strings.Join(by, ", ")
}

// keyStore keeps API keys in the engine's store. The keys' secrets are not in it.
type keyStore struct{ e *engine.Engine }

// Keys returns all keys.
func (s keyStore) Keys(ctx context.Context) ([]access.Key, error) {
	var keys []access.Key
	err := s.e.AccessKeys(ctx, func(id string, doc []byte) error {
		var k access.Key
		if err := json.Unmarshal(doc, &k); err != nil || k.ID != id {
			return fmt.Errorf("the row of API key %.40q is damaged: %w", id, err)
		}
		keys = append(keys, k)
		return nil
	})
	return keys, err
}

// PutKey keeps a key.
func (s keyStore) PutKey(ctx context.Context, k access.Key) error {
	doc, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return s.e.PutAccessKey(ctx, k.ID, doc)
}

// DeleteKey removes a key.
func (s keyStore) DeleteKey(ctx context.Context, id string) error {
	return s.e.PutAccessKey(ctx, id, nil)
}

var descCallers = describe("access_refusals_total", "Calls that were refused, by why: unauthenticated, expired, denied, or hidden (answered as what does not exist).", "reason")

func (m *metrics) collectCallers(out chan<- prometheus.Metric) {
	if m.callers == nil {
		return
	}
	for _, r := range m.callers() {
		out <- prometheus.MustNewConstMetric(descCallers, prometheus.CounterValue, float64(r.Count), r.Reason)
	}
}
