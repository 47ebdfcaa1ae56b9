package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millrace/millrace/engine/edge"
	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/httpapi"
)

// edgeOptions say at which addresses a router is reached, how, and what one client may ask of it.
type edgeOptions struct {
	certs, keys []string
	acme        edge.ACMEOptions
	acmeCA      string // PEM file
	clientCA    string
	clientCerts string // require or request
	hsts        time.Duration

	redirect     string // address of the redirecting listener; "" for none
	redirectPort int    // where it sends to; 0: the main listener's port
	admin        string // address of administration; "" for the main one

	maxEvent, maxBody, maxHeader string // sizes
	maxBatch                     int
	proxies                      []string
	proxyHeader                  string

	limits event.Limits
	server httpapi.Options // its limits and deadlines
}

// A listener for administration may be a socket of the file system.
const unixPrefix = "unix:"

// tlsFlags are those that name certificates; doctor has them too.
func (o *edgeOptions) tlsFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.certs, "tls-cert", nil, "serve HTTPS with the certificate of this PEM `file`, or with the pairs of a folder; may be repeated")
	f.StringArrayVar(&o.keys, "tls-key", nil, "PEM `file` of the key of the --tls-cert before it; may be repeated")
	f.StringVar(&o.clientCA, "client-ca", "", "take client certificates of the authorities in this PEM `file`")
}

func (o *edgeOptions) flags(f *pflag.FlagSet) {
	o.tlsFlags(f)
	f.StringVar(&o.clientCerts, "client-certs", "require", "`require or request` a client certificate, with --client-ca")
	f.StringArrayVar(&o.acme.Hosts, "acme-host", nil, "get a certificate for this `name` from an ACME authority, to whose terms this agrees; may be repeated")
	f.StringVar(&o.acme.Directory, "acme-dir", "", "`URL` of the ACME authority's directory (Let's Encrypt's)")
	f.StringVar(&o.acme.Email, "acme-email", "", "`address` to which the ACME authority may write")
	f.StringVar(&o.acmeCA, "acme-ca", "", "PEM `file` of authorities of the ACME directory's own certificate, besides the system's")
	f.StringVar(&o.redirect, "http-redirect", "", "`address` at which plain HTTP is redirected to HTTPS, and ACME challenges are answered, such as :80")
	f.IntVar(&o.redirectPort, "https-port", 0, "`port` that redirects name (that of --listen)")
	f.DurationVar(&o.hsts, "hsts", 365*24*time.Hour, "how long browsers are to come by HTTPS only, told on HTTPS; 0 is not told")
	f.StringVar(&o.admin, "admin-listen", "", "`address` of administration, which --listen then does not answer; or unix:/path")

	f.StringVar(&o.maxEvent, "max-event", "1MiB", "largest `size` of an event, up to 16MiB")
	f.StringVar(&o.maxBody, "max-body", "16MiB", "largest `size` of a request's body, up to 64MiB")
	f.StringVar(&o.maxHeader, "max-header", "16KiB", "largest `size` of a request line with its headers, up to 1MiB")
	f.IntVar(&o.maxBatch, "max-batch", 10_000, "most events of a request, up to 100000")
	f.IntVar(&o.server.MaxConns, "max-connections", manyConnections, "most connections at once, and as many streams")
	f.IntVar(&o.server.Clients.Conns, "address-connections", 0, "most connections of one address (a tenth of --max-connections, loopback without bound; -1: no bound)")
	f.Float64Var(&o.server.Clients.Rate, "address-rate", 0, "most requests a second of one address (no bound)")
	f.Float64Var(&o.server.Clients.StrangerRate, "stranger-rate", 20, "most requests a second of one address that nobody known stands for; -1: no bound")
	f.StringArrayVar(&o.proxies, "trusted-proxy", nil, "believe what this `address or range` says of its clients' addresses; may be repeated")
	f.StringVar(&o.proxyHeader, "proxy-header", "x-forwarded-for", "which `header` says it: x-forwarded-for or forwarded")
	f.DurationVar(&o.server.HeaderTimeout, "header-timeout", 10*time.Second, "time for a request's headers and a small body")
	f.DurationVar(&o.server.BodyTimeout, "body-timeout", time.Minute, "time for a large body")
	f.DurationVar(&o.server.WriteTimeout, "write-timeout", 15*time.Second, "time for an answer, and for one write to a stream")
	f.DurationVar(&o.server.IdleTimeout, "idle-timeout", 2*time.Minute, "time between two requests of a connection")
}

