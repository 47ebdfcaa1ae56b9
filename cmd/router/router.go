package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/edge"
	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/protocol/hooks"
	"github.com/millrace/millrace/engine/protocol/httpapi"
	"github.com/millrace/millrace/engine/protocol/ws"
	"github.com/millrace/millrace/engine/rules"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage"
	"github.com/millrace/millrace/storage/pebblestore"
)

// routerOptions are a router process's options. What is routed where is rules, not options.
type routerOptions struct {
	rules       string        // file, folder or URL; "" for none
	rulesOwner  string        // ownerFile or ownerAPI: whose rules are taken where there are both
	remote      remoteOptions // where rules is a URL
	data        string
	listen      string
	grpcListen  string // "" for none
	mqtt        mqttOptions
	token       string
	accessFile  string // the policy; "" for none
	auditTopic  string // "" for none
	insecure    bool
	egress      string // file of the policy of targets; "" for none
	edge        edgeOptions
	private     bool // targets on loopback and private networks are allowed
	autoCreate  bool
	corsOrigins []string
	hosts       []string
	acceptClock bool
	look        time.Duration // between two looks at the rules files; 0: a second
	memory      memorySplit
	compiler    []string // compiles modules; nil: this process
	cache       string   // of compiled modules; "": in the data directory
	env         func(string) string
	files       func(path string) ([]byte, error) // of the rules; nil reads the disk
	trust       trust                             // of certificates that sign webhooks; the zero one but in tests
	log         *slog.Logger
}

// A router is a whole router process: store, functions, engine, HTTP face.
type router struct {
	o      routerOptions
	store  *pebblestore.Store
	host   *plugins.Host
	engine *engine.Engine
	defs   *definitions
	inlets *inlets
	policy *egressFile
	dialer *egress.Dialer
	http   *httpapi.Server
	ws     *ws.Server
	grpc   grpcFace
	mqtt   mqttFace
	hooks  *hooks.Server
	guard  *guard
	door   *admission.Door // of all faces
	edge   *edge.Edge      // nil without TLS
	faces  []httpapi.Face
	ln     net.Listener // of the first of them
}

// drainTime is how long a router that is told to stop lets requests and sends finish.
const drainTime = 25 * time.Second

// openRouter opens everything and listens; nothing is served until run. On error nothing stays open.
func openRouter(ctx context.Context, o routerOptions) (r *router, err error) {
	r = &router{o: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close(ctx))
			r = nil
		}
	}()
	if o.memory.Total > 0 {
		debug.SetMemoryLimit(o.memory.Total)
	}
	note, release, err := openData(o.data)
	if err != nil {
		return r, err
	}
	m := newMetrics()
	m.engine, m.store = func() *engine.Engine { return r.engine }, func() storage.Stats { return r.store.Stats() }
	m.streams = r.streams
	r.store, err = pebblestore.Open(ctx, pebblestore.Options{
		Dir: filepath.Join(o.data, storeDir), Cache: o.memory.Cache, MemTable: o.memory.MemTable,
		BlockCache: o.memory.Fresh, DedupeBytes: o.memory.Dedupe, AcceptClock: o.acceptClock,
		Logf: func(format string, args ...any) { o.log.Warn("store: " + fmt.Sprintf(format, args...)) },
	})
	if err = errors.Join(err, release()); err != nil {
		return r, err
	}
	functionLog := func(function string, level int, message string) {
		o.log.Log(ctx, slog.Level(level*4-4), message, "function", function)
	}
	getenv := func(name string) (string, bool) { v := o.env(name); return v, v != "" }
	r.policy = newEgressFile(o.egress, getenv)
	dialer, err := r.policy.open(o.private)
	if err != nil {
		return r, err
	}
	if r.host, err = plugins.NewHost(ctx, plugins.Options{
		ABIs: abis(), Engines: engines(), Dir: filepath.Join(o.data, "functions"), Cache: o.cache, Memory: o.memory.Functions,
		Compiler: o.compiler, Fetch: fetcher(dialer), Log: functionLog,
	}); err != nil {
		return r, err
	}
	var fork uint32
	if note != nil {
		fork = note.Fork
	}
	if r.engine, err = engine.Open(ctx, engine.Options{Store: r.store, Host: r.host, Fork: fork, Sealed: o.auditTopic, AutoCreate: o.autoCreate, AcceptClock: o.acceptClock, Limits: o.edge.limits, SendBytes: o.memory.Sends, Observer: m.observer(), Log: o.log}); err != nil {
		return r, err
	}
	if err := tidyData(o.data, note); err != nil {
		return r, fmt.Errorf("data directory: %w", err)
	}
	r.dialer, m.refusals = dialer, dialer.Refusals
	if r.hooks, err = hooks.New(hooks.Options{Receive: r.engine.Receive, Log: o.log}); err != nil {
		return r, err
	}
	m.sources = r.hooks.Stats
	schemes, err := schemesOf(r.engine, dialer, o.trust)
	if err != nil {
		return r, err
	}
	r.inlets = newInlets(r.engine, o.log)
	m.inlets = r.inlets.states
	r.defs = &definitions{eng: r.engine, inlets: r.inlets, sources: r.hooks.Set, host: r.host, path: o.rules, owner: o.rulesOwner, sealed: o.auditTopic, embed: o.files != nil, log: o.log,
		o: rules.Options{Sinks: sinkKinds(dialer), Schemes: schemes, Bridges: bridgeKinds(linkProcess{dialer: dialer, engine: r.engine}), Getenv: getenv, ReadFile: o.files}}
	if isRemote(o.rules) {
		if r.defs.afar, err = openRemoteRules(o.rules, o.data, o.remote, dialer); err != nil {
			return r, err
		}
		r.defs.path = r.defs.afar.shown
	}
	m.rules, m.revision = r.defs.loadStats, r.defs.rulesSource
	if err := r.defs.open(ctx); err != nil {
		return r, err
	}
	if r.guard, err = openGuard(o, r.engine, dialer, getenv); err != nil {
		return r, err
	}
	r.defs.refused = r.guard.Refused
	m.callers, m.issuers = r.guard.Refusals, r.guard.Issuers
	if o.auditTopic != "" && !r.defs.Has(access.Topic, o.auditTopic) {
		doc, err := json.Marshal(map[string]any{"name": o.auditTopic, "retain": map[string]string{"age": auditAge}})
		if err == nil {
			_, err = r.defs.Create(ctx, kindTopics, doc)
		}
		if err != nil {
			return r, fmt.Errorf("--audit-topic: %w", err)
		}
	}
	book, err := openBackupBook(o.data)
	if err != nil { // no reason to stand still
		o.log.Warn("when the last backup was made is not known", "error", err)
	}
	m.backups = book.stats
	b := backend{Engine: r.engine, definitions: r.defs, backtesting: newBacktesting(r.defs), store: r.store, start: time.Now(),
		backups: backups{data: o.data, store: r.store, version: thisBuild().Version, now: time.Now, one: &sync.Mutex{}, book: book}}
	if err := r.openFaces(ctx, b, dialer, m); err != nil {
		return r, err
	}
	debug.FreeOSMemory() // what compiling functions took is not needed again
	return r, nil
}

