package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/connector/webhook"
	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
)

const (
	deliverConnections = 64
	// outstanding bounds what is published and not yet delivered, so that publishing and delivering go at one pace
	// and what is measured is the way of an event rather than a backlog.
	outstanding = 2000
	// aFilter matches every event that eventData makes.
	aFilter = `type == "order.created" && data.total > 100 && data.country in ["DE", "FR"]`
)

// measureWebhook is the limit of delivering: the sink's own client at the do-nothing server, unsigned, without a router.
func measureWebhook() measurement {
	return measurement{name: "webhook client", gives: []string{"webhook", "webhook-cpu"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			c, err := l.receiver()
			if err != nil {
				return err
			}
			dialer, err := egress.New(egress.Options{AllowPrivate: true})
			if err != nil {
				return err
			}
			sink, err := webhook.OpenSink(ctx, webhook.Options{URL: "http://" + c.addr + "/hook", Dialer: dialer, MaxConns: deliverConnections})
			if err != nil {
				return err
			}
			p, err := closed(ctx, deliverConnections, window{l.length(), ownCPU}, func(i int) (worker, error) {
				ev := event.Event{ID: "01M7Y9GX832T0M3MAY4RHSC2HR", Source: "/topics/delivered", Type: "order.created", Topic: "delivered",
					DataContentType: "application/json", Time: "2026-01-02T03:04:05.678Z", Data: eventData(i)}
				ds := []event.Delivery{{ID: "webhook:delivered@1:0-42:0", Subscription: "webhook", Topic: "delivered", Event: ev.AppendRecord(nil), Attempt: 1}}
				return worker{do: func() error { return sink.Deliver(ctx, ds) }, close: func() {}}, nil
			})
			put("webhook", p.perSecond)
			put("webhook-cpu", p.cpu)
			return errors.Join(err, sink.Close())
		}}
}

// A way is how events of the "delivered" rows reach the receiver.
type way struct {
	value    string // its topic and subscription as well
	name     string
	function bool
	batch    int    // events of a webhook; 0: one
	trace    string // of the topic; "": the default
}

// measureDelivered measures single events from publishing to the signed webhook.
func measureDelivered(w way) measurement {
	ready := false
	return measurement{name: w.name, gives: []string{w.value, w.value + "-cpu"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			if !ready {
				if err := l.prepare(ctx, w); err != nil {
					return err
				}
				ready = true
			}
			p, err := l.delivering(ctx, w.value)
			put(w.value, p.perSecond)
			put(w.value+"-cpu", p.cpu)
			return errors.Join(err, l.main.gone())
		}}
}

// prepare makes a way's topic, function and subscription.
func (l *lab) prepare(ctx context.Context, w way) error {
	r, err := l.mainRouter(ctx)
	if err != nil {
		return err
	}
	to, err := l.receiver()
	if err != nil {
		return err
	}
	hook := map[string]any{"url": "http://" + to.addr + "/hook", "secrets": []string{newSecret()}}
	if w.batch > 0 {
		hook["batch"] = map[string]any{"events": w.batch, "wait": "5ms"}
	}
	sub := map[string]any{"name": w.value, "topic": w.value, "filter": aFilter, "concurrency": deliverConnections,
		"deliver": map[string]any{"webhook": hook}}
	if w.function {
		module, err := l.guest(ctx)
		if err != nil {
			return err
		}
		if err := r.call(ctx, "PUT", "/v1/functions/redact", "application/wasm", module, nil); err != nil {
			return err
		}
		sub["functions"] = []string{"redact"}
	}
	topic := fmt.Appendf(nil, `{"name":%q}`, w.value)
	if w.trace != "" {
		topic = fmt.Appendf(nil, `{"name":%q,"trace":%q}`, w.value, w.trace)
	}
	if err := r.call(ctx, "POST", "/v1/topics", "application/json", topic, nil); err != nil {
		return err
	}
	doc, err := json.Marshal(sub)
	if err != nil {
		return err
	}
	return r.call(ctx, "POST", "/v1/subscriptions", "application/json", doc, nil)
}

// guest builds the C function; its source names the command.
func (l *lab) guest(ctx context.Context) ([]byte, error) {
	const source = "plugins/abi/native/testdata/redact.c"
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/millrace/millrace").Output()
	if err != nil {
		return nil, fmt.Errorf("find the module's folder: %w", err)
	}
	if _, err := exec.LookPath("clang-19"); err != nil {
		return nil, fmt.Errorf("%w: clang-19 is not installed, which builds the function; `make bench` installs it", errMissing)
	}
	out := filepath.Join(l.dir, "redact.wasm")
	text, err := exec.CommandContext(ctx, "clang-19", "--target=wasm32-wasi", "-mexec-model=reactor", "-O3", "-mbulk-memory", "-Wl,--strip-all",
		"-o", out, filepath.Join(strings.TrimSpace(string(root)), source)).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("build %s: %w\n%s", source, err, text)
	}
	return os.ReadFile(out)
}

// newSecret is a secret of Standard Webhooks.
func newSecret() string {
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails
	return webhook.SecretPrefix + base64.StdEncoding.EncodeToString(b[:])
}

