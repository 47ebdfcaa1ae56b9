package webhook

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/millrace/millrace/engine/connector/sinktest"
	"github.com/millrace/millrace/engine/event"
)

func TestSinkConformance(t *testing.T) {
	for _, format := range []string{Structured, Binary, Data, batches} {
		for _, scheme := range []string{"http", "https"} {
			t.Run(format+" "+scheme, func(t *testing.T) {
				if scheme == "https" && format != Structured {
					return // the formats know nothing of TLS: once is enough
				}
				sinktest.Run(t, sinktest.Harness{
					Open: func(t *testing.T) sinktest.Target { return target1(t, format, scheme == "https") },
					Features: sinktest.Features{Attributes: format != Data, NoData: format == Structured || format == batches,
						Batch: format == batches, Busy: true, Gone: true, Silent: true},
				})
			})
		}
	}
}

// batches is structured mode with several events in a request.
const batches = "batches"

func target1(t *testing.T, format string, https bool) sinktest.Target {
	var behaviour atomic.Int64
	r := &receiver{}
	end := make(chan struct{})
	h := r.handler(func(w http.ResponseWriter, req *http.Request) {
		switch sinktest.Behaviour(behaviour.Load()) {
		case sinktest.Fail:
			w.WriteHeader(500)
		case sinktest.Busy:
			w.Header().Set("Retry-After", strconv.Itoa(int(sinktest.BusyWait.Seconds())))
			w.WriteHeader(429)
		case sinktest.Gone:
			w.WriteHeader(410)
		case sinktest.Silent:
			select {
			case <-req.Context().Done():
			case <-end:
			}
		}
	})
	o := Options{Format: format, Secrets: []string{secretA}}
	if format == batches {
		o.Format, o.Batch = Structured, Batch{Events: 50}
	}
	if https {
		r.Server = httptest.NewTLSServer(h)
		o.TLSConfig = r.Client().Transport.(*http.Transport).TLSClientConfig
	} else {
		r.Server = httptest.NewServer(h)
	}
	o.URL = r.URL + "/hook"
	t.Cleanup(func() { close(end); r.Close() })
	return sinktest.Target{
		Sink: open(t, o),
		Set:  func(b sinktest.Behaviour) { behaviour.Store(int64(b)) },
		Received: func() []sinktest.Received {
			var got []sinktest.Received
			for _, q := range r.all() {
				if format == batches {
					evs, err := event.ParseBatch([]byte(q.body), event.Limits{Event: 2 << 20}, nil)
					if err != nil {
						t.Error(err)
					}
					for _, e := range evs {
						got = append(got, sinktest.Received{ID: q.header.Get("webhook-id"), Event: e.Clone()})
					}
					continue
				}
				got = append(got, sinktest.Received{ID: q.header.Get("webhook-id"), Event: parse(t, format, q)})
			}
			return got
		},
	}
}

func parse(t *testing.T, format string, q request) event.Event {
	e := event.Event{Data: []byte(q.body)}
	switch format {
	case Structured:
		e = event.Event{}
		if err := event.ParseStructured([]byte(q.body), event.Limits{Event: 2 << 20}, &e); err != nil {
			t.Error(err)
		}
	case Binary:
		e.DataContentType = q.header.Get("Content-Type")
		for name, values := range q.header {
			if _, err := event.FromHeader(&e, strings.ToLower(name), values[0]); err != nil {
				t.Error(err)
			}
		}
	}
	return e.Clone()
}
