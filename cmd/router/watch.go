package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

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
			if !d.changed() {
				continue
			}
		}
		if err := d.reload(ctx); err != nil {
			d.log.Error("the rules were not reloaded; those before are in force", "path", d.path, "error", err)
		} else {
			d.log.Info("rules reloaded", "path", d.path, "revision", d.rulesState().Revision)
		}
	}
}

// changed reports whether the files differ from when they were last read.
func (d *definitions) changed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return stampOf(d.path)+d.stampFiles() != d.stamp
}

// stampFiles changes when one of the files that the rules consist of does: the modules and schemas that they
// name included.
func (d *definitions) stampFiles() (stamp string) {
	if d.file != nil {
		for _, f := range d.file.Files {
			stamp += stampOf(f)
		}
	}
	return stamp
}

// stampOf is made of names, sizes and times.
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
		if i, err := e.Info(); err == nil {
			fmt.Fprintln(&b, e.Name(), i.Size(), i.ModTime().UnixNano())
		}
	}
	return b.String()
}
