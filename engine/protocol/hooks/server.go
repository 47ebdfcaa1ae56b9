package hooks

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/valyala/fasthttp"

	"github.com/millrace/millrace/engine/event"
)

// Path is where the sources are mounted, by their names.
const Path = "/v1/sources/{name}"

// A Source is a source in force.
type Source struct {
	event.Source
	Verifier event.Verifier
	// Fill sets the attributes of a webhook's event by expression: Type, Subject, PartitionKey, ID and Time, the last as
	// RFC 3339 or as seconds or milliseconds since 1970. What it finds nothing for stays empty.
	Fill func(h *event.Hook, ev *event.Event) error
	Doc  json.RawMessage // the definition with its defaults and without secrets, as it is shown
}

// Options configure a Server. The zero value of a field means its default.
type Options struct {
	// Receive stores an event once: one whose source and id, or proof, was stored before is a repeat, and id the first's.
	Receive func(ctx context.Context, topic string, ev *event.Event, proof []byte) (id string, repeat bool, err error)
	Timeout time.Duration // to verify by a function, or to confirm a subscription; 10 s
	Now     func() time.Time
	Log     *slog.Logger
}

// A Server takes webhooks in. Its methods may be called from several goroutines.
type Server struct {
	o       Options
	sources atomic.Pointer[map[string]*serving]
	unknown atomic.Uint64 // webhooks for sources that there are not
	setting sync.Mutex
	hooks   sync.Pool // *event.Hook
}

// serving is a source and how it stands.
type serving struct {
	Source
	counts *counts
}

// New returns a server without sources.
func New(o Options) (*Server, error) {
	if o.Receive == nil {
		return nil, errors.New("hooks: options: Receive is missing")
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o}
	s.hooks.New = func() any { return new(event.Hook) }
	s.sources.Store(&map[string]*serving{})
	return s, nil
}

// Set puts sources in force in place of those before; what was counted of one that stays is kept.
func (s *Server) Set(list []Source) {
	s.setting.Lock()
	defer s.setting.Unlock()
	old := *s.sources.Load()
	next := make(map[string]*serving, len(list))
	for _, x := range list {
		v := &serving{Source: x, counts: new(counts)}
		if was := old[x.Name]; was != nil {
			v.counts = was.counts
		}
		next[x.Name] = v
	}
	s.sources.Store(&next)
}

