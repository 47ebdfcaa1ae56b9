package webhook

import (
	"encoding/base64"
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

// Keys to sign with are not sent, but a receiver may have been given them: whatever their kind, as they are written or
// without prefix and padding, and where one begins as another does.
func TestAnswersThatRepeatKeys(t *testing.T) {
	shared := base64.StdEncoding.EncodeToString([]byte("canary-canary-canary-canary-32-b"))
	seed := base64.StdEncoding.EncodeToString([]byte("tenor--tenor--tenor--tenor--32-b"))
	secrets := []string{"whsec_" + shared, "whsk_" + seed}
	for _, echo := range []string{secrets[0], secrets[1], shared, seed, strings.TrimRight(seed, "="), url.QueryEscape(seed)} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, "key: ", echo)
		}))
		err := oneDelivery(t, Options{URL: s.URL, Secrets: secrets})
		s.Close()
		if err == nil || !strings.Contains(err.Error(), "key: ***") || strings.Contains(err.Error(), shared[:8]) || strings.Contains(err.Error(), seed[:8]) {
			t.Errorf("%s: %v", echo, err)
		}
	}
	r := secretsOf(Options{Headers: map[string]string{"X-A": "canary", "X-B": "canary-tail"}})
	if got := r.Replace("canary-tail canary"); got != "*** ***" {
		t.Error(got)
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