// delivering publishes to a topic as fast as its subscription delivers, and returns the pace at which events arrive.
func (l *lab) delivering(ctx context.Context, topic string) (p pace, err error) {
	win := window{l.length(), l.main.cpu}
	var sent atomic.Int64
	start := l.board.count.Load()
	path := "/v1/topics/" + topic + "/events?type=order.created"
	err = crew(ctx, deliverConnections, win.length(), func(i int) (worker, error) {
		p, err := newPoster(ctx, l.main.addr, postRequest(l.main.addr, path, "application/json", eventData(i)))
		if err != nil {
			return worker{}, err
		}
		return p.worker(), nil
	}, func(_ int, w worker) error {
		if sent.Load()-(l.board.count.Load()-start) > outstanding {
			return sleep(ctx, 200*time.Microsecond)
		}
		sent.Add(1)
		return w.do()
	}, func(ctx context.Context) { p = win.watch(ctx, l.board.count.Load) })
	if err == nil && p.perSecond == 0 {
		err = errNothing
	}
	if err != nil {
		return pace{}, err
	}
	return p, l.settled(ctx, start+sent.Load())
}

// settled waits until the receiver has got as many as it should.
func (l *lab) settled(ctx context.Context, want int64) error {
	for end := time.Now().Add(20 * time.Second); l.board.count.Load() < want; {
		if time.Now().After(end) {
			return fmt.Errorf("%d deliveries are missing 20 s after the last event was published", want-l.board.count.Load())
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// measureLatency measures from the start of a publishing request to the arrival at the receiver, at half of the rate
// that the same way reaches.
func measureLatency(w way) measurement {
	return measurement{name: "publish to delivery at half of the peak", gives: []string{"late-p50", "late-p99"}, needs: []string{w.value},
		run: func(ctx context.Context, l *lab, of func(string) float64, put func(string, float64)) error {
			perSecond := of(w.value) / 2
			n := min(int(perSecond*2*l.o.seconds), boardSlots)
			path := "/v1/topics/" + w.value + "/events?type=order.created"
			var posters []*poster
			defer func() {
				for _, p := range posters {
					_ = p.conn.Close()
				}
			}()
			for i := range deliverConnections {
				p, err := newPoster(ctx, l.main.addr, postRequest(l.main.addr, path, "application/json", eventData(i)))
				if err != nil {
					return err
				}
				posters = append(posters, p)
			}
			l.board.watch(true)
			defer l.board.watch(false)
			start := l.board.count.Load()
			sent, err := paced(ctx, posters, n, perSecond)
			if err != nil {
				return errors.Join(err, l.main.gone())
			}
			if err := l.settled(ctx, start+int64(n)); err != nil {
				return err
			}
			took := make([]float64, 0, n)
			for i := n / 5; i < n; i++ { // the first are the warm-up
				came := l.board.slots[i].Load()
				if came == 0 {
					return fmt.Errorf("event %d was never seen at the receiver", i)
				}
				took = append(took, float64(came-sent[i])/1e3)
			}
			slices.Sort(took)
			put("late-p50", percentile(took, 0.5))
			put("late-p99", percentile(took, 0.99))
			return nil
		}}
}

// measureFsync is one half of that's limit: 4 KiB appended and synced, again and again.
func measureFsync() measurement {
	return measurement{name: "append and fdatasync", gives: []string{"fsync-p50", "fsync-p99"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			f, err := os.CreateTemp(l.dir, "fsync-")
			if err != nil {
				return err
			}
			defer f.Close()
			took, err := oneByOne(ctx, l.length()/2, func() error {
				if _, err := f.Write(fsyncBlock[:]); err != nil {
					return err
				}
				return fdatasync(f)
			})
			if err != nil {
				return err
			}
			l.fsyncs = float64(len(took)) / (l.length() / 2).Seconds()
			put("fsync-p50", percentile(took, 0.5))
			put("fsync-p99", percentile(took, 0.99))
			return nil
		}}
}

var fsyncBlock [4 << 10]byte

// measurePost is the other half: one POST of an event to the do-nothing server after the other.
func measurePost() measurement {
	return measurement{name: "one loopback POST after the other", gives: []string{"post-p50", "post-p99"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			c, err := l.receiver()
			if err != nil {
				return err
			}
			p, err := newPoster(ctx, c.addr, postRequest(c.addr, "/hook", "application/json", eventData(0)))
			if err != nil {
				return err
			}
			defer p.conn.Close()
			took, err := oneByOne(ctx, l.length()/2, p.post)
			if err != nil {
				return err
			}
			put("post-p50", percentile(took, 0.5))
			put("post-p99", percentile(took, 0.99))
			return nil
		}}
}

// oneByOne does something again and again for d and returns how long each time took, sorted, in microseconds.
func oneByOne(ctx context.Context, d time.Duration, do func() error) ([]float64, error) {
	var took []float64
	for begin := time.Now(); time.Since(begin) < d; {
		at := time.Now()
		if err := do(); err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(at).Nanoseconds())/1e3)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	slices.Sort(took)
	return took, nil
}