// check reads what the flags say.
func (o *edgeOptions) check(cmd *cobra.Command) error {
	size := func(flag, text string, into *int, least, most int64) error {
		n, err := parseSize(text)
		if err == nil && (n < least || n > most) {
			err = fmt.Errorf("%s; want %s to %s", sizeText(n), sizeText(least), sizeText(most))
		}
		if err != nil {
			return usagef(cmd, "--%s: %v", flag, err)
		}
		*into = int(n)
		return nil
	}
	if err := cmp.Or(size("max-event", o.maxEvent, &o.limits.Event, 1, 16<<20), size("max-body", o.maxBody, &o.limits.Body, 1<<10, 64<<20),
		size("max-header", o.maxHeader, &o.server.HeaderBytes, 1<<10, 1<<20)); err != nil {
		return err
	}
	if o.maxBatch < 1 || o.maxBatch > 100_000 {
		return usagef(cmd, "--max-batch %d: want 1 to 100000", o.maxBatch)
	}
	o.limits.Events = o.maxBatch
	if o.server.MaxConns < 1 {
		return usagef(cmd, "--max-connections %d: want 1 or more", o.server.MaxConns)
	}
	for flag, d := range map[string]time.Duration{"header-timeout": o.server.HeaderTimeout, "body-timeout": o.server.BodyTimeout,
		"write-timeout": o.server.WriteTimeout, "idle-timeout": o.server.IdleTimeout} {
		if d <= 0 {
			return usagef(cmd, "--%s %s: want a time, such as 10s", flag, d)
		}
	}
	if o.server.HSTS = o.hsts; o.hsts <= 0 {
		o.server.HSTS = -1
	}
	for _, p := range o.proxies {
		prefix, err := netip.ParsePrefix(p)
		if a, notRange := netip.ParseAddr(p); notRange == nil {
			prefix, err = a.Prefix(a.BitLen())
		}
		if err != nil {
			return usagef(cmd, "--trusted-proxy %.60q: want an address or a range, such as 10.0.0.0/8", p)
		}
		o.server.Clients.Proxies = append(o.server.Clients.Proxies, prefix)
	}
	if o.server.Clients.StrangerRate == 0 {
		return usagef(cmd, "--stranger-rate 0: want requests a second, or -1 for no bound")
	}
	for _, x := range []struct {
		flag, needs string
		given       bool
	}{
		{"proxy-header", "trusted-proxy", len(o.proxies) > 0}, {"client-certs", "client-ca", o.clientCA != ""}, {"https-port", "http-redirect", o.redirect != ""},
		{"acme-dir", "acme-host", len(o.acme.Hosts) > 0}, {"acme-email", "acme-host", len(o.acme.Hosts) > 0}, {"acme-ca", "acme-host", len(o.acme.Hosts) > 0},
	} {
		if cmd.Flags().Changed(x.flag) && !x.given {
			return usagef(cmd, "--%s does nothing without --%s: give both, or neither", x.flag, x.needs)
		}
	}
	switch o.proxyHeader {
	case "x-forwarded-for":
	case "forwarded":
		o.server.Clients.Forwarded = true
	default:
		return usagef(cmd, "--proxy-header %.60q: want x-forwarded-for or forwarded", o.proxyHeader)
	}
	if o.clientCerts != "require" && o.clientCerts != "request" {
		return usagef(cmd, "--client-certs %.60q: want require or request", o.clientCerts)
	}
	if len(o.certs) == 0 && len(o.acme.Hosts) == 0 {
		for _, flag := range []string{"tls-key", "client-ca", "client-certs", "http-redirect", "https-port", "acme-dir", "acme-email", "acme-ca", "hsts"} {
			if cmd.Flags().Changed(flag) {
				return usagef(cmd, "--%s is for HTTPS: name a certificate with --tls-cert and --tls-key, or a host with --acme-host", flag)
			}
		}
	}
	return nil
}

