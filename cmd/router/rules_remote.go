package main

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/rules"
)

// remoteOptions say where rules from afar come from and what is believed.
type remoteOptions struct {
	poll   time.Duration // between two looks, give or take a tenth
	keys   string        // file of the public keys; "": rules need no signature
	older  bool          // a bundle older than the one in force is taken
	token  string        // sent as Authorization: Bearer
	within time.Duration // a fetch may take, body included; 0: fetchTime
}

const (
	defaultPoll = 5 * time.Minute
	minPoll     = time.Second
	// fetchTime bounds a fetch from the first byte to the last: a server that drips does not hold it for ever.
	fetchTime = time.Minute
)

// isRemote tells a URL from a path.
func isRemote(rules string) bool {
	return strings.HasPrefix(rules, "https://") || strings.HasPrefix(rules, "http://")
}

// remoteRules are rules that a URL serves. Whoever loads them holds definitions.changing or is its only user.
type remoteRules struct {
	o      remoteOptions
	url    string
	shown  string // without what may be secret
	keys   []ed25519.PublicKey
	client *http.Client
	store  remoteStore

	mu    sync.Mutex
	last  *remoteBundle // in force; nil before the first
	floor rules.Seal    // nothing older is taken
	seen  time.Time     // the server last said what is current
}

// A remoteBundle is one answer, checked.
type remoteBundle struct {
	file   []byte // as it came; nil once it is in force and kept
	digest string // of file
	etag   string
	bundle []byte
	seal   rules.Seal // zero without keys

	elsewhere bool // it was kept of another URL
}

// remoteState is what /readyz tells of rules from afar.
type remoteState struct {
	Version int64      `json:"version,omitempty"` // as signed
	Signed  *time.Time `json:"signed,omitempty"`
	Checked *time.Time `json:"checked,omitempty"` // the server last said what is current; never, after an offline start
}

func openRemoteRules(raw, data string, o remoteOptions, dialer *egress.Dialer) (*remoteRules, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("--rules %s: not a URL with a host", clean(raw))
	}
	r := &remoteRules{o: o, url: raw, shown: publicURL(u), store: remoteStore{dir: data}}
	if r.o.within == 0 {
		r.o.within = fetchTime
	}
	if u.Scheme == "http" && !loopback(u.Hostname()) {
		switch {
		case o.keys == "":
			return nil, fmt.Errorf("--rules %s: over http:// anybody on the way can change them; serve them over https://, or sign them and name the key with --rules-key", r.shown)
		case o.token != "":
			return nil, fmt.Errorf("--rules %s: MILLRACE_RULES_TOKEN would be sent over http://, where anybody on the way can read it; serve the rules over https://, or unset it", r.shown)
		}
	}
	if o.keys != "" {
		text, err := os.ReadFile(o.keys)
		if err != nil {
			return nil, fmt.Errorf("--rules-key: %w", err)
		}
		if r.keys, err = rules.ParsePublicKeys(text); err != nil {
			return nil, fmt.Errorf("--rules-key %s: %w", clean(o.keys), err)
		}
	}
	r.client = &http.Client{Transport: &namedTransport{named: u, d: dialer}, CheckRedirect: r.redirect}
	return r, nil
}

// A namedTransport sends what goes to the host and port that the operator has named wherever they lie, also on its own
// network. Redirects to others are targets like any: what else listens on that host was not named.
type namedTransport struct {
	named *url.URL
	d     *egress.Dialer
}

// RoundTrip is that of http.RoundTripper.
func (t *namedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	d := t.d
	if strings.EqualFold(req.URL.Hostname(), t.named.Hostname()) && portOf(req.URL) == portOf(t.named) {
		d = d.Operator()
	}
	return d.Client().Transport.RoundTrip(req)
}

// portOf is the port that an http or https URL goes to.
func portOf(u *url.URL) string {
	if u.Port() == "" && u.Scheme == "https" {
		return "443"
	}
	return cmp.Or(u.Port(), "80")
}