// streams are the figures of connections that stay open.
func (r *router) streams() (s streamStats) {
	if r.http != nil {
		s.readers, s.dropped = r.http.SSE()
	}
	if r.ws != nil {
		s.sockets = r.ws.Stats()
	}
	return s
}

// run serves until ctx ends, then drains: new work is refused, what is under way may finish, cursors are
// written, everything is closed.
func (r *router) run(ctx context.Context, hangup <-chan os.Signal) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, failed := errgroup.WithContext(serving)
	g.Go(func() error { return r.http.ServeFaces(serving, r.faces...) })
	g.Go(r.grpc.serve)
	g.Go(func() error { return r.mqtt.serve(serving) })
	telling, told := context.WithCancel(ctx)
	defer context.AfterFunc(serving, told)()
	g.Go(func() error {
		if err := newNotifier(r.o.env).live(telling, func() bool { return r.store.Stats().Degraded == "" }); err != nil {
			r.o.log.Warn("systemd is not told how this goes", "error", err)
		}
		return nil
	})
	r.watch(serving, g, hangup)
	g.Go(func() error { return r.guard.Run(serving) })
	if a := r.guard.audit; a != nil {
		g.Go(func() error {
			a.run(serving)
			return nil
		})
	}
	var broken error
	select {
	case <-ctx.Done():
		r.o.log.Info("draining", "for", drainTime)
	case <-failed.Done():
	case <-r.store.Fatal():
		broken = errors.New("the store cannot write any more: " + r.store.Stats().Degraded + "; nothing was acknowledged since; free the disk or look at it, then start again")
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	gone := r.mqtt.shutdown(ending) // before publishing is refused: clients of 3.1.1 cannot be told so
	r.engine.Drain()
	var beside errgroup.Group
	beside.Go(func() error { return r.grpc.shutdown(ending) })
	shutdown := errors.Join(gone, r.http.Shutdown(ending), beside.Wait())
	stop()
	return errors.Join(broken, g.Wait(), shutdown, r.close(ending))
}

// close closes what is open, in the order in which one part needs the other.
func (r *router) close(ctx context.Context) error {
	errs := []error{r.mqtt.close()}
	r.inlets.close()
	if r.engine != nil {
		errs = append(errs, r.engine.Close(ctx))
	}
	if r.host != nil {
		errs = append(errs, r.host.Close(context.WithoutCancel(ctx)))
	}
	if r.store != nil {
		errs = append(errs, r.store.Close())
	}
	if r.http == nil {
		for _, f := range r.faces {
			errs = append(errs, f.Listener.Close())
		}
	}
	errs = append(errs, r.grpc.close())
	return errors.Join(errs...)
}