// pairs puts certificates and keys together: a folder has its own.
func (o *edgeOptions) pairs() ([]edge.Pair, error) {
	var out []edge.Pair
	keys := o.keys
	for _, c := range o.certs {
		if info, err := os.Stat(c); err == nil && info.IsDir() {
			out = append(out, edge.Pair{Cert: c})
			continue
		}
		if len(keys) == 0 {
			return nil, fmt.Errorf("--tls-cert %s has no --tls-key", c)
		}
		out = append(out, edge.Pair{Cert: c, Key: keys[0]})
		keys = keys[1:]
	}
	if len(keys) > 0 {
		return nil, fmt.Errorf("--tls-key %s has no --tls-cert", keys[0])
	}
	return out, nil
}

// openEdge reads the certificates; nil without TLS.
func openEdge(o routerOptions, d *egress.Dialer) (*edge.Edge, error) {
	e := o.edge
	if len(e.certs) == 0 && len(e.acme.Hosts) == 0 {
		return nil, nil
	}
	pairs, err := e.pairs()
	if err != nil {
		return nil, err
	}
	eo := edge.Options{Pairs: pairs, ClientCA: e.clientCA, OptionalClientCerts: e.clientCerts == "request", Look: o.look, Log: o.log}
	if len(e.acme.Hosts) > 0 {
		eo.ACME = &e.acme
		eo.ACME.Cache = cmp.Or(e.acme.Cache, filepath.Join(o.data, "acme"))
		if eo.ACME.HTTP, err = acmeTransport(d, e.acmeCA); err != nil {
			return nil, err
		}
	}
	return edge.New(eo)
}

// acmeTransport asks an ACME authority through the process's dialer. The operator has named it: a private one may lie on
// the router's own network.
func acmeTransport(d *egress.Dialer, ca string) (http.RoundTripper, error) {
	var o egress.TLSOptions
	if ca != "" {
		text, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("--acme-ca: %w", err)
		}
		o.CA = []string{string(text)}
	}
	own, err := egress.NewTLS(o)
	if err != nil {
		return nil, fmt.Errorf("--acme-ca %s: %w", ca, err)
	}
	return d.Operator().ClientWith(own).Transport, nil
}

// listen opens the addresses of r; on error nothing stays open.
func (r *router) listen(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			for _, f := range r.faces {
				f.Listener.Close()
			}
			r.faces, r.ln = nil, nil
		}
	}()
	o := r.o.edge
	var secure *tls.Config
	if r.edge != nil {
		secure = r.edge.Config()
	}
	add := func(addr string, f httpapi.Face) error {
		f.Listener, err = listenAt(ctx, addr)
		if err == nil {
			r.faces = append(r.faces, f)
		}
		return err
	}
	public := httpapi.Face{TLS: secure}
	if o.admin != "" {
		public.Serves = httpapi.Public
	}
	if err := add(r.o.listen, public); err != nil {
		return err
	}
	r.ln = r.faces[0].Listener
	if o.admin != "" {
		f := httpapi.Face{TLS: secure}
		if isLocal(o.admin) {
			f.TLS = nil // nobody is between
		}
		if err := add(o.admin, f); err != nil {
			return fmt.Errorf("--admin-listen: %w", err)
		}
	}
	if o.redirect != "" {
		if err := add(o.redirect, httpapi.Face{Serves: httpapi.Redirect}); err != nil {
			return fmt.Errorf("--http-redirect: %w", err)
		}
	}
	return nil
}

// isLocal reports whether only this machine can reach an address that is to be listened on.
func isLocal(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	a, err := netip.ParseAddr(host)
	return strings.HasPrefix(addr, unixPrefix) || host == "localhost" || err == nil && a.IsLoopback()
}