// redirect follows a few, but never to where the first request would not have been sent.
func (r *remoteRules) redirect(to *http.Request, via []*http.Request) error {
	switch {
	case len(via) > 5:
		return errors.New("over 5 redirects")
	case to.URL.Scheme == "http" && via[0].URL.Scheme == "https":
		return fmt.Errorf("it redirects from https:// to %s", publicURL(to.URL))
	case to.URL.Scheme == "http" && len(r.keys) == 0 && !loopback(to.URL.Hostname()):
		return fmt.Errorf("it redirects to %s, which is not https://, and no --rules-key is there to check what comes", publicURL(to.URL))
	}
	return nil
}

// publicURL is a URL without a password and query.
func publicURL(u *url.URL) string {
	s := *u
	if s.User != nil {
		s.User = nil
	}
	if s.RawQuery != "" {
		s.RawQuery = "***"
	}
	return s.String()
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}

// errNotModified: what is there has been fetched before.
var errNotModified = errors.New("not modified")

// fetch asks for the rules and checks what comes; errNotModified if they are those that last has.
func (r *remoteRules) fetch(ctx context.Context, last *remoteBundle) (*remoteBundle, error) {
	ctx, cancel := context.WithTimeout(ctx, r.o.within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", r.url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "millrace/"+thisBuild().Version)
	if r.o.token != "" {
		req.Header.Set("Authorization", "Bearer "+r.o.token)
	}
	if last != nil && last.etag != "" {
		req.Header.Set("If-None-Match", last.etag)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, r.unreachable(err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotModified && last != nil:
		return nil, errNotModified
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s answers %s", r.shown, clean(resp.Status))
	case resp.ContentLength > rules.MaxSigned:
		return nil, r.tooLarge()
	}
	file, err := io.ReadAll(io.LimitReader(resp.Body, rules.MaxSigned+1))
	switch {
	case err != nil:
		return nil, r.unreachable(err)
	case len(file) > rules.MaxSigned:
		return nil, r.tooLarge()
	}
	b, err := r.check(file)
	if err != nil {
		return nil, err
	}
	if b.etag = resp.Header.Get("ETag"); len(b.etag) > 1<<10 {
		b.etag = ""
	}
	return b, nil
}

func (r *remoteRules) tooLarge() error {
	return fmt.Errorf("%s has over %s; rules have at most that", r.shown, sizeText(rules.MaxSigned))
}

// unreachable is an error of the network without what differs each time, such as our own port.
func (r *remoteRules) unreachable(err error) error {
	var timeout net.Error
	var op *net.OpError
	var of *url.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s did not answer in full within %s", r.shown, r.o.within)
	case errors.As(err, &op):
		return fmt.Errorf("%s cannot be reached: %s: %w", r.shown, op.Op, op.Err)
	case errors.As(err, &of):
		err = of.Err
	}
	return fmt.Errorf("%s cannot be fetched: %w", r.shown, err)
}

// check opens what was fetched or kept.
func (r *remoteRules) check(file []byte) (*remoteBundle, error) {
	b := &remoteBundle{file: file, digest: digestOf(file), bundle: file}
	if len(r.keys) == 0 {
		if rules.IsSigned(file) {
			return nil, fmt.Errorf("%s is signed, and there is no key to check it with: name one with --rules-key", r.shown)
		}
		return b, nil
	}
	var err error
	if b.bundle, b.seal, err = rules.OpenSigned(file, r.keys...); err != nil {
		return nil, fmt.Errorf("%s: %w", r.shown, err)
	}
	return b, nil
}

// expired says when a bundle is past its time.
func (r *remoteRules) expired(b *remoteBundle, now time.Time) error {
	if x := b.seal.Expires; !x.IsZero() && now.After(x) {
		return fmt.Errorf("%s has expired: it was signed at %s and is good until %s; sign the rules again", r.shown, stamp(b.seal.Signed), stamp(x))
	}
	return nil
}

// outdated refuses what is older than the rules in force.
func (r *remoteRules) outdated(b *remoteBundle) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch was, is := r.floor, b.seal; {
	case r.o.older || len(r.keys) == 0:
	case is.Version < was.Version:
		return fmt.Errorf("%s has version %d, which is older than %d in force: an old file may have been put back; sign the rules again, or start with --rules-allow-older", r.shown, is.Version, was.Version)
	case is.Version == was.Version && is.Digest != was.Digest:
		return fmt.Errorf("%s has version %d like the rules in force, and other rules; give each a version of its own", r.shown, was.Version)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// state is for /readyz.
func (r *remoteRules) state() *remoteState {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &remoteState{}
	if r.last != nil && r.last.seal.Version != 0 {
		s.Version, s.Signed = r.last.seal.Version, &r.last.seal.Signed
	}
	if seen := r.seen; !seen.IsZero() {
		s.Checked = &seen
	}
	return s
}

func (r *remoteRules) now() *remoteBundle {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// errElsewhere: an address with a new password in it is another one, and older rules are no newer for it.
var errElsewhere = errors.New("they are of another URL; what is fetched must not be older")

// openAfar puts the rules that were kept in force, so that a start needs no network, or fetches them.
func (d *definitions) openAfar(ctx context.Context) error {
	r := d.afar
	kept, err := r.store.load(r.url)
	if err == nil && kept != nil {
		etag, elsewhere := kept.etag, kept.elsewhere
		if kept, err = r.check(kept.file); err == nil {
			kept.etag, r.floor = etag, kept.seal // also where it cannot be put in force any more
			if err = errElsewhere; !elsewhere {
				err = d.take(ctx, kept)
			}
		}
	}
	if err != nil {
		d.log.Warn("the rules that were kept from before cannot be used; they are fetched anew", "url", r.shown, "error", err)
	}
	if err == nil && kept != nil {
		kept.file = nil
		d.log.Info("the rules that were kept from before are in force", "url", r.shown, "revision", d.rulesState().Revision)
		return nil
	}
	if _, err := d.poll(ctx); err != nil {
		return fmt.Errorf("%w; none are kept from before to start with", err)
	}
	return nil
}

// poll fetches the rules and puts them in force if they are other than before. What is wrong is noted.
func (d *definitions) poll(ctx context.Context) (changed bool, err error) {
	r := d.afar
	last := r.now()
	next, err := r.fetch(ctx, last)
	switch {
	case errors.Is(err, errNotModified):
		err = r.expired(last, time.Now())
	case err == nil:
		err = errors.Join(r.expired(next, time.Now()), r.outdated(next))
		changed = err == nil && (last == nil || next.digest != last.digest) // the same again is from a server without ETags
	}
	if changed {
		err = d.take(ctx, next)
	}
	switch {
	case err != nil && ctx.Err() != nil: // the router ends
		return false, err
	case err != nil:
		d.noteLoad(nil, err)
		return false, err
	case !changed:
		d.noteUnchanged()
	}
	r.mu.Lock()
	r.seen = time.Now().UTC().Truncate(time.Second)
	r.mu.Unlock()
	if changed {
		if err := r.store.keep(r.url, next); err != nil {
			d.log.Warn("the rules cannot be kept for a start without network", "url", r.shown, "error", err)
		}
		next.file = nil
	}
	return changed, nil
}

// take puts a bundle in force.
func (d *definitions) take(ctx context.Context, b *remoteBundle) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	begin := time.Now()
	set, err := rules.ParseBundle(ctx, b.bundle, d.parseOptions())
	parsed := time.Now()
	if err == nil {
		err = d.takeFile(ctx, set)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.afar.shown, err)
	}
	d.afar.mu.Lock()
	d.afar.last, d.afar.floor = b, b.seal
	d.afar.mu.Unlock()
	d.noteLoad(set, nil)
	d.noteTimes(begin, parsed, nil)
	return nil
}

// pollAfar looks for other rules now and then, at a signal, and at once: what was kept may be old. One error is
// logged once, however often it comes.
func (d *definitions) pollAfar(ctx context.Context, hangup <-chan os.Signal) {
	r := d.afar
	said, wait := "", time.Duration(0)
	if r.state().Checked != nil { // the start has asked
		wait = jitter(r.o.poll)
	}
	for ; ; wait = jitter(r.o.poll) {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-hangup:
			t.Stop()
			said = "" // who asks wants to know
		case <-t.C:
		}
		changed, err := d.poll(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if said != err.Error() {
				d.log.Error("the rules were not fetched; those before are in force", "url", r.shown, "error", err)
			}
			said = err.Error()
			continue
		case changed:
			d.logLoaded()
		case said != "":
			d.log.Info("the rules can be fetched again; they are unchanged", "url", r.shown)
		}
		said = ""
	}
}

// jitter keeps a fleet that was started at once from asking at once for ever.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}
