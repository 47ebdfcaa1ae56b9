package main

import (
	"time"

	"github.com/millrace/millrace/engine/edge"
	"github.com/millrace/millrace/engine/event"
)

// limits says what serve would take without flags that say otherwise.
func (e *examination) limits() {
	l := event.Limits{}.WithDefaults()
	e.find("limits", "good", "", "%s an event, %s a request, %d events a request; 'router serve --help' has the flags", sizeText(int64(l.Event)), sizeText(int64(l.Body)), l.Events)
}

// certificates reads the files that serve would.
func (e *examination) certificates(o edgeOptions) {
	if len(o.certs) == 0 && len(o.keys) == 0 && o.clientCA == "" {
		return
	}
	const do = "write the whole chain, the certificate first, and its own key, both PEM"
	pairs, err := o.pairs()
	if err != nil {
		e.find("certificate", "bad", do, "%v", err)
		return
	}
	read, err := edge.New(edge.Options{Pairs: pairs, ClientCA: o.clientCA})
	if err != nil {
		e.find("certificate", "bad", do, "%v", err)
		return
	}
	for _, x := range read.Expiries() {
		e.expiry(x.Name, x.At, time.Now(), "put a new one in its place; a running router takes it by itself")
	}
}
