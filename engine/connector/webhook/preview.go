package webhook

import (
	"bytes"
	"net/url"
	"slices"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// hidden stands for what is not shown.
const hidden = "(hidden)"

// Preview returns the request that Deliver would send for one delivery now. Signatures are hidden, and so are the
// values of configured headers and, of the URL, path and query: any of them may hold secrets. Nothing is sent.
func (s *Sink) Preview(d event.Delivery) (event.Request, error) {
	l := newLane(s.target)
	if s.auth != nil {
		l.auth = hidden // nothing is fetched
	}
	var wire []byte
	var err error
	if s.o.Batch.several() {
		wire, _, _, err = s.target.buildBatch(l, []event.Delivery{d}, int(s.fits.Load()), s.o.Now().Unix())
	} else {
		wire, err = s.target.build(l, &d, s.o.Now().Unix())
	}
	if err != nil {
		return event.Request{}, err
	}
	head, body, _ := bytes.Cut(wire, []byte("\r\n\r\n"))
	lines := strings.Split(string(head), "\r\n")
	r := event.Request{Method: "POST", URL: s.target.name + "/" + hidden}
	if u, err := url.Parse(s.o.URL); err == nil && u.RequestURI() == "/" {
		r.URL = s.target.name + "/"
	}
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ": ")
		h := event.Header{Name: name, Value: value}
		own := slices.ContainsFunc(sortedNames(s.o.Headers), func(n string) bool { return strings.EqualFold(n, name) && s.o.Headers[n] == value })
		if own || strings.EqualFold(name, "webhook-signature") || s.auth != nil && strings.EqualFold(name, "authorization") {
			h.Value, h.Hidden = hidden, true
		}
		r.Headers = append(r.Headers, h)
	}
	return r.With(body), nil
}
