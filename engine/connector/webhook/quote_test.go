package webhook

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// A receiver that repeats what it was sent, as it is or encoded, brings no secret into the error.
func TestAnswersThatRepeatSecrets(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		auth := r.Header.Get("Authorization")
		w.WriteHeader(http.StatusBadGateway)
		fmt.Fprintf(w, "%s %q %s %s %s", r.URL, auth, strings.TrimPrefix(auth, "Bearer "), url.QueryEscape(auth), r.URL.Query().Get("key"))
	}))
	defer s.Close()
	o := Options{URL: s.URL + "/?key=canary%2F1&other=canary%222", Headers: map[string]string{"Authorization": `Bearer canary/3"x`}}
	err := oneDelivery(t, o)
	if err == nil || strings.Contains(err.Error(), "canary") || !strings.Contains(err.Error(), "***") {
		t.Errorf("%v", err)
	}
}

func oneDelivery(t *testing.T, o Options) error {
	t.Helper()
	o.Dialer = &net.Dialer{}
	sink, err := OpenSink(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	e := event.Event{ID: "a", Source: "/s", Type: "t"}
	return sink.Deliver(t.Context(), []event.Delivery{{ID: "a", Event: event.Record(e.AppendRecord(nil))}})
}
