package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func serveCommand(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a router",
		Long: `Run a router until SIGTERM or SIGINT, which drain it: it refuses new events, finishes what is under way
within 25 s, writes its cursors and ends.

Without --rules it takes ./millrace.yaml if there is one, else /etc/millrace/ if there is one, else it runs
without rules: topics and subscriptions are then made over the API, and topics by publishing to them. The
rules are loaded again on SIGHUP (where there is one: not on Windows) and when the file changes; a bad file changes nothing.

With a URL the rules come from afar: one file or a bundle, signed with 'router rules sign' where --rules-key is given. It
is asked for every --rules-poll; the last good one is kept in the data directory, so that a start needs no network.
MILLRACE_RULES_TOKEN is sent as a bearer token.

Access control is on where MILLRACE_TOKEN is set, --access names a policy, or there is an API key ('router keys create').
Beyond loopback it listens only with one of them or --insecure.

With --grpc-listen it speaks gRPC there, by the same certificates and to the same clients, with --mqtt-listen and
--mqtt-tls-listen MQTT 3.1.1 and 5.0.

With --tls-cert or --acme-host it speaks HTTPS. Certificates, and the authorities of --client-ca, are read again when
their files change; what cannot be used is logged and the old stays. With --admin-listen everything that changes or looks
into the router itself is answered there, and at --listen is as if it did not exist.`,
		Example: `  router serve --rules millrace.yaml --data ./data
  router serve --rules https://config.example.com/rules.bundle --rules-key pub.pem
  MILLRACE_TOKEN=$(cat token) router serve --listen 0.0.0.0:8080
  router serve --rules millrace.yaml --grpc-listen 127.0.0.1:8085
  router serve --rules millrace.yaml --mqtt-listen 127.0.0.1:1883
  MILLRACE_TOKEN=$(cat token) router serve --listen :443 --tls-cert fullchain.pem --tls-key privkey.pem --http-redirect :80
  MILLRACE_TOKEN=$(cat token) router serve --listen :443 --acme-host events.example.com --admin-listen 127.0.0.1:8081`,
		Args: cobra.NoArgs,
	}
	var o routerOptions
	var memory, profile string
	f := cmd.Flags()
	f.StringVar(&o.rules, "rules", "", "rules: a YAML `file`, a folder of them, or a URL")
	f.StringVar(&o.rulesOwner, "rules-owner", "", "where rules were applied over the API before: take the `file or api`")
	f.StringVar(&o.remote.keys, "rules-key", "", "`file` of the Ed25519 public key that rules from a URL must be signed with (PEM)")
	f.DurationVar(&o.remote.poll, "rules-poll", defaultPoll, "how often to ask a URL for other rules")
	f.BoolVar(&o.remote.older, "rules-allow-older", false, "take signed rules that are older than those in force")
	f.StringVar(&o.data, "data", "", "data `directory` ($STATE_DIRECTORY, else ~/.local/share/millrace)")
	f.StringVar(&o.listen, "listen", "127.0.0.1:8080", "`address` to listen on")
	grpcFlags(f, &o.grpcListen)
	o.mqtt.flags(f)
	f.StringVar(&memory, "memory", "", "memory to use, such as `400MiB` (80 % of the cgroup's or the machine's)")
	f.BoolVar(&o.private, "allow-private-targets", false, "allow webhooks to loopback, private and other special addresses")
	f.StringVar(&o.egress, "egress", "", "policy `file` of where webhooks and functions may connect to, read again when it changes")
	f.BoolVar(&o.autoCreate, "auto-create-topics", false, "make unknown topics when they are published to (on without rules)")
	f.StringArrayVar(&o.corsOrigins, "cors-origin", nil, "allow pages of this `origin` to call; may be repeated")
	f.StringArrayVar(&o.hosts, "host", nil, "allow this `name` in the Host header; may be repeated")
	f.BoolVar(&o.insecure, "insecure", false, "listen beyond loopback without access control")
	f.StringVar(&o.accessFile, "access", "", "policy `file` of who may do what, read again when it changes; turns access control on")
	f.StringVar(&o.auditTopic, "audit-topic", "", "store refusals and changes as events in this `topic` as well; only the router writes to it")
	f.BoolVar(&o.acceptClock, "accept-clock", false, "believe a wall clock that has moved on by more than a year")
	o.edge.flags(f)
	f.StringVar(&profile, "cpuprofile", "", "write a CPU profile to `file` until the router ends")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		bytes := defaultMemory()
		if memory != "" {
			var err error
			if bytes, err = parseSize(memory); err != nil {
				return usagef(cmd, "--memory: %v", err)
			}
		}
		if bytes < minMemory {
			return usagef(cmd, "--memory %s: a router needs %s at least", sizeText(bytes), sizeText(minMemory))
		}
		o.memory = splitMemory(bytes)
		if err := checkGiven(cmd); err != nil {
			return err
		}
		if err := checkRemoteFlags(cmd, o); err != nil {
			return err
		}
		if err := cmp.Or(o.edge.check(cmd), o.mqtt.check(cmd)); err != nil {
			return err
		}
		if o.rulesOwner != "" && o.rulesOwner != ownerFile && o.rulesOwner != ownerAPI {
			return usagef(cmd, "--rules-owner %q: want file or api", o.rulesOwner)
		}
		if err := p.serveDefaults(&o); err != nil {
			return err
		}
		if profile != "" {
			out, err := os.Create(profile)
			if err != nil {
				return fmt.Errorf("--cpuprofile: %w", err)
			}
			defer out.Close()
			if err := pprof.StartCPUProfile(out); err != nil {
				return fmt.Errorf("--cpuprofile: %w", err)
			}
			defer pprof.StopCPUProfile()
		}
		return p.serve(cmd, o)
	}
	return cmd
}