// List returns the sources in force, by name.
func (s *Server) List() []Source {
	var list []Source
	for _, x := range *s.sources.Load() {
		list = append(list, x.Source)
	}
	slices.SortFunc(list, func(a, b Source) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// find returns a source.
func (s *Server) find(name string) (*serving, error) {
	x := (*s.sources.Load())[name]
	if x == nil {
		return nil, event.Bad(event.ErrNotFound, "source", fmt.Sprintf("%.80q is no source of this router; sources are defined in its rules", name))
	}
	return x, nil
}

// answer is what a sender is told in place of the usual.
type answer struct {
	ContentType string
	Body        []byte
}

// What a verifier may do besides.
type (
	// shaker answers handshakes that are webhooks, once they are verified; nil: it is none. A trial changes nothing
	// anywhere.
	shaker interface {
		Shake(ctx context.Context, h *event.Hook, trial bool) (*answer, error)
	}
	// typed says what bodies are, where the sender's content-type does not.
	typed interface{ Media() string }
	// subscriber answers the GET by which a sender asks whether it may send.
	subscriber interface {
		Subscribe(h *event.Hook, say func(step string)) (*answer, error)
	}
	// quiet says how to answer senders that act on a body.
	quiet interface{ Quiet() *answer }
)

// Serve answers one request to a source. The listener has judged its framing, Host and Origin; who sends is judged here.
func (s *Server) Serve(ctx *fasthttp.RequestCtx, _ func(func(context.Context, net.Conn, []byte)) error) error {
	path := ctx.Path()
	name := path[strings.LastIndexByte(borrow(path), '/')+1:]
	x, err := s.find(borrow(name))
	if err != nil {
		s.unknown.Add(1)
		return err
	}
	h := s.hooks.Get().(*event.Hook)
	defer s.recycle(h)
	s.read(h, x, ctx)
	err = s.serve(ctx, x, h)
	if err != nil {
		x.counts.refused(s.o.Now(), err)
		s.o.Log.Debug("a webhook was refused", "source", x.Name, "error", err)
	}
	return err
}

func (s *Server) serve(ctx *fasthttp.RequestCtx, x *serving, h *event.Hook) error {
	switch {
	case ctx.IsOptions():
		return s.consent(ctx, x, h)
	case !ctx.IsPost():
		sub, ok := x.Verifier.(subscriber)
		if !ok {
			return event.Bad(event.ErrNotFound, "", "there is no handshake by GET for this source; webhooks are sent by POST")
		}
		a, err := sub.Subscribe(h, nil)
		if err == nil {
			x.counts.handshakes.Add(1)
			a.write(ctx)
		}
		return err
	}
	work, cancel := s.workFor(x)
	defer cancel()
	var ev event.Event
	shaken, proof, err := s.take(work, x, h, &ev, nil)
	switch {
	case err != nil:
		return err
	case shaken != nil:
		x.counts.handshakes.Add(1)
		shaken.write(ctx)
		return nil
	}
	id, repeat, err := s.o.Receive(work, x.Topic, &ev, proof)
	if err != nil {
		return err
	}
	switch {
	case !repeat:
		x.counts.accepted.Add(1)
	case id == ev.ID:
		x.counts.repeats.Add(1)
	default: // somebody changed what is not signed, or the sender says the same of two things
		x.counts.renamed.Add(1)
		s.o.Log.Warn("a webhook is signed as one before and has another id; it is taken for a repeat, unless rules say `repeats: id`", "source", x.Name, "id", ev.ID, "first", id)
	}
	if q, ok := x.Verifier.(quiet); ok {
		q.Quiet().write(ctx)
		return nil
	}
	doc, err := json.Marshal(struct {
		ID string `json:"id"`
	}{id})
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	done := answer{ContentType: "application/json", Body: append(doc, '\n')}
	done.write(ctx)
	return nil
}

// workFor is what verifying and storing run under. Only what asks others needs an end of its own.
func (s *Server) workFor(x *serving) (context.Context, context.CancelFunc) {
	_, asks := x.Verifier.(shaker)
	if asks || x.Verifier.Provides().Function != "" {
		return context.WithTimeout(context.Background(), s.o.Timeout)
	}
	return context.Background(), func() {}
}

// take verifies a webhook and makes its event, or answers its handshake. proof is not nil where repeats are told by it
// besides the id.
func (s *Server) take(ctx context.Context, x *serving, h *event.Hook, ev *event.Event, say func(string)) (shaken *answer, proof []byte, err error) {
	if v, n := h.Header("content-encoding"); n > 0 && !strings.EqualFold(v, "identity") {
		return nil, nil, event.Invalid("content-encoding", fmt.Sprintf("is %.40q; a webhook is signed as it is sent, without encoding", v))
	}
	if err := x.Verifier.Verify(ctx, h, say); err != nil {
		return nil, nil, err
	}
	contentType := mediaType(h, x.Verifier.Provides())
	if t, ok := x.Verifier.(typed); ok {
		contentType = t.Media()
	}
	if err := readData(h, contentType, x.RawForm, ev); err != nil {
		return nil, nil, err
	}
	if shake, ok := x.Verifier.(shaker); ok {
		if a, err := shake.Shake(ctx, h, say != nil); a != nil || err != nil {
			if say != nil {
				told(say, "it is a handshake, which is answered and not stored")
			}
			return a, nil, err
		}
	}
	if err := x.attributes(h, ev); err != nil {
		return nil, nil, err
	}
	if h.Proved && !x.ByID {
		// Also where the id is signed: what reads it out of the body goes by headers that are not.
		proof = h.Proof[:]
	}
	if h.Proved && ev.ID == "" { // no id of the sender's: what was signed is one
		ev.ID = hex.EncodeToString(h.Proof[:16])
	}
	ev.ClientID = ev.ID != ""
	return nil, proof, nil
}

// attributes fills in the event's.
func (x *serving) attributes(h *event.Hook, ev *event.Event) error {
	if err := x.Fill(h, ev); err != nil {
		return err
	}
	ev.Source = x.EventSource()
	ev.Time = eventTime(ev.Time)
	if ev.Type == "" {
		ev.Type = "webhook"
	}
	for _, name := range x.Headers {
		switch v, n := h.Header(name); {
		case n > 1:
			return event.Invalid(name, fmt.Sprintf("the header is there %d times; want one, to be kept", n))
		case n == 1 && v != "":
			ev.Extensions = append(ev.Extensions, event.Attribute{Name: event.ExtensionName(name), Value: v})
		}
	}
	return nil
}

// eventTime reads an expression's time; what is none is left out, so that it becomes that of receipt.
func eventTime(text string) string {
	if text == "" {
		return ""
	}
	digits, fraction, isFraction := strings.Cut(text, ".") // such as 1355517523.000005
	if allDigits(digits) && len(digits) <= 13 && (!isFraction || allDigits(fraction)) {
		n := int64(0)
		for _, c := range []byte(digits) {
			n = n*10 + int64(c-'0')
		}
		if len(digits) > 11 {
			return time.UnixMilli(n).UTC().Format("2006-01-02T15:04:05.000Z07:00")
		}
		return time.Unix(n, 0).UTC().Format(time.RFC3339)
	}
	if _, err := event.ParseTime(text); err != nil {
		return ""
	}
	return text
}

func allDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// read fills in a hook, which borrows the request.
func (s *Server) read(h *event.Hook, x *serving, ctx *fasthttp.RequestCtx) {
	h.Source, h.Method, h.Body, h.Received = x.Name, borrow(ctx.Method()), ctx.Request.Body(), s.o.Now()
	for k, v := range ctx.Request.Header.All() {
		h.Headers = append(h.Headers, event.HookHeader{Name: borrow(k), Value: borrow(v)})
	}
	uri := borrow(ctx.RequestURI())
	_, h.Query, _ = strings.Cut(uri, "?")
	switch {
	case x.URL != "":
		if h.URL = x.URL; h.Query != "" {
			h.URL += "?" + h.Query
		}
	default:
		scheme := "http://"
		if ctx.IsTLS() {
			scheme = "https://"
		}
		if strings.HasPrefix(uri, "/") {
			uri = scheme + borrow(ctx.Host()) + uri
		}
		h.URL = uri
	}
}

func (s *Server) recycle(h *event.Hook) {
	clear(h.Headers)
	*h = event.Hook{Headers: h.Headers[:0]}
	s.hooks.Put(h)
}

// consent answers OPTIONS: whether a CloudEvents sender may deliver here (HTTP 1.1 Web Hooks for Event Delivery, 4). The
// answer is given at once, so that WebHook-Request-Callback is not needed, and nobody makes the router call an address.
func (s *Server) consent(ctx *fasthttp.RequestCtx, x *serving, h *event.Hook) error {
	ctx.Response.Header.Set("Allow", "OPTIONS, POST")
	origin, n := h.Header("webhook-request-origin")
	switch {
	case n > 1:
		return event.Invalid("webhook-request-origin", fmt.Sprintf("is there %d times; want one", n))
	case n == 1 && !x.admits(origin):
		return event.Bad(event.ErrDenied, "webhook-request-origin", fmt.Sprintf("%.80q may not deliver to this source; its rules name who may in origins", origin))
	case n == 1:
		x.counts.handshakes.Add(1)
		ctx.Response.Header.Set("WebHook-Allowed-Origin", origin)
		ctx.Response.Header.Set("WebHook-Allowed-Rate", "*")
	}
	ctx.SetStatusCode(fasthttp.StatusNoContent)
	return nil
}

func (x *serving) admits(origin string) bool {
	return slices.ContainsFunc(x.Origins, func(o string) bool { return o == "*" || strings.EqualFold(o, origin) })
}

func (a *answer) write(ctx *fasthttp.RequestCtx) {
	ctx.SetStatusCode(fasthttp.StatusOK)
	if a.ContentType != "" {
		ctx.SetContentType(a.ContentType)
		ctx.Response.Header.Set("X-Content-Type-Options", "nosniff") // a challenge is the sender's text
	}
	ctx.Response.SetBody(a.Body)
}

func borrow(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func lower(s string) string { return strings.ToLower(s) }
