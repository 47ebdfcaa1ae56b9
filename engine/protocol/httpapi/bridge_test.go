package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// PublishForwarded takes what lies below offset 10 for repeats.
func (f *fake) PublishForwarded(ctx context.Context, topic string, evs []event.Event, pos []event.Position, from event.Forwarded) (event.Taken, error) {
	var taken event.Taken
	if !strings.Contains(from.By, "\x00") {
		return taken, errors.New("it is not said who that is here")
	}
	for _, p := range from.At {
		if p.Offset < 10 {
			taken.Repeats++
		}
	}
	return taken, f.Publish(ctx, topic, evs[taken.Repeats:], pos[taken.Repeats:])
}

// Name is that of the fake router.
func (f *fake) Name() string { return "fake" }

// Stamp is that of any topic of it.
func (f *fake) Stamp(string) (string, error) { return "first", nil }

func TestForwardedEventsAreTakenOnce(t *testing.T) {
	_, url := serve(t, Options{Backend: newFake("orders")})
	post := func(header string, ids ...string) (int, string) {
		var b strings.Builder
		for i, id := range ids {
			b.WriteString(map[bool]string{true: "[", false: ","}[i == 0])
			b.WriteString(`{"specversion":"1.0","id":"` + id + `","source":"/a","type":"t"}`)
		}
		b.WriteByte(']')
		req, err := http.NewRequestWithContext(t.Context(), "POST", url+"/v1/topics/orders/events", strings.NewReader(b.String()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/cloudevents-batch+json")
		req.Header.Set(event.BridgeHeader, header)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		buf := make([]byte, 1<<10)
		n, _ := res.Body.Read(buf)
		return res.StatusCode, string(buf[:n])
	}
	from := event.Forwarded{By: "r1/hq", Line: "5.0.0", At: []event.Position{{Offset: 9}, {Offset: 10}}}
	if code, says := post(string(from.Append(nil)), "a", "b"); code != 202 || says != `{"accepted":1,"repeats":1,"loops":0}`+"\n" {
		t.Errorf("%d %s", code, says)
	}
	if code, says := post(string(from.Append(nil)), "a"); code != 400 || !strings.Contains(says, "not those of 1 events") {
		t.Errorf("%d %s", code, says)
	}
}
