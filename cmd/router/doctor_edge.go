package main

import (
	"fmt"
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
		at := fmt.Sprintf("%s: until %s", x.Name, x.At.UTC().Format(time.DateOnly))
		switch left := time.Until(x.At); {
		case left <= 0:
			e.find("certificate", "bad", "clients refuse it: put a new one in its place", "%s", at)
		case left < 14*24*time.Hour:
			e.find("certificate", "note", "put a new one in its place; a running router takes it by itself", "%s", at)
		default:
			e.find("certificate", "good", "", "%s", at)
		}
	}
}
