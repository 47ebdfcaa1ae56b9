package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/native"
)

// deadlineCPU is the time that a spinning guest is allowed, and samplesOfWorst of how many its worst is shown.
const (
	deadlineCPU    = 20 * time.Millisecond
	samplesOfWorst = 20
)

// spinners are the ways in which a guest never ends, by the event that the hostile one gets.
var spinners = []struct{ key, event, name string }{
	{"loop", "j", "a loop"},
	{"tree", "1", "calls that call twice"},
	{"fill", "f", "memory.fill of 6 MiB again and again"},
}

// timed is the native convention with a watch on every run of a guest. One call at a time uses it.
type timed struct {
	native.ABI
	began func()
	ended func(took time.Duration)
}

func (a timed) Bind(in *plugins.Instance) (plugins.Guest, error) {
	g, err := a.ABI.Bind(in)
	return timedGuest{g, a}, err
}

type timedGuest struct {
	plugins.Guest
	abi timed
}

func (g timedGuest) Handle(b *plugins.Batch, out *plugins.Outcome) error {
	start := time.Now()
	g.abi.began()
	err := g.Guest.Handle(b, out)
	g.abi.ended(time.Since(start))
	return err
}

// measureDeadline measures how much longer than it may a guest runs that never ends.
func measureDeadline() measurement {
	m := measurement{name: "deadlines", run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) (err error) {
		var runs []time.Duration
		abi := timed{began: func() {}, ended: func(took time.Duration) { runs = append(runs, took) }}
		h, err := l.host(ctx, plugins.Options{ABIs: []plugins.ABI{abi}})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, h.Close(context.WithoutCancel(ctx))) }()
		f, err := l.function(ctx, h, "hostile", event.FunctionLimits{CPU: deadlineCPU, Wall: time.Minute})
		if err != nil {
			return err
		}
		var out plugins.Outcome
		for _, s := range spinners {
			c := orders(1, []byte(s.event))
			for runs = runs[:0]; len(runs) < samplesOfWorst; { // a call takes two: what failed is run again on a fresh instance
				if err := f.Call(ctx, c, &out); err != nil {
					return err
				}
				if len(out.Failures) != 1 || out.Failures[0].Reason != plugins.ReasonDeadline {
					return fmt.Errorf("%s did not end by its deadline: %v", s.name, out.Failures)
				}
			}
			worst := time.Duration(0)
			for _, took := range runs {
				worst = max(worst, took-deadlineCPU)
			}
			put("past-"+s.key, float64(worst.Nanoseconds())/1e3)
		}
		return nil
	}}
	for _, s := range spinners {
		m.gives = append(m.gives, "past-"+s.key)
	}
	return m
}

// measureCollection measures a forced collection alone and beside a spinning guest, which Go cannot stop.
func measureCollection() measurement {
	return measurement{name: "a collection beside a spinning guest", gives: []string{"gc-alone", "gc-beside"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) (err error) {
			spins := make(chan struct{}, 1)
			abi := timed{ended: func(time.Duration) {}, began: func() {
				select {
				case spins <- struct{}{}:
				default:
				}
			}}
			h, err := l.host(ctx, plugins.Options{ABIs: []plugins.ABI{abi}})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, h.Close(context.WithoutCancel(ctx))) }()
			f, err := l.function(ctx, h, "hostile", event.FunctionLimits{CPU: time.Minute, Wall: time.Minute})
			if err != nil {
				return err
			}
			put("gc-alone", slowestCollection())
			spinning, stop := context.WithCancel(ctx)
			var end error
			var wg sync.WaitGroup
			wg.Go(func() { end = f.Call(spinning, orders(1, []byte(spinners[0].event)), &plugins.Outcome{}) })
			<-spins
			put("gc-beside", slowestCollection())
			stop()
			wg.Wait()
			if !errors.Is(end, context.Canceled) {
				return fmt.Errorf("the guest did not spin until it was told to end: %v", end)
			}
			return ctx.Err()
		}}
}

// slowestCollection is the slowest of some forced collections, in microseconds.
func slowestCollection() float64 {
	worst := time.Duration(0)
	for range samplesOfWorst {
		start := time.Now()
		runtime.GC()
		worst = max(worst, time.Since(start))
	}
	return float64(worst.Nanoseconds()) / 1e3
}
