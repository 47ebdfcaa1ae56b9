package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/storage/pebblestore"
)

// fewBacklog is the queue of connections that are to be accepted which a burst of clients fills; Linux has 4096 since 5.4.
const fewBacklog = 1024

// kernel looks at the settings of Linux that bound a server, below root.
func (e *examination) kernel(root string) {
	path := filepath.Join(root, "proc/sys/net/core/somaxconn")
	text, err := os.ReadFile(path)
	if err != nil {
		return // another system
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	switch {
	case err != nil:
		e.find("backlog", "note", "", "%s: %v", path, err)
	case n < fewBacklog:
		e.find("backlog", "note", "sysctl net.core.somaxconn=4096, before the router starts", "at most %d connections wait to be accepted; where clients come all at once the rest are refused or come late", n)
	default:
		e.find("backlog", "good", "", "up to %d connections wait to be accepted", n)
	}
}

// filesystem says what a data directory's file system does not keep.
func (e *examination) filesystem(dir string) {
	e.onFilesystem(filesystemOf(existing(dir)), dir)
}

func (e *examination) onFilesystem(kind, dir string) {
	switch kind {
	case "":
	case "tmpfs", "ramfs":
		e.find("filesystem", "note", "name a directory on a disk with --data", "%s is on %s, in memory: all events go with a restart of the machine, and they take the memory that the router divides", dir, kind)
	case "nfs", "smb", "afs", "ceph", "9p", "fuse":
		e.find("filesystem", "note", "name a directory on a disk of this machine with --data", "%s is on %s: what a sync and a lock are worth there is the server's to say, and each event waits for it", dir, kind)
	case "overlay":
		e.find("filesystem", "note", "mount a volume there", "%s is on overlay, a container's own layer: it goes with the container", dir)
	default:
		e.find("filesystem", "good", "", "%s", kind)
	}
}

// existing is a path or the nearest above it that exists: what is still to be made will be on the same disk.
func existing(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || filepath.Dir(path) == path {
			return path
		}
		path = filepath.Dir(path)
	}
}

// Of the clock: what the store forgives without a word, what a run of doctor may be off by, and what the store does not
// follow (see serve --accept-clock).
const (
	clockBehind = time.Minute
	clockStep   = time.Second
	clockAhead  = 365 * 24 * time.Hour
)

// clock holds this machine's clock against that of the store, which never goes back.
func (e *examination) clock(data string, now time.Time) {
	last, err := pebblestore.LastTime(filepath.Join(data, storeDir))
	if err != nil || last.IsZero() {
		return // the store's own finding says it
	}
	const set = "set the clock (timedatectl, chronyc makestep) before the router starts"
	switch ahead := now.Sub(last); {
	case ahead < -clockBehind:
		e.find("clock", "bad", set, "it is %s, %s before what the store has written (%s): until then all events get that time, and nothing expires or comes due by its own", now.UTC().Format(time.RFC3339), (-ahead).Round(time.Second), last.UTC().Format(time.RFC3339))
	case ahead > clockAhead:
		e.find("clock", "bad", set+"; if it is right, start with --accept-clock", "it is %s, %d days after what the store wrote last: such a step is not followed, since everything would expire at once", now.UTC().Format(time.RFC3339), int(ahead.Hours()/24))
	default:
		e.find("clock", "good", "", "the store wrote last at %s, and it is later", last.UTC().Format(time.RFC3339))
	}
}

// steady says whether the clock was set while doctor looked, which took so long by the wall and so long indeed, and
// whether anything keeps it right.
func (e *examination) steady(wall, took time.Duration, synced, known bool) {
	switch step := wall - took; {
	case step.Abs() > clockStep:
		e.find("clock", "bad", "see what sets it, and let it slew instead (chrony, systemd-timesyncd)", "it was set by %s within these moments: schedules, retries and retention go by it", step.Round(time.Millisecond))
	case known && !synced:
		e.find("clock", "note", "run chrony or systemd-timesyncd, here or on the host", "the kernel says that nothing keeps it right (no NTP)")
	}
}

// acme names certificates of the ACME authority's that should have been renewed by now. Which hosts are served is not
// known here: one that has ended may be of a host that is served no more, so it is a note.
func (e *examination) acme(data string, now time.Time) {
	entries, err := os.ReadDir(filepath.Join(data, "acme"))
	if err != nil {
		return // none were asked for
	}
	for _, f := range entries {
		if !f.Type().IsRegular() || strings.HasPrefix(f.Name(), "acme_account") {
			continue
		}
		host, kind, _ := strings.Cut(f.Name(), "+")
		if kind != "" && kind != "rsa" {
			continue // a challenge: its answer, or the certificate that shows it
		}
		end, err := endOf(filepath.Join(data, "acme", f.Name()))
		if err != nil {
			e.find("certificate", "note", "", "%s: %v", filepath.Join(data, "acme", f.Name()), err)
			continue
		}
		if end.IsZero() {
			continue
		}
		if !end.After(now) {
			e.find("certificate", "note", "see the router's log; if --acme-host names it no more, remove "+filepath.Join(data, "acme", f.Name()), "%s, of the ACME authority: until %s; if it is still served, clients refuse it", host, end.UTC().Format(time.DateOnly))
			continue
		}
		e.expiry(host+", of the ACME authority", end, now, "the router's log says why it is not renewed; it should have been 30 days before its end, unless --acme-host names it no more")
	}
}

// expiry is the finding of one certificate; renew says what to do where it ends soon.
func (e *examination) expiry(name string, end, now time.Time, renew string) {
	at := fmt.Sprintf("%s: until %s", name, end.UTC().Format(time.DateOnly))
	switch left := end.Sub(now); {
	case left <= 0:
		e.find("certificate", "bad", "clients refuse it: "+renew, "%s", at)
	case left < soonEnds:
		e.find("certificate", "note", renew, "%s", at)
	default:
		e.find("certificate", "good", "", "%s", at)
	}
}

// soonEnds is when doctor and the log begin to tell of a certificate.
const soonEnds = 14 * 24 * time.Hour

// litter names modules that no function, kept version, parked event or replay in the store needs.
func (e *examination) litter(named map[string]bool, stale map[string]int64) {
	var orphans []string
	var bytes int64
	for digest, size := range stale {
		if !named[digest] {
			orphans, bytes = append(orphans, digest), bytes+size
		}
	}
	if len(orphans) == 0 {
		return
	}
	slices.Sort(orphans)
	e.find("modules", "note", "a router that runs removes them within two hours, once it has read its rules: they may name some", "%s of %s that nothing stored names, such as %s", plural(len(orphans), "module"), sizeText(bytes), orphans[0])
}

// staleAfter is how long a router that runs may leave a module that nobody names: its grace, and until its next look.
const staleAfter = 2 * time.Hour
