package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// watch keeps what comes from files up to date until ctx ends: rules, policies, certificates. On a signal all of them are
// looked at at once.
func (r *router) watch(ctx context.Context, g *errgroup.Group, hangup <-chan os.Signal) {
	var bells []chan os.Signal
	start := func(watch func(hangup <-chan os.Signal)) {
		bell := make(chan os.Signal, 1)
		bells = append(bells, bell)
		g.Go(func() error {
			watch(bell)
			return nil
		})
	}
	every := cmp.Or(r.o.look, time.Second)
	switch {
	case r.defs.path == "": // none, or what was applied over the API
	case r.defs.afar != nil:
		start(func(hangup <-chan os.Signal) { r.defs.pollAfar(ctx, hangup) })
	case r.o.files == nil:
		start(func(hangup <-chan os.Signal) { r.defs.watch(ctx, hangup, every) })
	}
	if f := r.policy; f.path != "" {
		start(func(hangup <-chan os.Signal) {
			f.watch(ctx, hangup, every, func() { f.reload(r.dialer, r.o.log) })
		})
	}
	if f := r.guard.policy; f != nil {
		start(func(hangup <-chan os.Signal) {
			f.watch(ctx, hangup, every, func() { f.reload(r.guard.Guard, r.o.log) })
		})
	}
	if r.edge != nil {
		start(func(hangup <-chan os.Signal) { r.edge.Watch(ctx, hangup) })
	}
	g.Go(func() error {
		ring(ctx, hangup, bells)
		return nil
	})
}

// ring passes each signal on to all bells until ctx ends. Whoever has not heard the last one yet need not hear it twice.
func ring(ctx context.Context, hangup <-chan os.Signal, bells []chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-hangup:
			for _, bell := range bells {
				select {
				case bell <- s:
				default:
				}
			}
		}
	}
}

// watch reloads the rules when the file changes or a signal asks for it, until ctx ends.
func (d *definitions) watch(ctx context.Context, hangup <-chan os.Signal, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		case <-ticker.C:
			if !d.changed() || !d.settled(ctx) {
				continue
			}
		}
		switch err := d.reload(ctx); {
		case errors.Is(err, errChanging): // it is found changed at the next look
		case err != nil:
			d.log.Error("the rules were not reloaded; those before are in force", "path", d.path, "error", err)
		default:
			d.logLoaded()
		}
	}
}

// changed reports whether the files differ from when they were last read.
func (d *definitions) changed() bool {
	now, then := d.look()
	return now != then
}

// settled reports whether nobody has written the files for a moment.
func (d *definitions) settled(ctx context.Context) bool {
	first, _ := d.look()
	if sleep(ctx, settleTime) != nil {
		return false
	}
	again, _ := d.look()
	return again == first
}

// look returns the files' stamp and that of when they were last read.
func (d *definitions) look() (now, then string) {
	d.mu.Lock()
	watched, then := d.watched, d.stamp
	d.mu.Unlock()
	return stampOf(d.path) + stampsOf(watched), then
}

// stampsOf changes when one of the files that the rules name does: modules, schemas, ${file:…}.
func stampsOf(files []string) string {
	var b strings.Builder
	for _, f := range files {
		b.WriteString(stampOf(f))
	}
	return b.String()
}

// stampOf is made of names, sizes and times: of a file, or of a folder's rules. Links are followed, since mounted
// folders consist of them; other files in the folder are nothing to the rules.
func stampOf(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	if !info.IsDir() {
		return fmt.Sprint(info.Size(), info.ModTime().UnixNano())
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext == ".yaml" || ext == ".yml" {
			fmt.Fprintln(&b, e.Name(), stampOfFile(filepath.Join(path, e.Name())))
		}
	}
	return b.String()
}

func stampOfFile(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(info.Size(), info.ModTime().UnixNano(), info.IsDir())
}