// listenAt listens on host:port, or on a socket of the file system that only this user can open. A socket that a router
// left behind is taken over; one that answers is not.
func listenAt(ctx context.Context, addr string) (net.Listener, error) {
	path, socket := strings.CutPrefix(addr, unixPrefix)
	if !socket {
		return net.Listen("tcp", addr)
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		d := net.Dialer{Timeout: time.Second}
		if nc, err := d.DialContext(ctx, "unix", path); err == nil {
			nc.Close()
			return nil, fmt.Errorf("%s: something listens there already", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

// edgeServer is what of httpapi's options the edge decides. The port of redirects is known once the listener is.
func (r *router) edgeServer(o httpapi.Options) httpapi.Options {
	own := r.o.edge.server
	o.Limits, o.Clients, o.MaxConns, o.HeaderBytes, o.HSTS = r.o.edge.limits, own.Clients, own.MaxConns, own.HeaderBytes, own.HSTS
	o.HeaderTimeout, o.BodyTimeout, o.WriteTimeout, o.IdleTimeout = own.HeaderTimeout, own.BodyTimeout, own.WriteTimeout, own.IdleTimeout
	o.BodyBytes = r.o.memory.Bodies
	if r.edge == nil {
		return o
	}
	o.Secure, o.Challenge, o.SecurePort = r.edge.Covers, r.edge.Challenge, r.o.edge.redirectPort
	if a, ok := r.ln.Addr().(*net.TCPAddr); ok && o.SecurePort == 0 {
		o.SecurePort = a.Port
	}
	return o
}

// shown are the lines about the edge that serve begins with.
func (r *router) shown() string {
	var b strings.Builder
	o := r.o.edge
	l := o.limits.WithDefaults()
	s := o.server
	fmt.Fprintf(&b, "limits  %s an event, %s a request, %d events a request, %s of headers, %s of bodies at once\n",
		sizeText(int64(l.Event)), sizeText(int64(l.Body)), l.Events, sizeText(int64(s.HeaderBytes)), sizeText(max(r.o.memory.Bodies, int64(l.Body))))
	per, rate := "any number", "any number"
	switch c := s.Clients.Conns; {
	case c > 0:
		per = fmt.Sprint(c)
	case c == 0:
		per = fmt.Sprintf("%d", max(s.MaxConns/10, 1))
	}
	strange := "any number"
	if s.Clients.StrangerRate > 0 {
		strange = fmt.Sprintf("%g/s", s.Clients.StrangerRate)
	}
	if s.Clients.Rate > 0 {
		rate = fmt.Sprintf("%g/s", s.Clients.Rate)
	}
	fmt.Fprintf(&b, "clients %d connections, of an address %s with %s of requests, %s of them without credentials\n", s.MaxConns, per, rate, strange)
	for _, f := range r.faces[1:] {
		switch f.Serves {
		case httpapi.Redirect:
			fmt.Fprintf(&b, "http    http://%s, redirects to https\n", f.Listener.Addr())
		default:
			fmt.Fprintf(&b, "admin   %s\n", urlOf(f))
		}
	}
	if r.edge != nil {
		for _, x := range r.edge.Expiries() {
			fmt.Fprintf(&b, "tls     %s until %s\n", clean(x.Name), x.At.UTC().Format(time.DateOnly))
		}
		for _, h := range o.acme.Hosts {
			fmt.Fprintf(&b, "acme    %s\n", clean(h))
		}
	}
	b.WriteString(r.grpc.shown(r.edge != nil))
	b.WriteString(r.mqtt.shown())
	fmt.Fprintf(&b, "listen  %s\n", urlOf(r.faces[0]))
	return b.String()
}

func urlOf(f httpapi.Face) string {
	a := f.Listener.Addr()
	switch {
	case a.Network() == "unix":
		return unixPrefix + a.String()
	case f.TLS != nil:
		return "https://" + a.String()
	}
	return "http://" + a.String()
}