// checkGiven refuses flags that are given with nothing in them, as a template leaves them: what was meant to be asked or kept
// out would not be.
func checkGiven(cmd *cobra.Command) error {
	var empty []string
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Value.Type() == "string" && f.Value.String() == "" {
			empty = append(empty, "--"+f.Name)
		}
	})
	if len(empty) > 0 {
		return usagef(cmd, "%s: given and empty; give a value, or leave it out", strings.Join(empty, ", "))
	}
	return nil
}

// checkRemoteFlags refuses flags of rules from afar where there are none: a key that checks nothing must not look as if
// it did.
func checkRemoteFlags(cmd *cobra.Command, o routerOptions) error {
	if o.remote.poll < minPoll {
		return usagef(cmd, "--rules-poll %s: want %s or more", o.remote.poll, minPoll)
	}
	for _, name := range []string{"rules-key", "rules-poll", "rules-allow-older"} {
		if cmd.Flags().Changed(name) && !isRemote(o.rules) {
			return usagef(cmd, "--%s is for rules from a URL, and --rules is %q", name, clean(o.rules))
		}
	}
	return nil
}

// minMemory is what the parts need at their smallest.
const minMemory = 96 << 20

// serveDefaults fills in what depends on the surroundings.
func (p *program) serveDefaults(o *routerOptions) error {
	o.remote.token = p.env("MILLRACE_RULES_TOKEN")
	o.token, o.env, o.compiler = p.env("MILLRACE_TOKEN"), p.env, p.compiler()
	o.log = slog.New(slog.NewTextHandler(p.stderr, nil))
	if o.rules == "" {
		for _, path := range []string{"millrace.yaml", "/etc/millrace"} {
			if _, err := os.Stat(path); err == nil {
				o.rules = path
				break
			}
		}
	}
	if o.rules == "" {
		o.autoCreate = true
	}
	if o.data == "" {
		o.data = p.env("STATE_DIRECTORY")
	}
	if o.data == "" {
		home := cmp.Or(p.env("HOME"), p.env("USERPROFILE")) // the second is Windows'
		if home == "" {
			return fmt.Errorf("no data directory: name one with --data, or set STATE_DIRECTORY or HOME")
		}
		o.data = filepath.Join(home, ".local", "share", "millrace")
	}
	return nil
}

func (p *program) serve(cmd *cobra.Command, o routerOptions) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	r, err := openRouter(cmd.Context(), o)
	if err != nil {
		return err
	}
	rulesText := r.defs.path
	if rulesText == "" {
		rulesText = "none; topics and subscriptions are made over the API"
	}
	fmt.Fprintf(p.stdout, "rules   %s\ndata    %s\nmemory  %s\naccess  %s\n%s", rulesText, o.data, o.memory, r.guard.state(), r.shown())
	return r.run(cmd.Context(), hangup)
}
