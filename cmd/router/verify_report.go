package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
)

// A verdict is what verify found. Times are in milliseconds.
type verdict struct {
	OK           bool         `json:"ok"`
	Router       string       `json:"router"`
	Published    int          `json:"published"`
	Acknowledged int          `json:"acknowledged"`
	PerSecond    float64      `json:"perSecond"` // acknowledged while publishing, the router's absences included
	PublishingMS float64      `json:"publishingMs"`
	TotalMS      float64      `json:"totalMs"`
	Kills        []killed     `json:"kills"`
	KillsAsked   int          `json:"killsAsked"`
	Ways         []wayVerdict `json:"ways"`
	Faults       []string     `json:"faults"`
}

type killed struct {
	How     string  `json:"how"` // kill -9, or drained: somebody stopped it in order
	ReadyMS float64 `json:"readyMs"`
	From    string  `json:"from"` // start: its process began; gone: it was found gone
}

type wayVerdict struct {
	Way          string   `json:"way"`
	Delivered    int      `json:"delivered"` // different events
	Repeats      int      `json:"repeats"`
	Lost         int      `json:"lost"` // acknowledged, and neither delivered nor dead-lettered
	LostIDs      []string `json:"lostIds,omitempty"`
	Inversions   int      `json:"inversions"`
	Inverted     []string `json:"inverted,omitempty"`
	DeadLettered int      `json:"deadLettered"`
	Altered      int      `json:"altered"`
	AlteredIDs   []string `json:"alteredIds,omitempty"`
	Foreign      int      `json:"foreign"` // never published
	Unverified   int      `json:"unverified"`
}

// verdict puts together what was found.
func (v *verification) verdict(ctx context.Context) (*verdict, error) {
	acked := v.ledger.acknowledged()
	d := &verdict{Router: v.c.base.Redacted(), Published: v.ledger.published(), Acknowledged: acked, KillsAsked: v.o.kills,
		PublishingMS: millis(v.ledger.took), TotalMS: millis(time.Since(v.began)), Kills: []killed{}, Faults: []string{}}
	d.PerSecond = float64(acked) / v.ledger.took.Seconds()
	done := 0
	for _, k := range v.kills {
		out := killed{How: "kill -9", ReadyMS: millis(k.Ready), From: "start"}
		if !k.Started {
			out.From = "gone"
		}
		if k.Killed {
			done++
		} else {
			out.How = "drained"
		}
		d.Kills = append(d.Kills, out)
	}
	for _, w := range v.ledger.ways {
		dead, err := v.deadLetters(ctx, w.name)
		if err != nil {
			return nil, err
		}
		d.Ways = append(d.Ways, v.ledger.wayVerdict(w, dead))
		d.fault(d.Ways[len(d.Ways)-1])
	}
	d.OK = len(d.Faults) == 0
	if done < v.o.kills {
		say(v.p.stderr, "%d of %d kills took place: what follows is no proof of the others", done, v.o.kills)
	}
	return d, nil
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (l *ledger) wayVerdict(w *way, dead int) wayVerdict {
	ids, lost := l.missing(w)
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.faults
	return wayVerdict{Way: w.name, Delivered: w.first, Repeats: f.repeats, Lost: lost, LostIDs: ids, DeadLettered: dead,
		Inversions: len(f.inversions), Inverted: f.inversions[:min(namedIDs, len(f.inversions))],
		Altered: len(f.altered), AlteredIDs: f.altered[:min(namedIDs, len(f.altered))], Foreign: len(f.foreign), Unverified: f.unverified}
}

// fault adds what is wrong with one way, in words.
func (d *verdict) fault(w wayVerdict) {
	for _, x := range []struct {
		n    int
		what string
		ids  []string
	}{
		{w.Lost, "acknowledged and not delivered", w.LostIDs},
		{w.Inversions, "first delivered after a later one of their key", w.Inverted},
		{w.Altered, "delivered with other content", w.AlteredIDs},
		{w.Foreign, "delivered and never published", nil},
		{w.Unverified, "sent without a right signature", nil},
		{w.DeadLettered, "dead-lettered, although their receiver took whatever came twice", nil},
	} {
		if x.n == 0 {
			continue
		}
		text := fmt.Sprintf("%s: %d %s", w.Way, x.n, x.what)
		if len(x.ids) > 0 {
			text += ": " + strings.Join(x.ids, " ")
			if strings.Contains(x.ids[0], " ") {
				text = fmt.Sprintf("%s: %d %s: %s", w.Way, x.n, x.what, strings.Join(x.ids, ", "))
			}
		}
		if len(x.ids) > 0 && len(x.ids) < x.n {
			text += " …"
		}
		d.Faults = append(d.Faults, text)
	}
}

// printVerdict prints what was found; an error makes the program exit with 1.
func (p *program) printVerdict(d *verdict, asJSON bool) error {
	if asJSON {
		doc, err := json.Marshal(d)
		if err != nil {
			return err
		}
		if err := printJSON(p.stdout, doc); err != nil {
			return err
		}
	} else if err := p.printVerdictText(d); err != nil {
		return err
	}
	if !d.OK {
		return errSaid
	}
	return nil
}

func (p *program) printVerdictText(d *verdict) error {
	say(p.stdout, "published     %d events, %d of them acknowledged, in %.1f s (%.0f/s)", d.Published, d.Acknowledged, d.PublishingMS/1000, d.PerSecond)
	if d.KillsAsked > 0 && len(d.Kills) == 0 {
		say(p.stdout, "kill -9       none took place")
	}
	for _, k := range d.Kills {
		from := "after its start"
		if k.From == "gone" {
			from = "after it was found gone"
		}
		say(p.stdout, "%-12s  ready again %.0f ms %s", k.How, k.ReadyMS, from)
	}
	t := tabwriter.NewWriter(p.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "\nWAY\tDELIVERED\tREPEATS\tLOST\tINVERSIONS\tDEAD-LETTERED")
	for _, w := range d.Ways {
		inversions := "-"
		if w.Way == wayOrdered {
			inversions = fmt.Sprint(w.Inversions)
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\t%d\n", w.Way, w.Delivered, w.Repeats, w.Lost, inversions, w.DeadLettered)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if d.OK {
		say(p.stdout, "\nEvery acknowledged event arrived by every way, unaltered, and in order where order was asked for.")
		return nil
	}
	say(p.stdout, "\nNot as it should be:")
	for _, f := range d.Faults {
		say(p.stdout, "  %s", clean(f))
	}
	return nil
}
